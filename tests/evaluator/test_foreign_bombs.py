"""Sets of other programs that are small on the disk and large in memory: refused by what their headers say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Value
from PIL import ImageFile

from hmdc_hub.errors import UsageError
from hmdc_hub.evaluator import evaluated_set, foreign
from tests import bombs
from tests.evaluator import toys
from tests.evaluator.foreign_sets import folder, noise, parquet, tensors, work_in

NAMES = ["row0", "row1", "row2"]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(tmp_path, monkeypatch)


@pytest.fixture
def decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", mock.Mock(side_effect=AssertionError("decoded")))


def rows(path: Path) -> None:
    bombs.repeated(path, bombs.png(8, 8), 30_000, NAMES)


def pages(path: Path) -> None:
    bombs.parquet(path, [bytes(65 << 20)], [0], NAMES, compression="zstd")


def shared(path: Path) -> None:
    bombs.repeated(path, bytes(range(256)) * 4096, 100, NAMES)


def lists(path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([np.zeros(9_000_000, dtype=np.int8)]), "label": [0]}), path)


def nested(path: Path) -> None:
    bombs.nested(path, 10_000)


@pytest.mark.slow
@pytest.mark.usefixtures("decodes_nothing")
@pytest.mark.parametrize("inside", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("bomb", "words"),
    [
        (rows, "30,000 rows, and may have 1,000"),
        (pages, "unpack to more than"),
        (shared, "become more than .*, by rows that hold the same"),
        (lists, "unpack to more than"),
        (nested, "nested more than"),
    ],
)
def test_parquet_files_are_measured_before_they_are_unpacked(
    bomb: Callable[[Path], None], words: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("deep/er" if inside else ".") / "train.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    bomb(path)
    monkeypatch.setattr(datasets, "load_dataset_builder", mock.Mock(side_effect=AssertionError("unpacked")))
    with pytest.raises(UsageError, match=words) as caught:
        evaluated_set("deep" if inside else str(path), toys.source())
    assert "damaged" not in caught.value.message and "compression='none'" in caught.value.hint


def test_images_that_share_their_bytes_are_read_once_written_as_the_hint_says() -> None:
    bombs.parquet(Path("a.parquet"), [bombs.png(8, 8, color=0)] * 3, [0, 1, 2], NAMES, compression="none")
    assert len(evaluated_set("a.parquet", toys.source()).images) == 3


@pytest.mark.usefixtures("decodes_nothing")
@pytest.mark.parametrize("width", [4097, 9000, 60_000], ids=str)
def test_images_are_measured_before_they_are_decoded(width: int) -> None:
    bombs.parquet(Path("a.parquet"), [bombs.png(width, width, data=b"")] * 40, [0] * 40, NAMES)
    with pytest.raises(UsageError) as caught:
        evaluated_set("a.parquet", toys.source())
    words = f"row 0 (counted from 0): the image is {width} x {width} pixels" if width < 20_000 else "row 0"
    assert words in caught.value.message


@pytest.mark.usefixtures("decodes_nothing")
def test_images_in_folders_are_measured_too() -> None:
    folder("images", NAMES)
    Path("images/row1/0.png").write_bytes(bombs.png(9000, 9000, data=b""))
    with pytest.raises(UsageError, match=r"row1/0\.png: the image is 9000 x 9000 pixels, more than the 16,777,216"):
        evaluated_set("images", toys.source())


def test_a_set_is_no_larger_than_ten_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "FEW", 4)
    monkeypatch.setattr(foreign, "TIMES", 0)
    path = parquet("theirs.parquet", [0, 1, 2, 0], Value("int64"))
    assert len(evaluated_set(path, toys.source()).images) == 4
    for target in (
        parquet("five.parquet", [0, 1, 2, 0, 1], Value("int64")),
        tensors("five.safetensors", images=noise(5), labels=torch.tensor([0, 1, 2, 0, 1])),
    ):
        with pytest.raises(UsageError, match="5"):
            evaluated_set(target, toys.source())


@pytest.mark.parametrize("shape", [[10**9, 1, 8, 8], [5, 1, 10**6, 10**6], [5, 1, 8, 8]])
def test_a_table_that_claims_more_than_the_file_has(shape: list[int]) -> None:
    size = shape[0] * shape[1] * shape[2] * shape[3]
    images = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
    bombs.safetensors(Path("a.safetensors"), json.dumps({"images": images}).encode())
    with pytest.raises(UsageError, match=r"cannot be read as safetensors|no tensor labels"):
        evaluated_set("a.safetensors", toys.source())


def test_shapes_are_compared_before_tensors_are_read() -> None:
    """A sparse file, which takes no room on the disk."""
    images = {"dtype": "U8", "shape": [2**25, 1, 8, 8], "data_offsets": [0, 2**31]}
    labels = {"dtype": "U8", "shape": [2**25], "data_offsets": [2**31, 2**31 + 2**25]}
    head = json.dumps({"images": images, "labels": labels}).encode()
    bombs.safetensors(Path("a.safetensors"), head)
    with Path("a.safetensors").open("r+b") as file:
        file.truncate(8 + len(head) + 2**31 + 2**25)
    with pytest.raises(UsageError, match=r"33,554,432 images"):
        evaluated_set("a.safetensors", toys.source())
