"""What a person sees of long work: tqdm bars on a terminal and in a notebook, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from hmdc_hub.events import Callback, Event, ImageStep, Note, Stage, Training
from hmdc_hub.text import duration

# Lines per stage without a terminal, about: how often one is written depends on steps done, never on the clock.
LINES = 10


@contextmanager
def reporting(shown: bool | None, *callbacks: Callback | Sequence[Callback]) -> Iterator[Callback]:
    """Show progress while the block runs, unless `shown` is False; gives what is to be told of every event.

    `HF_HUB_DISABLE_PROGRESS_BARS` turns off the bars, as those of the Hub's own libraries, not the lines. `callbacks`
    are told of every event, too.
    """
    display = None if shown is False else Bars() if bars_wanted() else LogLines()
    everyone: list[Callback] = [] if display is None else [display]
    for one in callbacks:
        everyone += [one] if callable(one) else one

    def tell(event: Event) -> None:
        for one in everyone:
            one(event)

    try:
        yield tell
    finally:
        if isinstance(display, Bars):
            display.close()


def bars_wanted() -> bool:
    """Tell whether stderr can show bars: a terminal that moves its cursor, or a notebook."""
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    return in_notebook() or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})


class LogLines:
    """Plain lines: every stage and note, the first and the last step of a stage, and one for each tenth of its work."""

    def __init__(self) -> None:
        self._written: dict[type[Event], int] = {}
        self._shares: dict[str, float] = {}  # come only with the steps that update the balance; losses with all

    def __call__(self, event: Event) -> None:
        """Write the line of an event, if it has one."""
        if isinstance(event, ImageStep):
            self._shares = dict(event.shares) or self._shares
        if isinstance(event, ImageStep | Training):
            word = "condense" if isinstance(event, ImageStep) else "evaluate"
            tenth = LINES * event.done // max(event.total, 1)
            if self._written.get(type(event)) != tenth or event.done == event.total:
                self._written[type(event)] = tenth
                share = f"{event.done}/{event.total} ({_percent(event.done / max(event.total, 1))})"
                text = figures(event, self._shares)
                write(sys.stderr, f"{word} {share}, {duration(event.seconds_left)} left: {text}\n")
        elif text := line_of(event):
            write(sys.stderr, text + "\n")


class Bars:
    """A tqdm bar for image steps, and one for trainings; stages and notes are lines above it."""

    def __init__(self) -> None:
        if in_notebook():
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm  # type: ignore[assignment]
        self._tqdm: Any = tqdm
        self._bar: Any = None
        self._kind: type[Event] | None = None
        self._shares: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Move the bar, or write a line above it."""
        if not isinstance(event, ImageStep | Training):
            if isinstance(event, Stage):
                self.close()
            if text := line_of(event):
                self._tqdm.write(text, file=sys.stderr)
            return
        if self._bar is None or self._kind is not type(event):
            self.close()
            word, unit = ("condense", "step") if isinstance(event, ImageStep) else ("evaluate", "training")
            start = event.done - 1
            self._bar = self._tqdm(
                desc=word, unit=unit, total=event.total, initial=start, file=sys.stderr, dynamic_ncols=True
            )
            self._kind = type(event)
        if isinstance(event, ImageStep):
            self._shares = dict(event.shares) or self._shares
        self._bar.set_postfix_str(figures(event, self._shares), refresh=False)
        self._bar.update(event.done - self._bar.n)

    def close(self) -> None:
        """Leave the last state of the bar on the screen, and the cursor below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def line_of(event: Event) -> str:
    """Write a stage or a note as a line; empty for an event that has none."""
    if isinstance(event, Note):
        return event.text
    if isinstance(event, Stage):
        return f"{event.name}: {event.detail}" if event.detail else f"{event.name} ..."
    return ""


def figures(event: ImageStep | Training, shares: Mapping[str, float]) -> str:
    """Write what a step or a training came to.

    `shares` are the latest of the image gradient by objective, as steps between two updates carry none.
    """
    if isinstance(event, Training):
        return f"{event.model} on {event.training_set}: {event.accuracy:.1%}"
    speed = event.images_per_second
    return ", ".join(
        [
            f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s",
            f"clamped {_percent(event.clamped)}",
            *(
                f"{name} {loss:.3g}" + (f" ({_percent(shares[name])})" if name in shares else "")
                for name, loss in event.losses.items()
            ),
            *(f"{name} {_percent(value)}" for name, value in event.accuracies.items()),
        ]
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share >= 0.0995 else f"{share:.1%}"


def write(stream: TextIO, text: str) -> None:
    """Write text to a stream of the process and flush.

    A reader that has gone (`| head -1`, a log viewer that was closed) is no reason to fail or to stop a long run: what
    is written from then on is dropped.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit: give it somewhere to flush to.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out under a header, with as many cells each, in columns two spaces apart."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)
