"""Numbers made of numbers: means with their spread, the cross-architecture table, gains over baselines.

Everything is paired by seed: the trainings of one seed start from the same weights, whatever they train on, and on sets
of one size see the same batches and augmentations, so the difference of two training sets is less noisy than either. A
random baseline has the same draws under every seed, and they are averaged first: n counts seeds, and an interval says
how far trainings vary, not how far one draw of images is from another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.schema import BASELINES, Cell, Estimate, Ranking, Scores

if TYPE_CHECKING:
    import pandas

Measure = Literal["accuracy", "ece"]
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

CONDENSED = "condensed"
RANDOM = "random"
RANDOM_ENCODED = "random-encoded"
FULL = "full"
REAL = tuple(name for name in BASELINES if name not in ("exact", "initialisation"))
"""Training sets of real images alone: the same for every condensed set of one source, protocol and budget."""
MEAN = "mean"
CONFIDENCE = 0.95
ROUNDING = 1e-12
"""Spreads of accuracies below this are none: what is left of sums in another order."""


def scores_frame(scores: Scores) -> pandas.DataFrame:
    """Return one row per training, in the order of scores.json.

    Returns:
        Columns `model`, `training_set`, `draw`, `seed`, `accuracy` and `ece` (in [0, 1]), and `seen`: whether the model
        took part in condensing.
    """
    import pandas

    columns = ["model", "training_set", "draw", "seed", "accuracy", "ece"]
    frame = pandas.DataFrame([cell.model_dump(include=set(columns)) for cell in scores.cells], columns=columns)
    return frame.assign(seen=frame["model"].isin(scores.condensed_by))


def estimate(values: Sequence[float]) -> Estimate:
    """Summarise numbers by mean, sample standard deviation and 95 % interval of Student's t.

    Two equal numbers have no interval: accuracies are whole counts of test images, so two trainings agree by chance
    every so often, and that is no knowledge of how far they vary.

    Args:
        values: At least one.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Estimate(mean=mean, sd=None, n=n, low=None, high=None)
    # The quantile of Student's t. scipy.stats has it too, and takes half a second to import.
    from scipy.special import stdtrit

    sd = statistics.stdev(values)
    if n == 2 and sd < ROUNDING:
        return Estimate(mean=mean, sd=sd, n=n, low=None, high=None)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
    return Estimate(mean=mean, sd=sd, n=n, low=mean - half, high=mean + half)


def by_seed(cells: Iterable[Cell], training_set: str, model: str, what: Measure = "accuracy") -> list[float]:
    """Return a number for each seed, in the order of seeds; several draws of a random set are averaged."""
    draws: dict[int, list[float]] = {}
    for cell in cells:
        if cell.training_set == training_set and cell.model == model:
            draws.setdefault(cell.seed, []).append(getattr(cell, what))
    return [statistics.fmean(draws[seed]) for seed in sorted(draws)]


def mean_by_seed(
    cells: Sequence[Cell], training_set: str, models: Sequence[str], what: Measure = "accuracy"
) -> list[float]:
    """Return each seed's mean over architectures."""
    columns = [by_seed(cells, training_set, model, what) for model in models]
    return [statistics.fmean(row) for row in zip(*columns, strict=True)]


def _column(
    cells: Sequence[Cell], training_set: str, model: str, models: Sequence[str], what: Measure = "accuracy"
) -> list[float]:
    if model == MEAN:
        return mean_by_seed(cells, training_set, models, what)
    return by_seed(cells, training_set, model, what)


def table(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], what: Measure = "accuracy"
) -> dict[str, dict[str, Estimate]]:
    """Summarise every training set on every architecture, and on the mean over architectures (`mean`).

    Returns:
        `table[training set][model]`; n counts seeds.
    """
    columns = (*models, MEAN)
    return {name: {model: estimate(_column(cells, name, model, models, what)) for model in columns} for name in sets}


