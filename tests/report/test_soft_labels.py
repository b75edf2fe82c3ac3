"""The table of scores on soft labels: there only if asked for, with those on hard labels beside, and a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.errors import FormatError
from hmdc_hub.pipeline.api import Run
from hmdc_hub.publish.build import package
from hmdc_hub.publish.verify import verify
from hmdc_hub.report import scored, soft_labels
from hmdc_hub.schema import Scores
from hmdc_hub.store.files import read_scores
from hmdc_hub.store.rundir import RunDir
from tests.builders import CONVNET, MLP, edit_json, make_recipe, make_run


def made(folder: Path, **protocol: Any) -> RunDir:
    plain = {"models": [CONVNET, MLP], "seeds": 3, "random_draws": 2, "epochs": 30}
    asked = {"soft_labels": {"teacher": "same"}, "baselines": ["random", "random-encoded", "full"]}
    return make_run(folder / "run", recipe=make_recipe(evaluate=plain | asked | protocol))


def scores(folder: Path, **protocol: Any) -> Scores:
    return read_scores(made(folder, **protocol).scores)


def test_hard_and_soft_labels_stand_side_by_side(tmp_path: Path) -> None:
    found = scores(tmp_path)
    text = soft_labels.text(found)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert words.startswith("Soft labels (teacher: the same architecture, 75.0 % on the test split on average)")
    assert "training set hard labels soft labels soft, no augmentation" in words
    assert "they are not comparable with scores on hard labels, nor with those of another teacher." in words
    assert found.soft_labels is not None
    mean, robust = found.table["condensed"]["mean"].mean, found.soft_labels.ranking["mean"]
    assert f"condensed {100 * mean:.1f} ± " in words and f" {robust.augmentation_robust.mean:.3f} ± " in words
    assert "exact" not in text and "n = 3 evaluation seeds" in words
    assert soft_labels.markdown(found).startswith("### Soft labels (teacher: ")


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"soft_labels": {"teacher": "mlp_tiny"}}, "(teacher: mlp_tiny, 75.0 % on the test split)"),
        ({"models": [MLP]}, "(teacher: mlp_tiny, 75.0 % on the test split)"),
        ({"holdout": 0.2}, "75.0 % on the held-out split on average)"),
        ({"baselines": ["random"]}, "There is no LRS without trainings on the full set: full in evaluate.baselines."),
        ({"soft_labels": {"teacher": "same", "temperature": 4.0}}, "softmax at temperature 4, on every image"),
    ],
)
def test_what_the_section_says(tmp_path: Path, protocol: dict[str, Any], words: str) -> None:
    assert words in " ".join(soft_labels.text(scores(tmp_path, **protocol)).split())


def test_without_random_images_there_is_no_ranking(tmp_path: Path) -> None:
    text = soft_labels.text(scores(tmp_path, baselines=["full"]))
    assert "soft labels" in text and "LRS" not in text


@pytest.mark.parametrize("asked", [True, False])
def test_wherever_scores_are_shown_and_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    monkeypatch.setattr(scored, "rendered", lambda *_, kind="png", **__: b"<svg/>")
    run = made(tmp_path, soft_labels={"teacher": "same"} if asked else {})
    found, head = read_scores(run.scores), "Soft labels (teacher"
    assert (b"soft_labels" in run.scores.read_bytes()) == asked
    card = (package(run) / "README.md").read_text("utf-8")
    pages = [Run(run.path).details(), scored.report_html(found, {}), card.replace("\\", "")]
    assert [head in page for page in pages] == [asked] * 3
    assert all(check.ok for check in verify(run.package))


def worse(plain: Any) -> None:
    plain["soft_labels"]["table"]["condensed"]["mean"]["mean"] += 0.01


def fewer(plain: Any) -> None:
    del plain["soft_labels"]["unaugmented"][0]


def impossible(plain: Any) -> None:
    plain["soft_labels"]["teachers"]["mlp_tiny"] = 0.7503


def gone(plain: Any) -> None:
    del plain["soft_labels"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (worse, "table.condensed.mean: mean is"),
        (fewer, "the trainings on soft labels"),
        (impossible, "no share of"),
        (gone, "whether there are soft labels"),
    ],
)
def test_numbers_that_do_not_follow_are_found(tmp_path: Path, change: Any, words: str) -> None:
    run = made(tmp_path)
    edit_json(run.scores, change)
    with pytest.raises(FormatError, match=words):
        package(run)
