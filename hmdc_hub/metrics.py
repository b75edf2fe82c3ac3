"""Numbers made of numbers: means with their spread, the cross-architecture table, gains over baselines.

Everything is paired by seed: the trainings of one seed start from the same weights, whatever they train on, and on sets
of one size see the same batches and augmentations, so the difference of two training sets is less noisy than either. A
random baseline has the same draws under every seed, and they are averaged first: n counts seeds, and an interval says
how far trainings vary, not how far one draw of images is from another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.errors import FormatError
from hmdc_hub.schema import (
    CONDENSED,
    FULL,
    MIN_SEEDS,
    RANDOM,
    TRAINING_SETS,
    Cell,
    Estimate,
    EvaluateSpec,
    Ranking,
    Scores,
    SoftRanking,
)

if TYPE_CHECKING:
    import pandas

Measure = Literal["accuracy", "ece"]
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

# Training sets of real images alone: the same for every condensed set of one source, protocol and budget.
REAL = tuple(name for name, kind in TRAINING_SETS.items() if kind.real)
# Training sets that are trained on with soft labels, too: the condensed one and what it must beat for the same storage.
SOFT_SETS = (CONDENSED, RANDOM, "random-encoded")
MEAN = "mean"
CONFIDENCE = 0.95
ROUNDING = 1e-12  # spreads of accuracies below this are none: what is left of sums in another order


def adds_full(protocol: EvaluateSpec) -> bool:
    """Tell whether the full set joins the protocol's training sets, with one seed, where it is affordable."""
    return protocol.full == "auto" and FULL not in protocol.baselines


def check_trainings(scores: Scores) -> None:
    """Check that scores have a budget for each set, and every training of their protocol once: means come from them."""
    protocol, models = scores.protocol, [model.name for model in scores.protocol.models]
    sets = sum(protocol.draws(name) for name in (CONDENSED, *protocol.baselines))
    wanted = sets * len(protocol.models) * protocol.seeds
    there = {(cell.training_set, cell.draw, cell.model, cell.seed) for cell in scores.cells}
    names = [name for name, _ in protocol.training_sets()]
    if adds_full(protocol) and FULL in scores.table:
        wanted += len(models)
        names.append(FULL)
    # Counted first: a protocol may claim any number of draws and seeds, its file holds only so many trainings.
    if wanted != len(scores.cells) or there != {
        *((*of, model, n) for of in protocol.training_sets() for model in models for n in range(protocol.seeds)),
        *((FULL, 0, model, 0) for model in models if names[-1] == FULL and adds_full(protocol)),
    }:
        raise FormatError(f"its {len(scores.cells)} trainings are not the {wanted} of its protocol")
    for name in names:
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
    """Tabulate every training, in the order of scores.json, as a session reads it.

    `accuracy` and `ece` are in [0, 1]; `seen` is whether the model took part in condensing.
    """
    import pandas

    frame = pandas.DataFrame(scores_rows(scores)).rename(columns={"condensed_by": "seen"})
    return frame[["model", "training_set", "draw", "seed", "accuracy", "ece", "seen"]]


