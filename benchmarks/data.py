"""The data that benchmarks run on."""

from __future__ import annotations

from collections.abc import Sequence

from hmdc_hub.catalog import load_recipe
from hmdc_hub.schema import Recipe


def recipe_on(source: str | None, recipe: str, overrides: Sequence[str]) -> Recipe:
    """Read a recipe, with another source if one is named: detected anew but for its size."""
    found = load_recipe(recipe, list(overrides))
    if source is None:
        return found
    spec = {"id": source, "size": found.source.size, "channels": found.source.channels}
    return Recipe.model_validate(found.model_dump(mode="json") | {"source": spec})
