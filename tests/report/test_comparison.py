"""Groups of condensing seeds, tests of differences, shared baselines; and what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.report.comparison import ScoredSet, compare, holm, paired, welch
from hmdc_hub.schema import Scores
from tests.comparing import scored

ONE = {"a": [0.60, 0.62, 0.61], "b": [0.50, 0.51, 0.55]}
TWO = {"a": [0.58, 0.61, 0.58], "b": [0.47, 0.50, 0.53]}
SPREAD = st.lists(st.floats(0, 1), min_size=3, max_size=8)


# tests of differences


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_paired_is_students_test_of_differences(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    found = paired(one, other)
    if found.sd is not None and found.sd > 1e-6:
        wanted = stats.ttest_rel(one, other)
        low, high = wanted.confidence_interval(0.95)
        assert found.p == pytest.approx(wanted.pvalue, abs=1e-9)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


@settings(deadline=None)
@given(SPREAD, SPREAD)
def test_welch_does_not_pair(one: list[float], other: list[float]) -> None:
    found = welch(one, other)
    if min(stdev(one), stdev(other)) > 1e-6:
        wanted = stats.ttest_ind(one, other, equal_var=False)
        low, high = wanted.confidence_interval(0.95)
        assert found.p == pytest.approx(wanted.pvalue, abs=1e-9)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-7)
        assert (found.sd, found.n) == (None, len(one) + len(other))


@pytest.mark.parametrize("test", [paired, welch])
def test_numbers_without_spread(test: Any) -> None:
    assert test([0.5] * 3, [0.5] * 3).p == 1
    assert test([0.75] * 3, [0.5] * 3).p == 0


@pytest.mark.parametrize("test", [paired, welch])
def test_two_numbers_that_agree_by_chance_are_no_test(test: Any) -> None:
    found = test([0.1 + 0.2, 0.6], [0.2, 0.5]) if test is paired else test([0.75, 0.75], [0.5, 0.5])
    assert (found.p, found.low, found.high) == (None, None, None)
    assert found.mean == pytest.approx(0.1 if test is paired else 0.25)


def test_one_number_is_no_test() -> None:
    found = paired([0.75], [0.5])
    assert (found.mean, found.n, found.low, found.p) == (0.25, 1, None, None)


def test_holm_by_hand() -> None:
    # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below the one before it.
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.7, 0.8]) == [1, 1] and holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order(chances: list[float]) -> None:
    found = [p for p in holm(chances) if p is not None]
    assert all(1 >= after >= before for before, after in zip(chances, found, strict=True))
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    assert sorted(found) == [found[place] for place in order]


# sets side by side


def test_single_runs_pair_by_evaluation_seed() -> None:
    found = compare([scored("one", ONE), scored("two", TWO)])
    (pair,) = found.pairs
    assert (pair.first, pair.other, pair.test, pair.condensing_seeds) == ("one", "two", "paired", (1, 1))
    wanted = stats.ttest_rel(ONE["a"], TWO["a"])
    assert pair.differences["a"].p == pytest.approx(wanted.pvalue)
    assert pair.differences["a"].mean == pytest.approx(0.02) and pair.differences["a"].n == 3
    # The mean over models, seed by seed: 0.55, 0.565, 0.58 against 0.525, 0.555, 0.555.
    assert pair.differences["mean"].p == pytest.approx(stats.ttest_rel([0.55, 0.565, 0.58], [0.525, 0.555, 0.555])[1])
    assert [group.table["mean"].n for group in found.groups] == [3, 3]
    assert found.columns == ["mean", "a", "b"] and found.main == "mean"


def shifted(accuracies: dict[str, list[float]], by: float) -> dict[str, list[float]]:
    return {model: [x + by for x in row] for model, row in accuracies.items()}


def three_and_two() -> list[ScoredSet]:
    return [
        *(scored(f"one-{n}", shifted(ONE, x), family="f", seed=n) for n, x in enumerate([0, 0.02, 0.07])),
        *(scored(f"two-{n}", shifted(TWO, x), family="g", seed=n) for n, x in enumerate([0, 0.01])),
    ]


def test_condensing_seeds_are_the_n_where_there_are_several() -> None:
    found = compare(three_and_two())
    one, two = found.groups
    assert [len(group.members) for group in found.groups] == [3, 2]
    assert one.table["a"].n == 3 and one.table["a"].mean == pytest.approx(0.61 + 0.03)
    assert one.table["a"].sd == pytest.approx(stdev([0.61, 0.63, 0.68]))
    assert two.table["a"].n == 2
    (pair,) = found.pairs
    assert (pair.test, pair.condensing_seeds) == ("welch", (3, 2))
    assert (pair.differences["a"].p, pair.differences["a"].low) == (None, None), "two are too few"
    more = scored("two-2", shifted(TWO, 0.03), family="g", seed=2)
    (pair,) = compare([*three_and_two(), more]).pairs
    wanted = stats.ttest_ind([0.61, 0.63, 0.68], [0.59, 0.60, 0.62], equal_var=False)
    assert pair.differences["a"].p == pytest.approx(wanted.pvalue)


def test_a_group_and_a_single_run_pair_by_evaluation_seed() -> None:
    *group, single, _ = three_and_two()
    (pair,) = compare([*group, single]).pairs
    assert (pair.test, pair.condensing_seeds) == ("paired", (3, 1))
    wanted = stats.ttest_rel([x + 0.03 for x in ONE["a"]], TWO["a"])
    assert pair.differences["a"].p == pytest.approx(wanted.pvalue) and pair.differences["a"].n == 3


def test_one_recipe_alone_has_nothing_to_be_tested_against() -> None:
    found = compare(three_and_two()[:3])
    assert len(found.groups) == 1 and not found.pairs and not found.against_first


def test_a_seed_twice_is_no_repetition() -> None:
    sets = [scored("mine", ONE, family="f"), scored("published", TWO, family="f"), scored("b", ONE, family="f", seed=1)]
    groups = compare(sets).groups
    assert [[one.label for one in group.members] for group in groups] == [["mine", "b"], ["published"]]


def test_sets_of_other_programs_are_never_put_together() -> None:
    for seeds in ((None, None), (0, 1)):
        changes = [{"family_hash": None, "condense_seed": seed, "condense_hash": None} for seed in seeds]
        sets = [scored("xy"[n], ONE, by=[], stored=6 + n, changes=changes[n]) for n in range(2)]
        same = [scored("xy"[n], ONE, by=[], changes=changes[n]) for n in range(2)]
        assert [group.label for group in compare(same).groups] == ["x", "y"]
        assert [name for name, _ in compare(sets).transfer] == ["x", "y"]
        assert [name for name, _ in compare(sets).curves] == ["x", "y"]


@pytest.mark.parametrize("changes", [{"stored": 12}, {"by": ["b"]}])
def test_a_family_has_one_budget_and_one_pool(changes: dict[str, Any]) -> None:
    """What a stranger's file claims about its family is not believed beyond that."""
    assert len(compare([scored("x", ONE, family="f"), scored("y", ONE, family="f", seed=1, **changes)]).groups) == 2