def gain(cells: Sequence[Cell], baselines: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Summarise condensed minus each baseline, seed by seed.

    Returns:
        `gain[baseline][model]`, with the difference of means over architectures as `mean`.
    """

    def difference(baseline: str, model: str) -> Estimate:
        return estimate(_minus(_column(cells, CONDENSED, model, models), _column(cells, baseline, model, models)))

    return {name: {model: difference(name, model) for model in (*models, MEAN)} for name in baselines}


def gap(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], condensed_by: Sequence[str]
) -> dict[str, Estimate]:
    """Summarise, seed by seed, how much better architectures do that took part in condensing than the others.

    A set that suits its own networks alone has a gap far above that of real images, which favour nobody.

    Returns:
        `gap[training set]`; empty if all of the models took part, or none.
    """
    inside = [model for model in models if model in condensed_by]
    outside = [model for model in models if model not in condensed_by]
    if not inside or not outside:
        return {}
    return {
        name: estimate(_minus(mean_by_seed(cells, name, inside), mean_by_seed(cells, name, outside))) for name in sets
    }


def ranking(cells: Sequence[Cell], models: Sequence[str]) -> dict[str, Ranking]:
    """Compute improvement over random, recovery of full-data accuracy and the score of DD-Ranking, seed by seed.

    Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, arXiv 2505.13300, section 3; with
    hard labels and equal weight of both.

    Returns:
        By model and for the mean over models; without trainings on random images empty, without those on the full
        set with improvement alone.
    """
    trained = {cell.training_set for cell in cells}
    if RANDOM not in trained:
        return {}
    found = {}
    for model in (*models, MEAN):
        condensed = _column(cells, CONDENSED, model, models)
        improvement = _minus(condensed, _column(cells, RANDOM, model, models))
        recovery = score = None
        if FULL in trained:
            lost = _minus(_column(cells, FULL, model, models), condensed)
            halves = [half / 2 for half in _minus(improvement, lost)]
            least = math.exp(-1)
            score = estimate([(math.exp(half) - least) / (math.e - least) for half in halves])
            recovery = estimate(lost)
        found[model] = Ranking(improvement=estimate(improvement), recovery=recovery, score=score)
    return found


class Summary(NamedTuple):
    """Everything that follows from single trainings; each field as the one of `Scores` with its name."""

    table: dict[str, dict[str, Estimate]]
    gain: dict[str, dict[str, Estimate]]
    gap: dict[str, Estimate]
    ece: dict[str, dict[str, Estimate]]
    ranking: dict[str, Ranking]


def summarise(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], condensed_by: Sequence[str]
) -> Summary:
    """Compute every summary of a set's trainings.

    Args:
        cells: Every training set, model and seed; several draws of random ones.
        sets: Names of the training sets in their order, `condensed` among them.
        models: Names of the architectures in their order.
        condensed_by: Names of those that took part in condensing, and maybe of others.
    """
    return Summary(
        table=table(cells, sets, models),
        gain=gain(cells, [name for name in sets if name != CONDENSED], models),
        gap=gap(cells, sets, models, condensed_by),
        ece=table(cells, sets, models, "ece"),
        ranking=ranking(cells, models),
    )


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def confusion(labels: Labels, predicted: Labels, classes: int) -> Labels:
    """Count how often each class was taken for each.

    Args:
        labels: Whole numbers N, in 0..classes-1.
        predicted: Likewise.
        classes: C.

    Returns:
        int64 C x C: row the true class, column the predicted one.
    """
    pairs = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(confused: Labels) -> list[float]:
    """Compute the accuracy of each class from its row of a confusion matrix; 0 for a class without images."""
    counts = confused.sum(axis=1)
    return [float(x) for x in confused.diagonal() / np.maximum(counts, 1)]


def calibration_error(confidence: Floats, correct: Bools, bins: int = 15) -> float:
    """Compute the expected calibration error: |accuracy - confidence| over equal bins, weighted by their images.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.

    Args:
        confidence: N largest softmax probabilities, in [0, 1]; a bin holds its upper bound.
        correct: N, whether the class of the largest probability is the true one.
        bins: B.
    """
    bin_of = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
