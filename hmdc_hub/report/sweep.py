"""What a sweep came to: variants of a recipe beside it, as text, Markdown, plain data and a page.

Variants pair by condensing seed: those of one seed begin with the same draws, and are trained on with the same
evaluation seeds. So differences to the recipe are of pairs, and n counts condensing seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from hmdc_hub.metrics import CONFIDENCE, estimate
from hmdc_hub.report.comparison import Difference, holm, paired
from hmdc_hub.report.document import Block, Items, Picture, Section, Table, Text, render_page, to_markdown, to_text
from hmdc_hub.report.tables import NONE, TOO_FEW, interval, percent, points, short
from hmdc_hub.schema import MIN_SEEDS, Estimate, Strict
from hmdc_hub.text import count, cut, duration

RECIPE = "recipe"  # what the recipe as it is is called among its variants
LEAST = 0.001  # smaller p-values are not told apart
MAX_NAME = 60


class SweepRun(Strict):
    """One condensing seed of a variant; accuracies are means over models and evaluation seeds, in [0, 1]."""

    seed: int
    path: str
    accuracy: float | None = None  # None until it is scored
    by_model: dict[str, float] = {}
    initialisation: float | None = None  # accuracy of the images before the first image step, if that was scored
    seconds: float | None = None  # of condensing, by the clock
    problem: str = ""  # why it failed


class SweepVariant(Strict):
    """A variant with its runs, by condensing seed."""

    name: str
    changes: dict[str, Any]  # of the recipe, by dotted key; none of the recipe as it is
    image_steps: int
    runs: tuple[SweepRun, ...]

    @property
    def scored(self) -> dict[int, float]:
        """Accuracy by condensing seed, of the runs that have one."""
        return {run.seed: run.accuracy for run in self.runs if run.accuracy is not None}

    @property
    def problem(self) -> str:
        """Why a run of it failed; empty if none did."""
        return next((run.problem for run in self.runs if run.problem), "")


class SweepRow(Strict):
    """A line of the table: a variant's accuracy over condensing seeds, and its difference to the recipe as it is."""

    name: str
    image_steps: int
    accuracy: Estimate | None  # None where every run failed
    difference: Difference | None  # over the seeds that both have; None of the recipe itself, and without such seeds
    gain: Estimate | None  # over its initialisation
    by_model: dict[str, float]  # means
    seconds: float | None  # mean


class SweepResult(Strict):
    """A sweep at one size: variants of a recipe at an equal budget, scored on images held back from the train split."""

    recipe: str
    source: str
    ipc: int  # of the recipe as it is
    budget: str  # in words
    protocol_hash: str
    protocol: str  # in words
    scored_on: str  # in words
    condensing_seeds: int
    evaluation_seeds: int
    variants: tuple[SweepVariant, ...]  # the recipe as it is first

    @property
    def rows(self) -> list[SweepRow]:
        """The table, best first, variants without a score last; differences are corrected for their number (Holm)."""
        base, rows = self.variants[0].scored, []
        for variant in self.variants:
            found, both = variant.scored, [seed for seed in variant.scored if seed in base]
            runs = [run for run in variant.runs if run.accuracy is not None]
            gains = [
                run.accuracy - run.initialisation
                for run in runs
                if run.accuracy is not None and run.initialisation is not None
            ]
            seconds = [run.seconds for run in runs if run.seconds is not None]
            rows.append(
                SweepRow(
                    name=variant.name,
                    image_steps=variant.image_steps,
                    accuracy=estimate([*found.values()]) if found else None,
                    difference=paired([found[seed] for seed in both], [base[seed] for seed in both])
                    if both and variant.name != RECIPE
                    else None,
                    gain=estimate(gains) if gains else None,
                    by_model={m: statistics.fmean(run.by_model[m] for run in runs) for m in runs[0].by_model}
                    if runs
                    else {},
                    seconds=statistics.fmean(seconds) if seconds else None,
                )
            )
        corrected = holm([row.difference.p if row.difference else None for row in rows])
        for place, (row, p) in enumerate(zip(rows, corrected, strict=True)):
            if row.difference is not None:
                changed = row.difference.model_copy(update={"holm": p})
                rows[place] = row.model_copy(update={"difference": changed})
        return sorted(rows, key=lambda row: (row.accuracy is None, -row.accuracy.mean if row.accuracy else 0))

    @property
    def failed(self) -> list[SweepRun]:
        """The runs that failed."""
        return [run for variant in self.variants for run in variant.runs if run.problem]


def sweep_text(results: Sequence[SweepResult], width: int = 80) -> str:
    """Write a sweep, a result for each size, as plain text; columns that do not fit into `width` stand below."""
    return to_text(_sections(results), width)


def sweep_markdown(results: Sequence[SweepResult]) -> str:
    """Write a sweep as GitHub Markdown, ending in a newline."""
    return to_markdown(f"Sweep of {results[0].recipe}", _sections(results))


