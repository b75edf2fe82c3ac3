"""Variants of a recipe at an equal budget, scored on held-out images and compared: what `hmdc_hub.sweep` does.

Every run of a sweep is a run like any other, of a recipe that stands in its directory; a sweep knows nothing but their
names, and the number of image steps that its budget came to. So it goes on wherever it was stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmdc_hub import schema
from hmdc_hub.catalog import protocol_overrides, read_recipe_file
from hmdc_hub.errors import FormatError, RunError, UsageError
from hmdc_hub.events import Callback, Note, Stage, StopFlag
from hmdc_hub.metrics import MEAN
from hmdc_hub.pipeline.recipe import Recipe, load_recipe
from hmdc_hub.pipeline.variants import Variant, make_variants, parse_overrides, read_variants, shown
from hmdc_hub.processes import stop_on_signals
from hmdc_hub.report.sweep import (
    RECIPE,
    SweepResult,
    SweepRun,
    SweepVariant,
    sweep_document,
    sweep_html,
    sweep_markdown,
    sweep_text,
)
from hmdc_hub.schema import CONDENSED, sha256_of
from hmdc_hub.store.files import read_info, read_scores, write_bytes_atomic, write_json_atomic, write_text_atomic
from hmdc_hub.store.rundir import RunDir
from hmdc_hub.text import count, cut, duration

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from hmdc_hub.pipeline.progress import Shown

HELD_OUT = 0.2  # share of the train split that is scored on, unless the recipe names one
FEW_RESETS = 10  # from so many on, whole network resets come close enough to a budget


class Sweep:
    """What a sweep came to.

    Args:
        path: Its directory, with a run for every variant and condensing seed.
        results: The numbers; where `condense.ipc` is a list, those of each size in its order, else one.
    """

    def __init__(self, path: str | os.PathLike[str], results: Sequence[SweepResult]) -> None:
        self.path, self.results = Path(path), tuple(results)

    @property
    def report(self) -> Path:
        """The report, a page with a picture."""
        return self.path / "report.html"

    def to_pandas(self) -> pd.DataFrame:
        """Give a row for each run and size: variant, ipc, image steps, seed, accuracy, initialisation, seconds."""
        import pandas

        rows = [
            {
                "variant": variant.name,
                "ipc": result.ipc,
                "image_steps": variant.image_steps,
                **run.model_dump(exclude={"by_model"}),
            }
            for result in self.results
            for variant in result.variants
            for run in variant.runs
        ]
        return pandas.DataFrame(rows)

    def summary(self, width: int = 80) -> str:
        """Write the answer and the tables in lines of `width`."""
        return sweep_text(self.results, width)

    def document(self) -> dict[str, Any]:
        """Write it as plain data."""
        return {"directory": str(self.path)} | sweep_document(self.results)

    def __repr__(self) -> str:
        found = ""
        for result in self.results:
            best, of = result.rows[0], f" at {result.ipc}" if len(self.results) > 1 else ""
            found += "" if best.accuracy is None else f", best{of} {best.name} {100 * best.accuracy.mean:.1f} %"
        return f"Sweep({str(self.path)!r}, {count(len(self.results[0].variants), 'variant')}{found})"


# Budget


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Set the length of condensing to so many image steps, in network resets of the recipe's own length.

    Where fewer than `FEW_RESETS` fit, each is made a little longer or shorter, so that the sum is as close.
    """
    every = recipe.condense.networks.reset_every
    resets = max(1, round(steps / every))
    if resets < FEW_RESETS:
        every = max(1, round(steps / resets))
    networks = recipe.condense.networks.model_copy(update={"reset_every": every})
    condense = recipe.condense.model_copy(update={"resets": resets, "networks": networks})
    return Recipe.of(recipe.model_copy(update={"condense": condense}), overridden=True)


def steps_of(recipe: schema.Recipe) -> int:
    """Count its image steps."""
    return recipe.condense.resets * recipe.condense.networks.reset_every


