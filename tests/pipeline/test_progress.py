"""Progress on stderr: tqdm bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import replace

import pytest

from hmdc_hub.events import Event, ImageStep, Note, Stage, Training
from hmdc_hub.pipeline.progress import LINES, LogLines, bars_wanted, columns, figures, reporting
from hmdc_hub.text import amount, duration

STEP = ImageStep(
    outer=1,
    inner=36,
    done=137,
    total=10_000,
    losses={"match/convnet3": 12.345, "match/vit_tiny": 0.00123, "distill/convnet3+vit_tiny": 4.5e-5},
    shares={"match/convnet3": 0.333, "match/vit_tiny": 0.667, "distill/convnet3+vit_tiny": 0.0004},
    accuracies={"convnet3": 0.834, "vit_tiny": 0.05},
    clamped=0.031,
    images_per_second=1234.5,
    images=1,
    seconds_left=7384,
)
TRAINING = Training(done=3, total=40, model="convnet3", training_set="random", accuracy=0.4567, seconds_left=75)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_an_image_step_says_everything() -> None:
    assert figures(STEP, STEP.shares) == (
        "1,234 images/s, clamped 3.1%, match/convnet3 12.3 (33%), match/vit_tiny 0.00123 (67%), "
        "distill/convnet3+vit_tiny 4.5e-05 (0.0%), convnet3 83%, vit_tiny 5.0%"
    )


def test_lines_of_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines()
    for event in (Stage("source", "builtin:digits"), Stage("package"), Note("a note"), TRAINING):
        lines(event)
    lines(replace(STEP, losses={}, accuracies={}))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "source: builtin:digits",
        "package ...",
        "a note",
        "evaluate 3/40 (7.5%), 1:15 left: convnet3 on random: 45.7%",
        "condense 137/10000 (1.4%), 2:03:04 left: 1,234 images/s, clamped 3.1%",
    ]


def test_shares_are_kept_between_updates(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines()
    lines(replace(STEP, done=1, total=3))
    lines(replace(STEP, done=2, total=3, shares={}))
    assert capsys.readouterr().err.count("match/convnet3 12.3 (33%)") == 2


@pytest.mark.parametrize("left", [math.nan, math.inf, -1.0])
def test_unknown_time_left(capsys: pytest.CaptureFixture[str], left: float) -> None:
    LogLines()(replace(STEP, seconds_left=left))
    assert ", ? left: " in capsys.readouterr().err


@pytest.mark.parametrize("total", [1, 9, 10, 11, 100, 10_000])
def test_lines_are_few_and_depend_on_steps_alone(capsys: pytest.CaptureFixture[str], total: int) -> None:
    lines = LogLines()
    for done in range(1, total + 1):
        lines(replace(STEP, done=done, total=total))
    shown = [int(number) for number in re.findall(r"^condense (\d+)/", capsys.readouterr().err, re.MULTILINE)]
    assert shown[0] == 1 and shown[-1] == total and min(total, LINES) <= len(shown) <= LINES + 1


def test_a_terminal_gets_bars_with_lines_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with reporting(None) as show:
        show(Stage("condense", "10000 image steps"))
        for done in range(137, 140):
            show(replace(STEP, done=done))
        show(Note("a note"))
        show(Stage("evaluate"))
        show(TRAINING)
    text = terminal.getvalue()
    assert "condense: 10000 image steps\n" in text and "a note\n" in text and "evaluate ...\n" in text
    assert re.search(r"condense: +1%.*\| 139/10000 \[.*step.*1,234 images/s, clamped 3.1%, match/convnet3 12", text)
    assert re.search(r"evaluate: +8%.*\| 3/40 \[.*convnet3 on random: 45.7%", text) and text.endswith("\n")


@pytest.mark.parametrize(
    ("environment", "bars"),
    [
        ({}, True),
        ({"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, False),
        ({"HF_HUB_DISABLE_PROGRESS_BARS": "true"}, False),
        ({"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_bars_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], bars: bool) -> None:
    on_a_terminal(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bars_wanted() is bars
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not bars_wanted(), "no terminal"


def test_callbacks_hear_everything_whether_it_is_shown_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []
    with reporting(False, [heard.append]) as show:
        show(STEP)
    assert heard == [STEP] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1:00"), (3599.6, "1:00:00"), (100_000, "1 d 03:46")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_amounts() -> None:
    assert [amount(size) for size in (0, 1023, 1536, 5 * 2**30, 3 * 2**40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 GiB", "3.0 TiB",
    ]  # fmt: skip


def test_columns() -> None:
    assert columns(["A", "BB"], [["long", ""], ["x", "y"]]) == "A     BB\nlong\nx     y"
