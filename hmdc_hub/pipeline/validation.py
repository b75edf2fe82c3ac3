"""What is looked at of a recipe beside its own words: all that needs no pixels and no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hmdc_hub.condenser import check_size
from hmdc_hub.errors import NetworkError, UsageError
from hmdc_hub.evaluator import check_counts
from hmdc_hub.models import build_model
from hmdc_hub.schema import LeftOut, ModelSpec, Recipe, SourceSpec
from hmdc_hub.sources import SourceIndex, SplitSlice, file_keys, index_source, locate, source_notes, undividable
from hmdc_hub.store.hub_errors import without_network

CLASSES = 10
"""Outputs of the models where the source is not here to be counted; none fits or fails by their number."""


@dataclass(frozen=True)
class SourceRows:
    """What a source's labels say, in a form that can be sent to another process."""

    spec: SourceSpec  # with nothing left open
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]  # of images that are condensed
    test_count: int
    left_out: tuple[LeftOut, ...]

    @classmethod
    def of(cls, index: SourceIndex) -> SourceRows:
        """Take them from an opened source."""
        names, counts, left_out = tuple(index.class_names), tuple(index.train_counts), index.facts.left_out
        return cls(index.spec, names, counts, index.test_count, left_out)

    def lines(self) -> list[str]:
        """Say which rows and columns were chosen, and what was left out."""
        return source_notes(self.spec, self.class_names, self.train_counts, self.test_count, self.left_out)

    def document(self) -> dict[str, Any]:
        """Say the same as plain data."""
        plain = {**vars(self), "left_out": [one.model_dump(mode="json") for one in self.left_out]}
        return self.spec.model_dump(mode="json") | {key: plain[key] for key in plain if key != "spec"}


@dataclass(frozen=True)
class Validation:
    """What was found.

    Attributes:
        rows: Of the source; None if it was not looked at, or is wrong.
        problems: Everything for which a run would refuse the recipe.
        unseen: What was not looked at, since it is not on this machine.
    """

    rows: SourceRows | None
    problems: tuple[UsageError, ...]
    unseen: tuple[str, ...]


def validate_recipe(recipe: Recipe) -> Validation:
    """Do what a run does first: read the source's rows, compare them with the recipe, build every model."""
    problems: list[UsageError] = []
    unseen: list[str] = []
    rows = None
    with without_network():
        try:
            index = index_source(recipe.source)
            rows = SourceRows.of(index)
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
    spec: ModelSpec, recipe: Recipe, rows: SourceRows | None, problems: list[UsageError], unseen: list[str]
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
    """Refuse classes without two different files where a fraction of each is scored on; looks at no more than it must.

    Raises:
        SourceError: There are such classes.
    """
    if index.spec.test_fraction is None:
        return
    first: dict[int, int] = {}
    divisible: set[int] = set()
    for row, label in enumerate(index.train_labels.tolist()):
        if label not in divisible:
            split, start = locate(index.train, row)
            images = index.reader.images(SplitSlice(split, start, start + 1), str(index.spec.image_column))
            key = int(file_keys(images)[0])
            if first.setdefault(label, key) != key:
                divisible.add(label)
    if whole := [name for label, name in enumerate(index.class_names) if label not in divisible]:
        raise undividable(whole)