@dataclass(frozen=True)
class Pace:
    """What condensing took in a probe, in seconds: up to the end of the first image step, and each one after it."""

    first: float
    each: float

    def steps(self, seconds: float) -> int:
        """Say how many image steps fit into so many seconds; one at least."""
        return max(1, 1 + round((seconds - self.first) / max(self.each, 1e-9)))


# The whole


@dataclass(frozen=True)
class SweepRequest:
    """What is swept: the arguments of `hmdc_hub.sweep`, read and checked."""

    variants: Sequence[Variant]  # the recipe as it is first; with the source and the protocol of the sweep
    path: Path
    seeds: int
    steps: int | None
    seconds: float | None
    device: str
    workers: int | None
    slurm: Mapping[str, Any] | None  # options of submitit; None: here

    def run(self, callback: Callback, stop: StopFlag) -> list[SweepResult]:
        """Do what is missing, and write what it came to into the sweep's directory."""
        with RunDir(self.path).lock():
            paced = self._with_budget(callback, stop)
            jobs = [(variant, seed) for seed in self._seeds() for variant in paced]
            tasks, problems = list[tuple[int, dict[str, Any]]](), dict[int, str]()
            for place, (variant, seed) in enumerate(jobs):
                run, recipe = self._run_dir(variant, seed), _seeded(variant.recipe, seed)
                if not is_done(run, recipe):
                    plain = recipe.model_dump(mode="json")
                    tasks.append((place, {"recipe": plain, "directory": str(run.path.absolute())}))
            callback(Stage("sweep", f"{len(jobs)} runs, {len(jobs) - len(tasks)} of them done"))
            for done, (index, answer) in enumerate(self._do([task for _, task in tasks], stop), 1):
                place = tasks[index][0]
                variant, seed = jobs[place]
                problems[place] = answer["problem"]
                if answer["trace"]:
                    callback(Note(answer["trace"]))
                said = cut(answer["problem"], 200) or _said(self._run_dir(variant, seed))
                callback(Note(f"{done} of {len(tasks)}: {variant.name}, seed {seed}: {said}"))
            told = {(jobs[place][0].name, jobs[place][1]): text for place, text in problems.items()}
            results = [self._result(paced, told, place) for place in range(len(paced[0].recipe.condense.sizes))]
            self._write(results)
        return results

    def _seeds(self) -> range:
        first = self.variants[0].recipe.seed
        return range(first, first + self.seeds)

    def _run_dir(self, variant: Variant, seed: int) -> RunDir:
        return RunDir(self.path / f"{variant.slug}-seed{seed}")

    def _do(self, tasks: Sequence[dict[str, Any]], stop: StopFlag) -> Iterator[tuple[int, dict[str, Any]]]:
        from hmdc_hub.pipeline import launch

        recipes = [variant.recipe for variant in self.variants]
        session = any(not spec.reproducible for recipe in recipes for spec in (*recipe.pool, *recipe.evaluate.models))
        session = session or recipes[0].source.id.startswith(("python:", schema.LOCAL))
        if self.slurm is not None:
            if session:
                raise UsageError(
                    "models and data of a Python session are known in this process alone.",
                    hint="Leave slurm out, or name models of the pool and a dataset by its id.",
                )
            return launch.by_submitit(tasks, self.slurm, self.path / "slurm", stop)
        return launch.locally(tasks, self.device, 0 if session else self.workers, stop)

    def _with_budget(self, callback: Callback, stop: StopFlag) -> list[Variant]:
        """Give every variant its number of image steps; what was measured for it is kept in `pace.json`."""
        if self.seconds is None:
            steps = self.steps or steps_of(self.variants[0].recipe)
            return [replace(one, recipe=with_steps(one.recipe, steps)) for one in self.variants]
        file = self.path / "pace.json"
        try:
            known = {key: Pace(**pace) for key, pace in json.loads(file.read_text()).items()} if file.is_file() else {}
        except (ValueError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{file} is damaged: {error}", hint="Remove it; the variants are then timed again."
            ) from error
        missing = [one for one in self.variants if one.recipe.family_hash() not in known]
        tasks = [{"recipe": one.recipe.model_dump(mode="json"), "seconds": self.seconds} for one in missing]
        if tasks:
            callback(Stage("measure", f"{count(len(tasks), 'variant')}, each for a part of its time"))
        failed = {}
        for index, answer in self._do(tasks, stop):
            variant = missing[index]
            if answer["problem"]:
                failed[variant.name] = answer["problem"]
                callback(Note(answer["trace"] or f"{variant.name}: {answer['problem']}"))
                continue
            pace = known[variant.recipe.family_hash()] = Pace(answer["first"], answer["each"])
            fit = count(pace.steps(self.seconds), "image step")
            callback(Note(f"{variant.name}: {pace.each:.3g} s per image step, so {fit} in {duration(self.seconds)}"))
            write_json_atomic(file, {key: vars(one) for key, one in known.items()})
        if RECIPE in failed:
            raise RunError(f"the recipe as it is cannot be timed: {failed[RECIPE]}")
        # What cannot be timed fails again in its runs, and says so there.
        paces = [(one, known.get(one.recipe.family_hash())) for one in self.variants]
        return [
            replace(one, recipe=with_steps(one.recipe, pace.steps(self.seconds) if pace else 1)) for one, pace in paces
        ]

    def _result(self, variants: Sequence[Variant], problems: Mapping[tuple[str, int], str], place: int) -> SweepResult:
        """Read what the runs came to at one of the recipe's sizes, by its place among them."""
        found = []
        for variant in variants:
            runs = []
            for seed in self._seeds():
                run, problem = self._run_dir(variant, seed), problems.get((variant.name, seed), "")
                runs.append(read_run(run.sizes[place] if run.recipe.is_file() else run, seed, problem))
            changes = {key: value if _is_plain(value) else shown(key, value) for key, value in variant.changes.items()}
            steps = steps_of(variant.recipe)
            found.append(SweepVariant(name=variant.name, changes=changes, image_steps=steps, runs=tuple(runs)))
        recipe = variants[0].recipe
        if self.seconds is None:
            budget = count(steps_of(recipe), "image step") + " each, as close as network resets allow"
        else:
            budget = f"{duration(self.seconds)} of condensing each, as image steps by what a probe of each variant took"
        share = recipe.source.validation_fraction
        return SweepResult(
            recipe=recipe.name,
            source=recipe.source.id,
            ipc=recipe.condense.sizes[place],
            budget=budget,
            protocol_hash=recipe.protocol_hash(),
            protocol=f"{recipe.evaluate.length} on {', '.join(model.name for model in recipe.evaluate.models)}",
            scored_on=f"{share:.0%} of each class of the images to condense, held out",
            condensing_seeds=self.seeds,
            evaluation_seeds=recipe.evaluate.seeds,
            variants=tuple(found),
        )

    def _write(self, results: Sequence[SweepResult]) -> None:
        from hmdc_hub.report.plots import rendered, sweep_figure

        pictures = []
        for result in results:
            if any(row.accuracy is not None for row in result.rows):
                of = f"-ipc{result.ipc}" if len(results) > 1 else ""
                pictures.append(rendered(sweep_figure, result, kind="svg"))
                write_bytes_atomic(self.path / f"sweep{of}.svg", pictures[-1])
                write_bytes_atomic(self.path / f"sweep{of}.png", rendered(sweep_figure, result, kind="png"))
            else:
                pictures.append(b"")
        write_json_atomic(self.path / "sweep.json", sweep_document(results))
        write_text_atomic(self.path / "sweep.md", sweep_markdown(results))
        write_text_atomic(self.path / "report.html", sweep_html(results, pictures))


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return Recipe.of(recipe.model_copy(update={"seed": seed}), overridden=True)


