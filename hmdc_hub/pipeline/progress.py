"""What a person sees of long work, on stderr: a line that rewrites itself on a terminal and in a notebook, else lines.

And how text fits a terminal: lines break between words, tables that are too wide become lines.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO

from hmdc_hub.events import Callback, Event, ImageStep, Note, Stage, Training
from hmdc_hub.text import duration

# Lines per stage without a terminal, about: how often one is written depends on steps done, never on the clock.
LINES = 10
Shown = bool | Literal["verbose"] | None
NARROW = 24  # columns that a last cell needs to be broken into lines
_LABEL = re.compile(r" *(?:\S+(?: \S+)? {2,})?")
_COMMAND = re.compile(r"(?:next: |go on with: )?(?:hmdc-hub|torchrun) [^,'()]*")


@contextmanager
def reporting(shown: Shown, *callbacks: Callback | Sequence[Callback]) -> Iterator[Callback]:
    """Show progress while the block runs, unless `shown` is False; gives what is to be told of every event.

    `verbose` shows every figure and all that is said. `HF_HUB_DISABLE_PROGRESS_BARS` makes lines of the line that
    rewrites itself, as it turns off the bars of the Hub's own libraries. `callbacks` are told of every event, too.
    """
    verbose = shown == "verbose"
    display = None if shown is False else OneLine(verbose) if bars_wanted() else LogLines(verbose)
    everyone: list[Callback] = [] if display is None else [display]
    for one in callbacks:
        everyone += [one] if callable(one) else one

    def tell(event: Event) -> None:
        for one in everyone:
            one(event)

    try:
        yield tell
    finally:
        if isinstance(display, OneLine):
            display.close()


def bars_wanted() -> bool:
    """Tell whether stderr can rewrite a line: a terminal that moves its cursor, or a notebook."""
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    return in_notebook() or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})


class LogLines:
    """Plain lines: every stage and note, the first and the last step of a stage, and one for each tenth of its work."""

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self._written: dict[type[Event], int] = {}
        self._shares: dict[str, float] = {}  # come only with the steps that update the balance; losses with all

    def __call__(self, event: Event) -> None:
        """Write the line of an event, if it has one."""
        if text := self.line(event):
            write(sys.stderr, wrapped(text, width(sys.stderr)) + "\n")

    def line(self, event: Event) -> str:
        """Give the line of an event; empty if it has none, or none now."""
        if isinstance(event, ImageStep):
            self._shares = dict(event.shares) or self._shares
        if not isinstance(event, ImageStep | Training):
            return line_of(event)
        tenth = LINES * event.done // max(event.total, 1)
        if self._written.get(type(event)) == tenth and event.done != event.total:
            return ""
        self._written[type(event)] = tenth
        last = figures(event, self._shares) if self.verbose else result(event)
        return f"{progress(event)}: {last}" if last else progress(event)


class OneLine:
    """One line that rewrites itself: what is done, how much of it, the time left, one loss; notes are lines above it.

    With `verbose` the lines of a log stand above it, too.
    """

    def __init__(self, verbose: bool = False) -> None:
        if in_notebook():
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm  # type: ignore[assignment]
        self._tqdm: Any = tqdm
        self._log = LogLines(verbose)
        self._bar: Any = None
        self._kind: type[Event] | None = None
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Rewrite the line, or write one above it."""
        if isinstance(event, Stage):
            self.close()  # the stage before is done, and its line stays
        above = self._log.verbose or (isinstance(event, Note) and not event.detail)
        if above and (text := self._log.line(event)):
            self._tqdm.write(wrapped(text, width(sys.stderr)), file=sys.stderr)
        if isinstance(event, Stage):
            self._begin(bar_format="{desc}", desc=f"{event.name} ...", leave=False)  # until something can be counted
            self._kind, self._began = None, time.monotonic()
        elif isinstance(event, ImageStep | Training):
            text = self._text(event)
            if self._kind is not type(event):
                self._begin(bar_format="{desc} {bar}", desc=text, total=event.total, initial=event.done - 1)
                self._kind = type(event)
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(event.done - self._bar.n)

    def _begin(self, **options: Any) -> None:
        self.close()
        self._bar = self._tqdm(file=sys.stderr, dynamic_ncols=True, **options)

    def _text(self, event: ImageStep | Training) -> str:
        """Write as much of a step as fits beside a bar."""
        if event.done == event.total:
            return f"{progress(event).partition(',')[0]} in {duration(time.monotonic() - self._began)}"
        text = f"{progress(event)}: {result(event)}"
        return text if len(text) < (width(sys.stderr) or 80) - 3 else progress(event)

    def close(self) -> None:
        """Leave the last state on the screen, and the cursor below it."""
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


def progress(event: ImageStep | Training) -> str:
    """Write how far it is, such as `condense 137/10000 (1.4%), 2:03:04 left`."""
    word = "condense" if isinstance(event, ImageStep) else "evaluate"
    share = f"{event.done}/{event.total} ({_percent(event.done / max(event.total, 1))})"
    return f"{word} {share}, {duration(event.seconds_left)} left"


def result(event: ImageStep | Training) -> str:
    """Write the one number of a step or a training; the loss is that of matching, as the mean over models and sizes."""
    if isinstance(event, Training):
        return f"{event.model} on {event.training_set} {event.accuracy:.1%}"
    matching = [loss for name, loss in event.losses.items() if "match/" in name]
    return f"loss {sum(matching) / len(matching):.3g}" if matching else ""


def figures(event: ImageStep | Training, shares: Mapping[str, float]) -> str:
    """Write all that a step or a training came to.

    `shares` are the latest of the image gradient by objective, as steps between two updates carry none.
    """
    if isinstance(event, Training):
        return result(event)
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


def width(stream: TextIO) -> int:
    """Count the columns of a terminal: COLUMNS, else what it says itself, else 80; 0 for what is no terminal."""
    if not stream.isatty():
        return 0
    with suppress(OSError, ValueError):
        return int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def wrapped(text: str, width: int) -> str:
    """Break lines that are longer than `width` between words, a command so that a shell still reads it as one.

    The rest of a line stands below its beginning, after the label if it has one. A width of 0 breaks none.
    """
    lines = []
    for line in text.splitlines():
        if not 0 < width < len(line):
            lines.append(line)
        elif _COMMAND.fullmatch(line):
            lines.append(" \\\n".join(_broken(line, width - 2, 4)))
        else:
            indent = _LABEL.match(line)
            lines += _broken(line, width, len(indent[0]) if indent else 0)
    return "\n".join(lines)


def _broken(line: str, width: int, indent: int) -> list[str]:
    return textwrap.wrap(
        line, width, subsequent_indent=" " * min(indent, width // 3), break_long_words=False, break_on_hyphens=False
    )


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Lay rows out under a header, with as many cells each, in columns two spaces apart.

    Where that is wider than `width`, if it is not 0, the last cells break into lines, or all cells have lines of their
    own under the first.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    if 0 < width < before + widths[-1]:
        if width - before < NARROW:
            return _records(header, rows, width)
        last = [textwrap.wrap(row[-1], width - before, break_on_hyphens=False) or [""] for row in rows]
        rows = [
            [*(row if n == 0 else [""] * len(row))[:-1], part]
            for row, parts in zip(rows, last, strict=True)
            for n, part in enumerate(parts)
        ]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def _records(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    label = max(len(name) for name in header[1:]) + 2
    lines = []
    for row in rows:
        lines.append(row[0])
        lines += [f"  {name.lower():<{label}}{cell}" for name, cell in zip(header[1:], row[1:], strict=True) if cell]
    return wrapped("\n".join(lines), width)
