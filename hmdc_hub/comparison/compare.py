"""Everything that follows from several sets' scores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hmdc_hub.comparison.chance import Difference, holm, paired, welch
from hmdc_hub.comparison.sets import ScoredSet, checked, distinct, plain, unlike
from hmdc_hub.measures import CONDENSED, MEAN, RANDOM, RANDOM_ENCODED, REAL, by_seed, estimate, mean_by_seed
from hmdc_hub.schema import Budget, Estimate, EvaluateSpec, Scores


@dataclass(frozen=True)
class Group:
    """A set, or all sets of one recipe that differ in the condensing seed alone.

    Attributes:
        label: Unique.
        members: One set for each condensing seed.
        runs: Accuracy of each member by evaluation seed, by model and for the mean over models (`mean`).
    """

    label: str
    members: tuple[ScoredSet, ...]
    runs: dict[str, tuple[tuple[float, ...], ...]]

    @property
    def several(self) -> bool:
        """Whether there is more than one condensing seed."""
        return len(self.members) > 1

    @property
    def means(self) -> dict[str, list[float]]:
        """Mean over evaluation seeds of each condensing run, by column."""
        return {column: [statistics.fmean(run) for run in runs] for column, runs in self.runs.items()}

    @property
    def table(self) -> dict[str, Estimate]:
        """Accuracy by column: over condensing runs if there are several, over evaluation seeds otherwise."""
        values = self.means if self.several else {column: runs[0] for column, runs in self.runs.items()}
        return {column: estimate(numbers) for column, numbers in values.items()}

    @property
    def budget(self) -> Budget:
        """What one of its sets costs to keep and to train on."""
        return self.members[0].scores.budgets[CONDENSED]

    @property
    def condensed_by(self) -> tuple[str, ...]:
        """Names of the models that condensed it; none are known of a set of another program."""
        return tuple(self.members[0].scores.condensed_by)


@dataclass(frozen=True)
class Baseline:
    """Real images, once for all groups that have the same numbers.

    Trainings on them are the same in every set of one source, protocol and budget, but where devices or versions
    differ. The condensing runs of a group are averaged, where theirs are not the same.

    Attributes:
        sets: Labels of the groups.
        alone: Whether no group has other numbers on images of this name and number.
        table: Accuracy over evaluation seeds, by model and for their mean.
    """

    name: str
    budget: Budget
    sets: tuple[str, ...]
    alone: bool
    table: dict[str, Estimate]


@dataclass(frozen=True)
class Pair:
    """One group minus another.

    Attributes:
        first: Label of what is subtracted from.
        other: Label of what is subtracted.
        test: `paired` by evaluation seed, condensing runs averaged first; `welch` between condensing runs.
        condensing: Condensing seeds of each.
        differences: By model, and for the mean over models. Corrected for the other pairs in the column that stands
            for all, for other pairs and models in the others.
    """

    first: str
    other: str
    test: Literal["paired", "welch"]
    condensing: tuple[int, int]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Scored sets of one source and one protocol, side by side.

    Attributes:
        protocol: The one of all sets.
        fingerprint: Of their source.
        test_count: Images scored on.
        groups: In the order in which they were given.
        baselines: Real images, in the order of `REAL`, small ones first.
        against_first: The first group minus every other.
        pairs: Every group minus every later one.
        unlike: What was not alike in the trainings, and its values: `device`, `torch`.
    """

    protocol: EvaluateSpec
    fingerprint: str
    test_count: int
    groups: tuple[Group, ...]
    baselines: tuple[Baseline, ...]
    against_first: tuple[Pair, ...]
    pairs: tuple[Pair, ...]
    unlike: dict[str, tuple[str, ...]]

    @property
    def models(self) -> list[str]:
        """The models that were trained, in the order of the protocol."""
        return [model.name for model in self.protocol.models]

    @property
    def main(self) -> str:
        """The column that stands for all: `mean`, or the only model."""
        return MEAN if len(self.models) > 1 else self.models[0]

    @property
    def columns(self) -> list[str]:
        """The column that stands for all, and the models."""
        return [MEAN, *self.models] if len(self.models) > 1 else self.models

    @property
    def transfer(self) -> list[tuple[str, Group]]:
        """The groups, each called by what condensed it; with its label where that does not tell it from others."""
        names = [" + ".join(group.condensed_by) for group in self.groups]
        return [
            (group.label if not name else f"{name} ({group.label})" if names.count(name) > 1 else name, group)
            for name, group in zip(names, self.groups, strict=True)
        ]

    @property
    def curves(self) -> list[tuple[str, list[Group]]]:
        """Groups by stored images, for accuracy against budget; empty if all have one budget.

        Those that the same models condensed make one curve, called by the models, unless two of them have one budget.
        """
        if len({group.budget.stored for group in self.groups}) == 1:
            return []
        by_pool: dict[tuple[str, ...], list[Group]] = {}
        for group in self.groups:
            by_pool.setdefault(group.condensed_by, []).append(group)
        found = []
        for pool, curve in by_pool.items():
            if pool and len({group.budget.stored for group in curve}) == len(curve):
                found.append((" + ".join(pool), sorted(curve, key=lambda group: group.budget.stored)))
            else:
                found += [(group.label, [group]) for group in curve]
        return found

    @property
    def random(self) -> dict[str, list[Baseline]]:
        """Random images, and such that were encoded, at every budget, small ones first, by the name of the baseline.

        The first set's where they were not the same.
        """
        found: dict[str, dict[int, Baseline]] = {}
        for row in self.baselines:
            if row.name in (RANDOM, RANDOM_ENCODED):
                found.setdefault(row.name, {}).setdefault(row.budget.stored, row)
        return {name: [rows[stored] for stored in sorted(rows)] for name, rows in sorted(found.items())}