def is_done(run: RunDir, recipe: schema.Recipe) -> bool:
    """Tell whether a directory holds a finished run of a recipe, scored by its protocol."""
    if run.state(verify=False) != "finished":
        return False
    stored = read_recipe_file(run.recipe)
    return stored.condense_hash() == recipe.condense_hash() and stored.protocol_hash() == recipe.protocol_hash()


def read_run(run: RunDir, seed: int, problem: str) -> SweepRun:
    """Read what a run came to; with a problem, or without scores, it has no accuracy."""
    if problem or not run.scores.is_file():
        return SweepRun(seed=seed, path=str(run.path), problem=problem)
    table, seconds = read_scores(run.scores).table, read_info(run.info).seconds
    by_model = {name: found.mean for name, found in table[CONDENSED].items() if name != MEAN}
    start = table["initialisation"][MEAN].mean if "initialisation" in table else None
    return SweepRun(
        seed=seed, path=str(run.path), accuracy=table[CONDENSED][MEAN].mean, by_model=by_model,
        initialisation=start, seconds=seconds,
    )  # fmt: skip


def _said(run: RunDir) -> str:
    found = [read_run(size, 0, "").accuracy for size in run.sizes]
    return ", ".join("no scores" if accuracy is None else f"{100 * accuracy:.1f} %" for accuracy in found)


