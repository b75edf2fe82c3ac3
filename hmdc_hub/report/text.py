"""Text of strangers (class names, descriptions) inside Markdown; numbers of bytes for people."""

from __future__ import annotations

import re
import unicodedata

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_INLINE = re.compile(r"[\\`*_\[\]|~$@:]|(?<=www)\.", re.IGNORECASE)
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
