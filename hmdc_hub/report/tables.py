"""The scores of one evaluation as a table and sentences, for Markdown and for a terminal; and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from hmdc_hub.metrics import MEAN
from hmdc_hub.report.document import Items, Section, Table, Text, to_markdown, to_text
from hmdc_hub.schema import CONDENSED, RANDOM, RANDOM_ENCODED, TRAINING_SETS, Estimate, ModelSpec, Scores
from hmdc_hub.text import count

TOOK_PART = "†"
OVER_MODELS = "mean over models"
TOO_FEW = "too few seeds"  # for an interval
# What a condensed set must beat to be worth its making; in words, as in "better than ...".
TO_BEAT = {
    RANDOM: "random real images",
    RANDOM_ENCODED: "random real images of the same storage",
    "initialisation": "the images that condensing started from",
}
# As the 95 % interval of a difference says it; unknown: too few seeds for one.
Outcome = Literal["better", "worse", "not shown", "unknown"]
FROM_PYTHON = "from a Python session; not reproducible by id"  # of a model that no id leads to
NONE = "–"  # where there is no number


def percent(found: Estimate | None) -> str:
    """Write an accuracy in percent, mean ± standard deviation: `61.0 ± 1.0`."""
    if found is None:
        return NONE
    return f"{100 * found.mean:.1f}" + ("" if found.sd is None else f" ± {100 * found.sd:.1f}")


def points(share: float) -> str:
    """Write a difference of accuracies in points, such as `+6.5`."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def interval(found: Estimate) -> str:
    """Write the 95 % interval of a difference in points, such as `+3.8 to +9.2`."""
    return NONE if found.low is None or found.high is None else f"{points(found.low)} to {points(found.high)}"


def short(found: Estimate | None) -> str:
    """Write a difference in points for a cell: `+6.5 (+3.8 to +9.2)`."""
    if found is None:
        return NONE
    return points(found.mean) + ("" if found.low is None else f" ({interval(found)})")


def difference(found: Estimate) -> str:
    """Write a difference of accuracies in full: `+6.5 points (95 % interval +3.8 to +9.2, n = 5)`."""
    if found.low is None:
        return f"{points(found.mean)} points (n = {found.n}: {TOO_FEW})"
    return f"{points(found.mean)} points (95 % interval {interval(found)}, n = {found.n})"


def outcome(difference: Estimate) -> Outcome:
    """Say whether a difference shows the condensed set to be better, or worse."""
    if difference.low is None or difference.high is None:
        return "unknown"
    return "not shown" if difference.low <= 0 <= difference.high else "better" if difference.mean > 0 else "worse"


def stands_out(scores: Scores) -> bool:
    """Tell whether the condensed set beats all of `TO_BEAT` that there are, over all models: else it is not bold."""
    models = scores.protocol.models
    column = MEAN if len(models) > 1 else models[0].name
    found = [outcome(scores.gain[name][column]) for name in TO_BEAT if name in scores.gain]
    return bool(found) and set(found) == {"better"}


def set_label(training_set: str) -> str:
    """Give the name of a training set that people read; one that is not ours keeps its own."""
    return TRAINING_SETS[training_set].label if training_set in TRAINING_SETS else training_set


def training_sets(scores: Scores) -> list[str]:
    """List the rows: the condensed set, the baselines in their fixed order, anything else."""
    return list(dict.fromkeys([*(name for name in TRAINING_SETS if name in scores.table), *scores.table]))


def scored_on(scores: Scores) -> str:
    """Name the split that was scored on, as in `test images`."""
    return "test" if scores.protocol.holdout is None else "held-out train"


def mark(model: str, condensed_by: Iterable[str]) -> str:
    """Give the mark of a model that took part in condensing, or nothing."""
    return f" {TOOK_PART}" if model in condensed_by else ""


def columns(scores: Scores) -> dict[str, str]:
    """Map the models in the order of the protocol, then the mean if there are several, to their names with the mark."""
    names = [model.name for model in scores.protocol.models]
    names += [MEAN] * (len(names) > 1 and any(MEAN in row for row in scores.table.values()))
    return {name: name + mark(name, scores.condensed_by) for name in names}


def from_python(models: Iterable[ModelSpec]) -> list[str]:
    """Name the models that were objects of a Python session: nobody else can build them by their id."""
    return [model.name for model in models if str(model.source) == "python"]


def table_markdown(scores: Scores) -> str:
    """Write the table with its caption, which states n and the protocol, and the gains as GitHub Markdown."""
    return to_markdown("", _summary(scores))


def table_text(scores: Scores, width: int = 80) -> str:
    """Write the same as plain text; models that do not fit into `width` columns stand in further blocks below."""
    return to_text(_summary(scores), width)


