"""The whole job in a run directory: condense, evaluate, package; what is there already is not done again.

The three libraries know nothing of one another; here is their order, nothing else.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from hmdc_hub.catalog import read_recipe_file, stored_recipe_text
from hmdc_hub.errors import FormatError, HmdcError, NewerFormatError, RunError, RunExistsError, UsageError
from hmdc_hub.events import Callback, Event, Note, Stage, Training
from hmdc_hub.models import build_for, settle
from hmdc_hub.processes import Work
from hmdc_hub.publish.verify import verify
from hmdc_hub.schema import EvaluateSpec, ModelSpec, Recipe
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store.condensed import read_header
from hmdc_hub.store.files import (
    json_text,
    read_info,
    read_scores,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from hmdc_hub.store.rundir import RunDir, remove
from hmdc_hub.text import flat

if TYPE_CHECKING:
    from hmdc_hub.condenser import Ranks
    from hmdc_hub.evaluator import EvaluatedSet
    from hmdc_hub.report.plots import SetPictures

StageName = Literal["condense", "evaluate", "package"]
STAGES: tuple[StageName, ...] = get_args(StageName)

ELSEWHERE = "Choose another place with --run-dir (in Python: run_dir=)."


@dataclass(frozen=True)
class Job:
    """A recipe, the run directory that it is done in, and what to do with what is there."""

    recipe: Recipe
    run: RunDir  # may exist or not
    work: Work
    resume: bool = False  # go on with an unfinished run
    force: bool = False  # remove what is there and start again
    evaluate: bool = True  # False: condense and package, without scores
    image_grids: bool = False  # tell the callback at every network reset what the synthetic images look like
    ranks: Ranks | None = None  # the processes of torchrun that do it together, of which this is one

    @property
    def sets(self) -> list[tuple[Recipe, RunDir]]:
        """The recipe and the directory of every set that is made: its own, or one of each size."""
        if isinstance(self.recipe.condense.ipc, int):
            return [(self.recipe, self.run)]
        return [(one, self.run.of_size(one.condense.size)) for one in self.recipe.of_sizes()]

    def prepared(self) -> Job:
        """Look at the directory, and fill what the recipe leaves open; writes nothing.

        RunExistsError if another process works there, or it holds what this program cannot read; UsageError if it
        cannot be written, or there is no such source or model.
        """
        run = self.run
        there = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UsageError(f"{run.path} cannot be a run directory: {there} is a file.", hint=ELSEWHERE)
        if not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(
                f"{run.path} cannot be a run directory: no permission to write in {there}.", hint=ELSEWHERE
            )
        if run.lock_file.is_file():
            with disk_errors(run.path), run.lock():
                pass  # a run that is going on right now is no unfinished one: say who works there
        return replace(self, recipe=settled(self.recipe, None if self.force else _stored_recipe(run)))

    def do(self) -> dict[StageName, float]:
        """Do what is missing of a prepared job; gives the seconds of the stages that ran.

        Nothing is written before the source is loaded and every model was built once; whatever fails or stops it later,
        what was done before is kept.
        """
        run, stop, source, seconds = self.run, self.work.stop, None, dict[StageName, float]()
        with disk_errors(run.path):
            stages = self.missing_stages()
            if {"condense", "evaluate"} & set(stages):
                source = self._checked_source("condense" in stages)
                stop.raise_if_set("stopped before anything was written")
            if self.force and run.path.exists():
                remove(run)
            if not stages:
                self._tell(stages)
                return seconds
            with run.lock():
                # Another process may have worked here since we looked.
                stages = self.missing_stages()
                if source is None and set(stages) - {"package"}:
                    raise RunExistsError(
                        f"{run.path} was changed by another process just now.", hint="Run the same command again."
                    )
                self._store_recipe()
                self._tell(stages)
                for stage in stages:
                    began = time.monotonic()
                    stop.raise_if_set(f"stopped before the stage: {stage}")
                    self._do(stage, source)
                    seconds[stage] = round(time.monotonic() - began, 1)
        return seconds

    def assist(self) -> None:
        """Do a share of a job that the first of several processes of torchrun does.

        All that this one needs to know stands in the directory, which all of them see.
        """
        assert self.ranks is not None
        wanted = self.ranks.together(torch.zeros(len(STAGES))).tolist()
        stages = [stage for stage, number in zip(STAGES, wanted, strict=True) if number and stage != "package"]
        if stages:
            job = replace(self, recipe=read_recipe_file(self.run.recipe))
            source = load_source(job.recipe.source)
            for stage in stages:
                job._do(stage, source)

    def missing_stages(self) -> list[StageName]:
        """Say which stages are still to do, reading only; RunExistsError if what is in the directory is in the way."""
        recipe, run = self.recipe, self.run
        wanted: list[StageName] = ["condense", "evaluate", "package"] if self.evaluate else ["condense", "package"]
        stored = None if self.force else _stored_recipe(run)
        if stored is None:
            inside = [] if self.force or not run.path.is_dir() else sorted(path.name for path in run.path.iterdir())
            if strangers := [name for name in inside if name != run.lock_file.name]:
                raise RunExistsError(
                    f"{run.path} is not empty and holds no run: {', '.join(strangers[:5])}.", hint=ELSEWHERE
                )
            return wanted
        if stored.condense_hash() != recipe.condense_hash():
            raise _other_recipe(run, stored, recipe)
        state = run.state()
        if state == "unfinished":
            if not self.resume:
                raise RunExistsError(
                    f"{run.path} holds an unfinished run of this recipe.",
                    hint="--resume (resume=True) goes on from its last checkpoint, --force (force=True) removes it and "
                    "starts again.",
                )
            return wanted
        scored = state != "condensed" and all(
            read_scores(size.scores).protocol_hash == recipe.protocol_hash() for _, size in self.sets
        )
        if self.evaluate and not (scored and self.work.reuse):
            return ["evaluate", "package"]
        return [] if package_is_current(recipe, run) else ["package"]

    def complete(self, source: Source) -> None:
        """Make what a condensed run lacks for its scores, and say if its source is another one here.

        FormatError if the images that are to be scored are not those that info.json names.
        """
        for recipe, run in self.sets:
            self._complete(recipe, run, source)

    def _complete(self, recipe: Recipe, run: RunDir, source: Source) -> None:
        callback = self.work.callback
        if not run.finished:
            raise FormatError(
                f"The images in {run.path} are not those that its info.json names.",
                hint="`hmdc-hub condense` with its recipe and --resume makes them again.",
            )
        there, here = read_info(run.info).source.fingerprint, source.info.fingerprint
        if there != here:
            callback(
                Note(
                    f"{recipe.source.id} is not what this set was condensed from (fingerprint {here[:12]}, not "
                    f"{there[:12]}): scores will differ"
                )
            )
        if "initialisation" not in recipe.evaluate.baselines:
            return
        if run.initialisation.is_file():
            try:
                if read_header(run.initialisation)[1]:
                    return
                callback(Note(f"{run.initialisation} has no checksum: an older program wrote it"))
            except NewerFormatError:
                raise
            except FormatError as error:
                callback(Note(error.message))
        from hmdc_hub.condenser import make_initialisation

        callback(Stage("initialisation", "made again from the recipe"))
        make_initialisation(recipe, source, run, device=self.work.device)

    def _checked_source(self, condenses: bool) -> Source:
        """Load the source, and find out before any time is spent whether the recipe goes with it."""
        recipe = self.recipe
        self.work.callback(Stage("source", recipe.source.id))
        source = load_source(recipe.source, callback=self.work.callback)
        if condenses:
            from hmdc_hub.condenser import check_size

            check_size(recipe, source.train.counts)
        for spec in (*recipe.pool, *recipe.evaluate.settled().models):
            build_for(spec, source)
        return source

    def _do(self, stage: StageName, source: Source | None) -> None:
        """Do a stage, or this process's part of one."""
        # Imported here: packaging alone does not wait for the condenser, nor condensing alone for the evaluation.
        recipe, run, work = self.recipe, self.run, self.work
        if stage == "package":
            from hmdc_hub.publish.build import package

            work.callback(Stage("package", str(run.package)))
            folder = package(run)
            for config, size in run.whole.sets().items():
                picture = folder / "assets" / config / "preview.png"
                write_bytes_atomic(size.preview, picture.read_bytes())  # where a person looks first
            return
        assert source is not None
        if stage == "condense":
            from hmdc_hub.condenser import condense

            condense(
                recipe, source, run, device=work.device, ranks=self.ranks,
                callback=work.callback, stop=work.stop, image_grids=self.image_grids,
            )  # fmt: skip
            return
        from hmdc_hub.evaluator import of_run

        if not work.assists:
            self.complete(source)
        self._tell(())  # the first process has made what else the scores need
        # The largest first: what it trains on the full set, which it can afford, the others then know.
        for of_size, size in sorted(self.sets, key=lambda pair: -pair[0].condense.size):
            told = replace(work, callback=told_of(size, work.callback))
            score(of_run(of_size, size), recipe.evaluate, source, size, told, shown=size)

    def _tell(self, stages: Sequence[StageName]) -> None:
        """Tell the other processes what is to be done; all of them meet here."""
        if self.ranks is not None:
            self.ranks.together(torch.tensor([float(stage in stages) for stage in STAGES]))

    def _store_recipe(self) -> None:
        """Write the resolved recipe, and let the other files follow where only protocol or name changed."""
        place, text = self.run.recipe, stored_recipe_text(self.recipe)
        if place.is_file() and place.read_text(encoding="utf-8") == text:
            return
        for recipe, run in self.sets:
            if run.info.is_file():
                changed = {"protocol_hash": recipe.protocol_hash(), "recipe_name": recipe.name}
                write_json_atomic(run.info, read_info(run.info).model_copy(update=changed))
            if run.scores.is_file() and read_scores(run.scores).protocol_hash != recipe.protocol_hash():
                run.scores.unlink()  # they are of another protocol
            if run.recipe != place and run.recipe.is_file():
                write_text_atomic(run.recipe, stored_recipe_text(recipe))
        # Last: as long as it is the old one, the next run does all of this again.
        write_text_atomic(place, text)


