"""Scores, classes and confusions as pictures. Matplotlib is imported on first use."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.report import canvas
from hmdc_hub.report.tables import CONDENSED, TOOK_PART, model_names, training_sets
from hmdc_hub.report.text import one_line
from hmdc_hub.schema import Estimate, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart, and a mark of its own each; condensed stands out.
STYLES = {
    CONDENSED: ("#d55e00", "o"),
    "random": ("#999999", "s"),
    "random-encoded": ("#56b4e9", "^"),
    "start": ("#0072b2", "D"),
    "k-means": ("#009e73", "v"),
    "herding": ("#cc79a7", "P"),
    "exact": ("#e69f00", "X"),
    "full": ("#000000", "*"),
}
OTHERS = (("#f0e442", "p"), ("#8b5a2b", "h"), ("#7570b3", "<"))
LABEL = 18
"""Characters of a class name that are written; longer ones end in an ellipsis."""
MAX_NUMBERS = 12
"""Classes up to which a confusion matrix has a number in every cell."""
MAX_TICKS = 25
"""Class names along an axis of a confusion matrix."""
MAX_CLASSES = 20
"""Classes that are all shown; of more the best and the worst."""


def plot_scores(scores: Scores, kind: canvas.Kind = "png") -> bytes:
    """Draw mean last-epoch accuracy per model and training set, with 95 % intervals.

    Args:
        scores: What to show.
        kind: The file's format.

    Returns:
        The file, the same for the same scores (with the same matplotlib).
    """
    return canvas.rendered(lambda: _scores(scores), kind)


def plot_confusion(matrix: NDArray[np.integer[Any]], class_names: Sequence[str], kind: canvas.Kind = "png") -> bytes:
    """Draw a confusion matrix, each row as shares of its sum.

    Args:
        matrix: Counts C x C: row the true class, column the predicted one. A row of zeros stays empty.
        class_names: C; a name that the font cannot write becomes its number.
        kind: The file's format.

    Returns:
        The file, as `plot_scores`. Cells have numbers (percent) for up to 12 classes; of very many classes only some
        are named.
    """
    return canvas.rendered(lambda: _confusion(matrix, class_names), kind)


def plot_classes(scores: Scores, kind: canvas.Kind = "png") -> bytes:
    """Draw each class's accuracy, averaged over models, of the condensed set and of random images if there are any.

    Args:
        scores: What to show; of more than 20 classes only the 10 that the condensed set does best and the 10 worst.
        kind: The file's format.

    Returns:
        The file, as `plot_scores`.
    """
    return canvas.rendered(lambda: _classes(scores), kind)


def class_means(scores: Scores, training_set: str) -> list[float]:
    """Average each class's accuracy over models, by label."""
    return [statistics.fmean(column) for column in zip(*scores.per_class[training_set].values(), strict=True)]


def row_shares(matrix: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Divide each row of counts by its sum; a row of zeros stays as it is."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return shares


def _scores(scores: Scores) -> Figure:
    models, sets = model_names(scores), training_sets(scores)
    figure = canvas.figure(1.3 + 0.62 * len(models))
    axes = figure.add_subplot()
    spread = 0.72 / len(sets)
    for number, name in enumerate(sets):
        shown = [(y, e) for y, model in enumerate(models) if (e := scores.table[name].get(model)) is not None]
        colour, mark = STYLES.get(name) or OTHERS[number % len(OTHERS)]
        axes.errorbar(
            [100 * e.mean for _, e in shown],
            [y + (number - (len(sets) - 1) / 2) * spread for y, _ in shown],
            xerr=[[100 * _below(e) for _, e in shown], [100 * _above(e) for _, e in shown]],
            fmt=mark,
            color=colour,
            markersize=8 if name == CONDENSED else 6,
            elinewidth=1.6,
            capsize=2.5,
            label=name,
            zorder=3 if name == CONDENSED else 2,
        )
    names = [f"{model} {TOOK_PART}" if model in scores.condensed_by else model for model in models]
    axes.set_yticks(range(len(models)), names)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, min(101, 106 * max(_top(scores), 0.05)))
    axes.set_xlabel(f"{_split(scores)} accuracy at the last epoch (%), 95 % interval")
    axes.xaxis.grid(True, color=canvas.LINES, linewidth=0.8)
    for y in range(1, len(models)):
        axes.axhline(y - 0.5, color=canvas.LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.3, columnspacing=1.2)
    return figure