def _summary(scores: Scores) -> list[Section]:
    return [Section("", [accuracy_table(scores), Text(caption(scores)), Items(gain_lines(scores))])]


def accuracy_table(scores: Scores) -> Table:
    """Make the cross-architecture table: training sets, what they cost, their last-epoch accuracy on every model."""
    header = ["training set", "stored", "images", *columns(scores).values()]
    rows = []
    for name in training_sets(scores):
        budget = scores.budgets.get(name)
        cells = [percent(scores.table[name].get(model)) for model in columns(scores)]
        rows.append([set_label(name), *((str(budget.stored), str(budget.images)) if budget else ("", "")), *cells])
    rows.append(["chance", "", "", *[f"{100 / len(scores.class_names):.1f}"] * len(columns(scores))])
    return Table(header, rows, strong=set_label(CONDENSED) if stands_out(scores) else None)


def caption(scores: Scores) -> str:
    """State what a cell is: metric, test images, protocol, n; what the mark means, and whom nobody can build."""
    protocol, sets = scores.protocol, training_sets(scores)
    counts = {name: max((e.n for m, e in scores.table[name].items() if m != MEAN), default=0) for name in sets}
    usual = counts.get(CONDENSED, protocol.seeds)
    others = [f"{n} for {set_label(name)}" for name, n in counts.items() if n != usual]
    full = f" ({protocol.full_epochs} epochs on the full set)" if "full" in scores.table else ""
    parts = [
        f"Accuracy in percent on all {scores.test_count} {scored_on(scores)} images at the last of "
        f"{protocol.length}{full}",
        f"mean ± standard deviation, n = {count(usual, 'training')} per cell"
        + (f" ({'; '.join(others)})" if others else ""),
        '"stored" counts the images that are kept, "images" those that are trained on',
    ]
    if any(protocol.draws(name) > 1 for name in sets):
        parts.append(
            f"of a random set the {protocol.random_draws} draws of each seed are averaged first, and ± is the spread "
            "of these averages"
        )
    if any(model.name in scores.condensed_by for model in protocol.models):
        parts.append(f"{TOOK_PART} took part in condensing")
    if objects := from_python(protocol.models):
        parts.append(f"{', '.join(objects)}: {FROM_PYTHON}")
    return "; ".join(parts) + "."


def gain_lines(scores: Scores) -> list[str]:
    """Say what follows from the table, in points with their interval: gains, the gap between models, DD-Ranking."""
    column, lines = MEAN if len(scores.protocol.models) > 1 else scores.protocol.models[0].name, []
    over = OVER_MODELS if column == MEAN else column
    for name in training_sets(scores):
        gain = scores.gain.get(name, {}).get(column)
        if gain is not None:
            rounded = "rounding to 8 bits, " if name == "exact" else ""
            lines.append(f"{rounded}condensed − {set_label(name)} ({over}): {difference(gain)}")
    if CONDENSED in scores.gap:
        gaps = {name: gap for name, gap in scores.gap.items() if name not in (CONDENSED, "exact")}
        others = "".join(f"; {set_label(name)} {points(gap.mean)}" for name, gap in gaps.items())
        lines.append(f"models that condensed − the others: {difference(scores.gap[CONDENSED])}{others}")
    ranking = scores.ranking.get(column)
    if ranking is not None and ranking.recovery is not None and ranking.score is not None:
        lines.append(
            f"DD-Ranking ({over}): improvement over random {difference(ranking.improvement)}, full set − condensed "
            f"{difference(ranking.recovery)}, score {ranking.score.mean:.3f}"
        )
    best = [cell.best for cell in scores.cells if cell.best is not None and cell.training_set == CONDENSED]
    if best:
        lines.append(
            f"best of many looks at the test images, not comparable with anything above: condensed "
            f"{100 * sum(best) / len(best):.1f} (one look every {scores.protocol.best_every} epochs)"
        )
    return lines


def means_rows(scores: Scores) -> list[dict[str, Any]]:
    """Tabulate every mean by measure: `accuracy`, `ece`, and `gain`, the condensed set's accuracy minus the set's own.

    All are shares, not percent; with n = 1 spread and bounds are missing. The model `mean` is the mean over models.
    """
    return [
        {"training_set": name, "model": model, "measure": measure, **found.model_dump()}
        for measure, table in (("accuracy", scores.table), ("ece", scores.ece), ("gain", scores.gain))
        for name in training_sets(scores)
        for model, found in table.get(name, {}).items()
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows, one or more, as CSV, `true` and `false` for truth values; reading gives the same floats."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()})
    return text.getvalue()
