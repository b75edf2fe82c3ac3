"""Several scored sets side by side: differences with their chance, transfer between models, accuracy by budget.

Two kinds of seeds vary. *Evaluation seeds* draw weights and minibatches of the trainings; they are part of the
protocol, so under one protocol they pair: equal seeds start alike whatever is trained on. *Condensing seeds* make other
images by the same recipe; those of different recipes have nothing in common. What is said of a recipe must hold for the
images that it makes next time, so where there are several condensing seeds, means are taken over evaluation seeds first
and the spread is the one between condensing runs. (All of these are trained on with the same evaluation seeds: what the
seeds have in common moves every mean, and shows in no spread.)
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from hmdc_hub import metrics
from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.metrics import CONDENSED, MEAN, RANDOM, ROUNDING, estimate
from hmdc_hub.schema import MIN_SEEDS, Budget, Estimate, EvaluateSpec, Scores, Strict, plain_models
from hmdc_hub.text import cut, flat, one_line

MAX_KEYS, MAX_VALUE = 8, 40  # differences of two protocols that a message lists, and characters of a value in it
MAX_LABEL = 48  # characters of a label; names come from files of others


@dataclass(frozen=True)
class ScoredSet:
    """One scored set; `target` and `file` are for hints."""

    label: str  # what reports call it
    scores: Scores  # may be a stranger's
    target: str = ""  # what `hmdc-hub evaluate` would be given to score it again; empty: the label
    file: str = ""  # its scores.json, likewise


class CondensingRun(Strict):
    """One set of a group; `accuracy` by column and evaluation seed."""

    label: str
    condense_seed: int | None
    condense_hash: str | None
    parquet_sha256: str
    accuracy: dict[str, tuple[float, ...]]
    scores: Scores = Field(exclude=True, repr=False)


class SeedGroup(Strict):
    """A set, or all sets of one recipe that differ in the condensing seed alone."""

    label: str  # unique
    budget: Budget  # of one of its sets
    condensed_by: tuple[str, ...]  # models; none are known of a set of another program
    condensing_seeds: int
    spread_over: Literal["condensing seeds", "evaluation seeds"]  # the first if there are several
    table: dict[str, Estimate]  # accuracy by column, over these
    members: tuple[CondensingRun, ...]  # one for each condensing seed

    @property
    def several(self) -> bool:
        """Whether there is more than one condensing seed."""
        return self.condensing_seeds > 1


class SharedBaseline(Strict):
    """A training set of real images, once for all groups (`sets`, their labels) that have the same numbers on it.

    Trainings on it are the same in every set of one source, protocol and budget, but where devices or versions differ.
    The condensing runs of a group are averaged, where theirs are not the same. `table` is over evaluation seeds.
    `alone`: no group has other numbers on images of this name and budget.
    """

    name: str
    budget: Budget
    sets: tuple[str, ...]
    table: dict[str, Estimate]
    alone: bool = Field(exclude=True)


class Difference(Estimate):
    """A difference of accuracies with its 95 % t interval, and how likely chance alone makes one as large.

    Of an unpaired one `sd` is null and `n` counts both sides. `p` is of a two-sided t-test, null where there is no
    spread to hold it against; `holm` is the same, corrected for the tests beside it.
    """

    p: float | None
    holm: float | None = None


class Contrast(Strict):
    """One group, by its label, minus another."""

    first: str
    other: str
    # Paired by evaluation seed, condensing runs averaged first; welch between condensing runs.
    test: Literal["paired", "welch"]
    condensing_seeds: tuple[int, int]
    # By column; corrected within the column that stands for all, and within the others together.
    differences: dict[str, Difference]

    @property
    def name(self) -> str:
        """What is subtracted from what."""
        return f"{self.first} − {self.other}"


@dataclass(frozen=True)
class Comparison:
    """Scored sets of one source and one protocol, side by side."""

    scores: Scores  # of the first set, whose source and protocol, but for the baselines, are those of all
    columns: list[str]  # the mean over models (`mean`), which stands for all, and the models; or the only model
    groups: tuple[SeedGroup, ...]  # in the order in which they were given
    baselines: tuple[SharedBaseline, ...]  # in the order of tables, small ones first
    against_first: tuple[Contrast, ...]  # the first group minus every other
    pairs: tuple[Contrast, ...]  # every group minus every later one
    unlike: dict[str, tuple[str, ...]]  # what was not alike in the trainings, and its values: `device`, `torch`

    @property
    def protocol(self) -> EvaluateSpec:
        """The one of all sets."""
        return self.scores.protocol

    @property
    def models(self) -> list[str]:
        """The models that were trained, in the order of the protocol."""
        return [model.name for model in self.protocol.models]

    @property
    def main(self) -> str:
        """The column that stands for all."""
        return self.columns[0]

    @property
    def transfer(self) -> list[tuple[str, SeedGroup]]:
        """The groups, each called by what condensed it; with its label where that does not tell it from others."""
        names = [" + ".join(group.condensed_by) for group in self.groups]
        return [
            (group.label if not name else f"{name} ({group.label})" if names.count(name) > 1 else name, group)
            for name, group in zip(names, self.groups, strict=True)
        ]

    @property
    def curves(self) -> list[tuple[str, dict[int, Estimate]]]:
        """Accuracy in the main column by stored images, small ones first; empty if all groups have one budget.

        Groups that the same models condensed make one curve, called by the models, unless two have one budget.
        """
        by_pool: dict[tuple[str, ...], list[SeedGroup]] = {}
        for group in self.groups if len({group.budget.stored for group in self.groups}) > 1 else ():
            by_pool.setdefault(group.condensed_by, []).append(group)
        found = []
        for pool, groups in by_pool.items():
            points = {g.budget.stored: g.table[self.main] for g in sorted(groups, key=lambda g: g.budget.stored)}
            if pool and len(points) == len(groups):
                found.append((" + ".join(pool), points))
            else:
                found += [(group.label, {group.budget.stored: group.table[self.main]}) for group in groups]
        return found

    @property
    def random(self) -> dict[str, dict[int, Estimate]]:
        """The same of random images, and of such of the same storage, by name of the baseline.

        The first set's where they were not the same.
        """
        found: dict[str, dict[int, Estimate]] = {}
        for row in self.baselines:
            if row.name in (RANDOM, "random-encoded"):
                found.setdefault(row.name, {}).setdefault(row.budget.stored, row.table[self.main])
        return found


# Tests of differences.


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Test whether numbers that pair differ in the mean: Student's t-test of their differences (one or more)."""
    from scipy import stats

    gaps = [a - b for a, b in zip(one, other, strict=True)]
    found = estimate(gaps)
    if found.sd is None or found.low is None:
        p = None
    elif found.sd < ROUNDING:
        p = float(abs(found.mean) < ROUNDING)
    else:
        p = float(stats.ttest_1samp(gaps, 0).pvalue)
    return Difference(**found.model_dump(), p=p)


