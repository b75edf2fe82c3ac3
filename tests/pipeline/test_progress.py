"""Progress on stderr: one line that rewrites itself on a terminal, a few plain lines elsewhere; and what fits how."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import replace

import pytest

from hmdc_hub.events import Event, ImageStep, Note, Stage, Training
from hmdc_hub.pipeline.progress import LINES, LogLines, Shown, bars_wanted, columns, figures, reporting, width, wrapped
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
        "evaluate 3/40 (7.5%), 1:15 left: convnet3 on random 45.7%",
        "condense 137/10000 (1.4%), 2:03:04 left",
    ]


def test_a_line_has_one_loss_and_a_verbose_one_everything(capsys: pytest.CaptureFixture[str]) -> None:
    LogLines()(STEP)
    assert capsys.readouterr().err == "condense 137/10000 (1.4%), 2:03:04 left: loss 6.17\n"
    LogLines(verbose=True)(STEP)
    assert capsys.readouterr().err == f"condense 137/10000 (1.4%), 2:03:04 left: {figures(STEP, STEP.shares)}\n"


def test_shares_are_kept_between_updates(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines(verbose=True)
    lines(replace(STEP, done=1, total=3))
    lines(replace(STEP, done=2, total=3, shares={}))
    assert capsys.readouterr().err.count("match/convnet3 12.3 (33%)") == 2


@pytest.mark.parametrize("left", [math.nan, math.inf, -1.0])
def test_unknown_time_left(capsys: pytest.CaptureFixture[str], left: float) -> None:
    LogLines()(replace(STEP, seconds_left=left))
    assert ", ? left" in capsys.readouterr().err


@pytest.mark.parametrize("total", [1, 9, 10, 11, 100, 10_000])
def test_lines_are_few_and_depend_on_steps_alone(capsys: pytest.CaptureFixture[str], total: int) -> None:
    lines = LogLines()
    for done in range(1, total + 1):
        lines(replace(STEP, done=done, total=total))
    shown = [int(number) for number in re.findall(r"^condense (\d+)/", capsys.readouterr().err, re.MULTILINE)]
    assert shown[0] == 1 and shown[-1] == total and min(total, LINES) <= len(shown) <= LINES + 1


def screen(text: str) -> list[str]:
    """What stands on a terminal in the end: a carriage return begins a line again."""
    return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]


def show_all(shown: Shown) -> None:
    with reporting(shown) as show:
        show(Stage("source", "builtin:digits"))
        show(Note("1438 images to condense", detail=True))
        show(Note("left out, no image: 3"))
        show(Stage("condense", "10000 image steps"))
        for done in (9_998, 9_999):
            show(replace(STEP, done=done))
        show(Note("a note"))
        show(replace(STEP, done=10_000))
        show(Stage("evaluate", "convnet3, 200 epochs each"))
        show(TRAINING)


def test_a_terminal_has_one_line_that_rewrites_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    show_all(None)
    text = terminal.getvalue()
    assert "source ..." in text and "condense 9998/10000 (100%), 2:03:04 left: loss 6.17" in text
    left, *bars = [line.partition("  ")[0] for line in screen(text)], *screen(text)
    assert left[0] == "left out, no image: 3" and left[1] == "a note" and len(bars) == 5
    assert bars[2].startswith("condense 10000/10000 (100%) in 0.0 s ")
    assert bars[3].startswith("evaluate 3/40 (7.5%), 1:15 left: convnet3 on random 45.7% ")
    assert all(len(line) <= 80 for line in screen(text)) and "clamped" not in text and "834" not in text


def test_verbose_has_every_line_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    show_all("verbose")
    lines = screen(terminal.getvalue())
    assert lines[:4] == [
        "source: builtin:digits", "1438 images to condense", "left out, no image: 3", "condense: 10000 image steps",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if line][-2:] == ["evaluate", "evaluate"], "after all of the stage before"
    assert next(line for line in lines if line.startswith("evaluate:")) == "evaluate: convnet3, 200 epochs each"
    assert lines.index("evaluate: convnet3, 200 epochs each") > next(
        place for place, line in enumerate(lines) if " in 0.0 s" in line
    )
    assert "convnet3 83%" in " ".join(lines) and "clamped 3.1%" in " ".join(lines)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("columns", [40, 80])
def test_nothing_of_the_line_is_cut(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    with reporting(None) as show:
        show(STEP)
    line = screen(terminal.getvalue())[0]
    wanted = "condense 137/10000 (1.4%), 2:03:04 left"
    assert line.startswith(wanted if columns == 40 else f"{wanted}: loss 6.17 ")
    assert columns == 80 or "loss" not in line


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


def test_columns_fit_a_terminal() -> None:
    header, rows = ["NAME", "STATE", "WHAT"], [["a", "done", "one two three four five six"], ["b", "", "seven"]]
    assert columns(header, rows, 80) == columns(header, rows)
    assert columns(header, rows, 37).splitlines() == [
        "NAME  STATE  WHAT",
        "a     done   one two three four five",
        "             six",
        "b            seven",
    ]
    assert columns(header, rows, 24).splitlines() == [
        "a", "  state  done", "  what   one two three", "        four five six", "b", "  what   seven",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "at", "lines"),
    [
        ("a long-ish line of words", 12, ["a long-ish", "line of", "words"]),
        ("gain       +1.2 over random, +0.1", 24, ["gain       +1.2 over", "        random, +0.1"]),
        ("gain over  random +1.2, other +0.1", 33, ["gain over  random +1.2, other", "           +0.1"]),
        ("  indented words here", 14, ["  indented", "  words here"]),
        ("short\n\nlines", 80, ["short", "", "lines"]),
        ("a line of words", 0, ["a line of words"]),
        ("averylongnamewithoutspaces end", 10, ["averylongnamewithoutspaces", "end"]),
        (
            "go on with: hmdc-hub condense tiny.yaml --resume", 34,
            ["go on with: hmdc-hub condense \\", "    tiny.yaml --resume"],
        ),
        ("next: hmdc-hub push a, or hmdc-hub runs show a", 30, ["next: hmdc-hub push a, or", "hmdc-hub runs show a"]),
    ],
)  # fmt: skip
def test_long_lines_break_between_words(text: str, at: int, lines: list[str]) -> None:
    assert wrapped(text, at).split("\n") == lines


def test_how_wide_a_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width(io.StringIO()) == 0 and width(Terminal()) == 80
    for said, wanted in (("40", 40), ("0", 80), ("wide", 80)):
        monkeypatch.setenv("COLUMNS", said)
        assert width(Terminal()) == wanted
