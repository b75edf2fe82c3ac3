"""Documents of paragraphs, tables and pictures, written as plain text, as Markdown and as a page of HTML.

Names in them may be a stranger's: each format escapes them, on one line and without control characters.
"""

from __future__ import annotations

import base64
import html
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hmdc_hub.text import one_line

if TYPE_CHECKING:
    import jinja2

# Characters in a terminal before a name in the first column, and one at the top of another, breaks into lines.
NAME, HEADING = 32, 28
_MARKDOWN = {"answer": "**{}**", "title": "## {}", "subtitle": "### {}"}
_INLINE = re.compile(r"[\\`*_\[\]|~$@]|:(?! )|(?<=www)\.", re.IGNORECASE)
_AT_START = re.compile(r"^(\d*)([-+#=.)])")


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line, wherever it stands: table, heading or paragraph.

    Emphasis, code, links (also bare addresses), HTML, entities, mathematics and marks that open a list or heading lose
    their meaning.
    """
    inline = _INLINE.sub(r"\\\g<0>", one_line(text))
    return _AT_START.sub(r"\1\\\2", html.escape(inline, quote=False))


@dataclass(frozen=True)
class Text:
    """A paragraph; kind `answer` is what the document is about, `note` small print."""

    text: str
    kind: Literal["text", "answer", "note", "title", "subtitle"] = "text"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]
    kind: ClassVar = "items"


@dataclass(frozen=True)
class Table:
    """Cells as text; ValueError if a row is longer or shorter than the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first cell names the row
    title: str = ""  # above it; empty if that of the section says it all
    note: str = ""  # below it: what a cell is
    strong: str | None = None  # first cell of the row that stands out
    # Places of columns of words, which stand left and break lines; the first always stands left, others are numbers.
    words: Collection[int] = ()
    kind: ClassVar = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(self.header)}: {list(row)}")


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG file for the page, and what it shows, for those who do not see it."""

    data: bytes
    alt: str
    kind: ClassVar = "picture"


Block = Text | Items | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a title, which is empty where a document needs none."""

    title: str
    blocks: Sequence[Block]


def to_text(sections: Sequence[Section], width: int = 80) -> str:
    """Write a document as plain text without pictures, ending in a newline.

    Columns of a table that do not fit into `width` stand in further parts of it below.
    """
    lines: list[str] = []
    for block in _flow(sections):
        if isinstance(block, Table):
            lines += _layout(block, width)
        else:
            texts = block.items if isinstance(block, Items) else [block.text]
            lines += [*(line for text in texts for line in _wrap(text, width)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _flow(sections: Sequence[Section]) -> Iterator[Text | Items | Table]:
    """List what is words and numbers in its order, titles and notes as paragraphs of their own."""
    for section in sections:
        if section.title:
            yield Text(section.title, "title")
        for block in section.blocks:
            if isinstance(block, Table):
                yield from [Text(block.title, "subtitle")] if block.title else []
                yield block
                yield from [Text(block.note, "note")] if block.note else []
            elif isinstance(block, Text | Items):
                yield block


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width, break_on_hyphens=False)


def _layout(table: Table, width: int) -> list[str]:
    """Share out the columns after the first among parts that fit beside it; at least one column per part."""
    rows = [
        [_wrap(cell, HEADING if column else NAME) or [""] for column, cell in enumerate(row)]
        for row in (table.header, *table.rows)
    ]
    widths = [max(len(line) for row in rows for line in row[column]) for column in range(len(table.header))]
    parts: list[list[int]] = []
    for column in range(1, len(widths)):
        if not parts or widths[0] + sum(2 + widths[c] for c in (*parts[-1], column)) > width:
            parts.append([])
        parts[-1].append(column)
    lines = []
    for part in parts:
        for row in rows:
            for n in range(max(len(row[column]) for column in (0, *part))):
                first, *others = (row[column][n] if n < len(row[column]) else "" for column in (0, *part))
                cells = [cell.rjust(widths[column]) for cell, column in zip(others, part, strict=True)]
                lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        lines.append("")
    return lines


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Write a document as GitHub Markdown without pictures, ending in a newline; an empty title is left out."""
    lines = [f"# {escape_markdown(title)}", ""] if title else []
    for block in _flow(sections):
        if isinstance(block, Table):
            cells = [[escape_markdown(name) for name in block.header], ["---", *["---:"] * (len(block.header) - 1)]]
            for row in block.rows:
                # Numbers need no escaping, and "+1.5" would get a backslash.
                shown = [cell if n and n not in block.words else escape_markdown(cell) for n, cell in enumerate(row)]
                cells.append([f"**{cell}**" if cell else "" for cell in shown] if row[0] == block.strong else shown)
            lines += [*(f"| {' | '.join(row)} |" for row in cells), ""]
        elif isinstance(block, Items):
            lines += [*(f"- {escape_markdown(item)}" for item in block.items), ""]
        else:
            lines += [_MARKDOWN.get(block.kind, "{}").format(escape_markdown(block.text)), ""]
    return "\n".join(lines).rstrip() + "\n"


def render_page(template: str, title: str, **facts: Any) -> str:
    """Write one page of HTML that needs nothing from elsewhere and runs no script; every value in it is escaped.

    The template is one of ours that extends `base.html.jinja`; ValueError if a picture is neither PNG nor SVG.
    """
    return _environment().get_template(template).render(title=title, titles=[], **facts)


@cache
def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def data_uri(data: bytes) -> Markup:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            media = "image/png"
        elif data.lstrip().startswith((b"<?xml", b"<svg")):
            media = "image/svg+xml"
        else:
            raise ValueError(f"neither PNG nor SVG: {data[:8]!r}")
        return Markup(f"data:{media};base64,{base64.b64encode(data).decode()}")

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmdc_hub.report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment
