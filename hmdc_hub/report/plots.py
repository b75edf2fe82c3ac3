"""Bars of the cross-architecture scores. Matplotlib is imported on first use."""

from __future__ import annotations

import io

from hmdc_hub.report.tables import CONDENSED, TOOK_PART, model_names, training_sets
from hmdc_hub.schema import Estimate, Scores

# Condensed stands out; baselines are steps of grey, told apart by the legend's order as well.
COLOURS = {
    CONDENSED: "#c8501e",
    "random": "#c9ced6",
    "random-encoded": "#9aa4b2",
    "start": "#6b7889",
    "k-means": "#414d5c",
}
OTHER = "#2a6f97"


def plot_scores(scores: Scores) -> bytes:
    """Draw mean last-epoch accuracy per model and training set, with 95 % intervals.

    Returns:
        PNG bytes, the same for the same scores (with the same matplotlib).
    """
    import matplotlib

    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        return _draw(scores)


def _draw(scores: Scores) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models, sets = model_names(scores), training_sets(scores)
    figure = Figure(
        figsize=(max(6.0, 1.6 + 0.26 * len(models) * (len(sets) + 1.5)), 4.2), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.84 / len(sets)
    for number, name in enumerate(sets):
        shown = [(x, e) for x, model in enumerate(models) if (e := scores.table[name].get(model)) is not None]
        axes.bar(
            [x - 0.42 + (number + 0.5) * width for x, _ in shown],
            [100 * estimate.mean for _, estimate in shown],
            width * 0.92,
            label=name,
            color=COLOURS.get(name, OTHER),
            yerr=[[100 * _below(e) for _, e in shown], [100 * _above(e) for _, e in shown]],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#111111"},
        )
    names = [f"{model} {TOOK_PART}" if model in scores.condensed_by else model for model in models]
    crowded = max(len(name) for name in names) * len(names) > 70
    axes.set_xticks(range(len(models)), names, rotation=20 if crowded else 0, ha="right" if crowded else "center")
    axes.set_ylabel("test accuracy, last epoch (%)")
    axes.set_ylim(0, min(100, 1.08 * 100 * max(_top(scores), 0.05)))
    axes.yaxis.grid(True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=len(sets), frameon=False, handlelength=1.0, columnspacing=1.2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _below(estimate: Estimate) -> float:
    return 0.0 if estimate.low is None else estimate.mean - estimate.low


def _above(estimate: Estimate) -> float:
    return 0.0 if estimate.high is None else estimate.high - estimate.mean


def _top(scores: Scores) -> float:
    return max(e.mean + _above(e) for row in scores.table.values() for e in row.values())