def prepare(
    recipe: schema.Recipe | str | os.PathLike[str], fixed: Sequence[str], protocol: str | Path | None
) -> Recipe:
    """Load the recipe of a sweep: scored on images that are held back from what would be condensed.

    By its own protocol or another one; beside it stands the initialisation alone, unless `fixed` names other baselines.
    """
    found = load_recipe(recipe)
    if protocol is not None:
        found = load_recipe(found, *protocol_overrides(str(protocol)))
    found = load_recipe(found, evaluate={"baselines": ["initialisation"], "full": "never"})
    found = load_recipe(found, *fixed)
    source: dict[str, Any] = {"test_split": None, "validation_fraction": found.source.validation_fraction or HELD_OUT}
    return load_recipe(found, source=source, evaluate={"holdout": None})


def request(
    recipe: schema.Recipe | str | os.PathLike[str],
    changes: Mapping[str, Sequence[Any]] | None = None,
    *,
    overrides: Sequence[str] = (),
    variants: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str] | None = None,
    grid: bool = False,
    steps: int | None = None,
    seconds: float | None = None,
    seeds: int = 3,
    protocol: str | Path | None = None,
    name: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    slurm: Mapping[str, Any] | None = None,
    root: str | os.PathLike[str] = "runs",
) -> SweepRequest:
    """Check everything that was asked for; writes nothing."""
    if steps is not None and seconds is not None:
        raise UsageError("--steps and --seconds are two budgets.", hint="Give one of them.")
    if (steps is not None and steps < 1) or (seconds is not None and seconds <= 0) or seeds < 1:
        raise UsageError(
            f"a budget and seeds are above zero, not {steps or seconds or seeds}.", hint="For example --steps 400"
        )
    for key, values in (changes or {}).items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise UsageError(
                f"{key} = {values!r} is no list of values to sweep.",
                hint=f"For example  {{{key!r}: [0.01, 0.02]}} ; load_recipe() changes a key for all variants.",
            )
    fixed, swept = parse_overrides(overrides)
    if set(swept) & set(changes or {}):
        raise UsageError("a key is swept twice.", hint="Give all its values in one place.")
    named = read_variants(Path(variants)) if isinstance(variants, str | os.PathLike) else variants or {}
    base = prepare(recipe, fixed, protocol)
    made = make_variants(base, swept, {}, grid, True) if swept else []
    if changes or named or not made:
        others = make_variants(base, changes or {}, named, grid, False)
        known = {one.recipe.family_hash() for one in made}
        made += [one for one in others if one.recipe.family_hash() not in known]
    digest = sha256_of([base.condense_hash(), base.protocol_hash(), steps, seconds])[:8]
    path = Path(root) / "sweeps" / (name or f"{base.name}-{digest}")
    settled = _settled([one.recipe for one in made], path)
    made = [replace(one, recipe=recipe) for one, recipe in zip(made, settled, strict=True)]
    return SweepRequest(made, path, seeds, steps, seconds, device, workers, slurm)


