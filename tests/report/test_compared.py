"""A comparison as text, Markdown, data, page and pictures."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from hmdc_hub.report import plots
from hmdc_hub.report.compared import (
    PICTURES,
    comparison_document,
    comparison_html,
    comparison_markdown,
    comparison_text,
)
from hmdc_hub.report.comparison import Comparison, ScoredSet, compare
from hmdc_hub.schema import Estimate
from tests.comparing import scored

ONE = {"net": [0.60, 0.62, 0.61], "vit": [0.50, 0.51, 0.55]}
TWO = {"net": [0.50, 0.51, 0.48], "vit": [0.44, 0.43, 0.50]}
RUDE = "<script>alert(1)</script> | *b* _i_ `x` $a$ \x1b[31m\u202e"


def shifted(accuracies: dict[str, list[float]], by: float) -> dict[str, list[float]]:
    return {model: [x + by for x in row] for model, row in accuracies.items()}


def repeated(label: str, accuracies: dict[str, list[float]], by: Sequence[float], **keys: Any) -> list[ScoredSet]:
    """Make a set for each condensing seed."""
    made = [scored(label, shifted(accuracies, x), seed=n, by=["net"], **keys) for n, x in enumerate(by)]
    return [ScoredSet(f"{label}-{n}", one.scores) for n, one in enumerate(made)]


@pytest.fixture
def singles() -> Comparison:
    return compare([scored("one", ONE, by=["net"]), scored("two", TWO, by=["vit"])])


@pytest.fixture
def groups() -> Comparison:
    return compare([*repeated("one", ONE, [0, 0.01, 0.03]), *repeated("two", TWO, [0, 0.01], stored=60)])


def words(text: str) -> str:
    return " ".join(text.split())


def test_text_of_two_runs(singles: Comparison) -> None:
    text = comparison_text(singles)
    said = words(text)
    assert max(map(len, text.splitlines())) <= 80 and text.endswith("\n") and "\n\n\n" not in text
    assert (
        "one is better than two by 8.8 points in the mean over models (95 % interval +6.9 to +10.7, p = 0.002)." in said
    )
    assert said.count("n = 1 condensing seed x 3 evaluation seeds") == 2
    assert "one, two: one condensing seed each. The spread there is over evaluation seeds, which understates" in said
    assert "t-test paired by evaluation seed (n = 3): about these two sets of images, not about their recipes." in said
    assert "Holm: corrected for being one of 2 of single models." in said
    assert "All were scored by protocol" in said and "(30 epochs, batch 128) on 300 test images." in said


def lines(text: str, start: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in text.splitlines() if line.startswith(start)]


def test_the_tables_hold_the_numbers(singles: Comparison) -> None:
    text = comparison_text(singles)
    assert ["one", "6", "24", "1 x 3", "56.5 ± 1.5", "61.0 ± 1.0 †", "52.0 ± 2.6"] in lines(text, "one")
    assert ["two", "6", "24", "1 x 3", "47.7 ± 1.2", "49.7 ± 1.5", "45.7 ± 3.8 †"] in lines(text, "two")
    assert lines(text, "random ") == [["random", "6", "6", "3", "40.0 ± 0.0", "40.0 ± 0.0", "40.0 ± 0.0"]]
    ((_, mean, interval, p, holm),) = lines(text, "mean over models  ")
    assert (mean, interval, p, holm) == ("+8.8", "+6.9 to +10.7", "0.002", "0.002")
    assert [row[0] for row in lines(text, "vit")] == ["vit", "vit"], "difference, transfer"
    assert lines(text, "net  ")[1] == ["net", "61.0 †", "52.0"]
    assert "Accuracy by budget" not in text


def test_text_of_condensing_seeds(groups: Comparison) -> None:
    text = comparison_text(groups)
    said = words(text)
    assert "n = 3 condensing seeds x 3 evaluation seeds (seed 0 one-0, seed 1 one-1, seed 2 one-2)" in said
    assert "n = 2 condensing seeds x 3 evaluation seeds" in said
    assert "3 and 2 condensing seeds: too few to test, of 3 each there would be a test." in said
    assert "understates" not in text and "over condensing seeds where there are several" in said
    assert ["6", "57.8 ± 1.5", "–", "40.0 ± 0.0"] not in lines(text, "6 "), "one pool makes one curve"
    twice = [scored("one", ONE, by=["net"]), scored("two", TWO, stored=60, by=["net"])]
    assert lines(comparison_text(compare(twice)), "60 ") == [["60", "47.7 ± 1.2", "40.0 ± 0.0"]]


def test_a_set_called_as_a_baseline_has_a_column_of_its_own() -> None:
    text = comparison_text(compare([scored("random", ONE, by=[]), scored("two", TWO, stored=60, by=["net"])]))
    assert ["stored", "random", "net", "random"] in lines(text, "stored ")


def test_a_group_beside_a_single_run() -> None:
    said = words(comparison_text(compare([*repeated("one", ONE, [0, 0.01]), scored("two", TWO)])))
    assert "condensing seeds averaged first; how far condensing seeds vary is left out" in said
    assert "two: one condensing seed. The spread there" in said


def test_one_recipe_alone() -> None:
    found = compare(repeated("one", ONE, [0, 0.01, 0.03]))
    said = words(comparison_text(found))
    assert "All sets are of one recipe, one: 57.8 ± 1.5 % in the mean over models" in said
    assert "over 3 condensing seeds." in said and "Differences" not in said
    assert comparison_markdown(found).startswith("# one by condensing seed\n")
    assert set(plots.pictures(found)) == {"transfer"}
    assert "one by condensing seed" in comparison_html(found, {})


def test_worse_and_not_shown() -> None:
    sets = [
        scored("two", TWO),
        scored("one", ONE),
        scored("near", {"net": [0.49, 0.52, 0.48], "vit": [0.44, 0.44, 0.49]}),
    ]
    said = words(comparison_text(compare(sets)))
    assert "two is worse than one by 8.8 points in the mean over models (95 % interval -10.7 to -6.9, p = 0.005" in said
    assert "after Holm's correction)." in said
    assert "No difference between two and near is shown: +0.0 points" in said
    assert "corrected for being one of 2 tests of the mean over models, or of 4 of single models." in said


def test_the_corrected_chance_decides() -> None:
    near = {"net": [0.52, 0.54, 0.52], "vit": TWO["vit"]}
    alone = compare([scored("near", near), scored("two", TWO)])
    found = alone.pairs[0].differences["mean"].p
    assert found is not None and 0.025 < found < 0.05
    assert "near is better than two by 1.5 points" in words(comparison_text(alone))
    both = compare([scored("near", near), scored("two", TWO), scored("again", TWO)])
    assert "No difference between near and two is shown: +1.5 points" in words(comparison_text(both))


def test_next_to_nothing_is_no_negative_zero() -> None:
    text = comparison_text(compare([scored("one", shifted(ONE, -0.0001)), scored("two", ONE)]))
    assert "+0.0" in text and "-0.0" not in text


def test_one_training_of_each() -> None:
    text = comparison_text(compare([scored("one", {"net": [0.5]}), scored("two", {"net": [0.25]})]))
    said = words(text)
    assert "one − two is +25.0 points on net; too few seeds to say whether it is chance." in said
    assert lines(text, "net  ") == [["net", "+25.0", "–", "–", "–"]]
    assert "Holm:" not in said and "mean over models" not in said


def test_what_was_not_alike_is_said() -> None:
    found = compare([scored("one", ONE), scored("two", TWO, changes={"device": "NVIDIA H100"})])
    assert "Not all was alike in the trainings (device cpu, NVIDIA H100)" in words(comparison_text(found))


def test_a_model_of_a_python_session_is_said_to_be_one() -> None:
    found = [scored("one", ONE), scored("two", TWO)]
    for one in found:
        one.scores.protocol.models[0] = one.scores.protocol.models[0].model_copy(update={"source": "python"})
    assert "net: from a Python session; not reproducible by id." in words(comparison_text(compare(found)))


def test_the_same_images_twice_are_said_to_be() -> None:
    one, two = scored("one", ONE), scored("two", TWO)
    again = ScoredSet("again", one.scores)
    assert "one and again are the same images." in words(comparison_text(compare([one, two, again])))
    assert "same images" not in comparison_text(compare([one, two]))


def test_baselines_that_differ_name_their_sets() -> None:
    text = comparison_text(compare([scored("one", ONE), scored("two", TWO, real={"random": 0.3, "k-means": 0.5})]))
    assert [row[0] for row in lines(text, "random")] == ["random (one)", "random (two)"]
    assert [row[0] for row in lines(text, "k-means")] == ["k-means"]


def test_long_names_stay_within_the_width() -> None:
    models = {f"model_{n}_{'x' * 50}": [0.5, 0.6] for n in range(4)}
    sets = [
        scored("a rather long name " * 3, models, by=list(models)),
        scored("b" * 60, models, by=list(models)[:2], stored=60),
    ]
    for width in (70, 80, 120):
        assert max(map(len, comparison_text(compare(sets), width).splitlines())) <= width


def test_names_of_strangers_are_data() -> None:
    found = compare([scored(RUDE, ONE), scored("two", TWO, changes={"device": RUDE})])
    text, markdown, page = comparison_text(found), comparison_markdown(found), comparison_html(found, {})
    for shown in (text, markdown, page):
        assert "\x1b" not in shown and "\u202e" not in shown
    assert "<script>" not in markdown and "<script>" not in page and "&lt;script&gt;" in page
    assert r"\| \*b\* \_i\_ \`x\` \$a\$" in markdown
    assert all(plots.pictures(found).values())


def test_markdown(groups: Comparison) -> None:
    text = comparison_markdown(groups)
    assert text.startswith("# one and two\n") and text.endswith("\n")
    header = next(line for line in text.splitlines() if line.startswith("| trained on"))
    assert header == "| trained on | stored | images | n | mean | net | vit |"
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[:6]} == {8}
    assert "### one − two" in text and "## Accuracy by budget" in text


def test_the_document_has_every_pair_unrounded(groups: Comparison, singles: Comparison) -> None:
    sets = [scored("one", ONE), scored("two", TWO), scored("three", TWO)]
    document = comparison_document(compare(sets))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert [(p["first"], p["other"]) for p in document["pairs"]] == [("one", "two"), ("one", "three"), ("two", "three")]
    assert len(document["against_first"]) == 2
    found = document["pairs"][0]["differences"]["mean"]
    assert found["mean"] == compare(sets).pairs[0].differences["mean"].mean and found["holm"] >= found["p"]
    assert document["sets"][0]["members"][0]["accuracy"]["net"] == ONE["net"]
    assert document["sets"][0]["spread_over"] == "evaluation seeds" and document["evaluation_seeds"] == 3
    document = comparison_document(groups)
    assert (document["sets"][0]["condensing_seeds"], document["sets"][0]["spread_over"]) == (3, "condensing seeds")
    assert document["curves"][0]["points"][1]["stored"] == 60 and document["pairs"][0]["test"] == "welch"
    assert comparison_document(singles)["transfer"][1]["accuracy"]["net"] == pytest.approx(0.4966667)


def test_no_path_of_this_machine_is_told() -> None:
    sets = [scored("one", {"net": [0.5, 0.6]}), scored("two", {"net": [0.4, 0.6]})]
    for one in sets:
        spec = one.scores.protocol.models[0].model_copy(update={"weights": "/home/ann/net.safetensors"})
        one.scores.protocol.models[0] = spec
    found = compare(sets)
    shown = [json.dumps(comparison_document(found)), comparison_html(found, {}), comparison_markdown(found)]
    assert not any("/home/ann" in text for text in shown) and "local:net.safetensors" in shown[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_are_deterministic(groups: Comparison, kind: plots.Kind) -> None:
    drawn = plots.pictures(groups, kind)
    assert set(drawn) == set(PICTURES) and drawn == plots.pictures(groups, kind)
    for data in drawn.values():
        assert b"<dc:date>" not in data and b"Software" not in data
        if kind == "png":
            width, height = Image.open(io.BytesIO(data)).size
            assert width == 800 and 300 <= height <= 800
        else:
            assert data.startswith(b"<?xml") and b"</svg>" in data


def test_intervals_reach_from_the_mean_to_their_bounds() -> None:
    scores = scored("one", {"net": [0.5, 0.6]}, real={}).scores
    known = Estimate(mean=0.5, sd=0.1, n=5, low=0.375, high=0.75)
    unknown = Estimate(mean=0.5, sd=None, n=1, low=None, high=None)
    for found, reach in ((known, [37.5, 75]), (unknown, [50, 50])):
        figure = plots.scores_figure(scores.model_copy(update={"table": {"condensed": {"net": found}}}))
        ((_, _, (bars,)),) = figure.axes[0].containers
        assert bars.get_segments()[0][:, 0].tolist() == reach


def test_every_model_has_a_difference_of_its_own(singles: Comparison) -> None:
    """Where one model gains what the other loses, the mean stays."""
    moved = {"net": [x + 0.1 for x in TWO["net"]], "vit": [x - 0.1 for x in TWO["vit"]]}
    other = compare([scored("one", ONE, by=["net"]), scored("two", moved, by=["vit"])])
    assert plots.pictures(singles)["differences"] != plots.pictures(other)["differences"]


def test_pictures_show_what_there_is(singles: Comparison) -> None:
    assert set(plots.pictures(singles)) == {"transfer", "differences"}
    other = compare([scored("one", ONE, by=["net"]), scored("two", ONE, by=["vit"])])
    before, after = plots.pictures(singles), plots.pictures(other)
    assert before["transfer"] != after["transfer"] and before["differences"] != after["differences"]


def test_the_page_holds_tables_and_pictures(groups: Comparison) -> None:
    drawn = plots.pictures(groups)
    page = comparison_html(groups, drawn)
    assert page.count("<img ") == 3 and page == comparison_html(groups, drawn)
    assert "<title>Comparison of one and two</title>" in page
    assert '<p class="answer">one − two is +9.7 points' in page and "evaluate.epochs" not in page
    for section in ("The answer", "What is compared", "Accuracy", "Differences", "Transfer", "Protocol"):
        assert f"<h2>{section}</h2>" in page
    assert 'src="http' not in page and "<script" not in page
