"""Condensed sets as other programs write them, through real writers, and sources they are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset, Features
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from hmdc_hub.rng import generator
from hmdc_hub.sources import ClassSortedImages, Source, SourceFacts, make_source
from tests.evaluator import toys

ROWS = ("row0", "row1", "row2")
LABELS = [2, 0, 1, 0, 2]
"""Not sorted, so that order matters, and not as many of each."""


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder, and keep the cache of `datasets` there."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


def named(*names: str) -> Source:
    """Make a grey source with these classes."""
    images, places = noise(2 * len(names)), torch.arange(len(names))
    bank = ClassSortedImages(images, tuple(range(0, 2 * len(names) + 1, 2)))
    return make_source(bank, images[::2], places, facts=SourceFacts("someone/noise", "hub"), class_names=names)


def colour() -> Source:
    """Make toys in colour, every channel with statistics of its own."""
    plain = toys.source()
    images, test = (torch.cat([x, x // 2, 255 - x // 4], 1) for x in (plain.train.images, plain.test_images))
    bank = ClassSortedImages(images, plain.train.offsets)
    return make_source(bank, test, plain.test_labels, facts=SourceFacts("someone/toys", "hub"), class_names=ROWS)


def noise(count: int = 5, channels: int = 1, side: int = 8) -> Tensor:
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator(7, "foreign"), dtype=torch.uint8)


def pictures(images: Tensor) -> list[Image.Image]:
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(x[:, :, 0] if x.shape[2] == 1 else x) for x in arrays]


def table(images: Tensor, labels: Sequence[Any], feature: Any) -> Dataset:
    features = Features({"img": datasets.Image(), "label": feature})
    return Dataset.from_dict({"img": pictures(images), "label": list(labels)}, features=features)


def parquet(path: str, labels: Sequence[Any], feature: Any, images: Tensor | None = None) -> str:
    images = noise(len(labels)) if images is None else images
    table(images, labels, feature).to_parquet(path)
    return path


def folder(root: str, classes: Sequence[str], images: Tensor | None = None, split: str = ".") -> str:
    """Write one image per class as PNG, one folder per class."""
    for name, picture in zip(classes, pictures(noise(len(classes)) if images is None else images), strict=True):
        place = Path(root, split, name)
        place.mkdir(parents=True)
        picture.save(place / "0.png")
    return root


def tensors(path: str = "theirs.safetensors", /, **named: Tensor) -> str:
    save_file(named, path)
    return path
