"""A condensed set as a torch dataset, from runs and packages."""

from __future__ import annotations

import base64
import io
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hmdc_hub import multi_formation
from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.publish.build import package
from hmdc_hub.store.condensed import read_condensed, write_condensed
from hmdc_hub.store.dataset import load
from hmdc_hub.store.parquet import read_parquet, to_uint8
from hmdc_hub.store.rundir import RunDir
from tests.builders import make_recipe, make_run, make_source_info


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "runs" / "tiny")


def test_it_holds_the_synthetic_and_the_training_images(run: RunDir) -> None:
    stored, _, header = read_condensed(run.condensed)
    loaded = load(run.path)
    assert torch.equal(loaded.synthetic_images, stored) and loaded.header == header
    assert (loaded.ipc, loaded.factor, loaded.class_names) == (header.ipc, header.factor, header.class_names)
    pixels, labels = read_parquet(run.parquet)
    assert torch.equal(to_uint8(loaded.images), pixels) and torch.equal(loaded.labels, labels)
    classes = stored.reshape(len(header.class_names), header.ipc, *stored.shape[1:])
    assert torch.equal(loaded.images, multi_formation.decode(classes, header.factor).flatten(0, 1))
    assert len(loaded) == len(pixels) == 24


def test_it_is_a_torch_dataset(run: RunDir) -> None:
    loaded = load(run.path)
    image, label = loaded[5]
    assert torch.equal(image, loaded.images[5]) and (type(label), label) == (int, 0)
    assert image.dtype == torch.float32 and image.shape == (3, 8, 8) and 0 <= image.min() <= image.max() <= 1
    assert [loaded[n][1] for n in range(24)] == loaded.labels.tolist() and loaded[-1][1] == 2
    with pytest.raises(IndexError):
        loaded[24]
    batches = list(DataLoader(loaded, batch_size=10))
    assert torch.equal(torch.cat([images for images, _ in batches]), loaded.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), loaded.labels)


def test_a_slice_is_a_batch(run: RunDir) -> None:
    loaded = load(run.path)
    for data in (loaded, loaded.normalised()):
        for index in (slice(4), slice(3, None, 5), [5, 1], torch.tensor([5, 1]), loaded.labels == 2):
            images, labels = data[index]
            assert torch.equal(images, data.images[index]) and torch.equal(labels, data.labels[index])
        assert isinstance(data[torch.tensor(5)][1], int) and isinstance(data[-1][1], int)
        assert [label for _, label in DataLoader(data, batch_size=None)] == loaded.labels.tolist()
        assert len(pickle.loads(pickle.dumps(data))) == 24 and len(repr(data)) < 150
    assert repr(loaded.normalised()) == "ImageDataset(24 images, 3 x 8 x 8)"


def test_normalised(run: RunDir) -> None:
    loaded = load(run.path)
    normalised = loaded.normalised()
    mean, std = loaded.mean[:, None, None], loaded.std[:, None, None]
    torch.testing.assert_close(normalised.images * std + mean, loaded.images)
    image, label = normalised[5]
    assert torch.equal(image, normalised.images[5]) and label == 0 and len(normalised) == 24
    images, labels = next(iter(DataLoader(normalised, batch_size=4)))
    assert images.shape == (4, 3, 8, 8) and labels.tolist() == [0] * 4


@pytest.mark.parametrize("channels", [1, 3])
def test_as_a_dataset_of_the_datasets_library(tmp_path: Path, channels: int) -> None:
    import numpy as np

    run = make_run(tmp_path / "run", recipe=make_recipe(channels=channels))
    made = load(run.path).to_dataset()
    assert made.features["label"].names == ["cat", "dog", "ship"] and str(made.split) == "train"
    assert type(made.features["image"]).__name__ == "Image"
    pixels, labels = read_parquet(run.parquet)
    found = torch.from_numpy(np.stack([np.asarray(row["image"]) for row in made]))
    assert torch.equal(found.reshape(24, 8, 8, channels).permute(0, 3, 1, 2), pixels)
    assert made["label"][:] == labels.tolist()
    made.to_parquet(tmp_path / "copy.parquet")  # and it is what others can read
    assert torch.equal(read_parquet(tmp_path / "copy.parquet")[0], pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_how_it_looks(tmp_path: Path, channels: int) -> None:
    recipe = make_recipe(name="tiny", channels=channels, ipc=9)
    names = ["<b>", *(f"c{n}" for n in range(30))]
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, class_names=names), scored=False)
    loaded = load(run.path)
    shape = f"{channels} x 8 x 8"
    assert repr(loaded) == (
        f"CondensedDataset('tiny', 31 classes, 9 synthetic = 36 training images per class, {shape})"
    )
    shown = loaded._repr_html_()
    assert len(shown) < 10_000 and "31 classes" in shown
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', shown)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8 * 24, 8 * 24)


@pytest.mark.slow
def test_loading_from_a_package_needs_a_name_only_if_there_are_several(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    for ipc in (1, 2):
        made = make_run(tmp_path / f"run{ipc}", recipe=make_recipe(ipc=ipc))
        shutil.copytree(package(made), folder, dirs_exist_ok=True)
        if ipc == 1:
            assert load(folder).header.ipc == 1
    assert load(folder).header.ipc == 2 and load(folder, "ipc1").header.ipc == 1  # the last card names the default
    (folder / "README.md").unlink()
    with pytest.raises(UsageError, match="ipc1, ipc2"):
        load(folder)
    assert load(folder / "ipc1").header.ipc == 1
    for config in ("ipc7", "../ipc1"):
        with pytest.raises((NotFoundError, UsageError)):
            load(folder, config)
    with pytest.raises(UsageError, match="revision"):
        load(folder, "ipc1", revision="main")


def test_damaged_sets_are_not_loaded(run: RunDir, tmp_path: Path) -> None:
    good = run.condensed.read_bytes()
    images, labels, header = read_condensed(run.condensed)
    write_condensed(run.condensed, images.flip(3), labels, header)  # intact, and not what info.json was written for
    with pytest.raises(FormatError, match="SHA-256"):
        load(run.path)
    data = bytearray(good)
    data[-1] ^= 1
    run.condensed.write_bytes(data)
    with pytest.raises(FormatError, match="its checksum is another"):
        load(run.path)
    with pytest.raises(NotFoundError, match="no condensed set"):
        load(tmp_path)
    with pytest.raises(NotFoundError, match="someone/cifar10-hmdc"):
        load("no such folder")
