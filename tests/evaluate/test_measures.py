from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.measures import estimate, gain, mean_by_seed, table
from hmdc_hub.schema import Cell
from tests.evaluate.toys import MLP, recipe

CELLS = [
    # model, training set, draw, seed, accuracy
    ("a", "condensed", 0, 0, 0.9),
    ("a", "condensed", 0, 1, 0.8),
    ("b", "condensed", 0, 0, 0.7),
    ("b", "condensed", 0, 1, 0.4),
    ("a", "random", 0, 0, 0.5),
    ("a", "random", 1, 0, 0.3),
    ("a", "random", 0, 1, 0.5),
    ("a", "random", 1, 1, 0.5),
    ("b", "random", 0, 0, 0.2),
    ("b", "random", 1, 0, 0.2),
    ("b", "random", 0, 1, 0.1),
    ("b", "random", 1, 1, 0.3),
]


def cells(seed: int = 0) -> list[Cell]:
    made = [Cell(model=m, training_set=s, draw=d, seed=n, accuracy=a, ece=a / 2) for m, s, d, n, a in CELLS]
    random.Random(seed).shuffle(made)
    return made


def test_interval_is_that_of_students_t() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.sd == pytest.approx(2.5**0.5)
    # 2.776445 is the two-sided 95 % bound at 4 degrees of freedom in any table.
    assert found.high == pytest.approx(3 + 2.776445 * (2.5 / 5) ** 0.5, abs=1e-6)
    assert found.low == pytest.approx(3 - 2.776445 * (2.5 / 5) ** 0.5, abs=1e-6)


def test_two_numbers_have_a_wide_interval() -> None:
    found = estimate([0.4, 0.6])
    assert found.high == pytest.approx(0.5 + 12.7062 * 0.1, abs=1e-4)


def test_one_number_has_no_spread() -> None:
    found = estimate([0.25])
    assert (found.mean, found.sd, found.n, found.low, found.high) == (0.25, None, 1, None, None)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(-1, 1))
def test_a_shift_moves_the_interval_and_keeps_its_width(values: list[float], shift: float) -> None:
    before, after = estimate(values), estimate([value + shift for value in values])
    assert before.low is not None and before.high is not None and after.low is not None and after.high is not None
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert before.low <= before.mean <= before.high
    assert after.high - after.low == pytest.approx(before.high - before.low, abs=1e-9)


@pytest.mark.parametrize("order", range(3))
def test_table_averages_draws_within_a_seed(order: int) -> None:
    found = table(cells(order), ["condensed", "random"], ["a", "b"])
    assert list(found) == ["condensed", "random"]
    assert list(found["random"]) == ["a", "b", "mean"]
    random_a = found["random"]["a"]
    assert random_a.n == 2
    assert random_a.mean == pytest.approx(0.45)
    assert random_a.sd == pytest.approx(0.05 * 2**0.5)  # of 0.4 and 0.5, the means of the draws
    assert found["random"]["b"].sd == pytest.approx(0.0)


def test_mean_over_architectures_is_taken_seed_by_seed() -> None:
    assert mean_by_seed(cells(), "condensed", ["a", "b"]) == pytest.approx([0.8, 0.6])
    found = table(cells(), ["condensed"], ["a", "b"])["condensed"]["mean"]
    assert found.mean == pytest.approx(0.7)
    assert found.sd == pytest.approx(0.1 * 2**0.5)


def test_gain_is_paired_by_seed() -> None:
    found = gain(cells(), ["random"], ["a", "b"])
    assert list(found) == ["random"]
    # Seed 0: 0.8 - 0.3; seed 1: 0.6 - 0.35.
    assert found["random"]["mean"].mean == pytest.approx(0.375)
    assert found["random"]["mean"].sd == pytest.approx(0.125 * 2**0.5)
    assert found["random"]["mean"].n == 2


def test_no_model_may_be_called_mean() -> None:
    with pytest.raises(ValueError, match="mean is what scores call the mean over models"):
        recipe(models=[MLP | {"name": "mean"}])
