"""What a comparison of scored sets says, as sentences and tables of text; `compared.py` lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hmdc_hub.comparison import Baseline, Comparison, Difference, Group, Pair
from hmdc_hub.measures import CONFIDENCE, MEAN
from hmdc_hub.report.protocol import scored_on
from hmdc_hub.report.tables import TOOK_PART
from hmdc_hub.schema import Estimate

ALL = "mean over models"
LEAST = 0.001
"""Smaller p-values are not told apart."""


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column is words, the others are numbers; header and first column may be a stranger's.

    Attributes:
        title: Empty if that of the part says it all.
        note: How to read this one.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One question and its answer in numbers.

    Attributes:
        title: Plain text.
        picture: Name of the picture that shows it; empty if there is none.
        tables: None where they would say what those of another part do.
        caption: What a cell is.
    """

    title: str
    picture: str
    tables: Sequence[Table]
    caption: str


def title(comparison: Comparison) -> str:
    """Name what is compared."""
    labels = [group.label for group in comparison.groups]
    if len(labels) == 1:
        return f"{labels[0]} by condensing seed"
    return f"{', '.join(labels[:-1])} and {labels[-1]}"


def headline(comparison: Comparison) -> str:
    """Say by what protocol all were scored."""
    protocol = comparison.protocol
    return (
        f"All were scored by protocol {protocol.protocol_hash()[:8]} ({protocol.length}, batch {protocol.batch}) on "
        f"{comparison.test_count} {scored_on(comparison.groups[0].members[0].scores)}."
    )


def set_lines(comparison: Comparison) -> list[str]:
    """Say of each group what it is, what condensed it, and how many seeds of which kind it has."""
    lines = []
    for group in comparison.groups:
        by = f"by {' + '.join(group.condensed_by)}" if group.condensed_by else "elsewhere"
        lines.append(
            f"{group.label} has {group.budget.stored} stored images, {group.budget.images} to train on, condensed "
            f"{by}; n = {_seeds(len(group.members), 'condensing')} x {_seeds(comparison.protocol.seeds, 'evaluation')}"
            + (f" ({', '.join(_member(one.label, one.scores.condense_seed) for one in group.members)})" * group.several)
            + "."
        )
    return lines


def _seeds(count: int, kind: str) -> str:
    return f"{count} {kind} seed{'' if count == 1 else 's'}"


def _member(label: str, seed: int | None) -> str:
    return f"seed {seed} {label}"


def answers(comparison: Comparison) -> list[str]:
    """Say of every pair with the first group which one is better, and no more than the numbers do."""
    if not comparison.against_first:
        return [_alone(comparison)]
    return [_answer(pair, comparison) for pair in comparison.against_first]


def _alone(comparison: Comparison) -> str:
    group = comparison.groups[0]
    found = group.table[comparison.main]
    return (
        f"All sets are of one recipe, {group.label}: {_percent(found)} % {_over(comparison)}, mean and standard "
        f"deviation over {_seeds(len(group.members), 'condensing')}."
    )


def _answer(pair: Pair, comparison: Comparison) -> str:
    found = pair.differences[comparison.main]
    name, over = f"{pair.first} − {pair.other}", _over(comparison)
    if found.p is None or found.holm is None:
        n = found.estimate.n
        few = "one training of each says" if n == 1 else f"{n} trainings without any spread say"
        return f"{name} is {_points(found.estimate.mean)} points {over}; {few} nothing of chance."
    corrected = " after Holm's correction" if len(comparison.against_first) > 1 else ""
    chance = "p < 0.001" if found.holm < LEAST else f"p = {_chance(found.holm)}"
    numbers = f"95 % interval {_interval(found.estimate)}, {chance}{corrected}"
    if found.holm < 1 - CONFIDENCE:
        word = "better" if found.estimate.mean > 0 else "worse"
        size = f"{abs(100 * found.estimate.mean):.1f}"
        return f"{pair.first} is {word} than {pair.other} by {size} points {over} ({numbers})."
    return (
        f"No difference between {pair.first} and {pair.other} is shown: {_points(found.estimate.mean)} points {over} "
        f"({numbers})."
    )


def _over(comparison: Comparison) -> str:
    return "in the mean over models" if comparison.main == MEAN else f"on {comparison.main}"


def notes(comparison: Comparison) -> list[str]:
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
        same.setdefault(member.scores.parquet_sha256, []).append(member.label)
    found += [f"{' and '.join(labels)} are the same images." for labels in same.values() if len(labels) > 1]
    if comparison.unlike:
        what = "; ".join(f"{name} {', '.join(values)}" for name, values in comparison.unlike.items())
        found.append(f"Not all was alike in the trainings ({what}); part of a difference may come from that.")
    return found


def parts(comparison: Comparison) -> list[Part]:
    """List all tables; what there is nothing to say about is left out."""
    found = [_accuracy(comparison), _differences(comparison), _transfer(comparison), _budgets(comparison)]
    return [part for part in found if part is not None]


