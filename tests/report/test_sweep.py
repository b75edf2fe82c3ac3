"""The comparison of a sweep's variants, against numbers computed by hand or by scipy; text, page and picture."""

from __future__ import annotations

import pytest
from scipy import stats

from hmdc_hub.report.plots import rendered, sweep_figure
from hmdc_hub.report.sweep import (
    RECIPE,
    SweepResult,
    SweepRun,
    SweepVariant,
    sweep_document,
    sweep_html,
    sweep_markdown,
    sweep_text,
)


def variant(name: str, accuracies: list[float | None], **changes: object) -> SweepVariant:
    runs = [
        SweepRun(seed=n, path=f"runs/{name}-seed{n}", accuracy=a, by_model={"mlp": a, "convnet": a}, initialisation=0.3,
                 seconds=12.0 + n)
        if a is not None
        else SweepRun(seed=n, path=f"runs/{name}-seed{n}", problem="it broke\nand more")
        for n, a in enumerate(accuracies)
    ]  # fmt: skip
    return SweepVariant(name=name, changes=dict(changes), image_steps=80, runs=tuple(runs))


def result(*variants: SweepVariant) -> SweepResult:
    return SweepResult(
        recipe="digits_ipc1", source="builtin:digits", ipc=1, budget="80 image steps each", protocol_hash="ab" * 32,
        protocol="150 epochs on mlp, convnet", scored_on="20% of each class of the images to condense, held out",
        condensing_seeds=3, evaluation_seeds=2, variants=variants,
    )  # fmt: skip


BASE = variant(RECIPE, [0.40, 0.42, 0.47])
BETTER = variant("images.lr=0.05", [0.44, 0.47, 0.51])
WORSE = variant("a name of a variant that is much too long for one line of a table", [0.41, 0.37, 0.45])
FAILED = variant("batch=100000", [None, None, None])


def test_differences_pair_by_condensing_seed_and_are_corrected() -> None:
    rows = {row.name: row for row in result(BASE, WORSE, FAILED, BETTER).rows}
    assert [*rows] == [BETTER.name, RECIPE, WORSE.name, FAILED.name]
    found = rows[BETTER.name].difference
    assert found is not None and found.mean == pytest.approx(0.13 / 3) and found.n == 3
    expected = [float(stats.ttest_rel(list(one.scored.values()), [0.40, 0.42, 0.47]).pvalue) for one in (BETTER, WORSE)]
    assert found.p == pytest.approx(expected[0]) and found.holm == pytest.approx(2 * expected[0])
    other = rows[WORSE.name].difference
    assert other is not None and other.holm == pytest.approx(max(expected[1], 2 * expected[0]))
    assert rows[RECIPE].difference is None and rows[FAILED.name].accuracy is None
    gain = rows[BETTER.name].gain
    assert gain is not None and gain.mean == pytest.approx(1.42 / 3 - 0.3)


def test_seeds_that_one_of_both_has_alone_do_not_count() -> None:
    rows = result(BASE, variant("batch=8", [0.5, None, 0.6])).rows
    found = rows[0].difference
    assert found is not None and found.n == 2 and found.mean == pytest.approx((0.1 + 0.13) / 2) and found.low is None


def test_the_answer_says_no_more_than_the_numbers() -> None:
    assert "score it on the test split, once" in " ".join(sweep_text([result(BASE, BETTER)]).split())
    assert sweep_text([result(BASE, WORSE)]).splitlines()[2].startswith("No difference to the recipe is shown.")
    assert "too few seeds" in " ".join(sweep_text([result(variant(RECIPE, [0.4]), variant("x", [0.5]))]).split())
    down = sweep_text([result(BASE, variant("x", [0.30, 0.32, 0.371]))])
    assert down.splitlines()[2].startswith("Every variant scores below the recipe")
    assert "nothing to compare" in sweep_text([result(variant(RECIPE, [None]), variant("x", [0.5]))])


def test_text_fits_a_terminal_and_names_what_failed() -> None:
    text = sweep_text([result(BASE, WORSE, FAILED, BETTER)])
    assert max(map(len, text.splitlines())) <= 80
    assert "runs/batch=100000-seed1: it broke and more" in text and "2 comparisons (Holm)" in text
    (head,) = [line for line in text.splitlines() if line.startswith("variant ") and "accuracy" in line]
    assert head.split()[-2:] == ["p", "time"]  # not in a block of its own


def test_page_markdown_picture_and_document() -> None:
    whole = result(BASE, WORSE, FAILED, BETTER)
    picture = rendered(sweep_figure, whole, kind="svg")
    assert picture == rendered(sweep_figure, whole, kind="svg")
    assert "data:image/svg+xml" in sweep_html([whole], [picture])
    assert sweep_markdown([whole]).startswith("# Sweep of digits\\_ipc1\n")
    (document,) = sweep_document([whole])["results"]
    assert document["rows"][0]["name"] == BETTER.name and document["variants"][1]["runs"][0]["accuracy"] == 0.41


def test_several_sizes_have_tables_of_their_own() -> None:
    ten = result(variant(RECIPE, [0.60, 0.62, 0.67]), FAILED).model_copy(update={"ipc": 10})
    text = sweep_text([result(BASE, FAILED), ten])
    assert [line for line in text.splitlines() if "The answer" in line] == [
        "The answer, 1 image per class", "The answer, 10 images per class",
    ]  # fmt: skip
    assert text.count("it broke and more") == 3  # runs, not sizes of runs
    page = sweep_html([result(BASE), ten], [b"<svg>1</svg>", b"<svg>2</svg>"])
    assert page.count("data:image/svg+xml") == 2
    assert [one["ipc"] for one in sweep_document([result(BASE), ten])["results"]] == [1, 10]
