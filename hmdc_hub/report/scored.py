"""The report of one evaluation: a page, pictures and tables, from nothing but what the evaluation left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.metrics import scores_rows
from hmdc_hub.report import plots, soft_labels, tables
from hmdc_hub.report.document import Section, Table, render_page
from hmdc_hub.report.headline import headline
from hmdc_hub.report.plots import rendered
from hmdc_hub.report.tables import MEAN, NONE, mark
from hmdc_hub.schema import CONDENSED, TRAINING_SETS, EvaluateSpec, Scores, Strict
from hmdc_hub.store.files import write_bytes_atomic, write_text_atomic
from hmdc_hub.text import amount, count, one_line

# Counts C x C by training set and model, over all trainings: row the true class, column the predicted one.
Confusion = Mapping[tuple[str, str], NDArray[np.integer[Any]]]
MAX_CONFUSIONS = 10


def write_report(folder: Path, scores: Scores, confusion: Confusion, looks: plots.SetPictures | None) -> None:
    """Write report.html, scores.{png,svg,csv,md}, cells.csv, and confusion.png where the condensed set has one."""
    write_text_atomic(folder / "scores.md", tables.table_markdown(scores) + soft_labels.markdown(scores))
    write_text_atomic(folder / "scores.csv", tables.to_csv(tables.means_rows(scores)))
    write_text_atomic(folder / "cells.csv", tables.to_csv(scores_rows(scores)))
    write_bytes_atomic(folder / "scores.png", rendered(plots.scores_figure, scores))
    write_bytes_atomic(folder / "scores.svg", rendered(plots.scores_figure, scores, kind="svg"))
    if own := _own(scores, confusion):
        total = np.sum(list(own.values()), axis=0)
        write_bytes_atomic(folder / "confusion.png", rendered(plots.confusion_figure, total, scores.class_names))
    write_text_atomic(folder / "report.html", report_html(scores, confusion, looks))


def report_html(scores: Scores, confusion: Confusion, looks: plots.SetPictures | None = None) -> str:
    """Write an evaluation's report as one page, the same for the same arguments (with the same matplotlib).

    Of models without a confusion, such as of scores of an older program, the page shows none.
    """

    def drawn(matrix: plots.Matrix) -> bytes:
        return rendered(plots.confusion_figure, matrix, scores.class_names, kind="svg")

    columns, means = tables.columns(scores), means_table(scores)
    models, own, sets = scores.protocol.models, _own(scores, confusion), tables.training_sets(scores)
    total, head = np.sum(list(own.values()), axis=0), headline(scores)
    seeds, trained = count(scores.protocol.seeds, "evaluation seed"), count(len(models), "model")
    return render_page(
        "scored.html.jinja",
        f"Scores of {scores.name}",
        scores=scores,
        tables=tables,
        kinds=TRAINING_SETS,
        amount=amount,
        sets=sets,
        classes=[one_line(name) or f"class {label}" for label, name in enumerate(scores.class_names)],
        looks=looks,
        head=head,
        means=means,
        accuracy=_mean_second(replace(tables.accuracy_table(scores), strong=means.strong), scores),
        by_columns={name: columns[name] for name in sorted(columns, key=lambda name: name != MEAN)},
        draws=max(scores.protocol.draws(name) for name in scores.table),
        accuracy_picture=rendered(plots.scores_figure, scores, kind="svg"),
        best=_best(scores, sets),
        gaps={name: {"gap": gap} for name, gap in scores.gap.items()},
        strangers=any(model.name not in scores.condensed_by for model in models),
        classes_picture=rendered(plots.classes_figure, scores, kind="svg"),
        soft_labels=soft_labels.sections(scores),
        shares={tables.set_label(name): plots.class_means(scores, name) for name in sets if name in scores.per_class},
        trainings=f"{seeds} and {trained}, one condensing run",
        confusion_picture=drawn(total) if own else None,
        alone={model: drawn(matrix) for model, matrix in own.items() if len(own) > 1},
        worst=_worst(total) if own else [],
        protocol=protocol_section(scores.protocol, scores.condensed_by),
        target="TARGET --recipe RECIPE" if scores.condense_hash is None else shlex.quote(one_line(scores.name)),
        local=[model.name for model in models if model.local_names()],
    )


def means_table(scores: Scores) -> Table:
    """Make the small table that pages begin with: a mean for each training set, and what condensing gains on it."""
    head = headline(scores)
    rows, counted = [], f"n = {head.condensed.n}"
    for name in tables.training_sets(scores):
        gain, mean = scores.gain.get(name, {}).get(head.column), scores.table[name][head.column]
        shown = tables.short(gain) if gain is not None else ""
        rows.append([tables.set_label(name), tables.percent(mean), shown])
        if mean.n != head.condensed.n:
            counted += f" ({tables.set_label(name)}: {mean.n})"
    rows.append(["chance", f"{100 * head.chance:.1f}", ""])
    over = tables.OVER_MODELS if head.column == MEAN else head.column
    interval = "with the 95 % interval" if head.condensed.low is not None else "too few seeds for an interval"
    protocol = head.protocol[0].upper() + head.protocol[1:]
    return Table(
        ["training set", f"accuracy, {over}", "condensed is ahead by"],
        rows,
        strong=tables.set_label(CONDENSED) if head.beats_all else None,
        note=f"{tables.scored_on(scores).capitalize()} accuracy in percent at the last epoch, mean ± standard "
        f"deviation, {counted}; differences in points, {interval}. {protocol}.",
    )


def _mean_second(table: Table, scores: Scores) -> Table:
    """Move the mean, if there is one, behind the name of the row: on a narrow screen it is seen without scrolling."""
    mean = tables.columns(scores).get(MEAN)
    if mean is None or mean not in table.header:
        return table
    place = list(table.header).index(mean)
    header, *rows = ([row[0], row[place], *row[1:place], *row[place + 1 :]] for row in (table.header, *table.rows))
    return replace(table, header=header, rows=rows)


def _best(scores: Scores, sets: Sequence[str]) -> dict[str, list[str]]:
    """Average the best of many looks, where the protocol had them: by training set, a mean for each model."""
    found: dict[str, list[str]] = {}
    for name in sets:
        for model in scores.protocol.models:
            cells = [cell for cell in scores.cells if (cell.training_set, cell.model) == (name, model.name)]
            looks = [cell.best for cell in cells if cell.best is not None]
            found.setdefault(name, []).append(f"{100 * float(np.mean(looks)):.1f}" if looks else NONE)
    return {name: row for name, row in found.items() if set(row) != {NONE}}


def _own(scores: Scores, confusion: Confusion) -> dict[str, plots.Matrix]:
    """Keep the matrices of the condensed set, in the order of the protocol's models."""
    names = [model.name for model in scores.protocol.models]
    return {name: confusion[CONDENSED, name] for name in names if (CONDENSED, name) in confusion}