def test_groups_are_called_by_their_recipe_unless_that_is_no_name_of_one() -> None:
    first = [scored("r", ONE, family="f", seed=n) for n in range(2)]
    second = [scored("r", TWO, family="g", seed=n) for n in range(2)]
    assert [group.label for group in compare([*first, scored("s", TWO)]).groups] == ["r", "s"]
    labels = [group.label for group in compare([*first, *second]).groups]
    assert labels == ["r", "r (3)"], "the first members', numbered"


def test_holm_counts_the_pairs_that_are_shown() -> None:
    sets = [scored("one", ONE), scored("two", TWO), scored("three", {"a": [0.1, 0.3, 0.2], "b": [0.5, 0.4, 0.1]})]
    found = compare(sets)
    assert [(pair.first, pair.other) for pair in found.against_first] == [("one", "two"), ("one", "three")]
    assert [(pair.first, pair.other) for pair in found.pairs][2:] == [("two", "three")]
    for pairs in (found.against_first, found.pairs):
        for columns in (["mean"], ["a", "b"]):
            tests = [pair.differences[column] for pair in pairs for column in columns]
            assert [test.holm for test in tests] == holm([test.p for test in tests])
    assert found.against_first[0].differences["mean"].holm != found.pairs[0].differences["mean"].holm


def test_a_single_model_stands_for_all() -> None:
    found = compare([scored("one", {"a": [0.6, 0.7]}), scored("two", {"a": [0.5, 0.5]})])
    assert found.columns == ["a"] and found.main == "a"
    assert found.pairs[0].differences["a"].holm == found.pairs[0].differences["a"].p


# baselines


def rows(sets: Sequence[ScoredSet]) -> list[tuple[Any, ...]]:
    return [(row.name, row.budget.stored, row.sets, row.alone) for row in compare(sets).baselines]


