"""Image gradients and short runs as commit b31f92b gave them; see pinned/README.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hmdc_hub.condenser import condense
from hmdc_hub.condenser.matching import Objectives, image_gradients, takes_classes_together
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import load_source
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.rundir import RunDir
from tests.condenser import pins
from tests.condenser.pins import GRADIENTS, LABEL, POOLS, RECIPES, RUNS, Case

GRADIENT_ERROR = 1e-12
"""In float64, relative: sums may be in another order, nothing else."""

PIXEL_ERROR = 1e-6
"""Of pixels from 0 to 1, in float32 after up to six image steps, by the engine that was pinned: its bits but for the
last. For one that adds up in another order it is to be set from what `python -m tests.condenser.pins` prints."""


def image_gradient(case: Case, classes: int = 1) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the sum of all objectives, 2 x 3 x 32 x 32, and the K objectives, with the engine.

    Args:
        case: What is compared.
        classes: That are computed together; the others see the same images in another order, and are other classes.
    """
    objectives = Objectives(case.models, case.pairs, case.match)
    real, synthetic = (
        torch.stack([images.roll(c, 0) for c in range(classes)]) for images in (case.real, case.synthetic)
    )
    shares = torch.full(real.shape[:2], 1 / real.shape[1], dtype=torch.float64)
    labels = torch.arange(LABEL, LABEL + classes)
    weights = torch.ones(classes, len(objectives.names()), dtype=torch.float64)
    targets, gradients = image_gradients(objectives, real, shares, synthetic, labels, weights)
    return gradients[0, 0], targets[0]


def condensed(recipe: Recipe, folder: Path) -> Tensor:
    """Run a recipe, and read back the pixels that it stored."""
    run = RunDir(folder)
    condense(recipe, load_source(recipe.source), run, device=torch.device("cpu"))
    return read_condensed(run.condensed)[0]


@cache
def pinned(path: Path) -> dict[str, Tensor]:
    return load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("name", POOLS)
def test_image_gradient(name: str, classes: int) -> None:
    case = pins.case(name)
    if classes > 1:
        assert all(takes_classes_together(model) for model in case.models)
    gradient, targets = image_gradient(case, classes)
    assert gradient.dtype == targets.dtype == torch.float64
    assert pins.apart(gradient, pinned(GRADIENTS)[f"{name}/gradient"]) < GRADIENT_ERROR
    torch.testing.assert_close(targets, pinned(GRADIENTS)[f"{name}/targets"], rtol=GRADIENT_ERROR, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_run(name: str, tmp_path: Path) -> None:
    known = pinned(RUNS)[f"{name}/beginnings"]
    if not torch.allclose(pins.beginnings(RECIPES[name]), known, rtol=1e-4):
        pytest.skip("this version of a library begins its networks with other values")
    pixels = condensed(RECIPES[name], tmp_path)
    torch.testing.assert_close(pixels, pinned(RUNS)[f"{name}/pixels"], rtol=0, atol=PIXEL_ERROR)
