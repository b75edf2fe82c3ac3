"""Text and numbers as people read them: names of strangers, counts, sizes and times, nested settings as dotted keys."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


def shortened(text: str, limit: int = 200) -> str:
    """Leave out the middle of a text that is longer than anybody reads."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]} ({len(text):,} characters)"


def cut(text: str, limit: int) -> str:
    """Make one line of at most `limit` characters: what is left out at its end becomes an ellipsis."""
    shown = one_line(text)
    return shown if len(shown) <= limit else shown[: limit - 1].rstrip() + "…"


def one_line(text: str) -> str:
    """Make one line of printable text: control and direction characters become spaces, runs of space one."""
    printable = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    return " ".join(printable.split())


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says, or its type if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def some(names: Sequence[object], shown: int = 5) -> str:
    """Quote the first few names: `'a', 'b', ...`."""
    return ", ".join(map(repr, names[:shown])) + (", ..." if len(names) > shown else "")


def close(word: str, names: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Pick the names that look like a word, best first; case is no matter."""
    lower = {name.lower(): name for name in names}
    return [lower[match] for match in get_close_matches(word.lower(), lower, n=most, cutoff=cutoff)]


def did_you_mean(names: Sequence[str]) -> str:
    """Turn close names into "did you mean a, b or c?"; empty if there are none."""
    first = ", ".join(names[:-1])
    return f"did you mean {first} or {names[-1]}?" if first else f"did you mean {names[-1]}?" if names else ""


def count(number: int, what: str, several: str | None = None) -> str:
    """Write a number of things: `1 seed`, `3 seeds`, `1,200 images`; `several` where an s is not the plural."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def amount(size: float) -> str:
    """Write a number of bytes, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration(seconds: float) -> str:
    """Write a time: `8.0 s`, `42 s`, `3:20`, `1:02:03`, `2 d 03:00`; `?` for what is not a finite number."""
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


def ago(seconds: float) -> str:
    """Write how long ago something was: `just now`, `5 minutes ago`, `2 days ago`."""
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{count(int(seconds // size), unit)} ago"
    return "just now"


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through nested mappings as pairs of dotted key and value; lists are values."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
