"""Log lines and the status block: what is written, how often, how wide."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import replace

import pytest

from hmdc_hub.cli.output import amount, columns, duration
from hmdc_hub.cli.progress import LINES, LogLines, StatusBlock, bar, progress, step_lines
from hmdc_hub.events import ImageStep, Note, Stage, Training

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


def test_an_image_step_says_everything_within_80_columns() -> None:
    lines = step_lines(STEP, dict(STEP.shares))
    text = "\n".join(lines)
    assert all(len(line) < 80 for line in lines)
    for words in ("137/10000 (1.4%)", "2:03:04 left", "1,234 images/s", "clamped 3.1%", "reset 2, step 37",
                  "match/convnet3 12.3 (33%)", "match/vit_tiny 0.00123 (67%)", "distill/convnet3+vit_tiny 4.5e-05",
                  "convnet3 83%", "vit_tiny 5.0%"):  # fmt: skip
        assert words in text.replace("\n    ", " "), words


def test_long_names_stay_in_one_piece() -> None:
    names = [f"match/a_model_with_a_rather_long_name_{i}" for i in range(5)]
    lines = step_lines(replace(STEP, losses=dict.fromkeys(names, 1.0), shares={}), {})
    assert all(len(line) < 80 for line in lines)
    assert all(any(name + " 1" in line for line in lines) for name in names)


@pytest.mark.parametrize("left", [math.nan, math.inf, -1.0])
def test_unknown_time_left(left: float) -> None:
    assert "? left" in bar(1, 10, left) and "? left" in step_lines(replace(STEP, seconds_left=left), {})[0]


def test_shares_are_kept_between_updates(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines()
    lines(replace(STEP, done=1, total=3))
    lines(replace(STEP, done=2, total=3, shares={}))
    assert capsys.readouterr().err.count("match/convnet3 12.3 (33%)") == 2


@pytest.mark.parametrize("total", [1, 49, 50, 51, 100, 10_000])
def test_log_lines_are_few_and_depend_on_steps_alone(capsys: pytest.CaptureFixture[str], total: int) -> None:
    lines = LogLines()
    for done in range(1, total + 1):
        lines(replace(STEP, done=done, total=total))
    shown = [int(number) for number in re.findall(r"^condense (\d+)/", capsys.readouterr().err, re.MULTILINE)]
    assert shown[0] == 1 and shown[-1] == total
    assert min(total, LINES // 2) <= len(shown) <= LINES + 1


def test_log_lines_for_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines()
    for event in (Stage("source", "builtin:digits"), Stage("package"), Note("a note"), TRAINING):
        lines(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "source: builtin:digits\npackage ...\na note\nevaluate 3/40, 1:15 left: convnet3 on random: 45.7%\n"
    )


def shown_on(screen: str) -> list[str]:
    """What a terminal shows after these characters: cursor up, erase below, and lines."""
    lines: list[str] = []
    for part in re.split(r"(\x1b\[\d+A\x1b\[J|\n)", screen):
        if move := re.match(r"\x1b\[(\d+)A", part):
            del lines[len(lines) - int(move[1]) :]
        elif part and part != "\n":
            lines.append(part)
    return lines


def test_the_block_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    block = StatusBlock(clock=lambda: now[0])
    block(Stage("condense", "10000 image steps"))
    for done in range(1, 4):
        now[0] += 1
        block(replace(STEP, done=done))
    block(Note("a note"))
    now[0] += 0.01
    block(replace(STEP, done=4))
    lines = shown_on(screen.getvalue())
    assert lines[:2] == ["condense: 10000 image steps", "a note"]
    assert lines[2].startswith("  0% |") and "3/10000, 2:03:04 left" in lines[2], "step 4 came too soon to be drawn"
    assert all(len(line) < 80 for line in lines)
    block(Stage("evaluate"))
    block(TRAINING)
    block.close()
    lines = shown_on(screen.getvalue())
    assert "4/10000" in lines[2], "what was last is drawn before the next stage"
    assert lines[-3] == "evaluate ..." and lines[-2].startswith("  8% |") and "convnet3 on random: 45.7%" in lines[-1]


def test_a_narrow_terminal_cuts_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "30")
    StatusBlock()(STEP)
    assert max(map(len, shown_on(screen.getvalue()))) == 29


@pytest.mark.parametrize(
    ("terminal", "environment", "kind"),
    [
        (True, {}, StatusBlock),
        (False, {}, LogLines),
        (True, {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, LogLines),
        (True, {"HF_HUB_DISABLE_PROGRESS_BARS": "true"}, LogLines),
        (True, {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, StatusBlock),
        (True, {"TERM": "dumb"}, LogLines),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], kind: type) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert isinstance(progress(), kind)


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_colour(monkeypatch: pytest.MonkeyPatch, no_colour: str, coloured: bool) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_colour)
    StatusBlock()(Stage("package"))
    assert ("\x1b[1m" in screen.getvalue()) is coloured


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
