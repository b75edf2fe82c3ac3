"""`hmdc-hub condense`: the whole job, from a recipe to a package."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli import output
from hmdc_hub.cli.overrides import OVERRIDES, RecipeCommand
from hmdc_hub.cli.progress import progress
from hmdc_hub.cli.signals import stop_on_signals
from hmdc_hub.cli.together import assist, one_voice
from hmdc_hub.errors import Interrupted
from hmdc_hub.events import StopFlag

if TYPE_CHECKING:
    from hmdc_hub.cli.flow import Wishes
    from hmdc_hub.cli.result import Result
    from hmdc_hub.processes import Launched
    from hmdc_hub.schema import Recipe
    from hmdc_hub.store import RunDir

EPILOG = """\b
hmdc-hub condense digits_ipc1
hmdc-hub condense digits_ipc1 -o condense.resets=2 -o evaluate.seeds=1
hmdc-hub condense my.yaml --dry-run
hmdc-hub condense my.yaml --resume"""


@click.command(cls=RecipeCommand, short_help="Condense a dataset, score the result and package it.", epilog=EPILOG)
@click.argument("recipe")
@OVERRIDES
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to work.  [default: runs/<recipe>, with -o runs/<recipe>-<hash>]",
)
@click.option("--resume", is_flag=True, help="Go on with an unfinished run from its last checkpoint.")
@click.option("--force", is_flag=True, help="Remove the run that is in the directory and start again.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="CPU processes of the evaluation.")
@click.option("--dry-run", is_flag=True, help="Print what it would do and cost (half a minute); write nothing.")
@click.option(
    "--ranks", type=click.IntRange(min=1), metavar="N", help="With --dry-run: plan for so many processes of torchrun."
)
@click.option("--no-evaluate", is_flag=True, help="Leave out the scores; a later run adds them.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def condense(
    recipe: str,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    resume: bool,
    force: bool,
    device: str,
    workers: int | None,
    dry_run: bool,
    ranks: int | None,
    no_evaluate: bool,
    as_json: bool,
) -> None:
    """Condense the dataset of RECIPE, score the result and package it.

    RECIPE is a file, or the bare name of one that `hmdc-hub recipes ls` lists. What a run directory already holds is
    not done again; Ctrl-C stops at a safe place, and --resume goes on from there. Several GPUs or machines can work on
    it together: `torchrun --nproc-per-node 4 -m hmdc_hub condense ...`.
    """
    if resume and force:
        raise click.UsageError("--resume goes on with a run and --force removes it: give one of them.")
    if ranks is not None and not dry_run:
        raise click.UsageError(
            f"--ranks is for --dry-run; start them with: torchrun --nproc-per-node {ranks} -m hmdc_hub condense ..."
        )
    from hmdc_hub.processes import launched

    started, options = launched(), Options(overrides, run_dir, resume, force, device, workers, no_evaluate, as_json)
    with nullcontext() if started is None else one_voice(started):
        if not dry_run:
            _condense(recipe, options, started)
        elif started is None or started.index == 0:
            _print_plan(recipe, options, ranks or 1)


@dataclass(frozen=True)
class Options:
    """The options of the command, as they were given."""

    overrides: tuple[str, ...]
    run_dir: Path | None
    resume: bool
    force: bool
    device: str
    workers: int | None
    no_evaluate: bool
    as_json: bool

    def again(self, recipe: str) -> str:
        """Write the command that goes on with the run, without its `--resume`."""
        return shlex.join(
            ["hmdc-hub", "condense", recipe]
            + [part for override in self.overrides for part in ("-o", override)]
            + ([] if self.run_dir is None else ["--run-dir", str(self.run_dir)])
            + ([] if self.device == "auto" else ["--device", self.device])
            + ([] if self.workers is None else ["--workers", str(self.workers)])
        )


def _condense(name: str, options: Options, started: Launched | None) -> None:
    from hmdc_hub.catalog import load_recipe

    recipe = load_recipe(name, options.overrides)
    # From here on torch is needed, which takes seconds to import: a broken recipe has been refused without it.
    from hmdc_hub.cli.device import pick
    from hmdc_hub.cli.directory import run_directory
    from hmdc_hub.cli.flow import Wishes
    from hmdc_hub.store import RunDir

    chosen = pick(options.device, started)
    found = options.run_dir
    run = RunDir(found) if found is not None else run_directory(recipe, overridden=bool(options.overrides))
    wishes = Wishes(
        chosen,
        resume=options.resume,
        force=options.force,
        evaluate=not options.no_evaluate,
        workers=options.workers,
    )
    again = options.again(name)
    if started is None:
        _print_result(_carry_out(recipe, run, wishes, again), again, options.as_json)
        return
    from hmdc_hub.condense import Ranks
    from hmdc_hub.evaluate.share import share_of_torchrun

    again = f"torchrun --nproc-per-node ... -m {again.replace('hmdc-hub', 'hmdc_hub', 1)}"
    group = Ranks.of_torchrun(chosen)
    if started.index > 0:
        stop = StopFlag()
        with stop_on_signals(stop, lambda text: None):
            assist(run, group, chosen, options.workers, stop)
    else:
        shared = replace(wishes, ranks=group, share=share_of_torchrun())
        _print_result(_carry_out(recipe, run, shared, again), again, options.as_json)
    group.close()


def _carry_out(recipe: Recipe, run: RunDir, wishes: Wishes, again: str) -> Result:
    """Run the job with progress on stderr and signals watched; `again` is the command that goes on with it."""
    from hmdc_hub.cli.flow import carry_out

    show, stop = progress(), StopFlag()
    try:
        with stop_on_signals(stop, show.urgent):
            return carry_out(recipe, run, wishes, listener=show, stop=stop)
    except Interrupted as error:
        hint = f"go on with: {again}{'' if wishes.evaluate else ' --no-evaluate'} --resume"
        raise Interrupted(error.message, signal_number=error.signal_number, hint=hint) from error
    finally:
        show.close()


def _print_result(result: Result, again: str, as_json: bool) -> None:
    from hmdc_hub.cli.result import result_document, result_text

    if not result.done:
        output.talk(f"{result.run.path} has it all already; --force would start again")
    if as_json:
        output.document(result_document(result))
    else:
        output.data(result_text(result))
    if result.package is not None:
        output.hint(f'load_dataset("{result.package.as_posix()}"), hmdc-hub push {result.run.path.name}')
    if result.scores is None:
        output.hint(f"{again}  (for the scores)")


def _print_plan(name: str, options: Options, ranks: int) -> None:
    from hmdc_hub.catalog import load_recipe

    recipe = load_recipe(name, options.overrides)
    from hmdc_hub.cli.device import pick
    from hmdc_hub.cli.forecast import count, counted_text, forecast_document, measure, measured_text, measuring

    device, show = pick(options.device), progress()
    try:
        with measuring() as probe:
            found = count(recipe, device, ranks, show)
            if not options.as_json:
                output.data(counted_text(found))
            found = measure(found, probe, options.workers, show)
    finally:
        show.close()
    if options.as_json:
        output.document(forecast_document(found))
    else:
        output.data(measured_text(found))
