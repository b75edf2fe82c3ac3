"""The whole job in a run directory: condense, evaluate, package; what is there already is not done again.

The three libraries know nothing of one another; here is their order, nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from hmdc_hub.catalog import read_recipe_file, stored_recipe_text
from hmdc_hub.errors import FormatError, HmdcError, NewerFormatError, RunError, RunExistsError, UsageError
from hmdc_hub.events import Callback, Note, Stage, StopFlag, silent
from hmdc_hub.models import build_for, settle
from hmdc_hub.publish.verify import verify
from hmdc_hub.schema import EvaluateSpec, ModelSpec, Recipe, Scores
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

if TYPE_CHECKING:
    from hmdc_hub.condenser import Ranks
    from hmdc_hub.evaluator import EvaluatedSet, Shard

StageName = Literal["condense", "evaluate", "package"]
STAGES: tuple[StageName, ...] = get_args(StageName)

ELSEWHERE = "Choose another place with --run-dir (in Python: run_dir=)."


@dataclass(frozen=True)
class RunOptions:
    """How to work on a run, next to its recipe.

    Attributes:
        device: Where condensing and evaluation run.
        resume: Go on with an unfinished run.
        force: Remove what is there and start again.
        evaluate: False: condense and package, without scores.
        workers: Processes of the evaluation on a CPU; None: one per core.
        reuse: Take trainings that earlier evaluations did, this run's own among them.
        image_grids: Tell the callback at every network reset what the synthetic images look like.
        shard: Which part of the trainings is this process's; the others assist.
        ranks: The processes that condense and evaluate together, of which this is one.
    """

    device: torch.device
    resume: bool = False
    force: bool = False
    evaluate: bool = True
    workers: int | None = None
    reuse: bool = True
    image_grids: bool = False
    shard: Shard | None = None
    ranks: Ranks | None = None


def prepared(recipe: Recipe, run: RunDir, *, force: bool = False) -> Recipe:
    """Look at the directory that a recipe is to run in, and fill what the recipe leaves open; writes nothing.

    Raises:
        RunExistsError: Another process works there, or it holds what this program cannot read.
        UsageError: The directory cannot be written, or there is no such source or model.
    """
    there = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{run.path} cannot be a run directory: {there} is a file.", hint=ELSEWHERE)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{run.path} cannot be a run directory: no permission to write in {there}.", hint=ELSEWHERE)
    if run.lock_file.is_file():
        with disk_errors(run.path), run.lock():
            pass  # a run that is going on right now is no unfinished one: say who works there
    return settled(recipe, None if force else _stored_recipe(run))


def run_recipe(
    recipe: Recipe, run: RunDir, options: RunOptions, *, callback: Callback = silent, stop: StopFlag | None = None
) -> dict[StageName, float]:
    """Do what is missing of a recipe in a run directory.

    Nothing is written before the source is loaded and every model was built once.

    Args:
        recipe: As `prepared` gives it.
        run: Where; may exist or not.
        options: What to do with what is there.
        callback: Told about everything.
        stop: Looked at between steps.

    Returns:
        Seconds of the stages that ran; empty if everything was there.

    Raises:
        RunExistsError: What is in the directory is in the way, and nothing says what to do with it.
        UsageError: The source or a model is broken; nothing was written.
        RunError: Something failed on the way; what was done before is kept.
        Interrupted: `stop` was set.
    """
    stop, source, seconds = stop or StopFlag(), None, dict[StageName, float]()
    with disk_errors(run.path):
        stages = missing_stages(recipe, run, options)
        if {"condense", "evaluate"} & set(stages):
            source = _checked_source(recipe, "condense" in stages, callback)
            stop.raise_if_set("stopped before anything was written")
        if options.force and run.path.exists():
            remove(run)
        if not stages:
            _tell(options.ranks, stages)
            return seconds
        with run.lock():
            # Another process may have worked here since we looked.
            stages = missing_stages(recipe, run, options)
            if source is None and set(stages) - {"package"}:
                raise RunExistsError(
                    f"{run.path} was changed by another process just now.", hint="Run the same command again."
                )
            _store_recipe(recipe, run)
            _tell(options.ranks, stages)
            for stage in stages:
                began = time.monotonic()
                stop.raise_if_set(f"stopped before the stage: {stage}")
                _do(stage, recipe, source, run, options, callback, stop)
                seconds[stage] = round(time.monotonic() - began, 1)
    return seconds


def _checked_source(recipe: Recipe, condenses: bool, callback: Callback) -> Source:
    """Load the source, and find out before any time is spent whether the recipe goes with it."""
    callback(Stage("source", recipe.source.id))
    source = load_source(recipe.source, callback=callback)
    if condenses:
        from hmdc_hub.condenser import check_size

        check_size(recipe, source.train.counts)
    for spec in (*recipe.pool, *recipe.evaluate.settled().models):
        build_for(spec, source)
    return source


def _do(
    stage: StageName,
    recipe: Recipe,
    source: Source | None,
    run: RunDir,
    options: RunOptions,
    callback: Callback,
    stop: StopFlag,
) -> None:
    # Imported here: packaging alone does not wait for the condenser, nor condensing alone for the evaluation.
    if stage == "package":
        from hmdc_hub.publish.build import package

        callback(Stage("package", str(run.package)))
        picture = package(run) / "assets" / recipe.publish.config / "preview.png"
        write_bytes_atomic(run.preview, picture.read_bytes())  # where a person looks first
        return
    assert source is not None
    if stage == "condense":
        from hmdc_hub.condenser import condense

        condense(
            recipe,
            source,
            run,
            device=options.device,
            ranks=options.ranks,
            callback=callback,
            stop=stop,
            image_grids=options.image_grids,
        )
        return
    from hmdc_hub.evaluator import of_run

    if not options.reuse:
        forget(run)
    complete(recipe, source, run, options.device, callback)
    _tell(options.ranks, ())
    score(of_run(recipe, run), recipe.evaluate, source, run, options, callback, stop, preview_png(run))


def assist(run: RunDir, options: RunOptions, stop: StopFlag) -> None:
    """Do a share of a job that the first of several processes of torchrun does with `run_recipe`.

    All that this one needs to know stands in the directory, which all of them see.
    """
    assert options.ranks is not None
    wanted = options.ranks.together(torch.zeros(len(STAGES))).tolist()
    stages = [stage for stage, number in zip(STAGES, wanted, strict=True) if number]
    if not {"condense", "evaluate"} & set(stages):
        return
    recipe = read_recipe_file(run.recipe)
    source = load_source(recipe.source)
    if "condense" in stages:
        from hmdc_hub.condenser import condense

        condense(
            recipe, source, run, device=options.device, ranks=options.ranks, stop=stop, image_grids=options.image_grids
        )
    if "evaluate" in stages and options.shard is not None:
        from hmdc_hub.evaluator import assist as assist_evaluation
        from hmdc_hub.evaluator import of_run

        _tell(options.ranks, ())  # the first process has made what else the scores need
        assist_evaluation(
            of_run(recipe, run),
            recipe.evaluate,
            source,
            run,
            options.shard,
            device=options.device,
            workers=options.workers,
            callback=silent,
            stop=stop,
        )


def _tell(ranks: Ranks | None, stages: Sequence[StageName]) -> None:
    """Tell the other processes what is to be done."""
    if ranks is not None:
        ranks.together(torch.tensor([float(stage in stages) for stage in STAGES]))


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


# What the recipe leaves open.


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
        decided = {"test_fraction"} | ({"test_split"} if source.test_fraction is not None else set())
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


# What is in the directory.


def run_directory(recipe: Recipe, *, overridden: bool, root: Path = Path("runs")) -> RunDir:
    """Choose where a recipe runs: `runs/<name>`, with overrides `runs/<name>-<hash8>`.

    The hash is that of the recipe before its source is looked up, so that a dataset that moves on does not move the
    directory.
    """
    if not overridden:
        return RunDir(root / recipe.name)
    digest = hashlib.sha256((recipe.condense_hash() + recipe.protocol_hash()).encode()).hexdigest()
    return RunDir(root / f"{recipe.name}-{digest[:8]}")


def missing_stages(recipe: Recipe, run: RunDir, options: RunOptions) -> list[StageName]:
    """Say which stages of a recipe are still to do in a directory, reading only; its source must be settled.

    Raises:
        RunExistsError: The directory is in the way.
    """
    wanted: list[StageName] = ["condense", "evaluate", "package"] if options.evaluate else ["condense", "package"]
    stored = None if options.force else _stored_recipe(run)
    if stored is None:
        inside = [] if options.force or not run.path.is_dir() else sorted(path.name for path in run.path.iterdir())
        if strangers := [name for name in inside if name != run.lock_file.name]:
            raise RunExistsError(
                f"{run.path} is not empty and holds no run: {', '.join(strangers[:5])}.", hint=ELSEWHERE
            )
        return wanted
    if stored.condense_hash() != recipe.condense_hash():
        raise _other_recipe(run, stored, recipe)
    state = run.state()
    if state == "unfinished":
        if not options.resume:
            raise RunExistsError(
                f"{run.path} holds an unfinished run of this recipe.",
                hint="--resume (resume=True) goes on from its last checkpoint, --force (force=True) removes it and "
                "starts again.",
            )
        return wanted
    scored = state != "condensed" and read_scores(run.scores).protocol_hash == recipe.protocol_hash()
    if options.evaluate and not (scored and options.reuse):
        return ["evaluate", "package"]
    return [] if package_is_current(recipe, run) else ["package"]


def package_is_current(recipe: Recipe, run: RunDir) -> bool:
    """Tell whether the package of a complete run is of this recipe, these images and these scores, and in order."""
    info, folder = read_info(run.info), run.package / recipe.publish.config
    wanted = {
        "recipe.yaml": stored_recipe_text(recipe.without_paths(info.source)).encode(),
        "info.json": json_text(info.without_paths()).encode(),
        "scores.json": run.public_scores() if run.scores.is_file() else None,
    }
    there = {name: path.read_bytes() if (path := folder / name).is_file() else None for name in wanted}
    return there == wanted and all(finding.ok for finding in verify(run.package))


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
    deciding = {"seed", "source", "pool", "condense"}
    there, here = (_flat(one.model_dump(mode="json", include=deciding)) for one in (stored, recipe))
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


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Write nested data as dotted keys with values as text."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(index): child for index, child in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: str(value)}
    return {
        key: text
        for name, child in value.items()
        for key, text in _flat(child, f"{prefix}.{name}" if prefix else name).items()
    }


def _store_recipe(recipe: Recipe, run: RunDir) -> None:
    """Write the resolved recipe, and let the other files follow where only protocol or name changed."""
    text = stored_recipe_text(recipe)
    if run.recipe.is_file() and run.recipe.read_text(encoding="utf-8") == text:
        return
    if run.info.is_file():
        changed = {"protocol_hash": recipe.protocol_hash(), "recipe_name": recipe.name}
        write_json_atomic(run.info, read_info(run.info).model_copy(update=changed))
    if run.scores.is_file() and read_scores(run.scores).protocol_hash != recipe.protocol_hash():
        run.scores.unlink()  # they are of another protocol
    # Last: as long as it is the old one, the next run does all of this again.
    write_text_atomic(run.recipe, text)


# Evaluating and packaging.


def complete(recipe: Recipe, source: Source, run: RunDir, device: torch.device, callback: Callback) -> None:
    """Make what a run lacks for its scores, and say if its source is another one here.

    Raises:
        FormatError: The images that are to be scored are not those that info.json names.
    """
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
    make_initialisation(recipe, source, run, device=device)


def score(
    subject: EvaluatedSet,
    protocol: EvaluateSpec,
    source: Source,
    where: RunDir,
    options: RunOptions,
    callback: Callback,
    stop: StopFlag,
    preview: bytes | None = None,
) -> Scores:
    """Score a set by a settled protocol, and write the report, with a picture of it (PNG) if there is one."""
    from hmdc_hub.evaluator import evaluate
    from hmdc_hub.report.scored import write_report
    from hmdc_hub.store.files import read_confusion

    names = ", ".join(model.name for model in protocol.models)
    callback(Stage("evaluate", f"{names}, {protocol.length} each, protocol {protocol.protocol_hash()[:8]}"))
    scores = evaluate(
        subject,
        protocol,
        source,
        where,
        device=options.device,
        workers=options.workers,
        callback=callback,
        stop=stop,
        reuse=options.reuse,
        share=options.shard,
    )
    write_report(where.report, scores, read_confusion(where.confusion), preview)
    return scores


def forget(where: RunDir) -> None:
    """Remove finished trainings and scores of an evaluation; whoever calls holds the directory's lock."""
    from hmdc_hub.evaluator import result_logs

    for path in (*result_logs(where.path), where.scores, where.confusion):
        path.unlink(missing_ok=True)


def preview_png(run: RunDir) -> bytes:
    """Draw the condensed images of a complete run; its package shows the same picture."""
    from hmdc_hub.report.preview import preview_of
    from hmdc_hub.store.condensed import training_shape

    info = read_info(run.info)
    return preview_of(run.parquet, training_shape(info, run.condensed), info.source.class_names)
