"""The cross-architecture table, for Markdown and for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hmdc_hub.schema import BASELINES, Estimate, Scores

CONDENSED = "condensed"
MEAN = "mean"
EXACT = "exact"
TOOK_PART = "†"


def training_sets(scores: Scores) -> list[str]:
    """List the rows: the condensed set, the baselines in their fixed order, anything else."""
    order = [CONDENSED, *BASELINES]
    return [name for name in order if name in scores.table] + [name for name in scores.table if name not in order]


def model_names(scores: Scores) -> list[str]:
    """List the columns: the models in the order of the protocol, and the mean over them if there are several."""
    names = [model.name for model in scores.protocol.models]
    return [*names, MEAN] if len(names) > 1 and any(MEAN in row for row in scores.table.values()) else names


def table_markdown(scores: Scores) -> str:
    """Write the table with its caption and the gains as GitHub Markdown, ending in a newline.

    Cells are mean ± standard deviation of the last-epoch accuracy in percent; models that took part in condensing are
    marked. The caption states n and the protocol.
    """
    header, *body = _rows(scores)
    lines = [_markdown_row(header), "|" + " --- |" + " ---: |" * (len(header) - 1)]
    for row in body:
        bold = row[0] == CONDENSED
        lines.append(_markdown_row([f"**{cell}**" if bold and cell else cell for cell in row]))
    gains = "".join(f"- {line}\n" for line in gain_lines(scores))
    return "\n".join(lines) + f"\n\n{caption(scores)}\n" + (f"\n{gains}" if gains else "")


def _markdown_row(cells: Sequence[str]) -> str:
    # Names of models and training sets are letters, digits, dots, dashes and underscores.
    return "| " + " | ".join(cell.replace("_", r"\_") for cell in cells) + " |"


def table_text(scores: Scores, width: int = 80) -> str:
    """Write the table with its caption and the gains as plain text, ending in a newline.

    Args:
        scores: What to show.
        width: Columns of the terminal; models that do not fit stand in further blocks below.
    """
    rows = _rows(scores)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    blocks = []
    for columns in _blocks(widths, width):
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in columns)]
            blocks.append("  ".join(cells).rstrip())
        blocks.append("")
    words = _wrap(caption(scores), width)
    gains = [line for gain in gain_lines(scores) for line in _wrap(gain, width)]
    return "\n".join([*blocks, *words, *([""] if gains else []), *gains]) + "\n"


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Share out the columns after the first among blocks that fit beside it; at least one column per block."""
    blocks: list[list[int]] = []
    used = 0
    for column in range(1, len(widths)):
        if not blocks or used + 2 + widths[column] > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(column)
        used += 2 + widths[column]
    return blocks


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _rows(scores: Scores) -> list[list[str]]:
    """Make header and body as text."""
    models = model_names(scores)
    marked = [f"{name} {TOOK_PART}" if name in scores.condensed_by else name for name in models]
    rows = [["training set", "stored", "images", *marked]]
    for name in training_sets(scores):
        budget = scores.budgets.get(name)
        cells = [_cell(scores.table[name].get(model)) for model in models]
        rows.append([name, *((f"{budget.stored}", f"{budget.images}") if budget else ("", "")), *cells])
    return rows


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    mean = f"{100 * estimate.mean:.1f}"
    return mean if estimate.sd is None else f"{mean} ± {100 * estimate.sd:.1f}"


def caption(scores: Scores) -> str:
    """State what a cell is: metric, test images, protocol, n; and what the mark means."""
    protocol = scores.protocol
    counts = {name: _trainings(scores, name) for name in training_sets(scores)}
    usual = counts.get(CONDENSED, protocol.seeds)
    others = [f"{n} for {name}" for name, n in counts.items() if n != usual]
    trainings = f"n = {usual} trainings" if usual != 1 else "n = 1 training"
    scored_on = "test" if protocol.holdout is None else "held-out train"
    end = f"at the last of {protocol.length}" + (
        f" ({protocol.full_epochs} epochs on the full set)" if "full" in scores.table else ""
    )
    parts = [
        f"Accuracy in percent on all {scores.test_count} {scored_on} images {end}",
        f"mean ± standard deviation, {trainings} per cell" + (f" ({', '.join(others)})" if others else ""),
        '"stored" counts the images that are kept, "images" those that are trained on',
    ]
    if protocol.random_draws > 1 and any(name.startswith("random") for name in scores.table):
        parts.append(
            f"of a random set the {protocol.random_draws} draws of each seed are averaged first, and ± is the spread "
            "of these averages"
        )
    if any(model.name in scores.condensed_by for model in protocol.models):
        parts.append(f"{TOOK_PART} took part in condensing")
    return "; ".join(parts) + "."


def _trainings(scores: Scores, training_set: str) -> int:
    return max((e.n for model, e in scores.table[training_set].items() if model != MEAN), default=0)


def gain_lines(scores: Scores) -> list[str]:
    """Say in points of accuracy, with a 95 % interval, what follows from the table.

    By how much the condensed set is better than each baseline; what rounding to 8 bits took; by how much the networks
    that took part in condensing are better than the others; what DD-Ranking asks.
    """
    several = len(scores.protocol.models) > 1
    column = MEAN if several else scores.protocol.models[0].name
    over = "the mean over models" if several else column
    lines = []
    for name in training_sets(scores):
        gain = scores.gain.get(name, {}).get(column)
        if gain is not None:
            what = "rounding to 8 bits (condensed − exact)" if name == EXACT else f"condensed − {name}"
            lines.append(f"{what}, {over}: {points(gain)}")
    if CONDENSED in scores.gap:
        others = [f"{name} {100 * e.mean:+.1f}" for name, e in scores.gap.items() if name not in (CONDENSED, EXACT)]
        beside = f"; {', '.join(others)}" if others else ""
        lines.append(f"models that condensed − the others: {points(scores.gap[CONDENSED])}{beside}")
    ranking = scores.ranking.get(column)
    if ranking is not None and ranking.recovery is not None and ranking.score is not None:
        lines.append(
            f"DD-Ranking, {over}: improvement over random {points(ranking.improvement)}, full set − condensed "
            f"{points(ranking.recovery)}, score {ranking.score.mean:.3f}"
        )
    best = [cell.best for cell in scores.cells if cell.best is not None and cell.training_set == CONDENSED]
    if best:
        lines.append(
            f"best of many looks at the test images, not comparable with anything above: condensed "
            f"{100 * sum(best) / len(best):.1f} (one look every {scores.protocol.best_every} epochs)"
        )
    return lines


def points(gain: Estimate) -> str:
    """Write a difference of accuracies: `+6.5 points (95 % interval +3.8 to +9.2, n = 5)`."""
    text = f"{100 * gain.mean:+.1f} points"
    if gain.low is None or gain.high is None:
        return f"{text} ({'one training' if gain.n == 1 else f'{gain.n} equal differences'}: no interval)"
    return f"{text} (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}, n = {gain.n})"
