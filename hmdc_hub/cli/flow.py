"""The whole job of `hmdc-hub condense`, without a word printed: condense, evaluate, package.

The three libraries know nothing of one another; here is the order, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hmdc_hub.catalog import stored_recipe_text
from hmdc_hub.cli.directory import missing, refuse_place, stored_recipe
from hmdc_hub.cli.failures import disk_errors
from hmdc_hub.cli.result import Part, Result, read_result
from hmdc_hub.cli.together import tell
from hmdc_hub.errors import FormatError, NewerFormatError, RunExistsError
from hmdc_hub.events import Listener, Note, Stage, StopFlag, silent
from hmdc_hub.models import build_for, settle
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store import (
    RunDir,
    read_header,
    read_info,
    read_scores,
    remove,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

if TYPE_CHECKING:
    from hmdc_hub.condense import Ranks
    from hmdc_hub.evaluate import Share


@dataclass(frozen=True)
class Wishes:
    """What the command line says about a run, next to the recipe.

    Attributes:
        device: Where condensing and evaluation run.
        resume: Go on with an unfinished run.
        force: Remove what is there and start again.
        evaluate: False: condense only, without scores and package.
        workers: Processes of the evaluation on a CPU; None: one per core.
        reuse: Take trainings that earlier evaluations did, this run's own among them.
        share: Which part of the trainings is this process's; the others assist.
        ranks: The processes that condense and evaluate together, of which this is the first.
    """

    device: torch.device
    resume: bool = False
    force: bool = False
    evaluate: bool = True
    workers: int | None = None
    reuse: bool = True
    share: Share | None = None
    ranks: Ranks | None = None


def carry_out(
    recipe: Recipe, run: RunDir, wishes: Wishes, *, listener: Listener = silent, stop: StopFlag | None = None
) -> Result:
    """Do what is missing of a recipe in a run directory.

    Nothing is written before the source is loaded and every model was built once.

    Args:
        recipe: As `catalog.load_recipe` returns it; open fields of its source are settled here.
        run: Where; may exist or not.
        wishes: What to do with what is there.
        listener: Told about everything.
        stop: Looked at between steps.

    Raises:
        RunExistsError: What is in the directory is in the way, and nothing says what to do with it.
        UsageError: The source or a model is broken; nothing was written.
        RunError: Something failed on the way; what was done before is kept.
        Interrupted: `stop` was set.
    """
    with disk_errors(run.path):
        return _carry_out(recipe, run, wishes, listener, stop or StopFlag())


def _carry_out(recipe: Recipe, run: RunDir, wishes: Wishes, listener: Listener, stop: StopFlag) -> Result:
    refuse_place(run)
    if run.lock_file.is_file():
        with run.lock():
            pass  # a run that is going on right now is no unfinished one: say who works there
    recipe = settled(recipe, None if wishes.force else stored_recipe(run))
    parts = missing(recipe, run, wishes)
    source = None
    if {"condense", "evaluate"} & set(parts):
        listener(Stage("source", recipe.source.id))
        source = load_source(recipe.source, listener=listener)
        if "condense" in parts:
            from hmdc_hub.condense import check_size

            check_size(recipe, source.train.counts)
        for spec in (*recipe.pool, *recipe.evaluate.settled().models):
            build_for(spec, source)  # one that cannot be built is found before any time is spent
        stop.raise_if_set("stopped before anything was written")
    if wishes.force and run.path.exists():
        remove(run)
    seconds: dict[str, float] = {}
    if parts:
        with run.lock():
            # Another process may have worked here since we looked.
            parts = missing(recipe, run, wishes)
            if source is None and set(parts) - {"package"}:
                raise RunExistsError(
                    f"{run.path} was changed by another process just now.", hint="Run the same command again."
                )
            _store_recipe(recipe, run)
            if wishes.ranks is not None:
                tell(wishes.ranks, parts)
            for part in parts:
                began = time.monotonic()
                stop.raise_if_set(f"stopped before the part: {part}")
                _do(part, recipe, source, run, wishes, listener, stop)
                seconds[part] = round(time.monotonic() - began, 1)
    elif wishes.ranks is not None:
        tell(wishes.ranks, parts)
    return read_result(run, seconds, tuple(parts))


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


def _do(
    part: Part,
    recipe: Recipe,
    source: Source | None,
    run: RunDir,
    wishes: Wishes,
    listener: Listener,
    stop: StopFlag,
) -> None:
    # Imported here: packaging alone does not wait for the condenser, nor condensing alone for the evaluation.
    if part == "condense" and source is not None:
        from hmdc_hub.condense import condense

        condense(recipe, source, run, device=wishes.device, ranks=wishes.ranks, listener=listener, stop=stop)
    elif part == "evaluate" and source is not None:
        from hmdc_hub.cli.scoring import forget, score
        from hmdc_hub.evaluate import of_run

        if not wishes.reuse:
            forget(run)
        complete(recipe, source, run, wishes.device, listener)
        if wishes.ranks is not None:
            tell(wishes.ranks, ())
        score(
            of_run(recipe, run),
            recipe.evaluate,
            source,
            run,
            device=wishes.device,
            workers=wishes.workers,
            listener=listener,
            stop=stop,
            reuse=wishes.reuse,
            share=wishes.share,
            preview=_preview(run),
        )
    elif part == "package":
        from hmdc_hub.publish import package

        listener(Stage("package", str(run.package)))
        folder = package(run)
        picture = folder / "assets" / recipe.publish.config / "preview.png"
        write_bytes_atomic(run.preview, picture.read_bytes())  # where a person looks first


def _preview(run: RunDir) -> bytes:
    """Draw the condensed images; the package shows the same picture."""
    from hmdc_hub.report.preview import preview_of
    from hmdc_hub.store import training_shape

    info = read_info(run.info)
    return preview_of(run.parquet, training_shape(info, run.condensed), info.source.class_names)


def complete(recipe: Recipe, source: Source, run: RunDir, device: torch.device, listener: Listener) -> None:
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
        listener(
            Note(
                f"{recipe.source.id} is not what this set was condensed from (fingerprint {here[:12]}, not "
                f"{there[:12]}): scores will differ"
            )
        )
    if "start" not in recipe.evaluate.against:
        return
    if (problem := _problem_of_start(run)) is not None:
        from hmdc_hub.condense import make_start

        if problem:
            listener(Note(problem))
        listener(Stage("start", "made again from the recipe"))
        make_start(recipe, source, run, device=device)


def _problem_of_start(run: RunDir) -> str | None:
    """Say why the starting images cannot be scored; None: they can; empty: they are not there."""
    if not run.start.is_file():
        return ""
    try:
        checked = read_header(run.start)[1]
    except NewerFormatError:
        raise
    except FormatError as error:
        return error.message
    return None if checked else f"{run.start} has no checksum: an older program wrote it"


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
