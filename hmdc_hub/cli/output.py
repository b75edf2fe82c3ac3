"""Who hears what: data goes to stdout, talk to stderr, and `--json` makes the data one JSON document.

A stream whose reader has gone (`hmdc-hub recipes ls | head -1`, a log viewer that was closed) is no reason to fail or
to stop a long run: what is written to it from then on is dropped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click

from hmdc_hub.report.text import amount as amount


def colour_wanted(stream: TextIO) -> bool:
    """Tell whether to colour text on this stream: a terminal, and no NO_COLOR (https://no-color.org) set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(stream: TextIO, text: str) -> None:
    """Write text to a stream of the process and flush; a reader that has gone is not an error."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit: give it somewhere to flush to.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def talk(text: str) -> None:
    """Say something to the person at the terminal, on stderr."""
    write(sys.stderr, text + "\n")


def hint(text: str) -> None:
    """Say what to do next, on stderr."""
    talk(f"{emphasised('next:', sys.stderr)} {text}")


def emphasised(text: str, stream: TextIO, colour: str | None = None) -> str:
    """Make text bold, and coloured if a colour is named, where the stream wants colour."""
    return click.style(text, fg=colour, bold=True) if colour_wanted(stream) else text


def data(text: str) -> None:
    """Write the result of a command on stdout, ending in one newline."""
    write(sys.stdout, text if text.endswith("\n") else text + "\n")


def document(value: Any) -> None:
    """Write the result of a command as one JSON document on stdout."""
    data(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out under a header in columns two spaces apart.

    Args:
        header: One title per column.
        rows: As many cells each; a cell may be empty.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Write a time for people: `8 s`, `3:20`, `1:02:03`, `2 d 03:00`; `?` for what is not a finite number."""
    if not 0 <= seconds < float("inf"):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
