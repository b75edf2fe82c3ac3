"""A comparison of scored sets as text, Markdown, plain data and a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hmdc_hub.comparison import Comparison, Group, Pair
from hmdc_hub.report.compare_words import Table, answers, headline, notes, parts, set_lines, title
from hmdc_hub.report.page import Section, heading, html_table, page, paragraph, picture
from hmdc_hub.report.protocol import protocol
from hmdc_hub.report.text import escape_markdown, one_line
from hmdc_hub.schema import Estimate


def comparison_text(comparison: Comparison, width: int = 80) -> str:
    """Write a comparison as plain text, ending in a newline.

    Args:
        comparison: What to show.
        width: Columns of the terminal; columns of a table that do not fit stand in further blocks below.
    """
    blocks = [[text] for text in (headline(comparison), *set_lines(comparison), *answers(comparison))]
    lines = [line for block in blocks for line in [*_wrap(block[0], width), ""]]
    for part in parts(comparison):
        for table in part.tables:
            name = f"{part.title}: {table.title}" if table.title else part.title
            lines += [*_wrap(name, width), "", *_layout(table, width), *_wrap(table.note, width)]
            lines += [""] * bool(table.note)
        if part.tables:
            lines += [*_wrap(part.caption, width), ""]
    for note in notes(comparison):
        lines += [*_wrap(note, width), ""]
    return "\n".join(lines).rstrip() + "\n"


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width, break_on_hyphens=False)


NAME, HEADING = 32, 28
"""Columns of the terminal before a name in the first column, and one at the top of another, breaks into lines."""


def _layout(table: Table, width: int) -> list[str]:
    """Share out the columns after the first among blocks that fit beside it; at least one column per block."""
    rows = [
        [
            textwrap.wrap(one_line(cell), HEADING if n else NAME, break_on_hyphens=False) or [""]
            for n, cell in enumerate(row)
        ]
        for row in (table.header, *table.rows)
    ]
    widths = [max(len(line) for row in rows for line in row[column]) for column in range(len(table.header))]
    blocks: list[list[int]] = []
    for column in range(1, len(widths)):
        if not blocks or widths[0] + sum(2 + widths[c] for c in (*blocks[-1], column)) > width:
            blocks.append([])
        blocks[-1].append(column)
    lines = []
    for block in blocks:
        for row in rows:
            for n in range(max(len(row[column]) for column in (0, *block))):
                first, *others = (row[column][n] if n < len(row[column]) else "" for column in (0, *block))
                cells = [cell.rjust(widths[column]) for cell, column in zip(others, block, strict=True)]
                lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        lines.append("")
    return lines


def comparison_markdown(comparison: Comparison) -> str:
    """Write a comparison as GitHub Markdown, ending in a newline."""
    lines = [f"# {escape_markdown(title(comparison))}", "", escape_markdown(headline(comparison)), ""]
    lines += [f"- {escape_markdown(text)}" for text in set_lines(comparison)] + [""]
    for text in answers(comparison):
        lines += [f"**{escape_markdown(text)}**", ""]
    for part in parts(comparison):
        if part.tables:
            lines += [f"## {part.title}", ""]
        for table in part.tables:
            lines += [f"### {escape_markdown(table.title)}", ""] if table.title else []
            lines += [*_markdown_table(table), ""]
            lines += [escape_markdown(table.note), ""] if table.note else []
        if part.tables:
            lines += [part.caption, ""]
    for note in notes(comparison):
        lines += [escape_markdown(note), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(table: Table) -> list[str]:
    header = [escape_markdown(cell) for cell in table.header]
    rows = [[escape_markdown(row[0]), *row[1:]] for row in table.rows]
    rule = "| --- |" + " ---: |" * (len(header) - 1)
    top, *body = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return [top, rule, *body]


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Write a comparison as plain data: shares in [0, 1], nothing rounded; `pairs` has every pair of sets.

    `holm` under `against_first` is corrected for the pairs there, under `pairs` for all.
    """
    # Where weights lie is nobody's business who is sent this.
    models = [model.without_paths().model_dump(mode="json") for model in comparison.protocol.models]
    return {
        "protocol_hash": comparison.protocol.protocol_hash(),
        "protocol": comparison.protocol.model_dump(mode="json") | {"models": models},
        "fingerprint": comparison.fingerprint,
        "test_count": comparison.test_count,
        "evaluation_seeds": comparison.protocol.seeds,
        "sets": [_group(group, comparison.columns) for group in comparison.groups],
        "baselines": [
            {
                "name": row.name,
                "budget": row.budget.model_dump(),
                "sets": list(row.sets),
                "table": _table(row.table, comparison.columns),
            }
            for row in comparison.baselines
        ],
        "against_first": [_pair(pair, comparison.columns) for pair in comparison.against_first],
        "pairs": [_pair(pair, comparison.columns) for pair in comparison.pairs],
        "transfer": [
            {
                "condensed_by": list(group.condensed_by),
                "label": name,
                "accuracy": {model: group.table[model].mean for model in comparison.models},
            }
            for name, group in comparison.transfer
        ],
        "curves": [
            {
                "label": name,
                "points": [
                    {"stored": group.budget.stored, "accuracy": group.table[comparison.main].model_dump()}
                    for group in curve
                ],
            }
            for name, curve in comparison.curves
        ],
        "unlike": {name: list(values) for name, values in comparison.unlike.items()},
        "notes": notes(comparison),
    }