def told_of(size: RunDir, callback: Callback) -> Callback:
    """Give a callback for the evaluation of one set: of several sizes it says which one, `ipc10/condensed`."""
    if size.whole == size:
        return callback
    name = size.path.name

    def tell(event: Event) -> None:
        if isinstance(event, Training):
            event = replace(event, training_set=f"{name}/{event.training_set}")
        elif isinstance(event, Stage) and event.name == "evaluate":
            event = replace(event, detail=f"{name}, {event.detail}")
        callback(event)

    return tell


def package_is_current(recipe: Recipe, run: RunDir) -> bool:
    """Tell whether the package of a complete run is of this recipe, these images and these scores, and in order."""
    parts = zip(recipe.of_sizes(), run.sizes, strict=True)
    return all(_is_packaged(*part) for part in parts) and all(finding.ok for finding in verify(run.package))


def _is_packaged(recipe: Recipe, run: RunDir) -> bool:
    info, folder = read_info(run.info), run.package / recipe.publish.config
    wanted = {
        "recipe.yaml": stored_recipe_text(recipe.without_paths(info.source)).encode(),
        "info.json": json_text(info.without_paths()).encode(),
        "scores.json": run.public_scores() if run.scores.is_file() else None,
    }
    there = {name: path.read_bytes() if (path := folder / name).is_file() else None for name in wanted}
    return there == wanted