def compare(sets: Sequence[ScoredSet]) -> Comparison:
    """Put scored sets side by side; every number is computed from single trainings.

    Args:
        sets: Two or more. Those of one recipe with different seeds become one group.

    Raises:
        UsageError: They cannot be compared: too few, other data, another protocol.
        FormatError: Scores are damaged.
    """
    named = checked(sets)
    scores = named[0].scores
    groups = _groups(named)
    first, *others = groups
    models = [model.name for model in scores.protocol.models]
    return Comparison(
        protocol=scores.protocol,
        fingerprint=scores.fingerprint,
        test_count=scores.test_count,
        groups=groups,
        baselines=_baselines(groups, models),
        against_first=_corrected([_pair(first, other) for other in others], models),
        pairs=_corrected([_pair(one, two) for n, one in enumerate(groups) for two in groups[n + 1 :]], models),
        unlike=unlike(named),
    )


def _by_column(scores: Scores, training_set: str, models: Sequence[str]) -> dict[str, list[float]]:
    """Give accuracies by evaluation seed, by model and for the mean over models."""
    columns = {model: by_seed(scores.cells, training_set, model) for model in models}
    return columns | {MEAN: mean_by_seed(scores.cells, training_set, models)}


def _groups(sets: Sequence[ScoredSet]) -> tuple[Group, ...]:
    families: dict[tuple[object, ...], list[ScoredSet]] = {}
    seen: list[tuple[object, ...]] = []
    for place, one in enumerate(sets):
        scores = one.scores
        family = place if scores.family_hash is None else scores.family_hash
        recipe = family, scores.budgets[CONDENSED].stored, tuple(scores.condensed_by)
        # A seed twice is no repetition but the same set again, such as a run and what was published of it.
        seen.append((*recipe, scores.condense_seed))
        families.setdefault((*recipe, seen.count(seen[-1])), []).append(one)
    names = [plain(members[0].scores.name) for members in families.values() if len(members) > 1]
    labels = []
    for members in families.values():
        name = plain(members[0].scores.name)
        labels.append(name if len(members) > 1 and names.count(name) == 1 else members[0].label)
    return tuple(_group(label, members) for label, members in zip(distinct(labels), families.values(), strict=True))


def _group(label: str, members: Sequence[ScoredSet]) -> Group:
    models = [model.name for model in members[0].scores.protocol.models]
    columns = [_by_column(member.scores, CONDENSED, models) for member in members]
    runs = {name: tuple(tuple(column[name]) for column in columns) for name in (*models, MEAN)}
    return Group(label, tuple(members), runs)


def _baselines(groups: Sequence[Group], models: Sequence[str]) -> tuple[Baseline, ...]:
    found: list[Baseline] = []
    for name in REAL:
        same: dict[tuple[int, int, int], dict[tuple[tuple[float, ...], ...], list[Group]]] = {}
        for group in groups:
            # A protocol may be the same and the list of baselines another: sets of other programs have no start.
            scored = [member.scores for member in group.members if name in member.scores.protocol.against]
            if not scored:
                continue
            budget = scored[0].budgets[name]
            columns = [_by_column(scores, name, models) for scores in scored]
            # Each run once where all are the same: a mean of equal numbers need not be equal to them.
            runs = [list(dict.fromkeys(tuple(column[key]) for column in columns)) for key in (*models, MEAN)]
            numbers = tuple(tuple(_averaged(run)) for run in runs)
            same.setdefault((budget.stored, budget.images, budget.bytes), {}).setdefault(numbers, []).append(group)
        found += [
            Baseline(
                name=name,
                budget=Budget(stored=size[0], images=size[1], bytes=size[2]),
                sets=tuple(group.label for group in owners),
                alone=len(same[size]) == 1,
                table={key: estimate(run) for key, run in zip((*models, MEAN), numbers, strict=True)},
            )
            for size in sorted(same)
            for numbers, owners in same[size].items()
        ]
    return tuple(found)


def _pair(one: Group, other: Group) -> Pair:
    if one.several and other.several:
        found = {column: welch(one.means[column], other.means[column]) for column in one.runs}
    else:
        found = {column: paired(_averaged(one.runs[column]), _averaged(other.runs[column])) for column in one.runs}
    test: Literal["paired", "welch"] = "welch" if one.several and other.several else "paired"
    return Pair(one.label, other.label, test, (len(one.members), len(other.members)), found)


def _averaged(runs: Sequence[Sequence[float]]) -> list[float]:
    """Average condensing runs by evaluation seed."""
    return [statistics.fmean(column) for column in zip(*runs, strict=True)]


def _corrected(pairs: Sequence[Pair], models: Sequence[str]) -> tuple[Pair, ...]:
    """Correct the tests of the column that stands for all among themselves, and those of single models likewise."""
    families = [[MEAN], list(models)]
    chances: dict[tuple[int, str], float | None] = {}
    for columns in families:
        keys = [(place, column) for place in range(len(pairs)) for column in columns]
        found = holm([pairs[place].differences[column].p for place, column in keys])
        chances |= dict(zip(keys, found, strict=True))
    return tuple(
        replace(
            pair,
            differences={column: replace(one, holm=chances[place, column]) for column, one in pair.differences.items()},
        )
        for place, pair in enumerate(pairs)
    )
