"""Checking published scores again: they are about these images, and every mean follows from the single trainings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hmdc_hub import measures
from hmdc_hub.errors import FormatError
from hmdc_hub.schema import ArtifactInfo, Budget, Estimate, Recipe, Scores
from hmdc_hub.store.files import read_scores

ROW = 4096
"""Most bytes of a training in scores/*.parquet: three names and some numbers."""


def equal(what: str, found: Any, wanted: Any) -> None:
    """Raise FormatError if two facts differ, with both."""
    if found != wanted:
        raise FormatError(f"{what} is {_short(found)}, not {_short(wanted)}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_scores(path: Path, info: ArtifactInfo, recipe: Recipe) -> Scores:
    """Check that scores belong to a set, and that their means follow from the single trainings.

    Args:
        path: Of scores.json.
        info: The set's.
        recipe: The set's; of a run or as it was published.

    Raises:
        FormatError: They do not.
    """
    scores = read_scores(path)
    equal("the images that were scored", scores.parquet_sha256, info.parquet_sha256)
    equal("the condense hash of scores.json", scores.condense_hash, info.condense_hash)
    equal("the protocol hash of scores.json", scores.protocol_hash, recipe.protocol_hash())
    equal("the protocol of scores.json", scores.protocol, recipe.evaluate.settled())
    equal("the source of scores.json", scores.fingerprint, info.source.fingerprint)
    equal("the class names of scores.json", scores.class_names, info.source.class_names)
    equal("the models that condensed", scores.condensed_by, [model.name for model in info.models])
    equal("the name of scores.json", scores.name, recipe.name)
    equal("the seed of scores.json", scores.condense_seed, recipe.seed)
    _family(path, scores, info, recipe)
    if scores.protocol.holdout is None:  # otherwise they are of other images, and no package takes them
        equal("the number of test images", scores.test_count, info.source.test_count)
        _budgets(scores, info)
    check_means(scores)
    return scores


def check_means(scores: Scores) -> None:
    """Check that scores have every training of their protocol, and that their means follow from them.

    Raises:
        FormatError: They do not.
    """
    _complete(scores)
    _classes(scores)
    _recomputed(scores)


def _family(path: Path, scores: Scores, info: ArtifactInfo, recipe: Recipe) -> None:
    """The family hash is that of the published recipe, which says of a local source what it holds, not where it was."""
    wanted = recipe.without_paths(info.source).family_hash()
    # Older programs, whose files have no checksum, hashed the path of a local source.
    if info.source.kind != "local" or b'"checksum"' in path.read_bytes():
        equal("the family hash of scores.json", scores.family_hash, wanted)


def _complete(scores: Scores) -> None:
    """Every training of the protocol is there once, none is left out, and each number is one that can be."""
    protocol = scores.protocol
    draws = {name: protocol.random_draws if name.startswith("random") else 1 for name in protocol.against}
    # Counted first: a protocol may claim any number of seeds, its file holds only so many trainings.
    count = (1 + sum(draws.values())) * len(protocol.models) * protocol.seeds
    equal("the trainings' number", len(scores.cells), count)
    due = [
        (name, model.name, draw, seed)
        for name, count in [(measures.CONDENSED, 1), *draws.items()]
        for model in protocol.models
        for draw in range(count)
        for seed in range(protocol.seeds)
    ]
    there = [(cell.training_set, cell.model, cell.draw, cell.seed) for cell in scores.cells]
    equal("the trainings", sorted(there), sorted(due))
    for cell in scores.cells:
        right = cell.accuracy * scores.test_count
        if abs(right - round(right)) > 1e-6 * scores.test_count:
            raise FormatError(f"an accuracy of {cell.accuracy} is no share of {scores.test_count} images")
        if (cell.best is not None) != (protocol.best_every is not None) or (cell.best or 1) < cell.accuracy:
            raise FormatError(f"a best look of {cell.best} beside an accuracy of {cell.accuracy}")


def _budgets(scores: Scores, info: ArtifactInfo) -> None:
    """Budgets follow from what is in the package: images as many as it has, or as the source has."""
    pixels = info.source.channels * info.source.size**2
    counts = info.source.train_counts
    chosen = sum(min(info.ipc, count) for count in counts)
    decoded = Budget(stored=info.stored_images, images=info.training_images, bytes=info.stored_images * pixels)
    real = Budget(stored=chosen, images=chosen, bytes=chosen * pixels)
    whole = Budget(stored=sum(counts), images=sum(counts), bytes=sum(counts) * pixels)
    kinds = {"random": real, "k-means": real, "herding": real, "full": whole}
    kinds["exact"] = decoded.model_copy(update={"bytes": 4 * decoded.bytes})
    due = {name: kinds.get(name, decoded) for name in (measures.CONDENSED, *scores.protocol.against)}
    equal("the budgets", scores.budgets, due)


def _classes(scores: Scores) -> None:
    """Accuracies of single classes are there for every table cell, and no better or worse than their mean allows."""
    classes = len(scores.class_names)
    shape = {name: {model: classes for model in row if model != measures.MEAN} for name, row in scores.table.items()}
    found = {name: {model: len(values) for model, values in row.items()} for name, row in scores.per_class.items()}
    equal("the accuracies of single classes", found, shape)
    for name, row in scores.per_class.items():
        for model, values in row.items():
            mean = scores.table[name][model].mean
            if not 0 <= min(values) <= mean + 1e-9 or not mean - 1e-9 <= max(values) <= 1:
                raise FormatError(f"the accuracies of single classes of {model} on {name} do not have the mean {mean}")


def _recomputed(scores: Scores) -> None:
    models, sets = [model.name for model in scores.protocol.models], list(scores.table)
    equal("the training sets", sorted({cell.training_set for cell in scores.cells}), sorted(sets))
    wanted = measures.summarise(scores.cells, sets, models, scores.condensed_by)._asdict()
    for what, summary in wanted.items():
        _follows(what, getattr(scores, what), summary)


def _follows(what: str, found: Any, wanted: Any) -> None:
    """Check every estimate in nested mappings."""
    if found is None or wanted is None:
        equal(what, found, wanted)
        return
    if isinstance(wanted, Estimate):
        _close(what, found, wanted)
        return
    found, wanted = (dict(x) for x in (found, wanted))  # mappings, or models with fields
    equal(f"the keys of {what}", sorted(found), sorted(wanted))
    for key, value in wanted.items():
        _follows(f"{what}.{key}", found[key], value)


def _close(what: str, found: Estimate, wanted: Estimate) -> None:
    for key, value in wanted.model_dump().items():
        other = getattr(found, key)
        same = other == value if value is None or other is None else math.isclose(other, value, abs_tol=1e-9)
        if not same:
            raise FormatError(f"{what}: {key} is {other}, its trainings give {value}")


def check_parquet_of_scores(path: Path, scores: Scores, name: str) -> None:
    """Check that the trainings which the Hub's viewer shows are those of scores.json.

    Raises:
        FormatError: They are not.
    """
    from hmdc_hub.store.parquet import iter_rows  # late: torch

    keys = ["training_set", "model", "draw", "seed", "accuracy"]
    for row, cell in zip(iter_rows(path, ["config", *keys], len(scores.cells), ROW), scores.cells, strict=True):
        if row != {"config": name} | {key: getattr(cell, key) for key in keys}:
            raise FormatError(f"scores/{name}.parquet does not have the trainings of scores.json")