def _stored_recipe(run: RunDir) -> Recipe | None:
    if not run.recipe.is_file():
        return None
    try:
        return read_recipe_file(run.recipe)
    except FormatError as error:
        raise RunExistsError(
            f"{run.path} holds a run that this program cannot go on with: {error.message}",
            hint=f"{error.hint} --force (force=True) removes that run and starts again; --run-dir (run_dir=) takes "
            "another directory.".lstrip(),
        ) from error


def _other_recipe(run: RunDir, stored: Recipe, recipe: Recipe) -> RunExistsError:
    def keys(of: Recipe) -> dict[str, str]:
        plain = of.model_dump(mode="json", include={"seed", "source", "pool", "condense"})
        plain["pool"] = {str(index): model for index, model in enumerate(plain["pool"])}
        return {key: str(value) for key, value in flat(plain)}

    there, here = keys(stored), keys(recipe)
    lines = [
        f"  {key}: {there.get(key, '-')} there, {here.get(key, '-')} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
    ]
    rest = [f"  and {len(lines) - 8} more"] if len(lines) > 8 else []
    return RunExistsError(
        f"{run.path} holds a run of another recipe (condense hash {stored.condense_hash()[:8]}, this one is "
        f"{recipe.condense_hash()[:8]}); they differ in\n" + "\n".join(lines[:8] + rest),
        hint="--run-dir (run_dir=) takes another directory, --force (force=True) removes that run and starts this one.",
    )