def _accuracy(comparison: Comparison) -> Part:
    rows = []
    for group in comparison.groups:
        n = f"{len(group.members)} x {comparison.protocol.seeds}"
        cells = [_percent(group.table[name]) + mark(name, group) for name in comparison.columns]
        rows.append([group.label, str(group.budget.stored), str(group.budget.images), n, *cells])
    for row in comparison.baselines:
        cells = [_percent(row.table[name]) for name in comparison.columns]
        rows.append(
            [_baseline(row), str(row.budget.stored), str(row.budget.images), str(comparison.protocol.seeds), *cells]
        )
    several = any(group.several for group in comparison.groups)
    spread = (
        "over condensing seeds where there are several, else over evaluation seeds"
        if several
        else ("over evaluation seeds")
    )
    caption = (
        f"Accuracy in percent at the last of {comparison.protocol.length}, mean ± standard deviation {spread}; "
        "n: condensing seeds x evaluation seeds, of real images evaluation seeds"
    )
    marked = any(model in group.condensed_by for group in comparison.groups for model in comparison.models)
    marks = f"; {TOOK_PART} took part in condensing" if marked else ""
    header = ["trained on", "stored", "images", "n", *comparison.columns]
    return Part("Accuracy", "", [Table("", header, rows)], f"{caption}{marks}.")


def _baseline(row: Baseline) -> str:
    return row.name if row.alone else f"{row.name} ({', '.join(row.sets)})"


def _differences(comparison: Comparison) -> Part | None:
    pairs = comparison.against_first
    if not pairs:
        return None
    tables = [
        Table(
            f"{pair.first} − {pair.other}",
            ["model", "points", "95 % interval", "p", "p (Holm)"],
            [[ALL if name == MEAN else name, *_test(pair.differences[name])] for name in comparison.columns],
            how(pair),
        )
        for pair in pairs
    ]
    caption = "Points of accuracy; above zero the first is better. p: two-sided."
    counts = [f"{len(pairs)} tests of the {ALL}"] * (len(pairs) > 1 and comparison.main == MEAN)
    if len(pairs) * len(comparison.models) > 1:
        counts.append(f"{len(pairs) * len(comparison.models)} of single models")
    if counts:
        caption += f" Holm: corrected for being one of {', or of '.join(counts)}."
    return Part("Differences", "differences", tables, caption)


def how(pair: Pair) -> str:
    """Say which test it was."""
    n = max(found.estimate.n for found in pair.differences.values())
    if pair.test == "welch":
        return (
            f"Welch's t-test between condensing runs (n = {pair.condensing[0]} and {pair.condensing[1]} condensing "
            "seeds, each averaged over evaluation seeds): condensing seeds of two recipes do not pair."
        )
    if n == 1:
        return "One evaluation seed: nothing to test."
    if max(pair.condensing) > 1:
        return (
            f"t-test paired by evaluation seed (n = {n}), condensing seeds averaged first; how far condensing seeds "
            "vary is left out, since one of the two has only one."
        )
    return f"t-test paired by evaluation seed (n = {n}): about these two sets of images, not about their recipes."


def _test(found: Difference) -> list[str]:
    chances = ["–" if p is None else _chance(p) for p in (found.p, found.holm)]
    return [_points(found.estimate.mean), _interval(found.estimate), *chances]


def _transfer(comparison: Comparison) -> Part:
    rows = [
        [name, *(f"{100 * group.table[model].mean:.1f}{mark(model, group)}" for model in comparison.models)]
        for name, group in comparison.transfer
    ]
    # Where one pool condensed all, the first table says the same.
    pools = {group.condensed_by for group in comparison.groups}
    tables = [Table("", ["condensed by", *comparison.models], rows)] if len(pools) > 1 else []
    caption = f"Mean accuracy in percent by what condensed the images (rows) and what was trained on them; {TOOK_PART} "
    return Part("Transfer", "transfer", tables, f"{caption}took part in condensing.")


def _budgets(comparison: Comparison) -> Part | None:
    curves = comparison.curves
    if not curves:
        return None
    columns = [(name, {group.budget.stored: group.table[comparison.main] for group in curve}) for name, curve in curves]
    for name, baselines in comparison.random.items():
        columns.append((name, {row.budget.stored: row.table[comparison.main] for row in baselines}))
    sizes = sorted({stored for _, column in columns for stored in column})
    rows = [
        [str(stored), *(_percent(column[stored]) if stored in column else "–" for _, column in columns)]
        for stored in sizes
    ]
    caption = f"Accuracy in percent {_over(comparison)} by stored images, mean ± standard deviation."
    return Part("Accuracy by budget", "budget", [Table("", ["stored", *(name for name, _ in columns)], rows)], caption)


def _percent(found: Estimate) -> str:
    return f"{100 * found.mean:.1f}" + ("" if found.sd is None else f" ± {100 * found.sd:.1f}")


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def _interval(found: Estimate) -> str:
    return "–" if found.low is None or found.high is None else f"{_points(found.low)} to {_points(found.high)}"


def _chance(p: float) -> str:
    return f"{p:.3f}" if p >= LEAST else f"< {LEAST}"


def mark(model: str, group: Group) -> str:
    """Give the mark of a model that took part in condensing, or nothing."""
    return f" {TOOK_PART}" if model in group.condensed_by else ""
