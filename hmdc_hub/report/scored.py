"""The report of one evaluation: a page, pictures and tables, from nothing but what the evaluation left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.report import plots, tables
from hmdc_hub.report.document import Section, Table, render_page
from hmdc_hub.report.tables import CONDENSED, MEAN, mark, marked_names, model_names, set_label, training_sets
from hmdc_hub.report.text import NONE, amount, count, difference, interval, one_line, percent, points
from hmdc_hub.schema import Estimate, EvaluateSpec, Scores, Strict
from hmdc_hub.store.files import write_bytes_atomic, write_text_atomic

Confusion = Mapping[tuple[str, str], NDArray[np.integer[Any]]]
"""Counts C x C by training set and model, over all trainings: row the true class, column the predicted one."""

UNKNOWN = "unknown: a set of another program"
MAX_CONFUSIONS = 10


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
    write_text_atomic(folder / "scores.md", tables.table_markdown(scores))
    write_text_atomic(folder / "scores.csv", tables.to_csv(tables.means_frame(scores)))
    write_text_atomic(folder / "cells.csv", tables.to_csv(tables.cells_frame(scores)))
    write_bytes_atomic(folder / "scores.png", plots.plot_scores(scores))
    write_bytes_atomic(folder / "scores.svg", plots.plot_scores(scores, "svg"))
    own = _own(scores, confusion)
    if own:
        total = np.stack(list(own.values())).sum(axis=0)
        write_bytes_atomic(folder / "confusion.png", plots.plot_confusion(total, scores.class_names))
    write_text_atomic(folder / "report.html", report_html(scores, confusion, preview))


def report_html(scores: Scores, confusion: Confusion, preview: bytes | None = None) -> str:
    """Write an evaluation's report as one page.

    Args:
        scores: What was found.
        confusion: Of models without one, such as of scores of an older program, the page shows none.
        preview: Picture of the condensed set, PNG or SVG.

    Returns:
        HTML that needs no other file, the same for the same arguments (with the same matplotlib).
    """
    names, models = scores.class_names, scores.protocol.models
    own = _own(scores, confusion)
    total = np.stack(list(own.values())).sum(axis=0) if own else None
    seeds, trained = count(scores.protocol.seeds, "evaluation seed"), count(len(models), "model")
    return render_page(
        "scored.html.jinja",
        f"Scores of {scores.name}",
        scores=scores,
        preview=preview,
        facts=_facts(scores),
        budgets=_budgets(scores),
        answer=answer(scores),
        draws=scores.protocol.random_draws if any(name.startswith("random") for name in scores.table) else 1,
        accuracy_picture=plots.plot_scores(scores, "svg"),
        accuracy=tables.accuracy_table(scores),
        caption=tables.caption(scores),
        best=_best(scores),
        gains=_by_model(scores, scores.gain, _short),
        gaps=_by_model(scores, {name: {"gap": gap} for name, gap in scores.gap.items()}, _short, {"gap": "gap"}),
        strangers=any(model.name not in scores.condensed_by for model in models),
        ranking=_ranking(scores),
        classes_picture=plots.plot_classes(scores, "svg"),
        classes=_classes(scores),
        trainings=f"{seeds} and {trained}, one condensing run",
        confusion_picture=None if total is None else plots.plot_confusion(total, names, "svg"),
        alone={model: plots.plot_confusion(m, names, "svg") for (_, model), m in own.items() if len(own) > 1},
        worst=None if total is None else _worst(scores, total),
        calibration=_by_model(scores, scores.ece, percent),
        protocol=protocol_section(scores.protocol, scores.condensed_by),
        versions=_versions(scores),
        target="TARGET --recipe RECIPE" if scores.condense_hash is None else shlex.quote(one_line(scores.name)),
        local=[model.name for model in models if model.local_names()],
        objects=tables.from_python(models),
    )


def answer(scores: Scores) -> str:
    """Say whether the condensed set beats random images and its initialisation; no more than intervals allow."""
    models = scores.protocol.models
    column, who = (MEAN, f"{len(models)} models") if len(models) > 1 else (models[0].name, models[0].name)
    mean = scores.table[CONDENSED][column]
    known = "" if mean.low is None or mean.high is None else f"{100 * mean.low:.1f} to {100 * mean.high:.1f}, "
    words = [
        f"Trained on the condensed set, {who} classified {100 * mean.mean:.1f} % of the {tables.scored_on(scores)} "
        f"images correctly{' on average' if len(models) > 1 else ''} ({known and '95 % interval '}{known}n = {mean.n})."
    ]
    number = f"{scores.budgets['random'].images} " if "random" in scores.budgets else ""
    others = {"random": f"{number}random real images", "initialisation": "the images that condensing started from"}
    for what, gain in ((what, scores.gain[name][column]) for name, what in others.items() if name in scores.gain):
        if gain.low is None or gain.high is None:
            few = "one training" if gain.n == 1 else f"{gain.n} trainings"
            words.append(f"The difference to {what} is {difference(gain)}; whether it is chance, {few} cannot tell.")
        elif gain.low <= 0 <= gain.high:
            words.append(f"It is not distinguishable from {what} at n = {gain.n}: {difference(gain)}.")
        else:
            words.append(f"It is {'better' if gain.mean > 0 else 'worse'} than {what}: {difference(gain)}.")
    if "random" not in scores.gain:
        words.append("Nothing was trained on random real images, so whether condensing is worth it stays open.")
    return " ".join(words)


def _facts(scores: Scores) -> Table:
    facts = [
        ["condensed by", ", ".join(scores.condensed_by) or UNKNOWN],
        ["condensing seed", UNKNOWN if scores.condense_seed is None else str(scores.condense_seed)],
        ["source", f"fingerprint {scores.fingerprint[:8]}, {len(scores.class_names)} classes"],
        ["scored on", f"{scores.test_count} {tables.scored_on(scores)} images"],
    ]
    return Table(["set", scores.name], facts, words=[1])


def _budgets(scores: Scores) -> Table:
    rows = []
    for name in training_sets(scores):
        if (budget := scores.budgets.get(name)) is not None:
            what = tables.TRAINING_SETS[name].what if name in tables.TRAINING_SETS else ""
            rows.append([set_label(name), what, str(budget.stored), str(budget.images), amount(budget.bytes)])
    header = ["training set", "what it is", "stored images", "training images", "bytes"]
    return Table(header, rows, strong=set_label(CONDENSED), words=[1])


def _best(scores: Scores) -> Table:
    """Tabulate the means of the best of many looks, where the protocol had them."""
    models, rows = [model.name for model in scores.protocol.models], []
    for name in training_sets(scores):
        found = {m: [c.best for c in scores.cells if (c.training_set, c.model) == (name, m)] for m in models}
        bests = {model: [best for best in looks if best is not None] for model, looks in found.items()}
        if any(bests.values()):
            cells = (f"{100 * float(np.mean(looks)):.1f}" if looks else NONE for looks in bests.values())
            rows.append([set_label(name), *cells])
    return Table(["training set", *models], rows, strong=set_label(CONDENSED))


def _by_model(
    scores: Scores,
    table: Mapping[str, Mapping[str, Estimate]],
    form: Callable[[Estimate | None], str],
    columns: Mapping[str, str] | None = None,
) -> Table:
    """Make a table of training sets, n in the last column; the others, if not given, are the models by their names."""
    columns = columns or dict(zip(model_names(scores), marked_names(scores), strict=True))
    rows = []
    for name in training_sets(scores):
        if name in table:
            n = max(found.n for found in table[name].values())
            rows.append([set_label(name), *(form(table[name].get(column)) for column in columns), str(n)])
    return Table(["training set", *columns.values(), "n"], rows, strong=set_label(CONDENSED))


def _short(found: Estimate | None) -> str:
    """Write a difference in points for a cell: `+6.5 (+3.8 to +9.2)`."""
    if found is None:
        return NONE
    return points(found.mean) + ("" if found.low is None else f" ({interval(found)})")


def _ranking(scores: Scores) -> Table:
    rows = []
    for model, label in zip(model_names(scores), marked_names(scores), strict=True):
        if (found := scores.ranking.get(model)) is not None:
            score = NONE if found.score is None else f"{found.score.mean:.3f}"
            if found.score is not None and found.score.low is not None:
                score += f" ({found.score.low:.3f} to {found.score.high:.3f})"
            numbers = [_short(found.improvement), _short(found.recovery), score, str(found.improvement.n)]
            rows.append([label, *numbers])
    return Table(["model", "IOR", "HLR", "score", "n"], rows)


def _classes(scores: Scores) -> Table:
    names = [name for name in training_sets(scores) if name in scores.per_class]
    columns = [plots.class_means(scores, name) for name in names]
    rows = [
        [_class(scores, label), *(f"{100 * share:.1f}" for share in shares)]
        for label, shares in enumerate(zip(*columns, strict=True))
    ]
    return Table(["class", *map(set_label, names)], rows)


def _own(scores: Scores, confusion: Confusion) -> Confusion:
    """Keep the matrices of the condensed set, in the order of the protocol's models."""
    keys = [(CONDENSED, model.name) for model in scores.protocol.models]
    return {key: confusion[key] for key in keys if key in confusion}


def _worst(scores: Scores, total: plots.Matrix) -> Table:
    """Tabulate the most frequent confusions: of many classes the picture is too small for them."""
    shares, rows = plots.row_shares(total), []
    np.fill_diagonal(shares, 0)
    for place in np.argsort(-shares, axis=None, kind="stable")[:MAX_CONFUSIONS]:
        true, taken = divmod(int(place), len(shares))
        if shares[true, taken] > 0:
            rows.append([_class(scores, true), _class(scores, taken), f"{100 * shares[true, taken]:.1f}"])
    return Table(["true class", "taken for", "%"], rows, words=[1])


def _class(scores: Scores, label: int) -> str:
    return one_line(scores.class_names[label]) or f"class {label}"


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


def _versions(scores: Scores) -> Table:
    facts = [
        ["device", scores.device],
        ["hmdc-hub", scores.hmdc_hub_version],
        *([name, version] for name, version in sorted(scores.versions.items())),
        ["protocol hash", scores.protocol_hash],
        ["condense hash", scores.condense_hash or UNKNOWN],
        ["SHA-256 of the images", scores.parquet_sha256],
        ["fingerprint of the source", scores.fingerprint],
    ]
    return Table(["what", "which"], facts, words=[1])