def settled(recipe: Recipe, stored: Recipe | None) -> Recipe:
    """Fill the open fields of a recipe's source and models, from the run that is to go on if there is one.

    A recipe that names no revision goes on with the revision its run started with, also when the dataset or a model has
    a newer one since, and also without a network.
    """
    pool, scored = ([], []) if stored is None else (stored.pool, stored.evaluate.models)
    models = [_settled_model(model, scored) for model in recipe.evaluate.models]
    recipe = recipe.model_copy(
        update={
            "pool": [_settled_model(model, pool) for model in recipe.pool],
            "evaluate": recipe.evaluate.model_copy(update={"models": models}),
        }
    )
    source = recipe.source
    if stored is not None and stored.source.id == source.id:
        # A fraction that the recipe does not name is none; one that it names leaves no test split open.
        fractions = {"test_fraction", "validation_fraction"}
        divided = any(getattr(source, name) is not None for name in fractions)
        decided = fractions | ({"test_split"} if divided else set())
        open_fields = {name: getattr(stored.source, name) for name in set(type(source).model_fields) - decided}
        source = source.model_copy(update={k: v for k, v in open_fields.items() if getattr(source, k) is None})
        if source == stored.source:
            return recipe.model_copy(update={"source": source})
    return recipe.model_copy(update={"source": resolve_source(source)})


def _settled_model(model: ModelSpec, stored: Sequence[ModelSpec]) -> ModelSpec:
    if model.revision is None:
        for known in stored:
            if (model.name, model.id, model.weights) == (known.name, known.id, known.weights):
                return model.model_copy(update={"revision": known.revision})
    return settle(model)


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG}


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk or a file system refuses into an error of ours; other operating system errors are bugs."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HmdcError) or error.errno not in _DISK:
            raise
        raise RunError(
            f"{error.filename or folder}: {error.strerror}; what the run had written before is unchanged.",
            hint="Once that is mended, the same command with --resume goes on.",
        ) from error


def score(
    subject: EvaluatedSet, protocol: EvaluateSpec, source: Source, where: RunDir, work: Work, shown: RunDir | None
) -> None:
    """Score a set by a settled protocol, or do a share of that; the report shows pictures of the run it came from.

    Whoever calls holds the directory's lock, unless this process only does a share.
    """
    from hmdc_hub.evaluator import evaluate, result_logs
    from hmdc_hub.report.scored import write_report
    from hmdc_hub.store.files import read_confusion

    if work.assists:
        evaluate(subject, protocol, source, where, work)
        work.callback(Note(f"share {work.share} of the trainings is done"))
        return
    if not work.reuse:
        for path in (*result_logs(where.path), where.scores, where.confusion):
            path.unlink(missing_ok=True)
    names = ", ".join(model.name for model in protocol.models)
    work.callback(Stage("evaluate", f"{names}, {protocol.length} each, protocol {protocol.protocol_hash()[:8]}"))
    scores = evaluate(subject, protocol, source, where, work)
    assert scores is not None
    write_report(where.report, scores, read_confusion(where.confusion), pictures(shown) if shown else None)


def pictures(run: RunDir) -> SetPictures:
    """Draw the condensed images of a complete run; its package shows the same pictures."""
    from hmdc_hub.report.plots import set_pictures

    return set_pictures(read_info(run.info), run.parquet, run.condensed, run.initialisation)