def _worst(total: plots.Matrix) -> list[tuple[int, int, float]]:
    """List the most frequent confusions, true and predicted: of many classes the picture is too small for them."""
    shares = plots.row_shares(total)
    np.fill_diagonal(shares, 0)
    places = np.argsort(-shares, axis=None, kind="stable")[:MAX_CONFUSIONS]
    found = [(*divmod(int(place), len(shares)), float(shares.flat[place])) for place in places]
    return [(true, taken, share) for true, taken, share in found if share > 0]


def protocol_section(protocol: EvaluateSpec, condensed_by: Sequence[str]) -> Section:
    """Write every key of the protocol with its meaning, and every model as it was trained."""
    rows = []
    for model in (model.without_paths() for model in protocol.models):
        rows.append(
            [
                model.name + mark(model.name, condensed_by),
                f"{model.source} {model.id}" + (f" ({tables.FROM_PYTHON})" if tables.from_python([model]) else ""),
                ", ".join(f"{key} {_plain(value)}" for key, value in model.args.items()),
                model.weights + (f" @ {model.revision}" if model.revision else ""),
                model.train,
                f"{model.input_size or 'source'}",
                model.batch_norm,
                f"{model.lr.evaluate:g}",
                "yes" if model.cutmix and protocol.cutmix.evaluate else "no",
            ]
        )
    header = ["model", "built by", "args", "weights", "trained", "input size", "batch norm", "learning rate", "CutMix"]
    keys = Table(["key", "value", "what it is"], list(_settings(protocol)), words=[1, 2])
    models = Table(header, rows, words=[1, 2, 3, 4, 5, 6, 8], note=f"{tables.TOOK_PART} took part in condensing.")
    return Section("Protocol", [keys, models])


def _settings(spec: Strict, prefix: str = "") -> Iterator[list[str]]:
    """List all keys with their values and meanings, those of sections as `section.key`."""
    for key, field in type(spec).model_fields.items():
        value = getattr(spec, key)
        if isinstance(value, Strict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            shown = [getattr(part, "name", part) for part in value] if isinstance(value, list) else value
            yield [prefix + key, _plain(shown), field.description or ""]


def _plain(value: Any) -> str:
    """Write a value as a recipe has it."""
    if isinstance(value, list):
        return f"[{', '.join(_plain(part) for part in value)}]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
