from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.metrics import (
    by_seed,
    calibration_error,
    class_accuracy,
    confusion,
    estimate,
    ranking_score,
    scores_frame,
    summarise,
)
from hmdc_hub.schema import TRAINING_SETS, Cell, Estimate
from hmdc_hub.store.files import read_scores
from tests.builders import make_recipe, make_run
from tests.evaluator.toys import MLP, recipe

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


def summary(of: list[Cell], models: Sequence[str] = ("a", "b"), condensed_by: Sequence[str] = ("a",)) -> dict[str, Any]:
    """Summarise all training sets of some trainings, in the order of tables."""
    sets = [name for name in TRAINING_SETS if any(cell.training_set == name for cell in of)]
    return summarise(of, sets, models, condensed_by)


def test_interval_is_that_of_students_t() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.sd == pytest.approx(2.5**0.5)
    # 2.776445 is the two-sided 95 % bound at 4 degrees of freedom in any table.
    assert found.high == pytest.approx(3 + 2.776445 * (2.5 / 5) ** 0.5, abs=1e-6)
    assert found.low == pytest.approx(3 - 2.776445 * (2.5 / 5) ** 0.5, abs=1e-6)


def test_two_numbers_have_no_interval_and_three_have_one() -> None:
    found = estimate([0.4, 0.6])
    assert found.sd == pytest.approx(0.2**0.5 / 10**0.5) and found.low is None and found.high is None
    assert estimate([0.4, 0.5, 0.6]).high == pytest.approx(0.5 + 4.3027 * 0.1 / 3**0.5, abs=1e-4)


def test_an_interval_of_two_numbers_in_an_older_file_is_not_read() -> None:
    found = Estimate.model_validate({"mean": 0.5, "sd": 0.1, "n": 2, "low": -0.4, "high": 1.4})
    assert (found.mean, found.sd, found.low, found.high) == (0.5, 0.1, None, None)


def test_one_number_has_no_spread() -> None:
    found = estimate([0.25])
    assert (found.mean, found.sd, found.n, found.low, found.high) == (0.25, None, 1, None, None)


def test_two_equal_numbers_have_a_spread_and_no_interval() -> None:
    found = estimate([0.25, 0.25])
    assert (found.mean, found.sd, found.n, found.low, found.high) == (0.25, 0.0, 2, None, None)
    assert estimate([0.25] * 3).low == 0.25


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=12), st.floats(-1, 1))
def test_a_shift_moves_the_interval_and_keeps_its_width(values: list[float], shift: float) -> None:
    before, after = estimate(values), estimate([value + shift for value in values])
    assert before.low is not None and before.high is not None and after.low is not None and after.high is not None
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert before.low <= before.mean <= before.high
    assert after.high - after.low == pytest.approx(before.high - before.low, abs=1e-9)


@pytest.mark.parametrize("order", range(3))
def test_table_averages_draws_within_a_seed(order: int) -> None:
    found = summary(cells(order))["table"]
    assert list(found) == ["condensed", "random"]
    assert list(found["random"]) == ["a", "b", "mean"]
    random_a = found["random"]["a"]
    assert random_a.n == 2
    assert random_a.mean == pytest.approx(0.45)
    assert random_a.sd == pytest.approx(0.05 * 2**0.5)  # of 0.4 and 0.5, the means of the draws
    assert found["random"]["b"].sd == pytest.approx(0.0)


def test_mean_over_architectures_is_taken_seed_by_seed() -> None:
    assert by_seed(cells(), "condensed", ["a", "b"]) == pytest.approx([0.8, 0.6])
    found = summary(cells())["table"]["condensed"]["mean"]
    assert found.mean == pytest.approx(0.7)
    assert found.sd == pytest.approx(0.1 * 2**0.5)


def test_gain_is_paired_by_seed() -> None:
    found = summary(cells())["gain"]
    assert list(found) == ["random"]
    # Seed 0: 0.8 - 0.3; seed 1: 0.6 - 0.35.
    assert found["random"]["mean"].mean == pytest.approx(0.375)
    assert found["random"]["mean"].sd == pytest.approx(0.125 * 2**0.5)
    assert found["random"]["mean"].n == 2


def test_no_model_may_be_called_mean() -> None:
    with pytest.raises(ValueError, match="mean is what scores call the mean over models"):
        recipe(models=[MLP | {"name": "mean"}])


def test_gain_on_one_model() -> None:
    found = summary(cells())["gain"]["random"]
    assert list(found) == ["a", "b", "mean"]
    # Seed 0: 0.9 - 0.4; seed 1: 0.8 - 0.5.
    assert found["a"].mean == pytest.approx(0.4) and found["a"].sd == pytest.approx(0.1 * 2**0.5)


def test_gap_is_between_those_that_condensed_and_the_others() -> None:
    found = summary(cells(), condensed_by=["a", "elsewhere"])["gap"]
    # Seed 0: 0.9 - 0.7 and 0.4 - 0.2; seed 1: 0.8 - 0.4 and 0.5 - 0.2.
    assert found["condensed"].mean == pytest.approx(0.3) and found["random"].mean == pytest.approx(0.25)
    assert found["condensed"].sd == pytest.approx(0.1 * 2**0.5)
    for condensed_by in (["a", "b"], ["elsewhere"], []):
        assert summary(cells(), condensed_by=condensed_by)["gap"] == {}


