"""Condense a whole recipe in the plain form and as the program does it, start to end.

    python benchmarks/recipe.py [RECIPE] [-o key=value ...] [--source FOLDER] [--rounds 3] [--threads 4]

Each run is a process of its own, timed from its start to its exit: imports, loading, starting images and the start of
worker processes count. The plain form (`plain_step.py`) makes the same steps, eager, one class after another, with
torch's threads inside each operation. The two take turns. Prints a Markdown table: median seconds, image steps per
second, and the ratio within a round (median, least and greatest); and how far apart the condensed images are.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

METHODS = ("plain", "ours")


def condense(method: str, recipe: str, source: str | None, overrides: tuple[str, ...], threads: int, run: Path) -> None:
    """Condense in this process."""
    import torch
    from data import recipe_on
    from plain_step import PlainHand, Serial

    from hmdc_hub.condense import condense
    from hmdc_hub.condense import run as running
    from hmdc_hub.sources import load_source
    from hmdc_hub.store import RunDir

    torch.set_num_threads(threads)
    if method == "plain":
        overrides = (*overrides, "condense.networks.parts=1")
        vars(running).update(Hand=PlainHand, Threads=Serial)
    resolved = recipe_on(source, recipe, overrides)
    run.mkdir()
    condense(
        resolved,
        load_source(resolved.source),
        RunDir(run),
        device=torch.device("cpu"),
        workers=1 if method == "plain" else threads,
    )


@click.command()
@click.argument("recipe", default="digits_ipc1")
@click.option("-o", "overrides", multiple=True, help="As for hmdc-hub condense.")
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=4, show_default=True)
@click.option("--only", type=click.Choice(METHODS), hidden=True, help="Be one of the runs.")
@click.option("--run-dir", type=click.Path(path_type=Path), hidden=True)
def main(
    recipe: str,
    overrides: tuple[str, ...],
    source: str | None,
    rounds: int,
    threads: int,
    only: str | None,
    run_dir: Path | None,
) -> None:
    """Measure and print."""
    if only is not None and run_dir is not None:
        condense(only, recipe, source, overrides, threads, run_dir)
        return
    from hmdc_hub.catalog import load_recipe
    from hmdc_hub.store import read_condensed

    spec = load_recipe(recipe, list(overrides)).condense
    steps = spec.resets * spec.networks.reset_every
    took: dict[str, list[float]] = {method: [] for method in METHODS}
    options = [word for override in overrides for word in ("-o", override)] + (["--source", source] if source else [])
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for method in METHODS:
                place = ["--only", method, "--run-dir", str(Path(folder) / f"{method}{i}")]
                began = time.monotonic()
                program = [sys.executable, __file__, recipe, *options, "--threads", str(threads), *place]
                subprocess.run(program, check=True)
                took[method].append(time.monotonic() - began)
                click.echo(f"round {i + 1}, {method}: {took[method][-1]:.1f} s", err=True)
        sets = [read_condensed(Path(folder) / f"{method}0" / "condensed.safetensors")[0] for method in METHODS]
    ratios = sorted(a / b for a, b in zip(took["plain"], took["ours"], strict=True))
    print(f"{recipe} {' '.join(overrides)}; {steps} steps; threads {threads}; load {os.getloadavg()[0]:.1f}")
    print(f"largest difference of a pixel: {float((sets[0] - sets[1]).abs().max()):.4f}\n")
    print("| form | s | steps per s | plain / ours |\n|---|---:|---:|---:|")
    for method in METHODS:
        seconds = statistics.median(took[method])
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if method == "ours" else ""
        print(f"| {method} | {seconds:.1f} | {steps / seconds:.2f} | {spread} |")


if __name__ == "__main__":
    main()