def welch(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Test whether numbers that do not pair differ in the mean: Welch's t-test, which takes no spread for another's.

    Source: Welch, The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 1947; degrees of freedom by Satterthwaite, 1946. As in `estimate`, below `MIN_SEEDS` numbers of either
    there is nothing to say.
    """
    from scipy import stats

    mean, n = statistics.fmean(one) - statistics.fmean(other), len(one) + len(other)
    if min(len(one), len(other)) < MIN_SEEDS:
        return Difference(mean=mean, sd=None, n=n, low=None, high=None, p=None)
    if max(statistics.stdev(one), statistics.stdev(other)) < ROUNDING:
        return Difference(mean=mean, sd=None, n=n, low=mean, high=mean, p=float(abs(mean) < ROUNDING))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal numbers on one side: their spread is 0, as computed
        test = stats.ttest_ind(one, other, equal_var=False)
    low, high = map(float, test.confidence_interval(metrics.CONFIDENCE))
    return Difference(mean=mean, sd=None, n=n, low=low, high=high, p=float(test.pvalue))


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """Correct p-values so that the chance of even one false difference among them is no larger than each says.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    None, which is no test, stays and is not counted; the others are never smaller than before, and at most 1.
    """
    known = sorted((p, place) for place, p in enumerate(chances) if p is not None)
    corrected: list[float | None] = [None] * len(chances)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        corrected[place] = least = max(least, min(1.0, (len(known) - rank) * p))
    return corrected


# Sets side by side.


def compare(sets: Sequence[ScoredSet]) -> Comparison:
    """Put scored sets side by side, those of one recipe with different seeds as one group.

    Every number is computed from single trainings. UsageError: they cannot be compared; FormatError: one is damaged.
    """
    named = _checked(sets)
    models = [model.name for model in named[0].scores.protocol.models]
    columns = [MEAN, *models] if len(models) > 1 else models
    groups = _groups(named, columns)
    pairs = [_contrast(one, two) for n, one in enumerate(groups) for two in groups[n + 1 :]]
    facts = {
        "device": [one.scores.device for one in named],
        "torch": [one.scores.versions.get("torch", "unknown") for one in named],
        "hmdc-hub": [one.scores.hmdc_hub_version for one in named],
    }
    values = {name: tuple(dict.fromkeys(cut(value, MAX_LABEL) for value in found)) for name, found in facts.items()}
    return Comparison(
        scores=named[0].scores,
        columns=columns,
        groups=groups,
        baselines=tuple(row for name in metrics.REAL for row in _baselines(name, groups, columns)),
        against_first=_corrected(pairs[: len(groups) - 1]),
        pairs=_corrected(pairs),
        unlike={name: found for name, found in values.items() if len(found) > 1},
    )


def _by_column(scores: Scores, training_set: str, columns: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Give accuracies by evaluation seed, of each model and of the mean over models."""
    models = metrics.columns_of([model.name for model in scores.protocol.models])
    return {column: tuple(metrics.by_seed(scores.cells, training_set, models[column])) for column in columns}


def _groups(sets: Sequence[ScoredSet], columns: Sequence[str]) -> tuple[SeedGroup, ...]:
    families: dict[tuple[object, ...], list[ScoredSet]] = {}
    seen: list[tuple[object, ...]] = []
    for place, one in enumerate(sets):
        scores = one.scores
        family = place if scores.family_hash is None else scores.family_hash
        recipe = family, scores.budgets[CONDENSED].stored, tuple(scores.condensed_by)
        # A seed twice is no repetition but the same set again, such as a run and what was published of it.
        seen.append((*recipe, scores.condense_seed))
        families.setdefault((*recipe, seen.count(seen[-1])), []).append(one)
    recipes = [cut(members[0].scores.name, MAX_LABEL) for members in families.values() if len(members) > 1]
    labels = []
    for members in families.values():
        name = cut(members[0].scores.name, MAX_LABEL)
        labels.append(name if len(members) > 1 and recipes.count(name) == 1 else members[0].label)
    groups = []
    for label, members in zip(_distinct(labels), families.values(), strict=True):
        first, several, runs = members[0].scores, len(members) > 1, []
        for one in members:
            keys = one.scores.model_dump(include={"condense_seed", "condense_hash", "parquet_sha256"})
            accuracy = _by_column(one.scores, CONDENSED, columns)
            runs.append(CondensingRun(label=one.label, **keys, accuracy=accuracy, scores=one.scores))
        group = SeedGroup(
            label=label,
            budget=first.budgets[CONDENSED],
            condensed_by=tuple(first.condensed_by),
            condensing_seeds=len(runs),
            spread_over="condensing seeds" if several else "evaluation seeds",
            table={name: estimate(_means(runs, name) if several else runs[0].accuracy[name]) for name in columns},
            members=tuple(runs),
        )
        groups.append(group)
    return tuple(groups)


def _means(runs: Sequence[CondensingRun], column: str) -> list[float]:
    """Average each condensing run over evaluation seeds."""
    return [statistics.fmean(run.accuracy[column]) for run in runs]


def _averaged(runs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Average condensing runs by evaluation seed."""
    return tuple(statistics.fmean(numbers) for numbers in zip(*runs, strict=True))


def _baselines(name: str, groups: Sequence[SeedGroup], columns: Sequence[str]) -> Iterator[SharedBaseline]:
    """Find who shares numbers on a training set, at every budget."""
    found: dict[tuple[int, int, int], dict[tuple[tuple[float, ...], ...], list[str]]] = {}
    for group in groups:
        # A protocol may be the same and the list of baselines another, even within a group.
        scored = [run.scores for run in group.members if name in run.scores.protocol.baselines]
        if scored:
            runs = [_by_column(scores, name, columns) for scores in scored]
            # Each run once where all are the same: a mean of equal numbers need not be equal to them.
            numbers = tuple(_averaged([*dict.fromkeys(run[column] for run in runs)]) for column in columns)
            budget = scored[0].budgets[name]
            same = found.setdefault((budget.stored, budget.images, budget.bytes), {})
            same.setdefault(numbers, []).append(group.label)
    for (stored, images, size), same in sorted(found.items()):
        for numbers, owners in same.items():
            table = {column: estimate(run) for column, run in zip(columns, numbers, strict=True)}
            budget = Budget(stored=stored, images=images, bytes=size)
            yield SharedBaseline(name=name, budget=budget, sets=tuple(owners), table=table, alone=len(same) == 1)


def _contrast(one: SeedGroup, other: SeedGroup) -> Contrast:
    unpaired, found = one.several and other.several, {}
    for column in one.table:
        if unpaired:
            found[column] = welch(*(_means(group.members, column) for group in (one, other)))
        else:
            found[column] = paired(*(_averaged([run.accuracy[column] for run in g.members]) for g in (one, other)))
    return Contrast(
        first=one.label,
        other=other.label,
        test="welch" if unpaired else "paired",
        condensing_seeds=(one.condensing_seeds, other.condensing_seeds),
        differences=found,
    )


def _corrected(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Correct the tests of the column that stands for all among themselves, and those of single models likewise."""
    found = [dict(one.differences) for one in contrasts]
    for stands_for_all in (True, False):
        family = [(tests, column) for tests in found for column in tests if (column == MEAN) == stands_for_all]
        for (tests, column), p in zip(family, holm([tests[column].p for tests, column in family]), strict=True):
            tests[column] = tests[column].model_copy(update={"holm": p})
    return tuple(one.model_copy(update={"differences": tests}) for one, tests in zip(contrasts, found, strict=True))


# Which sets can be compared, and what to do about those that cannot.


def _checked(sets: Sequence[ScoredSet]) -> list[ScoredSet]:
    """Give the sets labels of their own, if they are whole and can be compared."""
    if len(sets) < 2:
        raise UsageError(
            f"Comparing takes two scored sets or more; there is {len(sets) or 'none'}.",
            hint="`hmdc-hub runs ls` lists runs and their scores.",
        )
    labels = _distinct([cut(one.label, MAX_LABEL) for one in sets])
    named = [replace(one, label=label) for one, label in zip(sets, labels, strict=True)]
    for one in named:
        try:
            metrics.check_trainings(one.scores)
        except FormatError as error:
            raise FormatError(
                f"The scores of {one.label} are damaged: {error.message}.",
                hint=f"`hmdc-hub evaluate {one.target or one.label}` scores it again.",
            ) from error
    first, *others = named
    problems = [found for other in others if (found := _obstacle(first, other)) is not None]
    if problems:
        hints = dict.fromkeys(hint for _, hint in problems)
        raise UsageError("\n".join(message for message, _ in problems), hint="\n".join(hints))
    return named


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that stand more than once: `a`, `a (2)`; an empty one is `set`."""
    taken: list[str] = []
    for name in names:
        new, n = name or "set", 1
        while new in taken:
            n += 1
            new = f"{name or 'set'} ({n})"
        taken.append(new)
    return taken


def _obstacle(first: ScoredSet, other: ScoredSet) -> tuple[str, str] | None:
    """Say why a set cannot be compared with the first, and what to do; None: it can."""
    if first.scores.fingerprint != other.scores.fingerprint:
        one, two = (
            f"{len(scores.class_names)} classes, {scores.test_count} test images, {one_line(scores.fingerprint)[:8]}"
            for scores in (first.scores, other.scores)
        )
        return (
            f"{other.label} ({two}) was scored on other data than {first.label} ({one}).",
            "Only sets of one source can be compared; the last of these is the source's fingerprint.",
        )
    # With which baselines a set was compared changes none of its trainings. The hash is computed here: one that stands
    # in a file is what its author says.
    left, right = (one.scores.protocol.model_copy(update={"baselines": []}) for one in (first, other))
    if left.protocol_hash() == right.protocol_hash():
        return None
    shared = {model.name for model in left.models} & {model.name for model in right.models}
    ours, theirs = _settings(left, shared), _settings(right, shared)
    found = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    lines = [f"{other.label} was scored by another protocol than {first.label}:"]
    for key in found[:MAX_KEYS]:
        lines.append(f"  {key}: {ours.get(key, '-')} in {first.label}, {theirs.get(key, '-')} in {other.label}")
    if len(found) > MAX_KEYS:
        lines.append(f"  and {len(found) - MAX_KEYS} more")
    command = f"hmdc-hub evaluate {other.target or other.label} --protocol {first.file or first.label}"
    hint = f"`{command}` scores {other.label} by that of {first.label}; compare with the scores that it writes."
    return "\n".join(lines), hint


def _settings(protocol: EvaluateSpec, shared: set[str]) -> dict[str, str]:
    """Give what is hashed of a protocol as text by dotted key; of models that are not shared the names alone."""
    whole = protocol.settled().model_dump(mode="json", exclude={"baselines"})
    models = {model["name"]: model for model in plain_models(whole["models"])}
    plain = dict(flat(whole | {"models": list(models)}, "evaluate."))
    for name in filter(shared.__contains__, models):
        plain |= flat(models[name], f"evaluate.models.{name}.")
    found = {}
    for key, value in plain.items():  # as JSON, without a character that a terminal would obey
        parts = [json.dumps(part).strip('"') for part in (value if isinstance(value, list) else [value])]
        found[key] = cut(f"[{', '.join(parts)}]" if isinstance(value, list) else parts[0], MAX_VALUE)
    return found
