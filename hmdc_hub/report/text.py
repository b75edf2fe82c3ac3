"""Text and numbers as people read them: names of strangers on one line and inside Markdown, bytes, accuracies."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hmdc_hub.schema import Estimate

NONE = "–"
"""What stands where there is no number."""

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_INLINE = re.compile(r"[\\`*_\[\]|~$@]|:(?! )|(?<=www)\.", re.IGNORECASE)
_AT_START = re.compile(r"^(\d*)([-+#=.)])")


def one_line(text: str) -> str:
    """Make one line of printable text: control and direction characters become spaces, runs of space one."""
    printable = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    return " ".join(printable.split())


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line, wherever it stands: table, heading or paragraph.

    Emphasis, code, links (also bare addresses), HTML, entities, mathematics and marks that open a list or heading lose
    their meaning.
    """
    inline = _INLINE.sub(r"\\\g<0>", one_line(text))
    return _AT_START.sub(r"\1\\\2", "".join(_ENTITIES.get(c, c) for c in inline))


def amount(size: float) -> str:
    """Write a number of bytes for people, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def count(number: int, what: str) -> str:
    """Write a number of things, such as `1 seed` or `3 seeds`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(found: Estimate | None) -> str:
    """Write an accuracy in percent, mean ± standard deviation: `61.0 ± 1.0`."""
    if found is None:
        return NONE
    return f"{100 * found.mean:.1f}" + ("" if found.sd is None else f" ± {100 * found.sd:.1f}")


def points(share: float) -> str:
    """Write a difference of accuracies in points, such as `+6.5`."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def interval(found: Estimate) -> str:
    """Write the 95 % interval of a difference in points, such as `+3.8 to +9.2`."""
    return NONE if found.low is None or found.high is None else f"{points(found.low)} to {points(found.high)}"


def difference(found: Estimate) -> str:
    """Write a difference of accuracies in full: `+6.5 points (95 % interval +3.8 to +9.2, n = 5)`."""
    if found.low is None:
        few = "one training" if found.n == 1 else f"{found.n} equal differences"
        return f"{points(found.mean)} points ({few}: no interval)"
    return f"{points(found.mean)} points (95 % interval {interval(found)}, n = {found.n})"