def _group(group: Group, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "label": group.label,
        "budget": group.budget.model_dump(),
        "condensed_by": list(group.condensed_by),
        "condensing_seeds": len(group.members),
        "spread_over": "condensing seeds" if group.several else "evaluation seeds",
        "table": _table(group.table, columns),
        "members": [
            {
                "label": member.label,
                "condense_seed": member.scores.condense_seed,
                "condense_hash": member.scores.condense_hash,
                "parquet_sha256": member.scores.parquet_sha256,
                "accuracy": {column: list(group.runs[column][place]) for column in columns},
            }
            for place, member in enumerate(group.members)
        ],
    }


def _pair(pair: Pair, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "first": pair.first,
        "other": pair.other,
        "test": pair.test,
        "condensing_seeds": list(pair.condensing),
        "differences": {
            column: {**found.estimate.model_dump(), "p": found.p, "holm": found.holm}
            for column in columns
            for found in [pair.differences[column]]
        },
    }


def _table(table: Mapping[str, Estimate], columns: Sequence[str]) -> dict[str, Any]:
    return {column: table[column].model_dump() for column in columns}


PICTURES = {
    "transfer": "Mean accuracy of every model trained on every set, as a table of colours.",
    "differences": "Differences of accuracy between the first set and the others, with 95 % intervals.",
    "budget": "Accuracy against the number of stored images, random real images beside it, as they are and encoded.",
}
"""Every picture of a comparison, and what it shows."""


def comparison_html(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """Write a comparison as one page.

    Args:
        comparison: What to show.
        pictures: Some of `PICTURES` by name, PNG or SVG.

    Returns:
        HTML that needs no other file, the same for the same arguments.
    """
    top = [paragraph(text, "answer") for text in answers(comparison)]
    top += [paragraph(text, "note") for text in notes(comparison)]
    sections = [
        Section("The answer", "\n".join(top)),
        Section(
            "What is compared", "\n".join(paragraph(text) for text in (headline(comparison), *set_lines(comparison)))
        ),
    ]
    for part in parts(comparison):
        inner = [picture(pictures[part.picture], PICTURES[part.picture])] if part.picture in pictures else []
        for table in part.tables:
            inner += [heading(table.title)] if table.title else []
            first = comparison.groups[0].label
            inner.append(html_table(table.header, table.rows, words=[0], strong=first, caption=table.note))
        if inner:
            sections.append(Section(part.title, "\n".join([*inner, paragraph(part.caption, "note")])))
    scores = comparison.groups[0].members[0].scores
    took_part = list(dict.fromkeys(model for group in comparison.groups for model in group.condensed_by))
    sections.append(protocol(scores.model_copy(update={"condensed_by": took_part})))
    return page(f"Comparison of {title(comparison)}", sections)
