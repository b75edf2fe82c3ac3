"""`hmdc-hub sweep`: variants of a recipe at an equal budget."""

from __future__ import annotations

from typing import Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import DEVICE, JSON, PATH, ROOT, RecipeCommand
from hmdc_hub.errors import RunError
from hmdc_hub.text import count

EPILOG = """\b
hmdc-hub sweep digits_ipc1 -o condense.images.lr=0.01,0.02,0.05
hmdc-hub sweep my.yaml -o condense.ipc=1,2 -o condense.batch=64,128 --grid
hmdc-hub sweep my.yaml --variants variants.yaml --seconds 300 --protocol quick
hmdc-hub sweep my.yaml -o condense.batch=64,128 --slurm gpus_per_node=1"""


@click.command(cls=RecipeCommand, short_help="Compare variants of a recipe at an equal budget.", epilog=EPILOG)
@click.argument("recipe")
@click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values of a key with commas between: variants. One value changes the recipe for all.",
)
@click.option(
    "--variants", type=PATH, metavar="FILE", help="YAML file of variants: keys that change together, by name."
)
@click.option("--grid", is_flag=True, help="All combinations of the values, in place of each alone.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Image steps of each.  [default: the recipe's]")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Seconds of condensing of each, in place of steps: each is timed for a part of it, and gets the image steps "
    "that fit.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Condensing seeds.")
@click.option("--protocol", metavar="NAME", help="quick, strong, or a file.  [default: the recipe's own]")
@click.option("--name", metavar="NAME", help="Directory below ROOT/sweeps.  [default: by recipe and budget]")
@ROOT
@DEVICE
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Runs at a time.  [default: one per core, or per GPU]"
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="Run as SLURM jobs, with an option of submitit, such as slurm_partition=gpu; may stand several times.",
)
@click.option("--dry-run", is_flag=True, help="Print the variants; write nothing.")
@JSON
def sweep(recipe: str, slurm: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> None:
    """Condense variants of RECIPE at an equal budget, score them on held-out images, and compare.

    Each value alone stands beside the recipe as it is. A fifth of what would be condensed is held back and scored on;
    the test split is left alone, and nothing that a sweep makes can be pushed. Differences are paired by condensing
    seed. The same command goes on with a sweep that was stopped, and takes further values.
    """
    from hmdc_hub.pipeline import sweep as sweeping

    given = _slurm(slurm)
    if dry_run:
        asked = sweeping.request(recipe, slurm=given, **options)
        output.emit(as_json, lambda: _plan(asked), lambda: _plan_text(asked))
        return
    found = sweeping.sweep(recipe, slurm=given, **options)
    output.emit(as_json, found.document, lambda: found.summary(output.room()))
    for run in found.results[0].failed:
        output.talk(f"{run.path}: {run.problem}", "failed:", "red")
    output.hint(f"open {found.report}, hmdc-hub runs ls --root {found.path}")
    if failed := found.results[0].failed:
        runs = sum(len(variant.runs) for variant in found.results[0].variants)
        raise RunError(f"{len(failed)} of {count(runs, 'run')} failed", hint="The same command tries them again.")


def _slurm(given: tuple[str, ...]) -> dict[str, Any] | None:
    if not given:
        return None
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.UsageError(f"--slurm {text} must be KEY=VALUE, such as slurm_partition=gpu.")
        options[key] = int(value) if value.isdecimal() else value
    return options


def _plan(asked: Any) -> dict[str, Any]:
    changes = {one.name: {key: str(value) for key, value in one.changes.items()} for one in asked.variants}
    budget = {"steps": asked.steps, "seconds": asked.seconds}
    return {"directory": str(asked.path), "variants": changes, "condensing_seeds": asked.seeds, **budget}


def _plan_text(asked: Any) -> str:
    runs = f"{count(len(asked.variants), 'variant')} x {count(asked.seeds, 'condensing seed')}, into {asked.path}"
    return "\n".join([runs, *(f"  {one.name}" for one in asked.variants)])
