"""Numbers made of numbers: means with their spread, the cross-architecture table, gains over baselines.

Everything is paired by seed: the trainings of one seed start from the same weights and see the same augmentations,
whatever they train on, so the difference between two training sets is less noisy than either. A random baseline has the
same draws under every seed, and they are averaged first: n counts seeds, and an interval says how far trainings vary,
not how far one draw of images is from another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from hmdc_hub.schema import Cell, Estimate

CONDENSED = "condensed"
MEAN = "mean"
CONFIDENCE = 0.95


def estimate(values: Sequence[float]) -> Estimate:
    """Summarise numbers by mean, sample standard deviation and 95 % interval of Student's t.

    Args:
        values: At least one.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Estimate(mean=mean, sd=None, n=n, low=None, high=None)
    # The quantile of Student's t. scipy.stats has it too, and takes half a second to import.
    from scipy.special import stdtrit

    sd = statistics.stdev(values)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
    return Estimate(mean=mean, sd=sd, n=n, low=mean - half, high=mean + half)


def by_seed(cells: Iterable[Cell], training_set: str, model: str) -> list[float]:
    """Return the accuracy of each seed, in the order of seeds; several draws of a random set are averaged."""
    draws: dict[int, list[float]] = {}
    for cell in cells:
        if cell.training_set == training_set and cell.model == model:
            draws.setdefault(cell.seed, []).append(cell.accuracy)
    return [statistics.fmean(draws[seed]) for seed in sorted(draws)]


def mean_by_seed(cells: Sequence[Cell], training_set: str, models: Sequence[str]) -> list[float]:
    """Return each seed's mean over architectures."""
    columns = [by_seed(cells, training_set, model) for model in models]
    return [statistics.fmean(row) for row in zip(*columns, strict=True)]


def table(cells: Sequence[Cell], sets: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Summarise every training set on every architecture, and on the mean over architectures (`mean`).

    Returns:
        `table[training set][model]`; n counts seeds.
    """
    rows = {}
    for name in sets:
        rows[name] = {model: estimate(by_seed(cells, name, model)) for model in models}
        rows[name][MEAN] = estimate(mean_by_seed(cells, name, models))
    return rows


def gain(cells: Sequence[Cell], baselines: Sequence[str], models: Sequence[str]) -> dict[str, Estimate]:
    """Summarise condensed minus each baseline: differences of the mean over architectures, seed by seed."""
    condensed = mean_by_seed(cells, CONDENSED, models)
    return {
        name: estimate([a - b for a, b in zip(condensed, mean_by_seed(cells, name, models), strict=True)])
        for name in baselines
    }
