"""The end of a run: the six lines, with what they leave out and what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmdc_hub import metrics
from hmdc_hub.pipeline.ending import score_lines
from hmdc_hub.pipeline.progress import wrapped
from hmdc_hub.schema import Scores
from hmdc_hub.store.files import read_scores
from tests.builders import make_run

REPORT = Path("runs/tiny/report/report.html")


@pytest.fixture
def scores(tmp_path: Path) -> Scores:
    return read_scores(make_run(tmp_path / "run").scores)


def with_accuracies(scores: Scores, **changes: float) -> Scores:
    """The same with every training of a set moved by so much."""
    cells = [
        cell.model_copy(update={"accuracy": cell.accuracy + changes.get(cell.training_set.replace("-", "_"), 0)})
        for cell in scores.cells
    ]
    models = [model.name for model in scores.protocol.models]
    found = metrics.summarise(cells, list(scores.table), models, scores.condensed_by)
    return scores.model_copy(update={"cells": cells, **found})


def labels(lines: list[str]) -> list[str]:
    return [line.partition("  ")[0] for line in lines]


def test_numbers_are_those_of_the_tables(scores: Scores) -> None:
    lines = score_lines(scores, REPORT)
    assert labels(lines) == ["accuracy", "gain over", "unseen", "report"], "it beats all: no verdict is needed"
    row = {name: found["mean"] for name, found in scores.table.items()}
    own, gain = row["condensed"], scores.gain["random"]["mean"]
    assert own.sd is not None and gain.low is not None and gain.high is not None
    assert f"accuracy   {100 * own.mean:.1f} ± {100 * own.sd:.1f} % (n = {own.n}); random " in lines[0]
    assert f"random (same storage) {100 * row['random-encoded'].mean:.1f}" in lines[0] and "exact" not in lines[0]
    assert f"random +{100 * gain.mean:.1f} (+{100 * gain.low:.1f} to +{100 * gain.high:.1f})" in lines[1]
    (unseen,) = [model.name for model in scores.protocol.models if model.name not in scores.condensed_by]
    assert f"unseen     {100 * scores.table['condensed'][unseen].mean:.1f} (" in lines[2] and ", seen " in lines[2]
    assert lines[-1].startswith(f"report     {REPORT} (") and lines[-1].endswith(" epochs)")
    assert all(len(line) <= 80 for line in wrapped("\n".join(lines), 80).splitlines())


def test_a_set_that_beats_not_all_has_a_verdict(scores: Scores) -> None:
    lines = score_lines(with_accuracies(scores, initialisation=0.3), REPORT)
    assert labels(lines)[3] == "verdict" and "worse than the images that condensing started from" in lines[3]


def test_scores_near_chance_stand_beside_it(scores: Scores) -> None:
    assert "chance" not in score_lines(with_accuracies(scores, condensed=0.3), REPORT)[0]
    assert score_lines(with_accuracies(scores, condensed=-0.2), REPORT)[0].endswith(", chance 33.3")


def test_without_an_unseen_model_that_is_said(scores: Scores) -> None:
    models = [model.name for model in scores.protocol.models]
    lines = score_lines(scores.model_copy(update={"condensed_by": models}), REPORT)
    assert lines[2].startswith("unseen     none scored, seen ") and lines[2].endswith(" over initialisation)")