def _settled(recipes: Sequence[Recipe], path: Path) -> list[Recipe]:
    """Fill what the recipes leave open, once for all; as it was filled when a sweep that is there began."""
    from hmdc_hub.pipeline.job import settled

    stored: schema.Recipe | None = None
    for run in sorted(path.glob(f"{RECIPE}-seed*/recipe.yaml")):
        stored = read_recipe_file(run)
        break
    found = list[Recipe]()
    for recipe in recipes:
        made = settled(recipe, stored)
        stored = stored or made
        found.append(Recipe.of(made, overridden=True))
    return found


def sweep(
    recipe: schema.Recipe | str | os.PathLike[str],
    changes: Mapping[str, Sequence[Any]] | None = None,
    *,
    variants: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str] | None = None,
    grid: bool = False,
    steps: int | None = None,
    seconds: float | None = None,
    seeds: int = 3,
    protocol: str | Path | None = None,
    name: str | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    slurm: Mapping[str, Any] | None = None,
    root: str | os.PathLike[str] = "runs",
    overrides: Sequence[str] = (),
    callbacks: Callback | Sequence[Callback] = (),
    progress: Shown = None,
    stop: StopFlag | None = None,
) -> Sweep:
    """Condense variants of a recipe at an equal budget, and compare them on images held back from the train split.

    Each value alone stands beside the recipe as it is. The test split is left alone, and nothing of it is pushed.
    The same call goes on with a sweep that was stopped. It is what `hmdc-hub sweep` calls.

    Args:
        recipe: Such as `load_recipe` gives, or its name or path.
        changes: Values by dotted key, such as `{"condense.images.lr": [0.01, 0.02]}`.
        variants: Several keys together, by the name of the variant; or a YAML file of such.
        grid: All combinations of `changes`, in place of each value alone.
        steps: Image steps of every variant; None: those of the recipe.
        seconds: In place of steps: so many seconds of condensing (on a CPU of one core), as a number of image steps
            that follows from timing each variant for a part of it.
        seeds: Condensing seeds, from the recipe's on.
        protocol: `quick`, a file, or None: the recipe's own.
        name: Directory of the sweep, below `sweeps` in `root`; None: by recipe and budget.
        device: `auto` and `cuda`: every GPU works on a run; else a CPU's cores do.
        workers: Runs that are worked on at a time; None: one per core, or per GPU; 0: one, in this process.
        slurm: Run as an array of SLURM jobs, with these options of submitit; None: on this machine.
        root: Folder of the runs.
        overrides: Changes in the form of the command line; one value changes the recipe, several are swept.
        callbacks: A function, or several, called with what is said.
        progress: Whether to show what is done on stderr; None: yes.
        stop: Set it to stop at the next safe place.

    Raises:
        UsageError: The recipe, a variant or the budget is not as it must be; nothing was written.
        Interrupted: It was stopped; the same call goes on.
    """
    from hmdc_hub.pipeline.progress import reporting

    asked = request(
        recipe, changes, overrides=overrides, variants=variants, grid=grid, steps=steps, seconds=seconds, seeds=seeds,
        protocol=protocol, name=name, device=str(device), workers=workers, slurm=slurm, root=root,
    )  # fmt: skip
    with stop_on_signals(stop) as flag, reporting(progress, callbacks) as callback:
        return Sweep(asked.path, asked.run(callback, flag))
