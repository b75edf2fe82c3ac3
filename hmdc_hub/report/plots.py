"""The cross-architecture scores as a plot. Matplotlib is imported on first use."""

from __future__ import annotations

import io

from hmdc_hub.report.tables import CONDENSED, TOOK_PART, model_names, training_sets
from hmdc_hub.schema import Estimate, Scores

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


def plot_scores(scores: Scores) -> bytes:
    """Draw mean last-epoch accuracy per model and training set, with 95 % intervals.

    Returns:
        PNG bytes, the same for the same scores (with the same matplotlib).
    """
    import matplotlib

    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        return _draw(scores)


def _draw(scores: Scores) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models, sets = model_names(scores), training_sets(scores)
    # One row per model: the picture grows downwards, never wider than a phone can show with readable words.
    figure = Figure(figsize=(6.4, 1.3 + 0.62 * len(models)), dpi=125, layout="constrained")
    FigureCanvasAgg(figure)
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
    axes.set_xlabel("test accuracy at the last epoch (%), 95 % interval")
    axes.xaxis.grid(True, color="#e3e6ea", linewidth=0.8)
    for y in range(1, len(models)):
        axes.axhline(y - 0.5, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.3, columnspacing=1.2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _below(estimate: Estimate) -> float:
    return 0.0 if estimate.low is None else estimate.mean - estimate.low


def _above(estimate: Estimate) -> float:
    return 0.0 if estimate.high is None else estimate.high - estimate.mean


def _top(scores: Scores) -> float:
    return max(e.mean + _above(e) for row in scores.table.values() for e in row.values())