def test_ranking_by_hand() -> None:
    made = [
        Cell(model="a", training_set=name, draw=0, seed=0, accuracy=accuracy, ece=0)
        for name, accuracy in (("condensed", 0.6), ("random", 0.4), ("full", 0.9))
    ]
    found = summary(made, ["a"])["ranking"]["a"]
    assert found.improvement.mean == pytest.approx(0.2)
    assert found.recovery is not None and found.recovery.mean == pytest.approx(0.3)
    # a = (0.2 - 0.3) / 2 = -0.05; (exp(-0.05) - exp(-1)) / (e - exp(-1)) = (0.951229 - 0.367879) / 2.350402
    assert found.score is not None and found.score.mean == pytest.approx(0.248192, abs=1e-6)


@pytest.mark.parametrize(("condensed", "random_", "full", "score"), [(1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 0.0)])
def test_ranking_reaches_both_ends(condensed: float, random_: float, full: float, score: float) -> None:
    levels = {"condensed": condensed, "random": random_, "full": full}
    made = [Cell(model="a", training_set=n, draw=0, seed=0, accuracy=x, ece=0) for n, x in levels.items()]
    found = summary(made, ["a"])["ranking"]["mean"].score
    assert found is not None and found.mean == pytest.approx(score)


def test_ranking_without_the_full_set_or_random_images() -> None:
    found = summary(cells())["ranking"]
    assert list(found) == ["a", "b", "mean"] and found["mean"].recovery is None and found["mean"].score is None
    assert found["mean"].improvement == summary(cells())["gain"]["random"]["mean"]
    assert summary([cell for cell in cells() if cell.training_set == "condensed"])["ranking"] == {}


def test_confusion_and_class_accuracy_by_hand() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 2, 1, 1, 0, 3], dtype=np.uint16)
    matrix = confusion(labels, predicted, 4)
    assert matrix.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert class_accuracy(matrix) == pytest.approx([0.5, 2 / 3, 0, 1])


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.9375, 0.75, 0.625, 0.25], dtype=np.float32)
    correct = np.array([True, False, True, True])
    # Four bins: (0.75, 1] holds 0.9375; (0.5, 0.75] holds 0.75, wrong, and 0.625, right; (0, 0.25] holds 0.25.
    gaps = [abs(1 - 0.9375), abs(1 - 1.375), abs(1 - 0.25)]
    assert calibration_error(confidence, correct, bins=4) == pytest.approx(sum(gaps) / 4, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_is_a_share_and_at_least_the_gap_of_the_means(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    found = calibration_error(confidence, correct)
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= found <= 1 + 1e-9


def test_a_summary_has_the_calibration_too_and_every_set_in_order() -> None:
    found = summary(cells())
    assert found["ece"]["condensed"]["a"].mean == pytest.approx(0.425)
    assert [list(found[what]) for what in ("table", "gain", "gap", "ece")] == [
        ["condensed", "random"], ["random"], ["condensed", "random"], ["condensed", "random"]
    ]  # fmt: skip


def test_a_frame_has_a_row_for_every_training(tmp_path: Path) -> None:
    of = make_recipe(evaluate={"models": [MLP], "seeds": 2, "random_draws": 2, "baselines": ["random"]}, pool=[MLP])
    scores = read_scores(make_run(tmp_path / "run", recipe=of).scores)
    frame = scores_frame(scores)
    assert list(frame.columns) == ["model", "training_set", "draw", "seed", "accuracy", "ece", "seen"]
    assert len(frame) == len(scores.cells) == 6 and frame["seen"].all()
    means = frame.groupby("training_set")["accuracy"].mean()
    assert means["random"] == pytest.approx(scores.table["random"]["mlp"].mean)
    assert not scores_frame(scores.model_copy(update={"condensed_by": []}))["seen"].any()


def test_one_training_on_the_full_set_stands_beside_the_mean_of_all_seeds() -> None:
    accuracies = {"condensed": [0.5, 0.6, 0.7], "random": [0.3, 0.3, 0.3], "full": [0.9]}
    cells = [
        Cell(model="mlp", training_set=name, draw=0, seed=seed, accuracy=accuracy, ece=0)
        for name, of_seeds in accuracies.items()
        for seed, accuracy in enumerate(of_seeds)
    ]
    found = summarise(cells, list(accuracies), ["mlp"], [])
    gain, ranking = found["gain"]["full"]["mlp"], found["ranking"]["mlp"]
    assert gain.mean == pytest.approx(0.6 - 0.9) and (gain.n, gain.low) == (1, None)
    assert ranking.recovery.mean == pytest.approx(0.3) and ranking.score.n == 1
    assert ranking.score.mean == pytest.approx(ranking_score(0.3, -0.3))
    assert found["gain"]["random"]["mlp"].n == 3