def estimate(values: Sequence[float]) -> Estimate:
    """Summarise numbers by mean, sample standard deviation and 95 % interval of Student's t.

    Below `MIN_SEEDS` numbers there is no interval: that of two is 18 standard deviations wide.

    Args:
        values: At least one.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Estimate(mean=mean, sd=None, n=n, low=None, high=None)
    # The quantile of Student's t. scipy.stats has it too, and takes half a second to import.
    from scipy.special import stdtrit

    sd = statistics.stdev(values)
    if n < MIN_SEEDS:
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


def summarise(
    cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str], condensed_by: Sequence[str]
) -> dict[str, Any]:
    """Compute everything in `Scores` that follows from single trainings, by the names of its fields; n counts seeds.

    `sets`, `condensed` among them, and `models` give the order; `condensed_by` may name other models, too.
    """
    columns = columns_of(models)
    measures: tuple[Measure, Measure] = ("accuracy", "ece")
    accuracy, ece = (
        {name: {column: by_seed(cells, name, of, what) for column, of in columns.items()} for name in sets}
        for what in measures
    )
    gains = {
        name: {column: _minus(accuracy[CONDENSED][column], row[column]) for column in columns}
        for name, row in accuracy.items()
        if name != CONDENSED
    }
    # How much better those architectures do that took part in condensing than the others. A set that suits its own
    # networks alone has a gap far above that of real images, which favour nobody.
    inside, outside = ([model for model in models if (model in condensed_by) == seen] for seen in (True, False))
    compared = sets if inside and outside else ()
    return {
        "table": {name: {column: estimate(found) for column, found in row.items()} for name, row in accuracy.items()},
        "gain": {name: {column: estimate(found) for column, found in row.items()} for name, row in gains.items()},
        "gap": {
            name: estimate(_minus(by_seed(cells, name, inside), by_seed(cells, name, outside))) for name in compared
        },
        "ece": {name: {column: estimate(found) for column, found in row.items()} for name, row in ece.items()},
        "ranking": _ranking(accuracy),
    }


def _ranking(accuracy: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Ranking]:
    """Compute improvement over random, recovery of full-data accuracy and the score of DD-Ranking, seed by seed.

    Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, arXiv 2505.13300, section 3; with
    hard labels and equal weight of both. Takes accuracies of each seed by training set and column; without those on
    random images there is nothing, without those on the full set improvement alone.
    """
    found = {}
    for column in accuracy.get(RANDOM, ()):
        condensed = accuracy[CONDENSED][column]
        improvement = _minus(condensed, accuracy[RANDOM][column])
        recovery = score = None
        if FULL in accuracy:
            lost = _minus(accuracy[FULL][column], condensed)
            score = estimate([ranking_score(ior, -hlr) for ior, hlr in _paired(improvement, lost)])
            recovery = estimate(lost)
        found[column] = Ranking(improvement=estimate(improvement), recovery=recovery, score=score)
    return found


def ranking_score(one: float, other: float) -> float:
    """Weigh two differences of accuracies, each in [-1, 1], alike: (exp(a) - exp(-1)) / (e - exp(-1)), a their mean.

    Of IOR and -HLR this is the label-robust score, of IOR with and without augmentation the augmentation-robust score.

    Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, arXiv 2505.13300, section 3.

    Returns:
        A number in [0, 1], larger for larger differences; 0.269 if both are zero.
    """
    least = math.exp(-1)
    return (math.exp((one + other) / 2) - least) / (math.e - least)


def summarise_soft_labels(
    hard: Sequence[Cell], cells: Sequence[Cell], unaugmented: Sequence[Cell], models: Sequence[str]
) -> dict[str, Any]:
    """Compute everything in `SoftLabelScores` that follows from single trainings, by the names of its fields.

    `hard` are the trainings on hard labels, of which those on the condensed and the full set say what is recovered.
    """
    sets, columns = list(dict.fromkeys(cell.training_set for cell in cells)), columns_of(models)
    augmented, plain = (
        {name: {column: by_seed(of, name, names) for column, names in columns.items()} for name in sets}
        for of in (cells, unaugmented)
    )
    ranking = {}
    for column, names in columns.items() if RANDOM in sets else ():
        ior = _minus(augmented[CONDENSED][column], augmented[RANDOM][column])
        without = _minus(plain[CONDENSED][column], plain[RANDOM][column])
        full = by_seed(hard, FULL, names)  # nothing, where nothing was trained on it
        hlr = _minus(full, by_seed(hard, CONDENSED, names)) if full else []
        ranking[column] = SoftRanking(
            improvement=estimate(ior),
            label_robust=estimate([ranking_score(a, -b) for a, b in _paired(ior, hlr)]) if hlr else None,
            augmentation_robust=estimate([ranking_score(a, b) for a, b in zip(ior, without, strict=True)]),
        )
    tables = (
        {name: {column: estimate(found) for column, found in row.items()} for name, row in table.items()}
        for table in (augmented, plain)
    )
    return dict(zip(("table", "unaugmented_table"), tables, strict=True)) | {"ranking": ranking}


def _paired(one: Sequence[float], other: Sequence[float]) -> list[tuple[float, float]]:
    """Pair values by seed; where there are fewer of one, as of the full set, nothing is paired but the means."""
    if len(one) != len(other):
        return [(statistics.fmean(one), statistics.fmean(other))]
    return list(zip(one, other, strict=True))


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in _paired(one, other)]


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
