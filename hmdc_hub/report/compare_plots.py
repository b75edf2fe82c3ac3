"""A comparison of scored sets as pictures: transfer, differences, accuracy by budget. Matplotlib comes on first use."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hmdc_hub.comparison import Comparison
from hmdc_hub.measures import MEAN, RANDOM, RANDOM_ENCODED
from hmdc_hub.report.canvas import LINES, Kind, drawable, figure, rendered
from hmdc_hub.report.compare_words import ALL, mark
from hmdc_hub.schema import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart, and a mark of its own each.
STYLES = (
    ("#d55e00", "o"),
    ("#0072b2", "D"),
    ("#009e73", "v"),
    ("#cc79a7", "P"),
    ("#e69f00", "X"),
    ("#56b4e9", "^"),
    ("#000000", "*"),
)
GREY = "#888f96"
CURVES = {RANDOM: "random real images", RANDOM_ENCODED: "random real images, encoded: the same bytes"}
NAME = 26
"""Characters of a row's name before a line breaks."""
MAX_TENTHS = 7
"""Models up to which numbers in cells have a place behind the point."""


def pictures(comparison: Comparison, kind: Kind = "png") -> dict[str, bytes]:
    """Draw every picture that a comparison gives rise to.

    Args:
        comparison: What to show.
        kind: The files' format.

    Returns:
        By name: `transfer` always, `differences` between two groups or more, `budget` where budgets differ. The same
        bytes for the same comparison (with the same matplotlib).
    """
    drawn: Mapping[str, tuple[bool, Callable[[Comparison], Figure]]] = {
        "transfer": (True, _transfer),
        "differences": (bool(comparison.against_first), _differences),
        "budget": (bool(comparison.curves), _budget),
    }
    return {name: rendered(lambda: draw(comparison), kind) for name, (wanted, draw) in drawn.items() if wanted}  # noqa: B023


def _transfer(comparison: Comparison) -> Figure:
    rows, models = comparison.transfer, comparison.models
    names = [_folded(name) for name, _ in rows]
    shares = [[100 * group.table[model].mean for model in models] for _, group in rows]
    least, most = min(map(min, shares)), max(map(max, shares))
    lines = sum(max(2, 1 + name.count("\n")) for name in names)
    made = figure(1.6 + 0.27 * lines + 0.09 * max(map(len, models)))
    axes = made.add_subplot()
    # A scale of at least ten points: less is not made to look like much.
    low = max(0.0, min(least, (least + most) / 2 - 5))
    high = max(most, low + 10)
    image = axes.imshow(shares, cmap="Blues", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(models)), [drawable(model) for model in models], rotation=40, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(len(rows)), names, parse_math=False, fontsize=10)
    axes.set_ylabel("condensed by")
    axes.set_xlabel("trained")
    wide = len(models) <= MAX_TENTHS
    for y, (_, group) in enumerate(rows):
        for x, model in enumerate(models):
            dark = (shares[y][x] - low) / (high - low) > 0.6
            took_part = mark(model, group)
            text = f"{shares[y][x]:.1f}{took_part}" if wide else f"{shares[y][x]:.0f}" + took_part.replace(" ", "\n")
            axes.text(x, y, text, ha="center", va="center", fontsize=11 if wide else 9,
                      color="white" if dark else "black")  # fmt: skip
    bar = made.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("accuracy (%)")
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return made


def _differences(comparison: Comparison) -> Figure:
    pairs, columns = comparison.against_first, comparison.columns
    made = figure(1.3 + 0.3 * len(pairs) + len(columns) * max(0.42, 0.2 + 0.17 * len(pairs)))
    axes = made.add_subplot()
    spread = 0.7 / len(pairs)
    for number, pair in enumerate(pairs):
        colour, shape = STYLES[number % len(STYLES)]
        axes.errorbar(
            [100 * pair.differences[name].estimate.mean for name in columns],
            [y + (number - (len(pairs) - 1) / 2) * spread for y in range(len(columns))],
            xerr=reach([pair.differences[name].estimate for name in columns]),
            fmt=shape,
            color=colour,
            markersize=7,
            elinewidth=1.6,
            capsize=2.5,
            label=drawable(f"{pair.first} − {pair.other}"),
        )
    axes.axvline(0, color="#5a6570", linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(columns)), [ALL if name == MEAN else drawable(name) for name in columns])
    axes.set_ylim(len(columns) - 0.5, -0.5)
    if comparison.main == MEAN:
        axes.axhline(0.5, color=GREY, linewidth=0.8)
    low, high = axes.get_xlim()
    least = max(1.0, 0.1 * (high - low))  # zero is seen, and half a point does not look like much
    axes.set_xlim(min(low, -least), max(high, least))
    axes.set_xlabel("difference of accuracy (points), 95 % interval")
    axes.xaxis.grid(True, color=LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    legend = made.legend(loc="outside upper left", ncols=1, frameon=False, handletextpad=0.3, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return made


def _budget(comparison: Comparison) -> Figure:
    stored = sorted({group.budget.stored for group in comparison.groups})
    curves = [
        (name, [(group.budget.stored, group.table[comparison.main]) for group in curve], *STYLES[place % len(STYLES)])
        for place, (name, curve) in enumerate(comparison.curves)
    ]
    for name, rows in comparison.random.items():
        points = [(row.budget.stored, row.table[comparison.main]) for row in rows]
        curves.append((CURVES[name], points, GREY, "s" if name == RANDOM else "^"))
    names = [_folded(name, 2 * NAME) for name, *_ in curves]
    made = figure(3.8 + 0.22 * sum(1 + name.count("\n") for name in names))
    axes = made.add_subplot()
    for place, (_, points, colour, shape) in enumerate(curves):
        # Side by side: sets of one budget would hide one another.
        aside = (stored[-1] / stored[0]) ** (0.012 * (place - (len(curves) - 1) / 2))
        axes.errorbar(
            [x * aside for x, _ in points],
            [100 * found.mean for _, found in points],
            yerr=reach([found for _, found in points]),
            fmt=f"{shape}-",
            color=colour,
            markersize=7,
            elinewidth=1.6,
            capsize=2.5,
            label=names[place],
        )
    axes.set_xscale("log")
    axes.set_xticks(stored, [str(number) for number in stored])
    axes.minorticks_off()
    axes.set_xlabel("stored images (bars: 95 % interval)")
    what = ALL if comparison.main == MEAN else drawable(comparison.main)
    axes.set_ylabel(f"accuracy (%), {what}", fontsize=11)
    axes.grid(True, color=LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    legend = made.legend(loc="outside upper left", ncols=1, frameon=False, handletextpad=0.3, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return made


def reach(found: Sequence[Estimate]) -> list[list[float]]:
    """Give how far intervals reach below and above their means, in points; 0 where there is none."""
    below = [0.0 if e.low is None else 100 * (e.mean - e.low) for e in found]
    above = [0.0 if e.high is None else 100 * (e.high - e.mean) for e in found]
    return [below, above]


def _folded(name: str, width: int = NAME) -> str:
    """Break a name into lines, between models behind the plus."""
    tied = drawable(name).replace(" + ", "\u00a0+ ")
    return "\n".join(textwrap.wrap(tied, width, break_on_hyphens=False)).replace("\u00a0", " ")
