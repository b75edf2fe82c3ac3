"""Whole runs of the condenser on tiny data, on the CPU, and the digest of what they wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hmdc_hub.condenser import CostEstimate, condense, estimate_cost_stepwise
from hmdc_hub.condenser.cost import choose
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.images import SyntheticImages, initial_images
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.events import Callback, Event, StopFlag, silent
from hmdc_hub.execution import Execution
from hmdc_hub.models import build_for
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.rundir import RunDir
from tests.tiny import RECIPE, tiny_source

CPU = torch.device("cpu")


def run(
    folder: Path, recipe: Recipe, callback: Callable[[Event], None] | None = None, stop: StopFlag | None = None
) -> RunDir:
    folder.mkdir(exist_ok=True)
    directory = RunDir(folder)
    condense(recipe, tiny_source(), directory, device=CPU, callback=callback or (lambda event: None), stop=stop)
    return directory


def digest(directory: RunDir) -> tuple[str, str, str]:
    return sha256_file(directory.initialisation), sha256_file(directory.condensed), sha256_file(directory.parquet)


def recipe_of(*models: dict[str, Any], **condense: Any) -> Recipe:
    """Make the tiny recipe with another pool, and other keys of its section `condense`."""
    return Recipe.model_validate(RECIPE | {"pool": list(models), "condense": RECIPE["condense"] | condense})


def networks_of(recipe: Recipe) -> ModelPool:
    """Make the pool of a recipe as after its first reset."""
    source = tiny_source()
    real = RealImages(source, recipe.condense, 0, CPU)
    networks = ModelPool([build_for(spec, source) for spec in recipe.pool], real)
    networks.reset(0)
    return networks


def hmdc_of(recipe: Recipe, callback: Callback = silent) -> HMDC:
    """Make the state at the start of a run."""
    networks = networks_of(recipe)
    real = networks.real
    model, classes = networks.networks[0], range(real.classes)
    images = [
        SyntheticImages(
            classes, torch.stack([initial_images(real, model, c, n) for c in classes]), real.source, real.spec.images
        )
        for n in recipe.condense.sizes
    ]
    return HMDC(networks, images, choose(networks), Execution(CPU, callback))


def estimate_cost(recipe: Recipe, source: Source, device: torch.device = CPU, ranks: int = 1) -> CostEstimate:
    """Measure everything."""
    return list(estimate_cost_stepwise(recipe, source, device, ranks))[-1]
