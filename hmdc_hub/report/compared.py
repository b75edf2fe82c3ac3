"""A comparison of scored sets as text, Markdown, plain data and a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmdc_hub.metrics import CONFIDENCE, MEAN
from hmdc_hub.report import tables
from hmdc_hub.report.comparison import Comparison, Contrast
from hmdc_hub.report.document import Block, Items, Picture, Section, Table, Text, render_page, to_markdown, to_text
from hmdc_hub.report.scored import protocol_section
from hmdc_hub.report.tables import NONE, interval, mark, percent, points, scored_on, set_label
from hmdc_hub.schema import MIN_SEEDS
from hmdc_hub.text import count

PICTURES = {  # every picture of a comparison, and what it shows
    "transfer": "Mean accuracy of every model trained on every set, as a table of colours.",
    "differences": "Differences of accuracy between the first set and the others, with 95 % intervals.",
    "budget": "Accuracy against the number of stored images, random real images beside it, also of the same storage.",
}
LEAST = 0.001  # smaller p-values are not told apart


def comparison_text(comparison: Comparison, width: int = 80) -> str:
    """Write a comparison as plain text; columns of a table that do not fit into `width` stand in blocks below."""
    return to_text(_sections(comparison, {}), width)


def comparison_markdown(comparison: Comparison) -> str:
    """Write a comparison as GitHub Markdown, ending in a newline."""
    return to_markdown(_title(comparison), _sections(comparison, {}))


def comparison_html(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """Write a comparison as one page of HTML, with some of `PICTURES` by name (PNG or SVG)."""
    took_part = [model for group in comparison.groups for model in group.condensed_by]
    sections = [*_sections(comparison, pictures), protocol_section(comparison.protocol, took_part)]
    return render_page("document.html.jinja", f"Comparison of {_title(comparison)}", sections=sections)


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Write a comparison as plain data: shares in [0, 1], nothing rounded; `holm` is of the pairs beside it."""
    scores = comparison.scores
    # Where weights lie is nobody's business who is sent this.
    models = [model.without_paths().model_dump(mode="json") for model in scores.protocol.models]
    return {
        "protocol_hash": scores.protocol.protocol_hash(),
        "protocol": scores.protocol.model_dump(mode="json") | {"models": models},
        "fingerprint": scores.fingerprint,
        "test_count": scores.test_count,
        "evaluation_seeds": scores.protocol.seeds,
        "sets": [group.model_dump(mode="json") for group in comparison.groups],
        "baselines": [row.model_dump(mode="json") for row in comparison.baselines],
        "against_first": [contrast.model_dump(mode="json") for contrast in comparison.against_first],
        "pairs": [contrast.model_dump(mode="json") for contrast in comparison.pairs],
        "transfer": [
            {
                "condensed_by": list(group.condensed_by),
                "label": name,
                "accuracy": {model: group.table[model].mean for model in comparison.models},
            }
            for name, group in comparison.transfer
        ],
        "curves": [
            {"label": name, "points": [{"stored": n, "accuracy": found.model_dump()} for n, found in points.items()]}
            for name, points in comparison.curves
        ],
        "unlike": {name: list(values) for name, values in comparison.unlike.items()},
        "notes": _notes(comparison),
    }


def _title(comparison: Comparison) -> str:
    *labels, last = [group.label for group in comparison.groups]
    return f"{', '.join(labels)} and {last}" if labels else f"{last} by condensing seed"


