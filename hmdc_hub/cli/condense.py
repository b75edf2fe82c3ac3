"""`hmdc-hub condense`: the whole job, from a recipe to a package."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import DEVICE, JSON, OVERRIDES, PATH, VERBOSE, WORKERS, RecipeCommand
from hmdc_hub.errors import HmdcError, Interrupted

if TYPE_CHECKING:
    from hmdc_hub.processes import Launched

EPILOG = """\b
hmdc-hub condense digits_ipc1
hmdc-hub condense digits_ipc1 -o condense.resets=2 -o evaluate.seeds=1
hmdc-hub condense my.yaml --dry-run
hmdc-hub condense my.yaml --resume"""


@click.command(cls=RecipeCommand, short_help="Condense a dataset, score the result and package it.", epilog=EPILOG)
@click.argument("recipe")
@OVERRIDES
@click.option(
    "--run-dir", type=PATH, metavar="DIR", help="Where to work.  [default: runs/<recipe>, with -o runs/<recipe>-<hash>]"
)
@click.option("--resume", is_flag=True, help="Go on with an unfinished run from its last checkpoint.")
@click.option("--force", is_flag=True, help="Remove the run that is in the directory and start again.")
@DEVICE
@WORKERS
@click.option(
    "--report-to",
    multiple=True,
    metavar="NAME",
    help="A tracker: trackio, wandb or tensorboard; may stand several times.",
)
@click.option("--dry-run", is_flag=True, help="Print what it would do and cost (half a minute); write nothing.")
@click.option(
    "--ranks", type=click.IntRange(min=1), metavar="N", help="With --dry-run: plan for so many processes of torchrun."
)
@click.option("--no-evaluate", is_flag=True, help="Leave out the scores; a later run adds them.")
@VERBOSE
@JSON
def condense(
    recipe: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    ranks: int | None,
    no_evaluate: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Condense the dataset of RECIPE, score the result and package it.

    RECIPE is a file, or the bare name of one that `hmdc-hub recipes ls` lists. What a run directory already holds is
    not done again; Ctrl-C stops at a safe place, and --resume goes on from there. Several GPUs or machines can work on
    it together: `torchrun --nproc-per-node 4 -m hmdc_hub condense ...`.
    """
    if options["resume"] and options["force"]:
        raise click.UsageError("--resume goes on with a run and --force removes it: give one of them.")
    if ranks is not None and not dry_run:
        raise click.UsageError(
            f"--ranks is for --dry-run; start them with: torchrun --nproc-per-node {ranks} -m hmdc_hub condense ..."
        )
    from hmdc_hub.pipeline.recipe import load_recipe
    from hmdc_hub.processes import launched

    started = launched()
    first = started is None or started.index == 0
    with one_voice(started):
        # Before anything needs torch, which takes seconds to import: a broken recipe is refused without it.
        found = load_recipe(recipe, *overrides)
        if dry_run:
            if first:
                plan = found.plan(options["device"], ranks=ranks or 1, workers=options["workers"])
                output.emit(as_json, plan.document, lambda: str(plan))
            return
        from hmdc_hub.pipeline import api

        again = _again(recipe, started, o=overrides, **options)
        try:
            run = api.condense(found, evaluate=not no_evaluate, progress="verbose" if verbose else None, **options)
        except Interrupted as error:
            hint = f"go on with: {again}{' --no-evaluate' if no_evaluate else ''} --resume"
            raise Interrupted(error.message, signal_number=error.signal_number, hint=hint) from error
        if not first:
            return
        if not run.seconds:
            output.talk(f"{run.path} has it all already; --force would start again")
        output.emit(as_json, lambda: output.run_document(run), run.summary)
        name = run.path.name if run.path.parent == api.RUNS else str(run.path)
        output.hint(f"hmdc-hub runs show {name}, hmdc-hub push {name}" if run.scored else again)


def _again(recipe: str, started: Launched | None, **given: object) -> str:
    """Write the command that goes on with the run, without its `--resume`."""
    parts = ["hmdc-hub", "condense", recipe]
    for name, value in given.items():
        option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        left_out = value is None or value == "auto" or isinstance(value, bool)
        for one in value if isinstance(value, tuple) else () if left_out else (value,):
            parts += [option, str(one)]
    text = shlex.join(parts)
    return text if started is None else f"torchrun --nproc-per-node ... -m {text.replace('hmdc-hub', 'hmdc_hub', 1)}"


@contextmanager
def one_voice(started: Launched | None) -> Iterator[None]:
    """Let the first process in which something goes wrong say so, and the others end quietly with the same status."""
    try:
        yield
    except (HmdcError, click.ClickException) as error:
        if started is None or _first_to_say(started):
            raise
        found = output.shown(error)
        # Not by way of the interpreter's end: torch waits there for peers that are gone.
        sys.stdout.flush()
        os._exit(1 if found is None else found[0])


def _first_to_say(started: Launched) -> bool:
    """Say whether this process is the first to ask; where that cannot be known, it may speak."""
    if started.store is None:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(*started.store, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return bool(store.add(f"hmdc-hub/said/{started.attempt}", 1) == 1)
    except RuntimeError:  # torchrun itself is gone
        return True