def _split(scores: Scores) -> str:
    return "test" if scores.protocol.holdout is None else "held-out"


def _below(estimate: Estimate) -> float:
    return 0.0 if estimate.low is None else estimate.mean - estimate.low


def _above(estimate: Estimate) -> float:
    return 0.0 if estimate.high is None else estimate.high - estimate.mean


def _top(scores: Scores) -> float:
    return max(e.mean + _above(e) for row in scores.table.values() for e in row.values())


def _confusion(matrix: NDArray[np.integer[Any]], class_names: Sequence[str]) -> Figure:
    from matplotlib.colors import PowerNorm

    classes, shares = len(class_names), 100 * row_shares(matrix)
    numbers = classes <= MAX_NUMBERS
    figure = canvas.figure(5.9 if numbers else 5.3)
    axes = figure.add_subplot()
    # Many classes share the errors out: on a linear scale a few percent look like none. Not pcolormesh: ten thousand
    # cells as paths make a slow picture of a megabyte.
    norm = PowerNorm(1 if numbers else 0.5, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest", aspect="auto")
    every = range(0, classes, -(-classes // MAX_TICKS))
    names = [_label(class_names[label], label) for label in every]
    size = 10 if numbers else 8
    # parse_math: a class may be called $x$, or half of it.
    axes.set_xticks(every, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(every, names, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted" + (", % of the true class" if numbers else ""))
    axes.set_ylabel("true class")
    axes.tick_params(length=0 if classes <= MAX_TICKS else 2)
    axes.spines[:].set_visible(False)
    if numbers:
        for (true, predicted), share in np.ndenumerate(shares):
            ink = "white" if share > 70 else "black" if share >= 0.5 else "#b0b6bd"
            axes.text(predicted, true, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=10)
    else:
        bar = figure.colorbar(image, ax=axes, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
        bar.set_label("% of the true class")
        bar.outline.set_visible(False)
    return figure


def _classes(scores: Scores) -> Figure:
    means = {name: class_means(scores, name) for name in (CONDENSED, "random") if name in scores.per_class}
    order = sorted(range(len(scores.class_names)), key=lambda label: -means[CONDENSED][label])
    labels, half, gap = order, MAX_CLASSES // 2, 0
    if len(order) > MAX_CLASSES:
        labels, gap = [*order[:half], *order[-half:]], 1
    places = [row if row < half or not gap else row + gap for row in range(len(labels))]
    figure = canvas.figure(1.3 + 0.3 * (len(labels) + gap))
    axes = figure.add_subplot()
    for name, row in reversed(means.items()):
        colour, mark = STYLES[name]
        shown = [100 * row[label] for label in labels]
        axes.scatter(shown, places, color=colour, marker=mark, s=55 if name == CONDENSED else 36, label=name)
    if "random" in means:
        left, right = ([100 * means[name][label] for label in labels] for name in ("random", CONDENSED))
        axes.hlines(places, left, right, color="#c3c9cf", linewidth=1.6, zorder=0)
    if gap:
        axes.text(0.5, half, f"… {len(order) - len(labels)} more …", ha="center", va="center", color="#5a6570",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    names = [_label(scores.class_names[label], label) for label in labels]
    axes.set_yticks(places, names, parse_math=False)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(-2, 102)
    axes.set_xlabel(f"{_split(scores)} accuracy of the class (%), mean over models")
    axes.xaxis.grid(True, color=canvas.LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(*(part[::-1] for part in axes.get_legend_handles_labels()), loc="outside upper left", ncols=2,
                  frameon=False, handletextpad=0.3)  # fmt: skip
    return figure


def _label(name: str, number: int) -> str:
    """Give a class name on one short line, or its number if the font cannot write it: boxes say less."""
    text = one_line(name)
    if not text or canvas.drawable(text) != text:
        return f"class {number}"
    return text if len(text) <= LABEL else text[: LABEL - 1].rstrip() + "…"
