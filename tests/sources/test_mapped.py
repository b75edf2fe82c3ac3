from __future__ import annotations

import errno
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Image
from PIL import Image as Pillow

from hmdc_hub.errors import RunError, SourceError
from hmdc_hub.evaluator import hold_out
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import ClassSortedImages, Source, load_source, pixels
from hmdc_hub.sources import source as source_module
from tests.sources.files import CLASSES, cells, encoded, parquet_folder, write_parquet

ROW = 3 * 8 * 8
"""Bytes of one decoded image of `load`."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that nothing else writes to."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all files that are mapped, in bytes."""
    seen: list[int] = []
    make = mmap.mmap

    def spy(descriptor: int, size: int) -> Any:
        seen.append(size)
        return make(descriptor, size)

    monkeypatch.setattr(mmap, "mmap", spy)
    return seen


def noise(count: int, seed: int) -> tuple[list[Any], list[int]]:
    """Make rows whose images are all different, with labels in no order."""
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 256, (count, 9, 11, 3)).astype(np.uint8)
    return cells([encoded(Pillow.fromarray(image)) for image in pixels]), random.permutation(
        np.arange(count) % 3
    ).tolist()


def load(path: Path, **keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": str(path), "size": 8, "channels": 3} | keys))


def limit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(pixels, "MAPPED_FROM", size)


def assert_same(one: Source, other: Source) -> None:
    assert torch.equal(one.train.images, other.train.images)
    assert one.train.offsets == other.train.offsets
    assert torch.equal(one.test_images, other.test_images)
    assert torch.equal(one.test_labels, other.test_labels)
    assert one.info == other.info


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as it refuses to write to a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refuse(code: int) -> Any:
    def posix_fallocate(descriptor: int, offset: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    return posix_fallocate


def test_a_mapped_source_is_the_same_bit_for_bit(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    root = parquet_folder(tmp_path / "pets", train=noise(700, 0), test=noise(300, 1))  # several chunks of 256
    plain = load(root)
    assert sizes == []
    limit(monkeypatch, 0)
    source = load(root)
    assert sizes == [1000 * ROW]
    assert_same(source, plain)
    assert list(folder.iterdir()) == []


def test_the_limit_is_that_of_both_splits_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    root = parquet_folder(tmp_path / "pets")
    limit(monkeypatch, 13 * ROW)
    load(root)
    assert sizes == []
    limit(monkeypatch, 13 * ROW - 1)
    load(root)
    assert sizes == [13 * ROW]


def test_slices_and_holdout_of_a_mapped_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    images, labels = noise(40, 2)
    features = {"image": Image(), "label": ClassLabel(names=list(CLASSES))}
    file = write_parquet(tmp_path / "pets.parquet", {"image": images, "label": labels}, features)
    splits = {"train_split": "train[:50%]+train[60%:80%]", "test_split": "train[80%:]"}
    plain = load(file, **splits)
    limit(monkeypatch, 0)
    source = load(file, **splits)
    assert sizes == [36 * ROW]
    assert_same(source, plain)
    held = hold_out(source, 0.25, seed=1)
    limit(monkeypatch, 2**30)
    assert_same(held, hold_out(plain, 0.25, seed=1))


def test_sorting_by_class_writes_to_a_mapped_file(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator())
    labels = torch.arange(50) * 7 % 4
    plain = ClassSortedImages.from_unsorted(images, labels, 4)
    limit(monkeypatch, 0)
    sorted_ = ClassSortedImages.from_unsorted(images, labels, 4)
    assert sizes == [50 * ROW]
    assert torch.equal(sorted_.images, plain.images)
    assert sorted_.offsets == plain.offsets


def test_images_of_another_device_are_taken_there() -> None:
    assert pixels.take(torch.empty(4, 3, 8, 8, device="meta"), torch.tensor([2, 0])).device.type == "meta"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the list of mappings of a process")
def test_the_file_is_gone_before_anything_is_written_and_its_space_with_the_tensor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0)

    def entries() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]

    images = torch.from_numpy(pixels.allocate((100, 3, 8, 8)))[:5]
    assert list(folder.iterdir()) == []
    (line,) = entries()
    assert line.endswith("(deleted)")
    assert int(line.split("-")[0], 16) == images.data_ptr()
    assert " rw-s " in line  # shared: private pages could not be written back to the file
    del images
    assert entries() == []


@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_is_an_error_before_anything_is_decoded(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, reserves: bool
) -> None:
    root = parquet_folder(tmp_path / "pets", train=noise(60, 0))
    load(root)  # what `datasets` prepares is no matter of this test
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    limit(monkeypatch, 0)
    text = re.escape(str(folder)) + r": cannot make a temporary file for 12,288 bytes.*File too large"
    with files_of_at_most(4096), pytest.raises(RunError, match=text) as caught:
        load(root)
    assert "TMPDIR" in caught.value.hint
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("refused", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_every_block_is_reserved(monkeypatch: pytest.MonkeyPatch, refused: int | None) -> None:
    if refused is not None:
        monkeypatch.setattr(os, "posix_fallocate", refuse(refused), raising=False)
    size, statuses, make = 2 * 2**20 + 5, [], mmap.mmap

    def look(descriptor: int, length: int) -> Any:
        statuses.append(os.fstat(descriptor))
        return make(descriptor, length)

    limit(monkeypatch, 0)
    monkeypatch.setattr(mmap, "mmap", look)
    pixels.allocate((size,))
    (status,) = statuses
    assert status.st_size == size
    assert status.st_blocks * 512 >= size  # not a sparse file


def test_no_space_is_told_from_no_way_to_reserve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC), raising=False)
    limit(monkeypatch, 0)
    with pytest.raises(RunError, match="100 bytes of decoded images.*No space left on device"):
        pixels.allocate((100,))


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    limit(monkeypatch, 0)
    with pytest.raises(RunError, match=r"gone: cannot make a temporary file.*No such file"):
        pixels.allocate((100,))


