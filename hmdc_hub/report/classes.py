"""Classes: how well each is recognised, and which is taken for which, as parts of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.report.page import Section, folded, heading, html_table, paragraph, picture
from hmdc_hub.report.plots import class_means, plot_classes, plot_confusion, row_shares
from hmdc_hub.report.tables import CONDENSED, training_sets
from hmdc_hub.report.text import one_line
from hmdc_hub.schema import Scores

Matrix = NDArray[np.integer[Any]]
Confusion = Mapping[tuple[str, str], Matrix]

MAX_CONFUSIONS = 10


def classes(scores: Scores) -> Section:
    """Write the accuracy of each class, of every training set."""
    names = [name for name in training_sets(scores) if name in scores.per_class]
    columns = [class_means(scores, name) for name in names]
    rows = [
        [_class(scores, label), *(f"{100 * share:.1f}" for share in shares)]
        for label, shares in enumerate(zip(*columns, strict=True))
    ]
    small = f"Accuracy of each class in percent, mean over {_trainings(scores)}."
    shown = picture(plot_classes(scores, "svg"), "Accuracy of classes; the numbers stand in the table that follows.")
    return Section("Classes", f"{shown}\n{folded('All classes', html_table(['class', *names], rows, caption=small))}")


def confusions(scores: Scores, own: Confusion) -> Section | None:
    """Write which class was taken for which, all models together and each alone.

    Args:
        scores: What was found.
        own: From `own_confusion`; empty: there is no such section.
    """
    if not own:
        return None
    summed, names = total(own), scores.class_names
    parts = [picture(plot_confusion(summed, names, "svg"), "Which class the condensed set has taken for which.")]
    small = f"Condensed set, all trainings together ({_trainings(scores)}); rows sum to 100 %."
    parts += [paragraph(small, "note"), _worst(scores, summed)]
    if len(own) > 1:
        alone = [
            heading(model) + "\n" + picture(plot_confusion(matrix, names, "svg"), f"The same for {model} alone.")
            for (_, model), matrix in own.items()
        ]
        parts.append(folded("Each model alone", "\n".join(alone)))
    return Section("Confusions", "\n".join(parts))


def _worst(scores: Scores, matrix: Matrix) -> str:
    """Name the most frequent confusions: the picture in words, and of many classes what it is too small for."""
    shares = row_shares(matrix)
    np.fill_diagonal(shares, 0)
    places = np.argsort(-shares, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [(int(place) // len(shares), int(place) % len(shares)) for place in places]
    rows = [
        [_class(scores, true), _class(scores, taken), f"{100 * shares[true, taken]:.1f}"]
        for true, taken in pairs
        if shares[true, taken] > 0
    ]
    small = "The most frequent confusions, in percent of the true class."
    return html_table(["true class", "taken for", "%"], rows, words=[1], caption=small) if rows else ""


def _trainings(scores: Scores) -> str:
    counts = (scores.protocol.seeds, "evaluation seed"), (len(scores.protocol.models), "model")
    seeds, models = (f"{n} {word}" if n == 1 else f"{n} {word}s" for n, word in counts)
    return f"{seeds} and {models}, one condensing run"


def _class(scores: Scores, label: int) -> str:
    return one_line(scores.class_names[label]) or f"class {label}"


def own_confusion(scores: Scores, confusion: Confusion) -> Confusion:
    """Keep the matrices of the condensed set, in the order of the protocol's models."""
    keys = [(CONDENSED, model.name) for model in scores.protocol.models]
    return {key: confusion[key] for key in keys if key in confusion}


def total(confusion: Confusion) -> Matrix:
    """Add up the matrices of all models; there is at least one."""
    summed: Matrix = np.stack(list(confusion.values())).sum(axis=0)
    return summed