def sweep_html(results: Sequence[SweepResult], pictures: Sequence[bytes]) -> str:
    """Write a sweep as one page of HTML with a picture (PNG or SVG) for each result."""
    title = f"Sweep of {results[0].recipe}"
    return render_page("document.html.jinja", title, sections=_sections(results, pictures))


def sweep_document(results: Sequence[SweepResult]) -> dict[str, Any]:
    """Write a sweep as plain data: shares in [0, 1], nothing rounded."""
    return {
        "results": [
            one.model_dump(mode="json") | {"rows": [row.model_dump(mode="json") for row in one.rows]} for one in results
        ]
    }


def _sections(results: Sequence[SweepResult], pictures: Sequence[bytes] = ()) -> list[Section]:
    sections = []
    for place, result in enumerate(results):
        of = f", {count(result.ipc, 'image')} per class" if len(results) > 1 else ""
        sections += _of_size(result, of, pictures[place] if pictures else b"")
    # A run that fails has none of its sizes.
    if problems := [f"{one.path}: {cut(one.problem, 200)}" for one in results[0].failed]:
        sections.append(Section("Failed", [Items(problems)]))
    return sections


def _of_size(result: SweepResult, of: str, picture: bytes) -> list[Section]:
    rows, models = result.rows, list(dict.fromkeys(name for row in result.rows for name in row.by_model))
    shown = (
        [Picture(picture, "Accuracy of every variant by condensing seed, means with 95 % intervals.")]
        if picture
        else []
    )
    blocks: list[Block] = [*shown, _table(rows), Text(_caption(result, rows), "note")]
    details = [
        [cut(row.name, MAX_NAME), f"{row.image_steps:,}", short(row.gain)]
        + ([f"{100 * row.by_model[name]:.1f}" if name in row.by_model else NONE for name in models])
        for row in rows
    ]
    per_model = models if len(models) > 1 else []
    header = ["variant", "image steps", "over initialisation", *per_model]
    note = "Over initialisation: points gained over the images before the first image step; models: mean accuracy."
    return [
        Section(f"The answer{of}", [Text(_answer(rows), "answer")]),
        Section(f"Variants{of}", blocks),
        Section(f"Details{of}", [Table(header, [row[: len(header)] for row in details], note=note, words=[0])]),
    ]


def _table(rows: Sequence[SweepRow]) -> Table:
    cells = []
    for row in rows:
        found = row.difference
        p = NONE if found is None or found.holm is None else f"< {LEAST}" if found.holm < LEAST else f"{found.holm:.3f}"
        accuracy = "failed" if row.accuracy is None else percent(row.accuracy)
        seconds = NONE if row.seconds is None else duration(row.seconds)
        cells.append([cut(row.name, MAX_NAME), accuracy, short(found), p, seconds])
    return Table(["variant", "accuracy", "over the recipe", "p", "time"], cells, strong=RECIPE, words=[0])


def _caption(result: SweepResult, rows: Sequence[SweepRow]) -> str:
    tests = sum(row.difference is not None and row.difference.p is not None for row in rows)
    several = f", corrected for {tests} comparisons (Holm)" if tests > 1 else ""
    seeds = f"n = {result.condensing_seeds}, each {count(result.evaluation_seeds, 'evaluation seed')}"
    return (
        f"Accuracy in percent, mean over models, on {result.scored_on}; mean ± standard deviation over condensing "
        f"seeds ({seeds}). Over the recipe: points, 95 % interval, paired by condensing seed; p: two-sided "
        f"t-test{several}. "
        f"Time: of condensing once, by the clock. Budget: {result.budget}. Protocol {result.protocol_hash[:8]}: "
        f"{result.protocol}."
    )


def _answer(rows: Sequence[SweepRow]) -> str:
    """Say which variant did best, and no more of it than the numbers do."""
    tried = [row for row in rows if row.difference is not None]
    if not tried:
        return "There is nothing to compare: no variant has a condensing seed with the recipe as it is."
    best = tried[0]
    found = best.difference
    assert found is not None
    of = f" is the best of {len(tried)} variants:" if len(tried) > 1 else " is"
    said = f"{cut(best.name, MAX_NAME)}{of} {points(found.mean)} points over the recipe"
    if found.holm is None:
        return f"{said}; {TOO_FEW} to say whether it is chance ({MIN_SEEDS} condensing seeds are the least)."
    chance = f"p < {LEAST}" if found.holm < LEAST else f"p = {found.holm:.3f}"
    corrected = f" after Holm's correction for {len(tried)}" if len(tried) > 1 else ""
    numbers = f"95 % interval {interval(found)}, {chance}{corrected}"
    if found.holm >= 1 - CONFIDENCE:
        return f"No difference to the recipe is shown. {said} ({numbers})."
    if found.mean < 0:
        return f"Every variant scores below the recipe as it is. {said} ({numbers})."
    return f"{said} ({numbers}). The best of several looks better than it is: score it on the test split, once."
