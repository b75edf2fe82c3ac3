"""The data that benchmarks run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hmdc_hub.catalog import load_recipe
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import ClassSortedImages, Source, SourceFacts, make_source


def recipe_on(source: str | None, recipe: str, overrides: Sequence[str]) -> Recipe:
    """Read a recipe, with another source if one is named: detected anew but for its size."""
    found = load_recipe(recipe, list(overrides))
    if source is None:
        return found
    place = str(Path(source).resolve()) if Path(source).exists() else source
    spec = {"id": place, "size": found.source.size, "channels": found.source.channels}
    return Recipe.model_validate(found.model_dump(mode="json") | {"source": spec})


def first_classes(source: Source, count: int | None) -> Source:
    """Keep some classes of a source."""
    if count is None or count >= source.train.num_classes:
        return source
    offsets = source.train.offsets[: count + 1]
    kept = source.test_labels < count
    return make_source(
        ClassSortedImages(source.train.images[: offsets[-1]], offsets),
        source.test_images[kept],
        source.test_labels[kept],
        facts=SourceFacts(source.info.id, source.info.kind),
        class_names=source.info.class_names[:count],
    )
