"""Condense a whole recipe with the old engine, as the program does it now, and in the plain form, start to end.

    python benchmarks/recipe.py [RECIPE] [-o key=value ...] [--source FOLDER] [--rounds 3] [--threads 2]

Each run is a process of its own, timed from its start to its exit: imports, loading, starting images and, for the
engine of commit 2922b06, the start of worker processes count. The plain form (`plain_step.py`) makes the same steps,
eager, one class after another. All take turns. Prints a Markdown table: median seconds, image steps per second, and the
ratio to the first within a round (median, least and greatest); and how far apart the condensed images are.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
from old_stepper import old_tree

METHODS = ("old", "new", "plain")


def condense(method: str, recipe: str, threads: int, run: Path) -> None:
    """Condense in this process."""
    import torch

    from hmdc_hub.condenser import condense
    from hmdc_hub.schema import Recipe
    from hmdc_hub.sources import load_source
    from hmdc_hub.store.rundir import RunDir

    torch.set_num_threads(threads)
    resolved = Recipe.model_validate_json(recipe)
    if method == "plain":
        from plain_step import PlainHMDC

        from hmdc_hub.condenser import run as running
        from hmdc_hub.condenser.cost import AtOnce

        vars(running).update(HMDC=PlainHMDC, choose=lambda *_: AtOnce(1, None, 0))
    workers = {"workers": threads} if method == "old" else {}
    run.mkdir()
    condense(resolved, load_source(resolved.source), RunDir(run), device=torch.device("cpu"), **workers)  # type: ignore[arg-type]


@click.command()
@click.argument("recipe", default="digits_ipc1")
@click.option("-o", "overrides", multiple=True, help="As for hmdc-hub condense.")
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS, show_default=True)
@click.option("--old", type=click.Path(exists=True, path_type=Path), help="Folder with the old engine's files.")
@click.option("--run-dir", type=click.Path(path_type=Path), hidden=True, help="Be one of the runs; RECIPE is JSON.")
def main(
    recipe: str,
    overrides: tuple[str, ...],
    source: str | None,
    rounds: int,
    threads: int,
    methods: tuple[str, ...],
    old: Path | None,
    run_dir: Path | None,
) -> None:
    """Measure and print."""
    if run_dir is not None:
        condense(methods[0], recipe, threads, run_dir)
        return
    from data import recipe_on

    from hmdc_hub.store.condensed import read_condensed

    resolved = recipe_on(source, recipe, overrides)
    steps = resolved.condense.resets * resolved.condense.networks.reset_every
    took: dict[str, list[float]] = {method: [] for method in methods}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = Path(__file__).resolve().parent.parent
        trees = dict.fromkeys(methods, here)
        if "old" in methods:
            trees["old"] = stack.enter_context(old_tree(old))
        for i in range(rounds):
            for method in methods:
                # An older package takes no keys that it does not know.
                words = [resolved.model_dump_json(exclude_defaults=True), "--threads", str(threads)]
                words += ["--method", method, "--run-dir", str(folder / f"{method}{i}")]
                environment = os.environ | {"PYTHONPATH": str(trees[method])}
                program = [sys.executable, str(Path(__file__).resolve()), *words]
                began = time.monotonic()
                subprocess.run(program, check=True, cwd=trees[method], env=environment)
                took[method].append(time.monotonic() - began)
                click.echo(f"round {i + 1}, {method}: {took[method][-1]:.1f} s", err=True)
        sets = {method: read_condensed(folder / f"{method}0" / "condensed.safetensors")[0] for method in methods}
    first = methods[0]
    print(f"{recipe} {' '.join(overrides)}; {steps} steps; threads {threads}; load {os.getloadavg()[0]:.1f}\n")
    print(f"| form | s | steps per s | {first} / it | largest difference of a pixel |\n|---|---:|---:|---:|---:|")
    for method in methods:
        seconds = statistics.median(took[method])
        ratios = sorted(a / b for a, b in zip(took[first], took[method], strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        apart = float((sets[first] - sets[method]).abs().max())
        print(f"| {method} | {seconds:.1f} | {steps / seconds:.2f} | {spread} | {apart:.4f} |")


if __name__ == "__main__":
    main()
