from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from huggingface_hub import constants
from PIL import Image

from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, load_source, open_reader, resolve_source
from hmdc_hub.sources.objects import SETS
from hmdc_hub.store.files import cache_folder
from tests.sources.files import write_idx


def load(name: str, **keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": f"torchvision:{name}", "size": 8, "channels": 1} | keys))


def write_mnist(folder: str, prefixes: tuple[str, str] = ("train", "t10k"), classes: int = 10, first: int = 0) -> None:
    """Write raw files in MNIST's format: image k has the value k, of the second prefix 255 - k, and the class
    k mod `classes`."""
    raw = cache_folder("torchvision") / folder / "raw"
    for prefix, count in zip(prefixes, (2 * classes, classes), strict=True):
        numbers = np.arange(count, dtype=np.uint8)
        values = 255 - numbers if prefix == prefixes[1] else numbers
        write_idx(raw / f"{prefix}-images-idx3-ubyte", np.broadcast_to(values[:, None, None], (count, 28, 28)))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", (numbers % classes + first).astype(np.uint8))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_raw_files_that_are_there_are_read(name: str) -> None:
    write_mnist(name)
    source = load(name)
    assert source.train.counts == (2,) * 10
    assert source.train.images.shape == (20, 1, 8, 8)
    assert source.train.of_class(3)[:, 0, 0, 0].tolist() == [3, 13]
    assert source.test_labels.tolist() == list(range(10))
    assert source.info.class_names == getattr(torchvision.datasets, name).classes
    assert source.info.license == SETS[name].license
    assert (source.info.kind, source.info.revision, source.info.test_split) == ("torchvision", None, "test")


def test_letters_lose_the_class_that_does_not_exist() -> None:
    write_mnist("EMNIST", ("emnist-letters-train", "emnist-letters-test"), classes=26, first=1)
    source = load("EMNIST", config="letters")
    assert source.info.class_names == list("abcdefghijklmnopqrstuvwxyz")
    assert source.train.of_class(0)[:, 0, 0, 0].tolist() == [0, 26]
    assert source.info.config == "letters"


def test_labels_are_read_without_opening_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = [("tench", "Tinca tinca"), ("dog",)]

        def __init__(self, root: str, split: str, size: str, download: bool, loader: Any) -> None:
            assert (size, download) == ("full", False)
            self.shift, self.loader = 100 if split == "val" else 0, loader
            self.targets = [0] * 6  # not what indexing gives: must not be believed

        def __len__(self) -> int:
            return 6

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return self.loader(tmp_path / f"{row + self.shift}.png"), row % 2

    monkeypatch.setattr(torchvision.datasets, "Imagenette", Fake)
    reader = open_reader("torchvision:Imagenette")
    assert list(reader["train"].read("label", 1, 5)) == [1, 0, 1, 0]  # there are no files yet
    assert reader["train"].class_names == {"label": ["tench", "dog"]}
    for value in (*range(6), *range(100, 106)):
        Image.new("RGB", (9, 7), (value,) * 3).save(tmp_path / f"{value}.png")
    source = load("Imagenette", config="full")
    assert source.info.test_split == "val"
    assert source.train.of_class(1)[:, 0, 0, 0].tolist() == [1, 3, 5]
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(
        SourceError, match="split 'train', item 3 .* the dataset raised UnidentifiedImageError: cannot identify"
    ) as caught:
        load("Imagenette")
    assert "to download them again" in caught.value.hint


def test_a_set_that_opens_its_images_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, split: str, download: bool) -> None:
            self.first = 100 if split == "test" else 0

        def __len__(self) -> int:
            return 6

        def __getitem__(self, row: int) -> tuple[Image.Image, int]:
            return Image.new("L", (8, 8), row + self.first), 4 + row % 2

    monkeypatch.setattr(torchvision.datasets, "GTSRB", Fake)
    source = load("GTSRB")
    assert (source.info.class_names, source.train.counts) == (["4", "5"], (3, 3))


def test_resolving_names_splits_columns_and_configuration() -> None:
    write_mnist("EMNIST", ("emnist-balanced-train", "emnist-balanced-test"), classes=47)
    resolved = resolve_source(SourceSpec(id="torchvision:EMNIST", size=28))
    assert (resolved.config, resolved.train_split, resolved.test_split) == ("balanced", "train", "test")
    assert (resolved.image_column, resolved.label_column, resolved.revision) == ("image", "label", None)


def test_a_missing_set_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: write_mnist("MNIST"))
    assert load("MNIST").train.counts == (2,) * 10


def test_downloads_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(NetworkError, match="torchvision:MNIST could not be downloaded.*name or service") as caught:
        load("MNIST")
    assert "HMDC_HUB_CACHE" in caught.value.hint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE forbids"):
        load("MNIST")


def test_the_folder_is_in_the_home_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path))
    assert cache_folder("torchvision") == tmp_path / "torchvision"
    monkeypatch.setenv("HMDC_HUB_CACHE", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder("torchvision") == Path("/home/someone/.cache/hmdc-hub/torchvision")


@pytest.mark.parametrize(
    ("keys", "words", "next_step"),
    [
        ({"id": "torchvision:cifar10"}, "torchvision:cifar10 is not a dataset", "torchvision:CIFAR10"),
        ({"id": "torchvision:CocoDetection"}, "is not a dataset of torchvision that has images", ""),
        ({"id": "torchvision:ImageFolder"}, "names no dataset but a way to read a folder", "./my-images"),
        ({"id": "torchvision:MNIST", "config": "digits"}, "it has none at all", "Leave config out"),
        ({"id": "torchvision:EMNIST", "config": "lettres"}, "it has balanced, byclass", "config: balanced"),
        ({"id": "torchvision:MNIST", "revision": "main"}, "not a dataset of the Hub", "Leave revision out"),
        ({"id": "torchvision:MNIST", "train_split": "extra"}, "its splits are train, test", "train_split"),
        ({"id": "torchvision:MNIST", "label_column": "y"}, "no column 'y'", "leave label_column out"),
    ],
)
def test_refused_keys(keys: dict[str, Any], words: str, next_step: str) -> None:
    write_mnist("MNIST")
    with pytest.raises(SourceError, match=words) as caught:
        load("", **keys)
    assert caught.value.hint
    assert next_step in caught.value.hint


@pytest.mark.parametrize("name", SETS)
def test_every_set_exists_and_takes_its_arguments(name: str) -> None:
    made = getattr(torchvision.datasets, name)
    known = SETS[name]
    assert "train" in known.splits
    assert {"test", "val"} & set(known.splits)
    for arguments in known.splits.values():
        extra = {known.config_argument: known.configs[0]} if known.config_argument else {}
        inspect.signature(made).bind(root="x", download=True, **arguments, **extra)
        with pytest.raises((RuntimeError, OSError)):  # nothing is there; a wrong split would be a ValueError
            made(root="/nowhere", download=False, **arguments, **extra)
