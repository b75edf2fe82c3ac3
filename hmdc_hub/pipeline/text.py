"""Lines on stderr, and numbers as people read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO


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
    """Lay rows out under a header in columns two spaces apart.

    Args:
        header: One title per column.
        rows: As many cells each; a cell may be empty.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Write a time for people: `8.0 s`, `3:20`, `1:02:03`, `2 d 03:00`; `?` for what is not a finite number."""
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
