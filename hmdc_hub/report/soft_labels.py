"""Scores on soft labels as a section of its own, with those on hard labels beside them."""

from __future__ import annotations

from hmdc_hub.metrics import MEAN
from hmdc_hub.report.document import Section, Table, Text, to_markdown, to_text
from hmdc_hub.report.tables import NONE, OVER_MODELS, columns, percent, scored_on, set_label, short, training_sets
from hmdc_hub.schema import CONDENSED, Estimate, Scores, SoftLabelScores
from hmdc_hub.text import count

COMPARE = (
    "A network that learns a teacher's answers learns from the full set, whatever images it is shown. Compare these "
    "scores with those of random images on soft labels, here in the same table; they are not comparable with scores on "
    "hard labels, nor with those of another teacher."
)


def markdown(scores: Scores) -> str:
    """Write the section as GitHub Markdown; empty where nothing was trained on soft labels."""
    below = [Section("", [Text(one.title, "subtitle"), *one.blocks]) for one in sections(scores)]
    return to_markdown("", below) if below else ""


def text(scores: Scores, width: int = 80) -> str:
    """Write the same as plain text."""
    return to_text(sections(scores), width) if scores.soft_labels else ""


def sections(scores: Scores) -> list[Section]:
    """Make the section, if something was trained on soft labels: means over models, then every model's scores."""
    soft = scores.soft_labels
    if soft is None:
        return []
    tables = [_means(scores, soft), *([_rankings(scores, soft)] if soft.ranking else [])]
    return [Section(title(scores, soft), tables)]


def title(scores: Scores, soft: SoftLabelScores) -> str:
    """Name the teacher and how good it is, since that bounds what its students can learn."""
    asked, sure = scores.protocol.soft_labels.teacher, list(soft.teachers.values())
    mean = f"{100 * sum(sure) / len(sure):.1f} %"
    split = f"on the {'test' if scores.protocol.holdout is None else 'held-out'} split"
    if asked != "same":
        return f"Soft labels (teacher: {asked}, {mean} {split})"
    if len(sure) == 1:
        return f"Soft labels (teacher: {next(iter(soft.teachers))}, {mean} {split})"
    return f"Soft labels (teacher: the same architecture, {mean} {split} on average)"


def _means(scores: Scores, soft: SoftLabelScores) -> Table:
    """Compare labels: training sets by hard, soft, and soft labels without augmentation."""
    column = _column(scores)
    tables = (scores.table, soft.table, soft.unaugmented_table)
    sets = [name for name in training_sets(scores) if name in soft.table]
    rows = [[set_label(name), *(percent(table[name].get(column)) for table in tables)] for name in sets]
    n = soft.table[CONDENSED][column].n
    temperature, over = scores.protocol.soft_labels.temperature, OVER_MODELS if column == MEAN else column
    note = (
        f"Accuracy in percent on all {scores.test_count} {scored_on(scores)} images at the last step, {over}, mean ± "
        f"standard deviation, n = {count(n, 'training')} per model. "
        f"Soft labels: the teacher's softmax at temperature {temperature:g}, on every image before it is augmented. "
        f"{COMPARE}"
    )
    header = ["training set", "hard labels", "soft labels", "soft, no augmentation"]
    return Table(header, rows, note=note, strong=set_label(CONDENSED))


def _rankings(scores: Scores, soft: SoftLabelScores) -> Table:
    """Give what DD-Ranking asks for, by model."""
    teachers: dict[str, float] = dict(soft.teachers)
    rows = []
    for model, name in columns(scores).items():
        found = soft.ranking[model]
        sure = f"{100 * teachers[model]:.1f}" if model in teachers else NONE
        robust = (_score(found.label_robust), _score(found.augmentation_robust))
        rows.append([name, sure, short(found.improvement), *robust])
    whole = soft.ranking[_column(scores)]
    note = (
        "teacher: its accuracy in percent. over random: condensed minus random, both on soft labels, in points. LRS, "
        "label-robust score, and ARS, augmentation-robust score (DD-Ranking, Li et al., 2025): between 0 and 1, more "
        "is better, 0.269 where nothing is gained or lost; mean ± standard deviation, "
        f"n = {count(whole.improvement.n, 'evaluation seed')}."
    )
    if whole.label_robust is None:
        note += " There is no LRS without trainings on the full set: full in evaluate.baselines."
    return Table(["model", "teacher", "over random", "LRS", "ARS"], rows, note=note)


def _column(scores: Scores) -> str:
    models = scores.protocol.models
    return MEAN if len(models) > 1 else models[0].name


def _score(found: Estimate | None) -> str:
    """Write a score between 0 and 1, mean ± standard deviation."""
    if found is None:
        return NONE
    return f"{found.mean:.3f}" + ("" if found.sd is None else f" ± {found.sd:.3f}")