def _sections(comparison: Comparison, pictures: Mapping[str, bytes]) -> list[Section]:
    """Lay the comparison out; what there is nothing to say about is left out."""
    protocol, scores = comparison.protocol, comparison.scores
    headline = (
        f"All were scored by protocol {protocol.protocol_hash()[:8]} ({protocol.length}, batch {protocol.batch}) on "
        f"{scores.test_count} {scored_on(scores)} images."
    )
    described = []
    for group in comparison.groups:
        by, budget = f"by {' + '.join(group.condensed_by)}" if group.condensed_by else "elsewhere", group.budget
        members = ", ".join(f"seed {one.condense_seed} {one.label}" for one in group.members)
        described.append(
            f"{group.label} has {budget.stored} stored images, {budget.images} to train on, condensed {by}; "
            f"n = {count(group.condensing_seeds, 'condensing seed')} x {count(protocol.seeds, 'evaluation seed')}"
            + (f" ({members})." if group.several else ".")
        )
    answers = [Text(text, "answer") for text in _answers(comparison)]
    sections = [
        Section("The answer", [*answers, *(Text(note, "note") for note in _notes(comparison))]),
        Section("What is compared", [Text(headline), Items(described)]),
        Section("Accuracy", [_accuracy(comparison)]),
    ]
    for title, name, numbers, caption in (
        ("Differences", "differences", *_differences(comparison)),
        ("Transfer", "transfer", *_transfer(comparison)),
        ("Accuracy by budget", "budget", *_budgets(comparison)),
    ):
        shown: list[Block] = [Picture(pictures[name], PICTURES[name])] if name in pictures else []
        if shown or numbers:
            sections.append(Section(title, [*shown, *numbers, Text(caption, "note")]))
    return sections


def _over(comparison: Comparison) -> str:
    return f"in the {tables.OVER_MODELS}" if comparison.main == MEAN else f"on {comparison.main}"


def _answers(comparison: Comparison) -> list[str]:
    """Say of every contrast with the first group which one is better, and no more than the numbers do."""
    over = _over(comparison)
    if not comparison.against_first:
        group = comparison.groups[0]
        return [
            f"All sets are of one recipe, {group.label}: {percent(group.table[comparison.main])} % {over}, mean and "
            f"standard deviation over {count(group.condensing_seeds, 'condensing seed')}."
        ]
    corrected = " after Holm's correction" if len(comparison.against_first) > 1 else ""
    answers = []
    for contrast in comparison.against_first:
        found, first, other = contrast.differences[comparison.main], contrast.first, contrast.other
        mean = points(found.mean)
        if found.p is None or found.holm is None:
            answers.append(f"{contrast.name} is {mean} points {over}; {tables.TOO_FEW} to say whether it is chance.")
            continue
        chance = f"p < {LEAST}" if found.holm < LEAST else f"p = {found.holm:.3f}"
        numbers = f"95 % interval {interval(found)}, {chance}{corrected}"
        if found.holm < 1 - CONFIDENCE:
            word = "better" if found.mean > 0 else "worse"
            answers.append(f"{first} is {word} than {other} by {mean[1:]} points {over} ({numbers}).")
        else:
            answers.append(f"No difference between {first} and {other} is shown: {mean} points {over} ({numbers}).")
    return answers


def _notes(comparison: Comparison) -> list[str]:
    """Say what the numbers do not."""
    found = []
    single = [group.label for group in comparison.groups if not group.several]
    if single:
        found.append(
            f"{', '.join(single)}: one condensing seed{' each' * (len(single) > 1)}. The spread there is over "
            "evaluation seeds, which understates that of the recipe: with another seed it condenses other images. "
            "Sets of one recipe with several seeds (hmdc-hub condense RECIPE -o seed=1) are put together here."
        )
    same: dict[str, list[str]] = {}
    for member in (member for group in comparison.groups for member in group.members):
        same.setdefault(member.parquet_sha256, []).append(member.label)
    found += [f"{' and '.join(labels)} are the same images." for labels in same.values() if len(labels) > 1]
    if comparison.unlike:
        what = "; ".join(f"{name} {', '.join(values)}" for name, values in comparison.unlike.items())
        found.append(f"Not all was alike in the trainings ({what}); part of a difference may come from that.")
    if objects := tables.from_python(comparison.protocol.models):
        found.append(f"{', '.join(objects)}: {tables.FROM_PYTHON}.")
    return found


