"""How far a difference of means may come from chance: t-tests, and their correction where there are several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hmdc_hub.measures import CONFIDENCE, ROUNDING, estimate
from hmdc_hub.schema import Estimate


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, and how likely chance alone makes one as large.

    Attributes:
        estimate: With its 95 % t interval; of an unpaired one `sd` is null and `n` counts both sides.
        p: Of a two-sided t-test; None: there is no spread to hold it against.
        holm: The same, corrected for the tests beside it.
    """

    estimate: Estimate
    p: float | None
    holm: float | None = None


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Test whether numbers that pair differ in the mean: Student's t-test of their differences.

    Args:
        one: At least one number.
        other: As many, in the same order.
    """
    found = estimate([a - b for a, b in zip(one, other, strict=True)])
    if found.sd is None or found.low is None:
        return Difference(found, None)
    return Difference(found, _two_sided(found.mean, found.sd / math.sqrt(found.n), found.n - 1))


def welch(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Test whether numbers that do not pair differ in the mean: Welch's t-test, which takes no spread for another's.

    Source: Welch, The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 1947; degrees of freedom by Satterthwaite, 1946.

    Args:
        one: At least two numbers.
        other: Likewise.
    """
    from scipy.special import stdtrit

    shares = [statistics.variance(values) / len(values) for values in (one, other)]
    mean, error = statistics.fmean(one) - statistics.fmean(other), math.sqrt(sum(shares))
    n = len(one) + len(other)
    if n == 4 and error < ROUNDING:  # as in `estimate`
        return Difference(Estimate(mean=mean, sd=None, n=n, low=None, high=None), None)
    spread = sum(share**2 / (len(values) - 1) for share, values in zip(shares, (one, other), strict=True))
    freedom = sum(shares) ** 2 / spread if spread else n - 2
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    found = Estimate(mean=mean, sd=None, n=n, low=mean - half, high=mean + half)
    return Difference(found, _two_sided(mean, error, freedom))


def _two_sided(mean: float, error: float, freedom: float) -> float:
    """Give the chance of a mean as far from 0, by its standard error and Student's t."""
    # scipy.stats has all of this, and takes half a second to import.
    from scipy.special import stdtr

    if not error:
        return 1.0 if not mean else 0.0
    return min(1.0, 2 * float(stdtr(freedom, -abs(mean) / error)))


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """Correct p-values so that the chance of even one false difference among them is no larger than each says.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    Args:
        chances: In any order; None, which is no test, stays and is not counted.

    Returns:
        In the same order; never smaller than before, at most 1.
    """
    known = sorted((p, place) for place, p in enumerate(chances) if p is not None)
    corrected: list[float | None] = [None] * len(chances)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected
