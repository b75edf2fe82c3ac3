"""The report of an evaluation: one page that stands alone, says what the intervals allow, and holds every number."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

from hmdc_hub import metrics
from hmdc_hub.pipeline.ending import score_lines
from hmdc_hub.report import plots, scored
from hmdc_hub.report.headline import headline
from hmdc_hub.report.scored import Confusion, report_html, write_report
from hmdc_hub.report.tables import means_rows, set_label, table_markdown, table_text, to_csv
from hmdc_hub.schema import BASELINES, TRAINING_SETS, Cell, ModelSpec, Scores
from hmdc_hub.store.files import read_scores
from tests.builders import CONVNET, MLP, RESNET, make_recipe, make_run, make_source_info

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVERYTHING = list(BASELINES)
PIXEL = b"\x89PNG\r\n\x1a\nrest"
LOOKS = plots.SetPictures(PIXEL, PIXEL)
Make = Callable[..., Scores]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def scores(classes: list[str] | None = None, **protocol: Any) -> Scores:
        plain = {"models": [CONVNET, MLP, RESNET], "seeds": 3, "random_draws": 2, "epochs": 30}
        recipe = make_recipe(evaluate=plain | protocol)
        source = make_source_info(recipe, class_names=classes or ("cat", "dog", "ship"))
        return read_scores(make_run(tmp_path / "run", recipe=recipe, source=source).scores)

    return scores


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are the slow part, and other tests look at them."""

    def drawn(figure: Any, *facts: Any, kind: plots.Kind = "png") -> bytes:
        return b"<svg/>" if kind == "svg" else PIXEL

    monkeypatch.setattr(scored, "rendered", drawn)


def confusion(scores: Scores) -> Confusion:
    classes = len(scores.class_names)
    counts = np.arange(classes**2).reshape(classes, classes) + 50 * np.eye(classes, dtype=np.int64)
    return {(name, m.name): (n + 1) * counts for n, m in enumerate(scores.protocol.models) for name in scores.table}


class Reader(HTMLParser):
    """Checks that every tag is closed in its turn, and collects what a reader sees and what the page loads."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.alternatives: list[str] = []
        self.addresses: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.alternatives += [value or "" for name, value in attrs if name == "alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def seen(document: str) -> str:
    return " ".join(" ".join(Reader(document).text).split())


def flat(cells: list[Cell], change: Callable[[Cell], float]) -> list[Cell]:
    return [cell.model_copy(update={"accuracy": change(cell)}) for cell in cells]


def summed_up(scores: Scores, cells: list[Cell]) -> Scores:
    models = [model.name for model in scores.protocol.models]
    summary = metrics.summarise(cells, list(scores.table), models, scores.condensed_by)
    return scores.model_copy(update={"cells": cells, **summary})


def test_a_page_stands_alone_and_is_the_same_twice(make: Make) -> None:
    scores = make(models=[CONVNET], baselines=["random"])
    document = report_html(scores, confusion(scores), LOOKS)
    assert document == report_html(scores, confusion(scores), LOOKS)
    reader = Reader(document)
    assert not re.search(r"https?://|<script|javascript:|url\(|@import|\son\w+=", document, re.IGNORECASE)
    assert all(address.startswith(("data:image/", "#")) for address in reader.addresses)
    assert (
        reader.tags.count("img") == len(reader.alternatives) == 5
    )  # formation, preview, accuracy, classes, confusions
    assert all(reader.alternatives)
    assert """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style""" in document


@pytest.mark.usefixtures("no_drawing")
def test_every_number_is_on_the_page(make: Make) -> None:
    scores = make(baselines=EVERYTHING, best_every=10, weight_decay=0.00125, batch=77)
    scores = scores.model_copy(
        update={"cells": [cell.model_copy(update={"best": 0.987}) for cell in scores.cells], "device": "a fast one"}
    )
    text = seen(report_html(scores, confusion(scores)))
    for table in (scores.table, scores.ece):
        for row in table.values():
            for e in row.values():
                assert f"{100 * e.mean:.1f} ± {100 * (e.sd or 0):.1f}" in text
    for e in (*scores.gap.values(), *(e for row in scores.gain.values() for e in row.values())):
        assert f"({100 * (e.low or 0):+.1f} to {100 * (e.high or 0):+.1f})".replace("-0.0", "+0.0") in text
    for found in scores.ranking.values():
        assert found.score is not None and f"{found.score.mean:.3f}" in text
    for name, budget in scores.budgets.items():
        assert re.search(rf"{set_label(name)} \D+.* {budget.stored} {budget.images} ", text)
    first = [scores.per_class["condensed"][model.name][0] for model in scores.protocol.models]
    assert "cat " in text and all(f"{100 * value:.1f}" in text for value in first)
    assert "98.7" in text and "not comparable with anything else" in text
    assert "weight_decay 0.00125" in text and "batch 77" in text and "augment.flip true" in text
    assert "depth 2, width 4" in text and "a fast one" in text and scores.protocol_hash in text
    assert "hmdc-hub evaluate tiny_ipc2 --protocol scores.json" in text
    assert "937.5 KiB" not in text and "281.2 KiB" in text  # 1500 images of 3 x 8 x 8 bytes


@pytest.mark.usefixtures("no_drawing")
def test_sections_stand_in_order(make: Make) -> None:
    scores = make(baselines=EVERYTHING)
    titles = re.findall(r"<h2>(.*?)</h2>", report_html(scores, confusion(scores)))
    assert titles == [
        "The answer",
        "Accuracy",
        "Differences, seed by seed",
        "Models that condensed, and others",
        "DD-Ranking",
        "Classes",
        "Confusions",
        "Calibration",
        "What was scored",
        "Protocol",
        "Versions and device",
        "Do it again",
    ]


@pytest.mark.usefixtures("no_drawing")
def test_names_of_strangers_stay_text(make: Make) -> None:
    hostile = ["<script>alert(1)</script>", "\"'><img src=x onerror=y>", "\u202ereversed\u200f", "a\x00\nb", " "]
    scores = make(hostile, models=[CONVNET], baselines=["random"])
    scores = scores.model_copy(update={"name": "a; rm -rf <b>&'\"", "device": "\u202e</td>\u2066<td>"})
    document = report_html(scores, confusion(scores))
    reader = Reader(document)
    assert "script" not in reader.tags and "b" not in reader.tags and reader.tags.count("img") == 3
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00]", document)
    assert escape(hostile[0]) in document and escape(hostile[1]) in document
    assert {"reversed", "a b", "class 4"} <= set(reader.text)
    assert """evaluate 'a; rm -rf <b>&'"'"'"' --protocol""" in "".join(reader.text)


@pytest.mark.usefixtures("no_drawing")
def test_paths_of_models_stay_here(make: Make) -> None:
    scores = make(models=[CONVNET], baselines=[])
    spec = ModelSpec.model_validate(
        {"name": CONVNET["name"], "source": "timm", "id": "./secret/code", "weights": "/home/me/w.safetensors"}
    )
    mine = scores.protocol.model_copy(update={"models": [spec]})
    document = report_html(scores.model_copy(update={"protocol": mine}), {})
    assert "secret" not in document and "/home/me" not in document
    assert "local:w.safetensors" in document and "The weights or code of convnet_tiny" in document


@pytest.mark.usefixtures("no_drawing")
def test_a_model_of_a_python_session_is_said_to_be_one(make: Make) -> None:
    scores = make(models=[CONVNET, MLP], baselines=[])
    said = "from a Python session; not reproducible by id"
    assert said not in table_text(scores) and said not in report_html(scores, {})
    first, second = scores.protocol.models
    mine = first.model_copy(update={"source": "python", "id": "notebook.Net@1a2b3c4d"})
    of = scores.model_copy(update={"protocol": scores.protocol.model_copy(update={"models": [mine, second]})})
    assert f"{mine.name}: {said}" in " ".join(table_text(of).split())
    assert f"{mine.name.replace('_', chr(92) + '_')}: {said}" in table_markdown(of)
    text = seen(report_html(of, {}))
    assert f"python notebook.Net@1a2b3c4d ({said})" in text and f"cannot build {mine.name}" in text


def test_training_sets_have_one_label_and_one_explanation() -> None:
    assert list(TRAINING_SETS) == ["condensed", *BASELINES]
    assert plots.SET_STYLES.keys() == TRAINING_SETS.keys() and len(set(plots.SET_STYLES.values())) == len(TRAINING_SETS)
    assert set_label("random-encoded") == "random, same storage" and set_label("exact") == "exact floats"
    assert set_label("mine") == "mine" and all(name.what for name in TRAINING_SETS.values())


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(("shift", "words"), [(0.0, "is not shown to beat"), (0.2, "beats"), (-0.2, "is worse than")])
def test_the_answer_is_no_bolder_than_the_interval(make: Make, shift: float, words: str) -> None:
    scores = make(baselines=["random", "initialisation"])
    noise = {0: 0.01, 1: -0.01, 2: 0.0}
    cells = flat(
        scores.cells, lambda c: 0.5 + (shift + noise[c.seed] if c.training_set == "condensed" else -noise[c.seed])
    )
    scores = summed_up(scores, cells)
    document = report_html(scores, {})
    text = seen(document)
    assert f"The condensed set {words} random real images" in text and f"{100 * (0.5 + shift):.1f} %" in text
    assert text.count("n = 3") >= 3
    assert ('class="strong"' in document) == (words == "beats")  # what beats nothing does not stand out
    found = headline(scores)
    assert found.verdict.startswith(f"The condensed set {words} random real images")
    assert "the images that condensing started from" in found.verdict
    assert f"{100 * (0.5 + shift):.1f} % accuracy on the test images" in found.sentence and "n = 3" in found.sentence
    assert found.beats_all == (shift > 0) == ("**condensed**" in table_markdown(scores))
    assert found.chance == 1 / len(scores.class_names) and "| chance |" in table_markdown(scores)


def test_of_two_seeds_no_interval_is_printed_anywhere(make: Make) -> None:
    scores = make(seeds=2, baselines=["random", "initialisation"])
    found = headline(scores)
    assert not found.beats_all and "2 seeds are too few to say: 3 are needed" in found.verdict
    said = [
        found.sentence,
        *score_lines(scores, Path("report.html")),
        table_markdown(scores),
        seen(report_html(scores, {})),
    ]
    assert not any(re.search(r"\d to [+-]?\d", text) for text in said) and "too few seeds" in said[-2]
    assert "**condensed**" not in table_markdown(scores)


def test_models_that_condensed_and_the_others_stand_apart(make: Make) -> None:
    scores = make(baselines=["random"])
    found = headline(scores)
    assert found.seen is not None and found.unseen is not None and found.strongest == "random"
    for part in (found.seen, found.unseen):
        means = [scores.table["condensed"][name].mean for name in part.models]
        gains = [scores.gain["random"][name].mean for name in part.models]
        assert part.accuracy.mean == pytest.approx(sum(means) / len(means))
        assert part.gain is not None and part.gain.mean == pytest.approx(sum(gains) / len(gains))
    everywhere = scores.model_copy(update={"condensed_by": [model.name for model in scores.protocol.models]})
    assert headline(everywhere).unseen is None and "unseen: none scored" in headline(everywhere).seen_line


def test_the_share_of_the_full_set_is_that_of_the_means(make: Make) -> None:
    scores = make(baselines=["random", "full"])
    found, column = headline(scores), headline(scores).column
    means = [scores.table[name][column].mean for name in ("condensed", "full")]
    assert found.recovered is not None and found.recovered == pytest.approx(means[0] / means[1])
    assert f"{100 * found.recovered:.0f} % of what the full set gives" in found.sentence


@pytest.mark.usefixtures("no_drawing")
def test_the_answer_and_a_small_table_of_means_come_first(make: Make) -> None:
    scores = make(baselines=["random", "full"])
    document = report_html(scores, {}, LOOKS)
    first, _, _ = document.partition("<h2>Accuracy")
    assert first.index("Trained on 6 condensed images") < first.index("<img") < first.index("<table>")
    assert first.count("<h2>") == 1
    text = " ".join(re.sub(r"<[^>]*>", " ", first).split())
    mean, gain = (one["mean"] for one in (scores.table["condensed"], scores.gain["random"]))
    assert f"condensed {100 * mean.mean:.1f} ± {100 * (mean.sd or 0):.1f}" in text
    assert f"{100 * gain.mean:+.1f} ({100 * (gain.low or 0):+.1f} to" in text and "chance 33.3" in text
    for header in re.findall(r"<thead>.*?</thead>", document):
        if "convnet_tiny" in header and "mean" in header:  # by model
            assert "mean</th>" in header.split('<th scope="col"')[2]


@pytest.mark.usefixtures("no_drawing")
def test_a_table_without_rows_is_left_out(make: Make) -> None:
    scores = make(baselines=["random"])
    assert (
        "Table by training set"
        not in report_html(scores.model_copy(update={"ece": {}}), {})
        .partition("<h2>Calibration")[2]
        .partition("<h2>")[0]
    )
    assert "Table by training set" in report_html(scores, {}).partition("<h2>Calibration")[2].partition("<h2>")[0]


@pytest.mark.usefixtures("no_drawing")
def test_one_training_says_nothing_about_chance(make: Make) -> None:
    scores = make(models=[CONVNET], seeds=1, random_draws=1, baselines=["random"])
    text = seen(report_html(scores, {}))
    assert "too few" in text and "how far trainings vary is not known" in text
    assert "The condensed set beats" not in text and "None" not in text and "nan" not in text
    assert "All models here took part in condensing" in text and "Confusions" not in text


@pytest.mark.usefixtures("no_drawing")
def test_without_random_images_the_answer_is_open(make: Make) -> None:
    scores = make(models=[RESNET], baselines=["k-means"])
    text = seen(report_html(scores, confusion(scores)))
    assert "Whether condensing was worth it is not known" in text and "DD-Ranking" not in text
    assert "None of the models here took part" in text
    alone = scores.model_copy(update={"condensed_by": []})
    assert "Which models condensed the set is not known" in seen(report_html(alone, {}))


@pytest.mark.usefixtures("no_drawing")
def test_other_splits_and_other_programs_are_named(make: Make) -> None:
    scores = make(models=[CONVNET], baselines=["random"], holdout=0.25)
    scores = scores.model_copy(update={"condense_hash": None, "condense_seed": None, "condensed_by": []})
    text = seen(report_html(scores, {}))
    assert "% accuracy on the held-out train images" in text and "on the test images" not in text
    assert "Held-out train accuracy in percent" in text and "Test accuracy" not in text
    assert "evaluate TARGET --recipe RECIPE --protocol scores.json" in text and "a set of another program" in text


@pytest.mark.usefixtures("no_drawing")
def test_confusions_are_of_the_condensed_set_and_the_worst_come_first(make: Make) -> None:
    scores = make(baselines=["random"])
    counts = np.array([[8, 2, 0], [1, 9, 0], [0, 5, 5]])
    other = np.array([[0, 0, 9], [0, 0, 9], [9, 0, 0]])
    found = {("condensed", m.name): counts for m in scores.protocol.models} | {("random", "mlp_tiny"): other}
    text = seen(report_html(scores, found))
    assert "ship dog 50.0 cat dog 20.0 dog cat 10.0 The most" in text
    assert "3 evaluation seeds and 3 models" in text and text.count("Each model alone") == 1


@pytest.mark.slow
def test_a_hundred_classes(make: Make) -> None:
    scores = make([f"kind {n}" for n in range(100)], models=[CONVNET], seeds=2, baselines=["random"])
    document = report_html(scores, confusion(scores))
    assert len(document) < 1_500_000
    assert {f"kind {n}" for n in range(100)} <= set(Reader(document).text)


def test_cells_as_csv_read_back_exactly(make: Make) -> None:
    scores = make()
    text = to_csv(metrics.scores_rows(scores))
    assert text.endswith("\n") and "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        "training_set", "stored_images", "training_images", "model", "condensed_by", "draw", "seed", "accuracy", "ece"
    ]  # fmt: skip
    assert [
        (r["training_set"], r["model"], int(r["draw"]), int(r["seed"]), float(r["accuracy"]), float(r["ece"]))
        for r in rows
    ] == [(c.training_set, c.model, c.draw, c.seed, c.accuracy, c.ece) for c in scores.cells]
    assert {(r["model"], r["condensed_by"]) for r in rows} == {
        ("convnet_tiny", "true"), ("mlp_tiny", "true"), ("resnet_tiny", "false")
    }  # fmt: skip
    assert {(r["training_set"], r["stored_images"], r["training_images"]) for r in rows} == {
        (name, str(budget.stored), str(budget.images)) for name, budget in scores.budgets.items()
    }


def test_means_as_csv(make: Make) -> None:
    scores = make(seeds=1)
    rows = {
        (r["measure"], r["training_set"], r["model"]): r
        for r in csv.DictReader(io.StringIO(to_csv(means_rows(scores))))
    }
    for measure, table in (("accuracy", scores.table), ("ece", scores.ece), ("gain", scores.gain)):
        for name, row in table.items():
            for model, e in row.items():
                found = rows.pop((measure, name, model))
                assert float(found["mean"]) == e.mean and found["n"] == "1"
                assert found["sd"] == found["low"] == found["high"] == ""
    assert not rows


def test_spread_as_csv(make: Make) -> None:
    scores = make()
    rows = {
        (r["measure"], r["training_set"], r["model"]): r
        for r in csv.DictReader(io.StringIO(to_csv(means_rows(scores))))
    }
    e, row = scores.gain["random"]["mean"], rows["gain", "random", "mean"]
    assert [float(row[key]) for key in ("sd", "low", "high")] == [e.sd, e.low, e.high]


@pytest.mark.usefixtures("no_drawing")
def test_the_report_is_a_folder_of_files(make: Make, tmp_path: Path) -> None:
    scores = make(models=[CONVNET], baselines=["random"])
    folder = tmp_path / "report"
    write_report(folder, scores, confusion(scores), LOOKS)
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "scores.png", "scores.svg", "scores.csv", "scores.md", "cells.csv", "confusion.png"
    }  # fmt: skip
    assert (folder / "report.html").read_text("utf-8") == report_html(scores, confusion(scores), LOOKS)
    assert (folder / "scores.md").read_text("utf-8") == table_markdown(scores)
    assert (folder / "scores.csv").read_text("utf-8") == to_csv(means_rows(scores))
    assert (folder / "cells.csv").read_text("utf-8") == to_csv(metrics.scores_rows(scores))
    assert (folder / "scores.png").read_bytes() == (folder / "confusion.png").read_bytes() == PIXEL
    assert (folder / "scores.svg").read_bytes() == b"<svg/>"
    write_report(tmp_path / "bare", scores, {}, None)
    assert not (tmp_path / "bare" / "confusion.png").exists() and (tmp_path / "bare" / "report.html").is_file()
