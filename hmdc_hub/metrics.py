"""Numbers made of numbers: means with their spread, the cross-architecture table, gains over baselines.

Everything is paired by seed: the trainings of one seed start from the same weights, whatever they train on, and on sets
of one size see the same batches and augmentations, so the difference of two training sets is less noisy than either. A
random baseline has the same draws under every seed, and they are averaged first: n counts seeds, and an interval says
how far trainings vary, not how far one draw of images is from another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.errors import FormatError
from hmdc_hub.schema import CONDENSED, FULL, RANDOM, TRAINING_SETS, Cell, Estimate, Ranking, Scores

if TYPE_CHECKING:
    import pandas

Measure = Literal["accuracy", "ece"]
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

# Training sets of real images alone: the same for every condensed set of one source, protocol and budget.
REAL = tuple(name for name, kind in TRAINING_SETS.items() if kind.real)
MEAN = "mean"
CONFIDENCE = 0.95
ROUNDING = 1e-12  # spreads of accuracies below this are none: what is left of sums in another order


def check_trainings(scores: Scores) -> None:
    """Check that scores have a budget for each set, and every training of their protocol once: means come from them."""
    protocol = scores.protocol
    sets = sum(protocol.draws(name) for name in (CONDENSED, *protocol.baselines))
    wanted = sets * len(protocol.models) * protocol.seeds
    there = {(cell.training_set, cell.draw, cell.model, cell.seed) for cell in scores.cells}
    # Counted first: a protocol may claim any number of draws and seeds, its file holds only so many trainings.
    if wanted != len(scores.cells) or there != {
        (*of, model.name, seed)
        for of in protocol.training_sets()
        for model in protocol.models
        for seed in range(protocol.seeds)
    }:
        raise FormatError(f"its {len(scores.cells)} trainings are not the {wanted} of its protocol")
    for name, _ in protocol.training_sets():
        if name not in scores.budgets:
            raise FormatError(f"its budgets do not say how many images {name} has")


def scores_rows(scores: Scores) -> list[dict[str, Any]]:
    """Tabulate every training, in the order of scores.json: the columns of a package's scores parquet but `config`.

    `condensed_by` is whether the model took part in condensing; `accuracy` and `ece` are in [0, 1].
    """
    rows = []
    for cell in scores.cells:
        budget, seen = scores.budgets[cell.training_set], cell.model in scores.condensed_by
        of_set = {"training_set": cell.training_set, "stored_images": budget.stored, "training_images": budget.images}
        numbers = cell.model_dump(include={"draw", "seed", "accuracy", "ece"})
        rows.append(of_set | {"model": cell.model, "condensed_by": seen} | numbers)
    return rows


def scores_frame(scores: Scores) -> pandas.DataFrame:
    """Return `scores_rows` as a frame."""
    import pandas

    return pandas.DataFrame(scores_rows(scores))


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


def by_seed(
    cells: Iterable[Cell], training_set: str, models: Collection[str], what: Measure = "accuracy"
) -> list[float]:
    """Return each seed's mean over models, in the order of seeds; several draws of a random set are averaged first."""
    draws: dict[str, dict[int, list[float]]] = {model: {} for model in models}
    for cell in cells:
        if cell.training_set == training_set and cell.model in draws:
            draws[cell.model].setdefault(cell.seed, []).append(getattr(cell, what))
    columns = [[statistics.fmean(found[seed]) for seed in sorted(found)] for found in draws.values()]
    return [statistics.fmean(row) for row in zip(*columns, strict=True)]


def columns_of(models: Sequence[str]) -> dict[str, Sequence[str]]:
    """Map the columns of every table to the models that they are the mean over: each by itself, then all (`mean`)."""
    return {model: [model] for model in models} | {MEAN: models}


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def table(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], what: Measure = "accuracy"
) -> dict[str, dict[str, Estimate]]:
    """Summarise every training set on every architecture and on the mean over them (`mean`); n counts seeds."""
    columns = columns_of(models)
    return {name: {column: estimate(by_seed(cells, name, of, what)) for column, of in columns.items()} for name in sets}


def gain(cells: Sequence[Cell], baselines: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Summarise condensed minus each baseline, seed by seed, as `table`; `mean` is the difference of means."""
    condensed = {column: by_seed(cells, CONDENSED, of) for column, of in columns_of(models).items()}
    return {
        name: {
            column: estimate(_minus(condensed[column], by_seed(cells, name, of)))
            for column, of in columns_of(models).items()
        }
        for name in baselines
    }


def gap(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], condensed_by: Sequence[str]
) -> dict[str, Estimate]:
    """Summarise, seed by seed, how much better architectures do that took part in condensing than the others.

    A set that suits its own networks alone has a gap far above that of real images, which favour nobody. Empty if all
    of the models took part, or none.
    """
    inside = [model for model in models if model in condensed_by]
    outside = [model for model in models if model not in condensed_by]
    if not inside or not outside:
        return {}
    return {name: estimate(_minus(by_seed(cells, name, inside), by_seed(cells, name, outside))) for name in sets}


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
    for column, of in columns_of(models).items():
        condensed = by_seed(cells, CONDENSED, of)
        improvement = _minus(condensed, by_seed(cells, RANDOM, of))
        recovery = score = None
        if FULL in trained:
            lost = _minus(by_seed(cells, FULL, of), condensed)
            halves = [half / 2 for half in _minus(improvement, lost)]
            least = math.exp(-1)
            score = estimate([(math.exp(half) - least) / (math.e - least) for half in halves])
            recovery = estimate(lost)
        found[column] = Ranking(improvement=estimate(improvement), recovery=recovery, score=score)
    return found


def summarise(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], condensed_by: Sequence[str]
) -> dict[str, Any]:
    """Compute everything in `Scores` that follows from single trainings, by the names of its fields.

    `sets`, `condensed` among them, and `models` give the order; `condensed_by` may name other models, too.
    """
    return {
        "table": table(cells, sets, models),
        "gain": gain(cells, [name for name in sets if name != CONDENSED], models),
        "gap": gap(cells, sets, models, condensed_by),
        "ece": table(cells, sets, models, "ece"),
        "ranking": ranking(cells, models),
    }


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
