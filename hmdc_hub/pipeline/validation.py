"""What is looked at of a recipe beside its own words: all that needs no pixels and no network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hmdc_hub.condenser import check_size
from hmdc_hub.errors import NetworkError, UsageError
from hmdc_hub.evaluator import check_counts
from hmdc_hub.models import build_model
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.sources import (
    FRACTIONS,
    SourceIndex,
    SourceSummary,
    SplitSlice,
    file_keys,
    index_source,
    locate,
    undividable,
)
from hmdc_hub.store.hub import without_network

CLASSES = 10  # outputs of models where the source is not here to be counted; none fits or fails by their number


@dataclass(frozen=True)
class Validation:
    """What was found."""

    rows: SourceSummary | None  # of the source; None if it was not looked at, or is wrong
    problems: tuple[UsageError, ...]  # everything for which a run would refuse the recipe
    unseen: tuple[str, ...]  # what was not looked at, since it is not on this machine


def validate_recipe(recipe: Recipe) -> Validation:
    """Do what a run does first: read the source's rows, compare them with the recipe, build every model."""
    problems: list[UsageError] = []
    unseen: list[str] = []
    rows = None
    with without_network():
        try:
            index = index_source(recipe.source)
            rows = index.summary()
            _check_divisible(index)
            check_size(recipe, rows.train_counts)
            if recipe.evaluate.holdout is not None:
                check_counts(rows.train_counts, rows.class_names)
        except NetworkError:
            at = "" if recipe.source.revision else " at a commit that the recipe names"
            unseen.append(f"{recipe.source.id}, which is not in the cache{at}")
        except UsageError as error:
            problems.append(error)
        checked: list[ModelSpec] = []
        for spec in (*recipe.pool, *recipe.evaluate.settled().models):
            if spec not in checked:
                checked.append(spec)
                _build(spec, recipe, rows, problems, unseen)
    return Validation(rows, tuple(problems), tuple(unseen))


def _build(
    spec: ModelSpec, recipe: Recipe, rows: SourceSummary | None, problems: list[UsageError], unseen: list[str]
) -> None:
    channels = recipe.source.channels
    try:
        build_model(
            spec,
            num_classes=len(rows.class_names) if rows else CLASSES,
            source_size=recipe.source.size,
            channels=channels,
            mean=torch.zeros(channels),
            std=torch.ones(channels),
        )
    except NetworkError:
        unseen.append(f"{spec.weights if spec.weights != 'none' else spec.id} for {spec.name}, not in the cache")
        if spec.weights not in ("none", spec.id):
            # What its images are normalised by belongs to the weights, as may the number of its channels.
            scratch = {"weights": "none", "normalize": "source", "mean": None, "std": None}
            _build(spec.model_copy(update=scratch), recipe, rows, problems, unseen)
    except UsageError as error:
        problems.append(error)


def _check_divisible(index: SourceIndex) -> None:
    """Refuse classes with too few different files where shares of each are scored on; looks at no more than it must."""
    fractions = [name for name in FRACTIONS if getattr(index.spec, name) is not None]
    if not fractions:
        return
    found: dict[int, set[int]] = {label: set() for label in range(len(index.class_names))}
    for row, label in enumerate(index.train_labels.tolist()):
        if len(found[label]) <= len(fractions):
            split, start = locate(index.train, row)
            found[label] |= {*file_keys(index.images((SplitSlice(split, start, start + 1),))).tolist()}
    if whole := [index.class_names[label] for label, keys in found.items() if len(keys) <= len(fractions)]:
        raise undividable(whole, fractions[-1])
