"""Pages of one file: HTML that needs nothing from elsewhere, runs no script, and reads well on a phone and on paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hmdc_hub.report.text import one_line

# A page is mailed, put on a server, opened from a disk. Names in it come from strangers: they are escaped below, and
# should one get through, a browser neither loads nor runs anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2329; --faint: #5a6570; --line: #dde2e7; --tint: #f4f6f8;
  --strong: #fdefe4; --accent: #a84300; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e4e8ec; --faint: #9aa5b0; --line: #333b43;
  --tint: #1c2228; --strong: #3a2718; --accent: #ff9a57; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: 0; padding: 0; font-size: .9rem; }
nav a { display: inline-block; padding: .15rem 0; }
.note, figcaption { color: var(--faint); font-size: .875rem; }
.answer { background: var(--strong); border-left: 4px solid var(--accent); padding: .6rem .9rem; font-size: 1.05rem; }
figure { margin: .75rem 0; }
figcaption { max-width: 46rem; padding-top: .4rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .65rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  unicode-bidi: isolate; vertical-align: top; }
thead th { background: var(--tint); border-bottom-width: 2px; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th:first-child { background: var(--tint); }
.words { text-align: left; white-space: normal; }
.words > div { width: max-content; max-width: min(24rem, 50vw); overflow-wrap: anywhere; }
tr.strong > * { background: var(--strong); font-weight: 650; }
img { display: block; max-width: 100%; height: auto; margin: .75rem 0; padding: .4rem; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; }
details { margin: .75rem 0; }
summary { cursor: pointer; padding: .3rem 0; color: var(--accent); }
pre { background: var(--tint); padding: .75rem; overflow-x: auto; font-size: .875rem; }
@media print { body { max-width: none; padding: 0; } nav { display: none; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } tr, img { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Plain text.
        html: Made by the functions below, which escape what they are given.
    """

    title: str
    html: str


def page(title: str, sections: Sequence[Section]) -> str:
    """Write an HTML document that holds everything it shows.

    Args:
        title: Plain text.
        sections: In their order; the page opens with links to them.

    Returns:
        The document, ending in a newline; the same for the same arguments.
    """
    links = "".join(f'<li><a href="#s{n}">{escaped(part.title)}</a></li>' for n, part in enumerate(sections, start=1))
    parts = "\n".join(
        f'<section id="s{n}">\n<h2>{escaped(part.title)}</h2>\n{part.html}\n</section>'
        for n, part in enumerate(sections, start=1)
    )
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{escaped(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{parts}
</main>
</body>
</html>
"""


def escaped(text: str) -> str:
    """Escape text for HTML, elements and quoted attributes alike, on one line and without direction marks."""
    return html.escape(one_line(text))


def paragraph(text: str, kind: str = "") -> str:
    """Write plain text as a paragraph.

    Args:
        text: Plain.
        kind: `note` for small print, `answer` for what the page is about, or nothing.
    """
    return f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"


def heading(text: str) -> str:
    """Write a heading below that of a section."""
    return f"<h3>{escaped(text)}</h3>"


def command(text: str) -> str:
    """Write a command line as it is typed."""
    return f"<pre><code>{escaped(text)}</code></pre>"


def folded(summary: str, inner: str) -> str:
    """Fold HTML away under a summary, which is plain text."""
    return f"<details>\n<summary>{escaped(summary)}</summary>\n{inner}\n</details>"


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    strong: str | None = None,
    words: Collection[int] = (),
    caption: str = "",
) -> str:
    """Write a table that scrolls in a box of its own where it is wider than the page.

    Args:
        header: Names of the columns, plain text as every cell.
        rows: As long as the header; the first cell names the row.
        strong: First cell of the row that stands out.
        words: Places of columns of words, which stand left and break lines; the first always stands left, the others
            are numbers and stand right.
        caption: What a cell is.

    Raises:
        ValueError: A row is longer or shorter than the header.
    """
    body = []
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
        mark = ' class="strong"' if row[0] == strong else ""
        cells = "".join(f"<td{_cell(cell, n in words)}</td>" for n, cell in enumerate(row[1:], start=1))
        body.append(f'<tr{mark}><th scope="row"{_cell(row[0], 0 in words)}</th>{cells}</tr>')
    top = "".join(f'<th scope="col"{_cell(name, n in words)}</th>' for n, name in enumerate(header))
    # Not <caption>: that is as wide as the table, which may be a word or three screens.
    below = f"<figcaption>{escaped(caption)}</figcaption>\n" if caption else ""
    # A box that scrolls must be within reach of the keyboard, and then it needs a name.
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="Table by {escaped(header[0])}">'
    inner = f"<thead><tr>{top}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>"
    return f"<figure>\n{box}\n<table>\n{inner}\n</table>\n</div>\n{below}</figure>"


def _cell(text: str, words: bool) -> str:
    # The inner box keeps a column of words from being pressed into a stripe: the table scrolls instead.
    return f' class="words"><div>{escaped(text)}</div>' if words else f">{escaped(text)}"


def picture(data: bytes, alt: str) -> str:
    """Put a picture into the page.

    Args:
        data: A PNG or SVG file.
        alt: What it shows, for those who do not see it; plain text.

    Raises:
        ValueError: The bytes are neither, or `alt` says nothing.
    """
    if not one_line(alt):
        raise ValueError("a picture needs words that say what it shows")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "image/png"
    elif data.lstrip().startswith((b"<?xml", b"<svg")):
        kind = "image/svg+xml"
    else:
        raise ValueError(f"neither PNG nor SVG: {data[:8]!r}")
    return f'<img src="data:{kind};base64,{base64.b64encode(data).decode()}" alt="{escaped(alt)}">'