def test_baselines_are_shown_once_where_they_are_the_same() -> None:
    one, two = scored("one", ONE), scored("two", TWO)
    assert rows([one, two]) == [("random", 6, ("one", "two"), True), ("k-means", 6, ("one", "two"), True)]
    other = scored("two", TWO, real={"random": 0.4, "k-means": 0.51})
    assert rows([one, other])[1:] == [("k-means", 6, ("one",), False), ("k-means", 6, ("two",), False)]
    larger = scored("two", TWO, stored=12)
    assert rows([larger, one])[:2] == [("random", 6, ("one",), True), ("random", 12, ("two",), True)]
    assert compare([one, two]).baselines[0].table["mean"].mean == pytest.approx(0.4)


def test_runs_of_a_group_share_baselines() -> None:
    """0.1 three times is 0.1: averaging would make it another number."""
    same = [scored(f"{n}", ONE, family="f", seed=n, real={"random": 0.1}) for n in range(3)]
    assert rows([*same, scored("x", ONE, real={"random": 0.1})]) == [("random", 6, ("0", "x"), True)]
    unlike = [scored(f"{n}", ONE, family="f", seed=n, real={"random": x}) for n, x in enumerate([0.1, 0.3])]
    (row,) = compare(unlike).baselines
    assert row.table["a"].mean == pytest.approx(0.2)


def test_what_belongs_to_one_set_is_no_shared_baseline() -> None:
    real = {"initialisation": 0.5, "exact": 0.6, "full": 0.9}
    assert [row[0] for row in rows([scored("x", ONE, real=real), scored("y", TWO, real=real)])] == ["full"]


# transfer and budget


def test_transfer_calls_sets_by_what_condensed_them() -> None:
    sets = [scored("one", ONE, by=["a", "b"]), scored("two", TWO, by=["b"]), scored("three", ONE, by=["b"])]
    assert [name for name, _ in compare(sets).transfer] == ["a + b", "b (two)", "b (three)"]


def test_budget_curves_join_what_one_pool_condensed() -> None:
    real = {"random-encoded": 0.4, "k-means": 0.3, "random": 0.2}
    sets = [
        scored("l", ONE, stored=60, real=real),
        scored("s", TWO, stored=6, real=real),
        scored("b", ONE, stored=6, by=["b"], real=real),
    ]
    found = compare(sets)
    assert [(name, [*points]) for name, points in found.curves] == [("a", [6, 60]), ("b", [6])]
    large, small, _ = found.groups
    assert found.curves[0][1] == {6: small.table["mean"], 60: large.table["mean"]}
    assert {name: [*points] for name, points in found.random.items()} == {"random": [6, 60], "random-encoded": [6, 60]}
    twice = compare([*sets, scored("s2", TWO, stored=6)])
    assert [name for name, _ in twice.curves] == ["l", "s", "s2", "b"]
    assert compare(sets[1:]).curves == []


def test_what_was_not_alike_is_told() -> None:
    other = scored("two", TWO, changes={"device": "NVIDIA\x1b[31m H100", "versions": {}})
    assert compare([scored("one", ONE), scored("two", TWO)]).unlike == {}
    found = compare([scored("one", ONE), other]).unlike
    assert found == {"device": ("cpu", "NVIDIA [31m H100"), "torch": ("2.15.0", "unknown")}


# what cannot be compared


def refused(*sets: ScoredSet) -> UsageError:
    with pytest.raises(UsageError) as caught:
        compare(sets)
    return caught.value


@pytest.mark.parametrize("count", [0, 1])
def test_one_set_is_too_few(count: int) -> None:
    assert "two scored sets or more" in refused(*[scored("one", ONE)] * count).message


def test_labels_are_made_unique_and_plain() -> None:
    sets = [scored(label, ONE) for label in ("x", "x", "x (2)", "", "a\x1b[2J\u202eb" + 60 * "c")]
    labels = [group.label for group in compare(sets).groups]
    assert labels[:4] == ["x", "x (2)", "x (2) (2)", "set"]
    assert labels[4].startswith("a [2J bccc") and labels[4].endswith("…") and len(labels[4]) == 48


def test_another_protocol_is_named_key_by_key() -> None:
    other = scored("two", TWO, epochs=60, schedule="cosine", cutmix={"evaluate": False})
    error = refused(scored("one", ONE), other)
    assert error.message == (
        "two was scored by another protocol than one:\n"
        "  evaluate.epochs: 30 in one, 60 in two\n"
        "  evaluate.schedule: constant in one, cosine in two\n"
        "  evaluate.cutmix.evaluate: true in one, false in two"
    )
    assert "`hmdc-hub evaluate two --protocol one` scores two by that of one" in error.hint


def test_the_hint_names_what_the_command_line_takes() -> None:
    one = ScoredSet("one", scored("one", ONE).scores, "runs/one", "runs/one/scores.json")
    two = ScoredSet("two", scored("two", TWO, epochs=60).scores, "runs/two", "runs/two/scores.json")
    assert "`hmdc-hub evaluate runs/two --protocol runs/one/scores.json`" in refused(one, two).hint


def test_models_are_compared_by_name() -> None:
    more = {"a": [0.5] * 3, "c": [0.5] * 3}
    message = refused(scored("one", ONE), scored("two", more, lr=0.3)).message
    assert "evaluate.models: [a, b] in one, [a, c] in two" in message
    assert "evaluate.models.a.lr.evaluate: 0.01 in one, 0.3 in two" in message
    assert len(refused(scored("one", ONE), scored("two", more)).message.splitlines()) == 2


def test_no_more_than_eight_keys_are_listed_and_no_long_ones() -> None:
    augment = dict.fromkeys(("flip", "crop", "scale", "rotate", "cutout"), False)
    keys: dict[str, Any] = {
        "augment": augment,
        "epochs": 1,
        "batch": 1,
        "momentum": 0.1,
        "schedule": "step",
        "optimizer": "adamw",
    }
    lines = refused(scored("one", ONE), scored("two", TWO, **keys)).message.splitlines()
    assert len(lines) == 10 and lines[-1] == "  and 2 more"
    long = {f"{n}{'x' * 50}": [0.5] * 3 for n in range(9)}
    assert max(len(line) for line in refused(scored("one", ONE), scored("two", long)).message.splitlines()) < 120


def test_every_set_that_does_not_fit_is_named() -> None:
    sets = [scored("one", ONE), scored("two", TWO, epochs=60), scored("three", TWO), scored("four", TWO, epochs=7)]
    message = refused(*sets).message
    assert "two was scored" in message and "four was scored" in message and "three was" not in message


def test_other_data_cannot_be_compared() -> None:
    other = scored("two", TWO, changes={"fingerprint": "cd34" * 16, "test_count": 1000}, epochs=60)
    message = refused(scored("one", ONE), other).message
    assert message == (
        "two (3 classes, 1000 test images, cd34cd34) was scored on other data than one (3 classes, 300 test images, "
        "ab12ab12)."
    )


def test_the_protocol_counts_not_what_a_file_calls_it() -> None:
    one = scored("one", ONE)
    other = scored("two", TWO, epochs=60, changes={"protocol_hash": one.scores.protocol_hash})
    assert "epochs" in refused(one, other).message
    assert compare([one, scored("two", TWO, changes={"protocol_hash": "0" * 64})]).pairs


def damaged(scores: Scores, what: str) -> dict[str, Any]:
    cells = list(scores.cells)
    changes: dict[str, dict[str, Any]] = {
        "missing": {"cells": cells[1:]},
        "repeated": {"cells": [cells[1], *cells[1:]]},
        "another seed": {"cells": [cells[0].model_copy(update={"seed": 9}), *cells[1:]]},
        "endless": {"protocol": scores.protocol.model_copy(update={"seeds": 10**15})},
        "budget": {"budgets": {"condensed": scores.budgets["condensed"]}},
    }
    return changes[what]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "its 23 trainings are not the 24 of its protocol"),
        ("repeated", "its 24 trainings are not the 24 of its protocol"),
        ("another seed", "its 24 trainings are not the 24 of its protocol"),
        ("endless", "of its protocol"),
        ("budget", "how many images random has"),
    ],
)
def test_damaged_scores_are_named(what: str, words: str) -> None:
    one, two = scored("one", ONE), scored("two", TWO)
    broken = ScoredSet("two", two.scores.model_copy(update=damaged(two.scores, what)))
    with pytest.raises(FormatError, match="The scores of two are damaged") as caught:
        compare([one, broken])
    assert words in caught.value.message


def test_with_which_baselines_a_set_was_scored_is_no_part_of_its_protocol() -> None:
    one = scored("one", ONE)
    two = scored("two", TWO, real={"random": 0.4, "herding": 0.45})
    found = [(row.name, row.sets, row.alone) for row in compare([one, two]).baselines]
    assert found == [("random", ("one", "two"), True), ("k-means", ("one",), True), ("herding", ("two",), True)]
    # A member of a group may have been scored without one.
    three = scored("three", TWO, family="f", seed=0, real={"random": 0.4})
    four = scored("three", ONE, family="f", seed=1, real={"k-means": 0.5})
    assert [(row.name, row.sets) for row in compare([three, four, one]).baselines] == [
        ("random", ("three", "one")), ("k-means", ("three", "one")),
    ]  # fmt: skip