def test_a_damaged_image_of_a_mapped_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = noise(9, 0)
    images[4] = {"bytes": b"broken", "path": None}
    limit(monkeypatch, 0)
    with pytest.raises(SourceError, match="row 4"):
        load(parquet_folder(tmp_path, train=(images, labels)))


def test_statistics_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator())
    whole = source_module.channel_statistics(images)
    for chunk in (1, 64 * 7):
        monkeypatch.setattr(source_module, "STATISTICS_CHUNK", chunk)
        assert source_module.channel_statistics(images) == whole


# 128 MiB of pixels are loaded, sorted, hashed and counted by a process that may take a third of that. The limit is on
# memory that the process alone can give back (RLIMIT_DATA), which a mapped file is not part of.
LOAD_WITHIN = """
import resource, sys
from pathlib import Path
import PIL.Image
import torch
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import ClassSortedImages, load_source, pixels, register_dataset

class Flat:
    def __init__(self, count, corner):
        self.count, self.corner = count, corner

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        image = PIL.Image.new("L", (256, 256), row % 251)
        image.putpixel((0, 0), self.corner)
        return image, row % 2

spec = SourceSpec(id=register_dataset({"train": Flat(2048, 0), "test": Flat(8, 255)}), size=256, channels=1)
pixels.MAPPED_FROM = int(sys.argv[1])
status = Path("/proc/self/status").read_text().split()
held = int(status[status.index("VmData:") + 1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 45 * 2**20,) * 2)
train = load_source(spec).train
again = ClassSortedImages.from_unsorted(train.images, 1 - train.labels, 2)
assert torch.equal(again.of_class(0)[3], train.of_class(1)[3])
print(train.images.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone limits memory in this way")
@pytest.mark.parametrize("mapped_from", [2**20, 2**30])
def test_the_memory_for_a_mapped_source_is_a_fraction_of_it(mapped_from: int) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD_WITHIN, str(mapped_from)], capture_output=True, text=True)
    if mapped_from == 2**20:
        assert (done.stdout, done.returncode) == (f"{2**27}\n", 0), done.stderr
    else:
        assert "MemoryError" in done.stderr
