"""Sets that are objects of this Python session, and modules of it that are trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Value
from torch.utils.data import TensorDataset

from hmdc_hub.errors import UsageError
from hmdc_hub.evaluator import evaluated_set, of_run, training_sets
from hmdc_hub.store.dataset import load
from tests.evaluator import toys
from tests.evaluator.foreign_sets import LABELS, colour, noise, table, tensors, work_in

FIVE = torch.tensor(LABELS)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(tmp_path, monkeypatch)


@pytest.mark.parametrize("of", [torch.as_tensor, np.asarray], ids=["tensor", "array"])
@pytest.mark.parametrize("last", [False, True])
def test_images_in_memory(of: Any, last: bool) -> None:
    images = noise(channels=3).permute(0, 2, 3, 1) if last else noise(channels=3)
    found = evaluated_set((of(images), of(FIVE)), colour(), name="mine")
    assert torch.equal(found.images, noise(channels=3)) and torch.equal(found.labels, FIVE)
    assert (found.name, found.stored, found.factor, found.exact) == ("mine", (2, 1, 2), 1, None)


def test_floats_in_memory_are_rounded_and_kept() -> None:
    images = noise() / 255 + 0.3 / 255 * (noise() < 255)
    found, file = (evaluated_set(data, toys.source()) for data in ((images, FIVE), tensors(images=images, labels=FIVE)))
    assert torch.equal(found.images, noise()) and found.exact is not None and torch.equal(found.exact, images)
    assert torch.equal(found.images, file.images) and found.sha256 != file.sha256
    assert found.sha256 != evaluated_set((noise(), FIVE), toys.source()).sha256  # exact floats are scored too
    real = toys.source()
    mapped = evaluated_set((real.normalise(noise()), FIVE), real, normalised=True)
    assert torch.equal(mapped.images, noise())


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (noise()[:, 0], FIVE, "set: images are 5 x 8 x 8, not N x channels"),
        (noise(), FIVE[:4], "labels holds 4 whole numbers instead of 5"),
        (noise(), torch.rand(5, 3), "soft labels"),
        (noise() / 100, FIVE, "images reach from 0 to 2.5"),
        (noise(side=16), FIVE, "never resampled"),
        (noise(), FIVE + 1, "reach from 1 to 3, but the source has 3"),
        (noise(), FIVE - 1, "reach from -1 to 1, but the source has 3"),
    ],
)
def test_what_is_no_set_in_memory(images: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluated_set((images, labels), toys.source())


def test_a_dataset_of_the_datasets_library() -> None:
    data = table(noise(), LABELS, ClassLabel(names=["row2", "row0", "row1"]))
    found = evaluated_set(data, toys.source(), name="mine")
    assert torch.equal(found.images, noise()) and found.labels.tolist() == [1, 2, 0, 2, 1]
    assert found.name == "mine" and "columns img and label" in found.notes
    plain = table(noise(), LABELS, Value("int64"))
    assert evaluated_set(plain, toys.source()).labels.tolist() == LABELS


def test_a_dataset_of_torch() -> None:
    found = evaluated_set(TensorDataset(noise(), FIVE), toys.source())
    assert torch.equal(found.images, noise()) and found.labels.tolist() == LABELS


def test_what_is_read_for_training_can_be_scored(tmp_path: Path) -> None:
    recipe = toys.recipe(baselines=["exact", "random-encoded"])
    run = toys.run(tmp_path / "run", recipe)
    ours, found = of_run(recipe, run), evaluated_set(load(run.path), toys.source())
    assert torch.equal(ours.images, found.images) and torch.equal(ours.labels, found.labels)
    assert (found.name, found.factor, found.stored) == (ours.name, 2, (2, 2, 2))
    assert found.condense_hash == ours.condense_hash and not found.lacks("random-encoded")
    made = training_sets(recipe.evaluate, toys.source(), found, torch.device("cpu"))
    assert made[1].name == "exact" and torch.equal(made[1].images, load(run.path).images)


def test_images_of_an_optimiser_are_scored() -> None:
    images = torch.nn.Parameter(torch.rand(5, 1, 8, 8))
    found = evaluated_set((images, FIVE), toys.source())
    assert found.exact is not None and not found.exact.requires_grad and torch.equal(found.exact, images.detach())


def test_what_is_ready_stays_as_it_is() -> None:
    found = evaluated_set((noise(), FIVE), toys.source())
    assert evaluated_set(found, toys.source()) is found
    assert found.lacks("exact") and found.lacks("initialisation") and not found.lacks("random")
