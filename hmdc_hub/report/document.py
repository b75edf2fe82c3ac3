"""Documents of paragraphs, tables and pictures, written as plain text, as Markdown and as a page of HTML.

Names in them may be a stranger's: each format escapes them, on one line and without control characters.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hmdc_hub.report.text import difference, escape_markdown, one_line

if TYPE_CHECKING:
    import jinja2

NAME, HEADING = 32, 28
"""Characters in a terminal before a name in the first column, and one at the top of another, breaks into lines."""

MARKDOWN = {"answer": "**{}**", "title": "## {}", "subtitle": "### {}"}


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
    """Cells as text.

    Attributes:
        header: Names of the columns.
        rows: As long as the header; the first cell names the row.
        title: Above it; empty if that of the section says it all.
        note: Below it: what a cell is.
        strong: First cell of the row that stands out.
        words: Places of columns of words, which stand left and break lines; the first always stands left, the others
            are numbers and stand right.

    Raises:
        ValueError: A row is longer or shorter than the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    strong: str | None = None
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

    Args:
        sections: In their order.
        width: Columns of the terminal; columns of a table that do not fit stand in further parts of it below.
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
            lines += [*_markdown_table(block), ""]
        elif isinstance(block, Items):
            lines += [*(f"- {escape_markdown(item)}" for item in block.items), ""]
        else:
            lines += [MARKDOWN.get(block.kind, "{}").format(escape_markdown(block.text)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(table: Table) -> list[str]:
    lines = [[escape_markdown(cell) for cell in table.header], ["---", *["---:"] * (len(table.header) - 1)]]
    for row in table.rows:
        # Numbers need no escaping, and "+1.5" would get a backslash.
        cells = [cell if n and n not in table.words else escape_markdown(cell) for n, cell in enumerate(row)]
        lines.append([f"**{cell}**" if cell else "" for cell in cells] if row[0] == table.strong else cells)
    return [f"| {' | '.join(line)} |" for line in lines]


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Write a document as one page of HTML, as `render_page`."""
    return render_page("document.html.jinja", title=title, sections=sections)


def render_page(template: str, title: str, **facts: Any) -> str:
    """Write one page of HTML that needs nothing from elsewhere and runs no script; every value in it is escaped.

    Args:
        template: Name of a template of ours, one that extends `base.html.jinja`.
        title: Of the page.
        **facts: What the template shows.

    Returns:
        The page, which opens with links to its sections, ending in a newline; the same for the same arguments.

    Raises:
        ValueError: A picture is neither PNG nor SVG.
    """
    return _environment().get_template(template).render(title=title, titles=[], **facts)


@cache
def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        return value if isinstance(value, Markup) else one_line(str(value))

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
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": data_uri, "difference": difference}
    return environment
