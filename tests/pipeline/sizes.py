"""A run of several sizes without the engine that condenses them at once: each alone, which gives the same bytes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from hmdc_hub.catalog import stored_recipe_text
from hmdc_hub.condenser import cost
from hmdc_hub.condenser import run as engine
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source
from hmdc_hub.store.files import write_text_atomic
from hmdc_hub.store.rundir import RunDir


def each_alone(patch: pytest.MonkeyPatch) -> None:
    """Let `condense` take a list of sizes, if it does not yet."""
    if "of_size" in inspect.getsource(engine):
        return
    alone, checked = engine.condense, cost.check_size

    def condense(recipe: Recipe, source: Source, run: RunDir, **options: Any) -> None:
        if isinstance(recipe.condense.ipc, int):
            alone(recipe, source, run, **options)
            return
        for one in recipe.of_sizes():
            size = run.of_size(one.condense.size)
            size.path.mkdir(exist_ok=True)
            write_text_atomic(size.recipe, stored_recipe_text(one))
            alone(one, source, size, **options)
            size.log.unlink(missing_ok=True)
        run.checkpoints.mkdir(exist_ok=True)

    def check_size(recipe: Recipe, counts: Sequence[int]) -> None:
        for one in recipe.of_sizes():
            checked(one, counts)

    patch.setattr("hmdc_hub.condenser.condense", condense)
    patch.setattr("hmdc_hub.condenser.check_size", check_size)