def _accuracy(comparison: Comparison) -> Table:
    columns, seeds, rows = comparison.columns, comparison.protocol.seeds, []
    for group in comparison.groups:
        cells = [percent(group.table[name]) + mark(name, group.condensed_by) for name in columns]
        budget = group.budget
        rows.append(
            [group.label, str(budget.stored), str(budget.images), f"{group.condensing_seeds} x {seeds}", *cells]
        )
    for row in comparison.baselines:
        label = set_label(row.name) if row.alone else f"{set_label(row.name)} ({', '.join(row.sets)})"
        cells = [percent(row.table[name]) for name in columns]
        n = str(row.table[comparison.main].n)
        rows.append([label, str(row.budget.stored), str(row.budget.images), n, *cells])
    rows.append(["chance", "", "", "", *[f"{100 / len(comparison.scores.class_names):.1f}"] * len(columns)])
    spread = "over evaluation seeds"
    if any(group.several for group in comparison.groups):
        spread = "over condensing seeds where there are several, else over evaluation seeds"
    marked = any(model in group.condensed_by for group in comparison.groups for model in comparison.models)
    note = (
        f"Accuracy in percent at the last of {comparison.protocol.length}, mean ± standard deviation {spread}; "
        "n: condensing seeds x evaluation seeds, of real images evaluation seeds"
    ) + (f"; {tables.TOOK_PART} took part in condensing." if marked else ".")
    first = comparison.groups[0]
    beats = all(tables.stands_out(member.scores) for member in first.members)
    header = ["trained on", "stored", "images", "n", *columns]
    return Table(header, rows, note=note, strong=first.label if beats else None, words=[0])


def _differences(comparison: Comparison) -> tuple[list[Table], str]:
    contrasts, models = comparison.against_first, len(comparison.models)
    made = []
    for contrast in contrasts:
        rows = []
        for name in comparison.columns:
            found = contrast.differences[name]
            chances = [NONE if p is None else f"{p:.3f}" if p >= LEAST else f"< {LEAST}" for p in (found.p, found.holm)]
            label = tables.OVER_MODELS if name == MEAN else name
            rows.append([label, points(found.mean), interval(found), *chances])
        header = ["model", "points", "95 % interval", "p", "p (Holm)"]
        made.append(Table(header, rows, title=contrast.name, note=_test(contrast), words=[0]))
    caption = "Points of accuracy; above zero the first is better. p: two-sided."
    counts = [f"{len(contrasts)} tests of the {tables.OVER_MODELS}"] * (len(contrasts) > 1 and comparison.main == MEAN)
    counts += [f"{len(contrasts) * models} of single models"] * (len(contrasts) * models > 1)
    return made, caption + (f" Holm: corrected for being one of {', or of '.join(counts)}." if counts else "")


def _test(contrast: Contrast) -> str:
    """Say which test it was."""
    n = max(found.n for found in contrast.differences.values())
    if contrast.test == "welch":
        one, other = contrast.condensing_seeds
        if min(one, other) < MIN_SEEDS:
            return f"{one} and {other} condensing seeds: too few to test, of {MIN_SEEDS} each there would be a test."
        return (
            f"Welch's t-test between condensing runs (n = {one} and {other} condensing seeds, each averaged over "
            "evaluation seeds): condensing seeds of two recipes do not pair."
        )
    if n < MIN_SEEDS:
        return f"{count(n, 'evaluation seed')}: too few to test."
    if max(contrast.condensing_seeds) > 1:
        return (
            f"t-test paired by evaluation seed (n = {n}), condensing seeds averaged first; how far condensing seeds "
            "vary is left out, since one of the two has only one."
        )
    return f"t-test paired by evaluation seed (n = {n}): about these two sets of images, not about their recipes."


def _transfer(comparison: Comparison) -> tuple[list[Table], str]:
    rows = [
        [name, *(f"{100 * group.table[m].mean:.1f}{mark(m, group.condensed_by)}" for m in comparison.models)]
        for name, group in comparison.transfer
    ]
    # Where one pool condensed all, the first table says the same.
    several = len({group.condensed_by for group in comparison.groups}) > 1
    caption = (
        "Mean accuracy in percent by what condensed the images (rows) and what was trained on them; "
        f"{tables.TOOK_PART} took part in condensing."
    )
    return [Table(["condensed by", *comparison.models], rows, words=[0])] if several else [], caption


def _budgets(comparison: Comparison) -> tuple[list[Table], str]:
    caption = f"Accuracy in percent {_over(comparison)} by stored images, mean ± standard deviation."
    if not comparison.curves:
        return [], caption
    # Not a mapping: a set may be called as a baseline is.
    columns = [*comparison.curves, *((set_label(name), points) for name, points in comparison.random.items())]
    sizes = sorted({stored for _, points in columns for stored in points})
    rows = [[str(stored), *(percent(points.get(stored)) for _, points in columns)] for stored in sizes]
    return [Table(["stored", *(name for name, _ in columns)], rows)], caption
