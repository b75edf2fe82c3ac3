"""What a person sees of long work: a few lines redrawn in place on a terminal, plain log lines elsewhere.

Both are listeners (`hmdc_hub.events.Listener`) that write to stderr; neither decides anything about the work.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from hmdc_hub.cli.output import duration, emphasised, write
from hmdc_hub.events import Event, ImageStep, Note, Stage, Training

WIDTH = 80
LINES = 50
"""Log lines per stage at most: how often one is written depends on steps done, never on the clock."""


class Progress(Protocol):
    """A listener that can be told that the work is over."""

    def __call__(self, event: Event) -> None:
        """Show one event."""

    def urgent(self, text: str) -> None:
        """Say something from a signal handler: the stream may be in the middle of a write and must not be touched."""

    def close(self) -> None:
        """Leave the terminal in order; called once, also after a failure."""


def progress() -> Progress:
    """Choose how to show progress.

    Lines where stderr is no terminal, where the terminal cannot move its cursor, or where the environment says
    HF_HUB_DISABLE_PROGRESS_BARS, as for the bars of the Hub's own libraries; a status block otherwise.
    """
    off = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in {"1", "ON", "YES", "TRUE"}
    if off or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return LogLines()
    return StatusBlock()


class LogLines:
    """Plain lines: the first event of a stage, the last, and at most `LINES` between them."""

    def __init__(self) -> None:
        # Shares of the gradient come only with the steps that update the balance; losses come with all.
        self._shares: dict[str, float] = {}
        self._next: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Stage():
                write(sys.stderr, stage_line(event) + "\n")
            case Note():
                write(sys.stderr, event.text + "\n")
            case ImageStep():
                self._shares = dict(event.shares) or self._shares
                if self._due("condense", event.done, event.total):
                    write(sys.stderr, "\n".join(step_lines(event, self._shares)) + "\n")
            case Training():
                if self._due("evaluate", event.done, event.total):
                    write(sys.stderr, training_line(event) + "\n")

    def urgent(self, text: str) -> None:
        """Say something from a signal handler."""
        _write_now(text)

    def close(self) -> None:
        """Nothing is left open."""

    def _due(self, stage: str, done: int, total: int) -> bool:
        if done < self._next.get(stage, 0) and done < total:
            return False
        every = max(1, -(-total // LINES))
        self._next[stage] = (done // every + 1) * every
        return True


class StatusBlock:
    """A few lines at the bottom of a terminal, redrawn in place at most ten times a second.

    Args:
        clock: Seconds from any origin; a test brings its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn = 0
        self._at = float("-inf")
        self._lines: list[str] = []
        self._shares: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Stage():
                # What the stage before showed last stays on the screen above this one.
                self._settle()
                self._above(emphasised(stage_line(event), sys.stderr))
            case Note():
                self._above(event.text)
            case ImageStep():
                self._shares = dict(event.shares) or self._shares
                self._lines = [bar(event.done, event.total, event.seconds_left), *step_lines(event, self._shares)[1:]]
                self._redraw(force=event.done == event.total)
            case Training():
                self._lines = [bar(event.done, event.total, event.seconds_left), "  " + training_result(event)]
                self._redraw(force=event.done == event.total)

    def urgent(self, text: str) -> None:
        """Say something from a signal handler; the next block is drawn below it."""
        self._drawn = 0
        _write_now(text)

    def close(self) -> None:
        """Draw the last state and leave the cursor below it."""
        self._settle()

    def _settle(self) -> None:
        self._redraw(force=True)
        self._drawn, self._lines, self._at = 0, [], float("-inf")

    def _above(self, text: str) -> None:
        write(sys.stderr, self._erased() + text + "\n")
        self._drawn = 0
        self._redraw(force=True)

    def _redraw(self, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._at < 0.1:
            return
        self._at = now
        # A line that wraps would make the cursor come back to the wrong place: cut, never wrap.
        columns = shutil.get_terminal_size((WIDTH, 24)).columns
        lines = [line[: columns - 1] for line in self._lines]
        write(sys.stderr, self._erased() + "".join(line + "\n" for line in lines))
        self._drawn = len(lines)

    def _erased(self) -> str:
        return f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""


def _write_now(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def stage_line(event: Stage) -> str:
    """Write the line that opens a stage."""
    return f"{event.name}: {event.detail}" if event.detail else f"{event.name} ..."


def bar(done: int, total: int, seconds_left: float) -> str:
    """Draw how far the work is, 76 characters at most."""
    share = done / total if total else 1.0
    filled = round(30 * share)
    return f"{share:4.0%} |{'#' * filled}{'-' * (30 - filled)}| {done}/{total}, {duration(seconds_left)} left"


def step_lines(event: ImageStep, shares: dict[str, float]) -> list[str]:
    """Write an image step on lines of 80 characters at most.

    Args:
        event: The step.
        shares: The latest shares of the image gradient by target, as steps between two updates carry none.

    Returns:
        A line with how far it is, a line of figures, then losses with their shares and the networks' accuracies.
    """
    where = f"condense {event.done}/{event.total} ({_percent(event.done / max(event.total, 1))})"
    figures = (
        f"  {_count(event.images_per_second)} images/s, pixels clamped {_percent(event.clamped)}, "
        f"reset {event.outer + 1}, step {event.inner + 1} of it"
    )
    losses = [
        f"{name} {loss:.3g}" + (f" ({_percent(shares[name])})" if name in shares else "")
        for name, loss in event.losses.items()
    ]
    accuracies = [f"{name} {_percent(value)}" for name, value in event.accuracies.items()]
    return [
        f"{where}, {duration(event.seconds_left)} left",
        figures,
        *_listed("loss (share)" if shares else "loss", losses),
        *_listed("accuracy", accuracies),
    ]


def training_line(event: Training) -> str:
    """Write one evaluation training as a log line."""
    return f"evaluate {event.done}/{event.total}, {duration(event.seconds_left)} left: {training_result(event)}"


def training_result(event: Training) -> str:
    """Write what one evaluation training came to."""
    return f"{event.model} on {event.training_set}: {event.accuracy:.1%}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share >= 0.0995 else f"{share:.1%}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _listed(title: str, parts: Sequence[str]) -> list[str]:
    if not parts:
        return []
    # Spaces inside a part hold together, so that a name is never torn from its number.
    text = f"{title}: " + ", ".join(part.replace(" ", "\xa0") for part in parts)
    lines = textwrap.wrap(
        text, WIDTH - 1, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return [line.replace("\xa0", " ") for line in lines]
