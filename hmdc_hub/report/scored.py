"""The report of one evaluation: a page, pictures and tables, from nothing but what the evaluation left."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from hmdc_hub.report.classes import Confusion, classes, confusions, own_confusion, total
from hmdc_hub.report.csv_tables import cells_csv, table_csv
from hmdc_hub.report.page import Section, folded, html_table, page, paragraph, picture
from hmdc_hub.report.plots import plot_confusion, plot_scores
from hmdc_hub.report.protocol import again, protocol, scored_on, subject, versions
from hmdc_hub.report.tables import (
    CONDENSED,
    MEAN,
    TOOK_PART,
    caption,
    model_names,
    points,
    table_markdown,
    training_sets,
)
from hmdc_hub.schema import Estimate, Scores
from hmdc_hub.store import write_bytes_atomic, write_text_atomic

Row = Mapping[str, Estimate]


def write_report(folder: Path, scores: Scores, confusion: Confusion, preview: bytes | None) -> None:
    """Write an evaluation's report: report.html, scores.{png,svg,csv,md}, cells.csv, confusion.png.

    Args:
        folder: Made if missing.
        scores: What was found.
        confusion: As `report_html`; without the condensed set there is no confusion.png.
        preview: Picture of the condensed set, PNG.

    Raises:
        RunError: The file system failed.
    """
    write_text_atomic(folder / "scores.md", table_markdown(scores))
    write_text_atomic(folder / "scores.csv", table_csv(scores))
    write_text_atomic(folder / "cells.csv", cells_csv(scores))
    write_bytes_atomic(folder / "scores.png", plot_scores(scores))
    write_bytes_atomic(folder / "scores.svg", plot_scores(scores, "svg"))
    own = own_confusion(scores, confusion)
    if own:
        write_bytes_atomic(folder / "confusion.png", plot_confusion(total(own), scores.class_names))
    write_text_atomic(folder / "report.html", report_html(scores, confusion, preview))


def report_html(scores: Scores, confusion: Confusion, preview: bytes | None = None) -> str:
    """Write an evaluation's report as one page.

    Args:
        scores: What was found.
        confusion: Counts C x C by training set and model, over all trainings: row the true class, column the predicted
            one. Of models without one, such as of scores of an older program, the page shows none.
        preview: Picture of the condensed set, PNG or SVG.

    Returns:
        HTML that needs no other file, the same for the same arguments (with the same matplotlib).
    """
    sections = [
        subject(scores, preview),
        Section("The answer", "\n".join([paragraph(answer(scores), "answer"), paragraph(_spread(scores), "note")])),
        _accuracy(scores),
        _gains(scores),
        _gaps(scores),
        _ranking(scores),
        classes(scores),
        confusions(scores, own_confusion(scores, confusion)),
        _calibration(scores),
        protocol(scores),
        versions(scores),
        again(scores),
    ]
    return page(f"Scores of {scores.name}", [section for section in sections if section is not None])


def answer(scores: Scores) -> str:
    """Say whether the condensed set is better than random images and than its start; no more than intervals allow."""
    models = scores.protocol.models
    column, who = (MEAN, f"{len(models)} models") if len(models) > 1 else (models[0].name, models[0].name)
    mean = scores.table[CONDENSED][column]
    known = "" if mean.low is None or mean.high is None else f"{100 * mean.low:.1f} to {100 * mean.high:.1f}, "
    words = [
        f"Trained on the condensed set, {who} classified {100 * mean.mean:.1f} % of the {scored_on(scores)} correctly"
        f"{' on average' if len(models) > 1 else ''} ({known and '95 % interval '}{known}n = {mean.n})."
    ]
    number = f"{scores.budgets['random'].images} " if "random" in scores.budgets else ""
    for name, what in (("random", f"{number}random real images"), ("start", "the images that condensing started from")):
        if name in scores.gain:
            words.append(_verdict(scores.gain[name][column], what))
    if "random" not in scores.gain:
        words.append("Nothing was trained on random real images, so whether condensing is worth it stays open.")
    return " ".join(words)


def _verdict(gain: Estimate, what: str) -> str:
    if gain.low is None or gain.high is None:
        few = "one training" if gain.n == 1 else f"{gain.n} trainings"
        return f"The difference to {what} is {points(gain)}; whether it is more than chance, {few} cannot tell."
    if gain.low <= 0 <= gain.high:
        return f"It is not distinguishable from {what} at n = {gain.n}: {points(gain)}."
    return f"It is {'better' if gain.mean > 0 else 'worse'} than {what}: {points(gain)}."


def _seeds(scores: Scores) -> str:
    if scores.protocol.seeds == 1:
        return "One evaluation seed of one condensing run: how far trainings vary is not known."
    return "n counts evaluation seeds of one condensing run."


def _spread(scores: Scores) -> str:
    """Say what n counts and what an interval spans."""
    draws = scores.protocol.random_draws
    random = any(name.startswith("random") for name in scores.table)
    averaged = f" Of a random set the {draws} draws are averaged first." if random and draws > 1 else ""
    if scores.protocol.seeds == 1:
        return f"{_seeds(scores)}{averaged}"
    return (
        f"{_seeds(scores)}{averaged} Spreads and intervals (Student's t) say how far trainings vary, not how far a set "
        "condensed anew, with another seed, would be from this one. Of many intervals a few miss zero by chance."
    )


def _accuracy(scores: Scores) -> Section:
    header = ["training set", "stored", "images", *_marked(scores)]
    rows = []
    for name, *cells in _rows(scores, scores.table):
        budget = scores.budgets.get(name)
        rows.append([name, *((str(budget.stored), str(budget.images)) if budget else ("", "")), *cells])
    parts = [
        picture(plot_scores(scores, "svg"), "Accuracy by model and training set; the numbers stand in the next table."),
        html_table(header, rows, strong=CONDENSED, caption=f"{caption(scores)} {_seeds(scores)}"),
    ]
    if any(cell.best is not None for cell in scores.cells):
        parts.append(_best(scores))
    return Section("Accuracy", "\n".join(parts))


def _best(scores: Scores) -> str:
    models, rows = [model.name for model in scores.protocol.models], []
    for name in training_sets(scores):
        row = [name]
        for model in models:
            best = [c.best for c in scores.cells if (c.training_set, c.model) == (name, model) and c.best is not None]
            row.append(f"{100 * statistics.fmean(best):.1f}" if best else "–")
        rows.append(row)
    label = f"Best of many looks at the {scored_on(scores)}: not comparable with anything else here"
    text = (
        f"Mean over trainings, in percent, of the best of all looks, one every {scores.protocol.best_every} epochs. "
        "The images that choose the epoch are those that score it, so each number is too high, and the more so the "
        "more looks there are. Some papers report it; compare it with theirs alone."
    )
    return folded(label, html_table(["training set", *models], rows, strong=CONDENSED, caption=text))


def _gains(scores: Scores) -> Section | None:
    if not scores.gain:
        return None
    rows = [[*row, _n(scores.gain[row[0]])] for row in _rows(scores, scores.gain, _interval)]
    text = (
        "Accuracy of the condensed set minus that of each baseline, in points, with the 95 % interval; above zero the "
        "condensed set is better. Trainings of one seed start from the same weights and are compared in pairs. "
        f"{_seeds(scores)}"
    )
    return Section("Differences, seed by seed", html_table(["baseline", *_marked(scores), "n"], rows, caption=text))


def _gaps(scores: Scores) -> Section:
    title = "Models that condensed, and others"
    if not scores.gap:
        others = [model.name for model in scores.protocol.models if model.name not in scores.condensed_by]
        if not scores.condensed_by:
            text = "Which models condensed the set is not known, so whether it suits others, too, cannot be told apart."
        elif others:
            text = "None of the models here took part in condensing: every number is about transfer."
        else:
            text = "All models here took part in condensing: how the set serves others, this evaluation does not say."
        return Section(title, paragraph(text))
    text = (
        f"Accuracy of the models that condensed minus that of the others: {points(scores.gap[CONDENSED])} on the "
        "condensed set. Architectures differ in how good they are on any images; a set that suits its own models alone "
        "has a gap far above that of real images."
    )
    rows = [[name, _interval(scores.gap[name]), str(scores.gap[name].n)] for name in training_sets(scores)]
    small = f"Points of accuracy with the 95 % interval. {_seeds(scores)}"
    table = html_table(["training set", "gap", "n"], rows, strong=CONDENSED, caption=small)
    return Section(title, f"{paragraph(text)}\n{table}")


def _ranking(scores: Scores) -> Section | None:
    if not scores.ranking:
        return None
    rows = []
    for model, label in zip(model_names(scores), _marked(scores), strict=True):
        found = scores.ranking[model]
        numbers = [_interval(found.improvement), _interval(found.recovery), _score(found.score)]
        rows.append([label, *numbers, str(found.improvement.n)])
    text = (
        "What DD-Ranking (Li et al., 2025, arXiv 2505.13300) asks, computed from the trainings of this protocol, which "
        "is not theirs: compare within this page. IOR, improvement over random: accuracy minus that of as many stored "
        "random images; more is better. HLR, hard-label recovery: accuracy of the full set minus that of the condensed "
        "one; less is better. Score: (exp(a) − exp(−1)) / (e − exp(−1)) with a = (IOR − HLR) / 2 as shares, between 0 "
        "and 1; more is better."
    )
    if all(found.recovery is None for found in scores.ranking.values()):
        text += " Nothing was trained on the full set, so there is neither HLR nor score."
    small = f"IOR and HLR in points; 95 % intervals. {_seeds(scores)}"
    table = html_table(["model", "IOR", "HLR", "score", "n"], rows, caption=small)
    return Section("DD-Ranking", f"{paragraph(text)}\n{table}")


def _score(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    known = "" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.mean:.3f}{known}"


def _calibration(scores: Scores) -> Section:
    rows = [[*row, _n(scores.ece[row[0]])] for row in _rows(scores, scores.ece)]
    text = (
        "Expected calibration error in points, mean ± standard deviation: how far the confidence of predictions is "
        "from how often they are right, in 15 bins of confidence (Guo et al., ICML 2017); less is better. "
    )
    table = html_table(["training set", *_marked(scores), "n"], rows, strong=CONDENSED, caption=text + _seeds(scores))
    return Section("Calibration", table)


def _marked(scores: Scores) -> list[str]:
    """Name the columns, those of models that took part in condensing with a mark."""
    return [f"{name} {TOOK_PART}" if name in scores.condensed_by else name for name in model_names(scores)]


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{100 * estimate.mean:.1f}" + ("" if estimate.sd is None else f" ± {100 * estimate.sd:.1f}")


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _points(estimate.mean)
    return f"{_points(estimate.mean)} ({_points(estimate.low)} to {_points(estimate.high)})"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def _rows(
    scores: Scores, table: Mapping[str, Row], form: Callable[[Estimate | None], str] = _percent
) -> list[list[str]]:
    return [
        [name, *(form(table[name].get(model)) for model in model_names(scores))]
        for name in training_sets(scores)
        if name in table
    ]


def _n(row: Row) -> str:
    return str(max(estimate.n for estimate in row.values()))
