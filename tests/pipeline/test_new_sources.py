"""Shipped recipes run on data that look like their sources: splits, columns, sizes and modes of few images."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

import hmdc_hub
from tests.sources.files import cells, encoded, write_parquet

SMALL = [
    "pool=[mlp, convnet3_narrow]", "condense.resets=1", "condense.batch=3", "condense.projection.batches_per_step=1",
    "condense.networks={reset_every: 2, batches_per_step: 1, batch: 8}", "evaluate.models=[mlp]", "evaluate.seeds=1",
    "evaluate.random_draws=1", "evaluate.steps=2", "evaluate.full=never",
]  # fmt: skip
MODES = {"L": "L", "C": "RGB"}
LOCAL = ["source.revision=null", "source.config=null"]


def noise(seed: int, size: tuple[int, int], mode: str) -> Image.Image:
    """Make an image that no other is equal to."""
    count = size[0] * size[1] * len(mode)
    return Image.frombytes(mode, size, random.Random(seed).randbytes(count))


def table(
    folder: Path, splits: tuple[str, str], columns: tuple[str, str], size: int, modes: str, more: str = ""
) -> str:
    """Write both splits as a set of the Hub has them; images are grey (L) or coloured (C) as `modes` says, in turn."""
    features = {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=["n01", "n02", "n03"])}
    if more:  # a column that is not the one
        features[more] = datasets.ClassLabel(names=["animals", "things"])
    for split, first, count in ((splits[0], 0, 36), (splits[1], 100, 6)):  # as many as are condensed into, at least
        labels = [row % 3 for row in range(count)]
        pictures = [encoded(noise(first + row, (size, size), MODES[modes[row % len(modes)]])) for row in range(count)]
        values: dict[str, list[Any]] = {columns[0]: cells(pictures), columns[1]: labels}
        if more:
            values[more] = [row % 2 for row in labels]
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", values, features)
    return str(folder)


def cifar100(folder: Path) -> list[str]:
    where = table(folder, ("train", "test"), ("img", "fine_label"), 32, "C", more="coarse_label")
    return [f"source.id={where}", *LOCAL, "condense.classes_per_step=2"]


def fashion(folder: Path) -> list[str]:
    return [f"source.id={table(folder, ('train', 'test'), ('image', 'label'), 28, 'L')}", *LOCAL]


def tiny_imagenet(folder: Path) -> list[str]:
    where = table(folder, ("train", "valid"), ("image", "label"), 64, "CCL")
    return [f"source.id={where}", *LOCAL, "condense.classes_per_step=2"]


def imagenette(folder: Path) -> list[str]:
    """Write what torchvision has unpacked, so that nothing is downloaded."""
    for split in ("train", "val"):
        for label, wnid in enumerate(("n01440764", "n02102040", "n02979186")):
            for row in range(12):
                path = folder / "torchvision" / "imagenette2-160" / split / wnid / f"{row}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise(100 * label + row + 50 * (split == "val"), (213, 160) if row else (160, 190), "RGB").save(path)
    return []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "ipc", "shape"),
    [
        ("cifar100_ipc1", cifar100, 1, (3, 32, 32)),
        ("cifar100_ipc10", cifar100, 10, (3, 32, 32)),
        ("fashion_mnist_ipc10", fashion, 10, (1, 28, 28)),
        ("tiny_imagenet_ipc10", tiny_imagenet, 10, (3, 64, 64)),
        ("imagenette_ipc10", imagenette, 10, (3, 128, 128)),
    ],
)
def test_a_recipe_runs_on_what_looks_like_its_source(
    name: str,
    source: Callable[[Path], list[str]],
    ipc: int,
    shape: tuple[int, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "cache"))
    recipe = hmdc_hub.load_recipe(name, *SMALL, *source(tmp_path / "cache"))
    assert (recipe.condense.encode, recipe.evaluate.encode) == ("least-squares", "least-squares")
    run = hmdc_hub.condense(recipe, run_dir=tmp_path / "run", workers=1, progress=False)
    images, labels = run.condensed.images, run.condensed.labels
    assert tuple(images.shape) == (3 * ipc * 4, *shape)
    assert labels.bincount().tolist() == [4 * ipc] * 3
