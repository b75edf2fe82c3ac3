"""The scores of one evaluation as a table and sentences, for Markdown and for a terminal; and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hmdc_hub.metrics import CONDENSED as CONDENSED
from hmdc_hub.metrics import MEAN as MEAN
from hmdc_hub.report.document import Items, Section, Table, Text, to_markdown, to_text
from hmdc_hub.report.text import count, difference, percent, points
from hmdc_hub.schema import BASELINES, ModelSpec, Scores

if TYPE_CHECKING:
    from pandas import DataFrame

EXACT = "exact"
TOOK_PART = "†"
OVER_MODELS = "mean over models"
FROM_PYTHON = "from a Python session; not reproducible by id"
"""What is said of a model that no id leads to."""


class TrainingSet(NamedTuple):
    """How a training set is called where people read, and what it is."""

    label: str
    what: str


TRAINING_SETS: Mapping[str, TrainingSet] = {
    CONDENSED: TrainingSet("condensed", "the set that is scored, in 8 bits"),
    EXACT: TrainingSet("exact floats", "the same before it was rounded to 8 bits"),
    "random": TrainingSet("random", "real images drawn at random, as many as the condensed set stores"),
    "random-encoded": TrainingSet(
        "random, same storage", "real images drawn at random, stored as the condensed ones are: the same bytes"
    ),
    "initialisation": TrainingSet("initialisation", "the condensed set before the first image step"),
    "k-means": TrainingSet("k-means", "real images in the middle of clusters of their class"),
    "herding": TrainingSet("herding", "real images whose mean is that of their class, as a network sees them"),
    "full": TrainingSet("full", "every training image of the source"),
}
"""By the names that recipes and files have, in the order of tables."""


def set_label(training_set: str) -> str:
    """Give the name of a training set that people read; one that is not ours keeps its own."""
    return TRAINING_SETS[training_set].label if training_set in TRAINING_SETS else training_set


def training_sets(scores: Scores) -> list[str]:
    """List the rows: the condensed set, the baselines in their fixed order, anything else."""
    order = [CONDENSED, *BASELINES]
    return [name for name in order if name in scores.table] + [name for name in scores.table if name not in order]


def model_names(scores: Scores) -> list[str]:
    """List the columns: the models in the order of the protocol, and the mean over them if there are several."""
    names = [model.name for model in scores.protocol.models]
    return [*names, MEAN] if len(names) > 1 and any(MEAN in row for row in scores.table.values()) else names


def scored_on(scores: Scores) -> str:
    """Name the split that was scored on, as in `test images`."""
    return "test" if scores.protocol.holdout is None else "held-out train"


def mark(model: str, condensed_by: Iterable[str]) -> str:
    """Give the mark of a model that took part in condensing, or nothing."""
    return f" {TOOK_PART}" if model in condensed_by else ""


def marked_names(scores: Scores) -> list[str]:
    """Name the columns, those of models that took part in condensing with a mark."""
    return [model + mark(model, scores.condensed_by) for model in model_names(scores)]


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
    gains = gain_lines(scores)
    return [Section("", [accuracy_table(scores), Text(caption(scores)), *([Items(gains)] if gains else [])])]


def accuracy_table(scores: Scores, note: str = "") -> Table:
    """Make the cross-architecture table: training sets, what they cost, and on every model their last-epoch accuracy.

    Cells are mean ± standard deviation in percent; models that took part in condensing are marked.
    """
    header = ["training set", "stored", "images", *marked_names(scores)]
    rows = []
    for name in training_sets(scores):
        budget = scores.budgets.get(name)
        cells = [percent(scores.table[name].get(model)) for model in model_names(scores)]
        rows.append([set_label(name), *((str(budget.stored), str(budget.images)) if budget else ("", "")), *cells])
    return Table(header, rows, note=note, strong=set_label(CONDENSED))


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
    if protocol.random_draws > 1 and any(name.startswith("random") for name in sets):
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
    """Say in points of accuracy, with a 95 % interval, what follows from the table.

    By how much the condensed set is better than each baseline; what rounding to 8 bits took; by how much the networks
    that took part in condensing are better than the others; what DD-Ranking asks.
    """
    several = len(scores.protocol.models) > 1
    column = MEAN if several else scores.protocol.models[0].name
    over = OVER_MODELS if several else column
    lines = []
    for name in training_sets(scores):
        gain = scores.gain.get(name, {}).get(column)
        if gain is not None:
            what = "rounding to 8 bits, condensed − exact floats" if name == EXACT else f"condensed − {set_label(name)}"
            lines.append(f"{what} ({over}): {difference(gain)}")
    if CONDENSED in scores.gap:
        gaps = {name: gap for name, gap in scores.gap.items() if name not in (CONDENSED, EXACT)}
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


def cells_frame(scores: Scores) -> DataFrame:
    """Tabulate every training: the columns of a package's scores parquet, but for its configuration.

    Accuracy and calibration error are shares in [0, 1].
    """
    from pandas import DataFrame

    frame = DataFrame([cell.model_dump(exclude={"best"}) for cell in scores.cells])
    sets = frame.pop("training_set")
    frame.insert(0, "training_set", sets)
    frame.insert(1, "stored_images", [scores.budgets[name].stored for name in sets])
    frame.insert(2, "training_images", [scores.budgets[name].images for name in sets])
    frame.insert(4, "condensed_by", frame["model"].isin(scores.condensed_by))
    return frame


def means_frame(scores: Scores) -> DataFrame:
    """Tabulate every mean: accuracy and calibration error of every training set, gain over every baseline.

    Measures are `accuracy`, `ece` and `gain`; the gain of a training set is the condensed set's accuracy minus its
    own. Means, standard deviations and bounds of the 95 % interval are shares in [0, 1], their differences in [-1, 1];
    with n = 1 the last three are missing. The model `mean` is the mean over models.
    """
    from pandas import DataFrame

    return DataFrame(
        {"training_set": name, "model": model, "measure": measure, **found.model_dump()}
        for measure, table in (("accuracy", scores.table), ("ece", scores.ece), ("gain", scores.gain))
        for name in training_sets(scores)
        for model, found in table.get(name, {}).items()
    )


def to_csv(frame: DataFrame) -> str:
    """Write a frame as CSV, `true` and `false` for truth values; reading gives the same floats."""
    written = frame.astype(object).map(lambda value: str(value).lower() if isinstance(value, bool) else value)
    text: str = written.to_csv(index=False, lineterminator="\n")
    return text
