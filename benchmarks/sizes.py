"""What several sizes from one run cost, beside the largest alone; and whether each has the bytes of its own run.

    python benchmarks/sizes.py [RECIPE] [-o key=value ...] [--source FOLDER] [--sizes 1,10 ...] [--rounds 3]

Each run is a process of its own; all take turns. Counted is the processor time of the image steps, from the first to
the last, which other work on the machine lengthens less than the clock's, and the peak of resident memory. Prints a
Markdown table: medians, and the ratio to the largest size alone within a round (median, least and greatest). Of the
last round the data files are compared with those that every size gives alone, which are run once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click


def condense(recipe: str, threads: int, folder: Path) -> None:
    """Condense in this process, and print what it took."""
    import torch

    from hmdc_hub.condenser import condense
    from hmdc_hub.events import Event, ImageStep, Stage
    from hmdc_hub.schema import Recipe
    from hmdc_hub.sources import load_source
    from hmdc_hub.store.rundir import RunDir

    torch.set_num_threads(threads)
    times: list[float] = []

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) or (isinstance(event, Stage) and event.name == "condense"):
            times.append(time.process_time())

    resolved = Recipe.model_validate_json(recipe)
    folder.mkdir(parents=True)
    infos = condense(
        resolved, load_source(resolved.source), RunDir(folder), device=torch.device("cpu"), callback=callback
    )
    steps = len(times) - 1
    files = {str(info.ipc): [info.tensors_sha256, info.parquet_sha256] for info in infos}
    step, memory = (times[-1] - times[0]) / steps, infos[0].peak_memory_bytes / 2**20
    print(json.dumps({"step": step, "steps": steps, "memory": memory, "files": files}))


@click.command()
@click.argument("recipe", default="digits_ipc1")
@click.option("-o", "overrides", multiple=True, help="As for hmdc-hub condense.")
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--sizes", "several", multiple=True, default=("1,10", "1,10,50"), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--run-dir", type=click.Path(path_type=Path), hidden=True, help="Be one of the runs; RECIPE is JSON.")
def main(
    recipe: str,
    overrides: tuple[str, ...],
    source: str | None,
    several: tuple[str, ...],
    rounds: int,
    threads: int,
    run_dir: Path | None,
) -> None:
    """Measure and print."""
    if run_dir is not None:
        condense(recipe, threads, run_dir)
        return
    from data import recipe_on

    whole = recipe_on(source, recipe, overrides)
    lists = [[int(size) for size in sizes.split(",")] for sizes in several]
    found: dict[str, list[Any]] = {}
    here = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, sizes: list[int]) -> None:
            changed = whole.model_copy(update={"condense": whole.condense.model_copy(update={"ipc": sizes})})
            one = changed.of_sizes()[0] if name.startswith("alone") else changed
            took = found.setdefault(name, [])
            place = f"{folder}/{name}-{len(took)}"
            program = [sys.executable, str(here), one.model_dump_json(), "--threads", str(threads), "--run-dir", place]
            environment = os.environ | {"PYTHONPATH": str(here.parent.parent)}
            done = subprocess.run(program, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            took.append(json.loads(done.stdout.splitlines()[-1]))
            click.echo(f"{name}: {took[-1]['step']:.2f} s a step", err=True)

        for _ in range(rounds):
            for largest in dict.fromkeys(max(sizes) for sizes in lists):
                run(f"alone {largest}", [largest])
            for sizes in lists:
                run(str(sizes), sizes)
        for size in sorted({size for sizes in lists for size in sizes}):
            if f"alone {size}" not in found:
                run(f"alone {size}", [size])
    steps, load = found[str(lists[0])][0]["steps"], os.getloadavg()[0]
    print(f"{recipe} {' '.join(overrides)}; {steps} steps; threads {threads}; n = {rounds}; load {load:.1f}\n")
    print("| sizes | s a step | to the largest alone | peak, MiB | bytes of each as alone |\n|---|---:|---:|---:|---|")
    for sizes in lists:
        alone = found[f"alone {max(sizes)}"]
        for name, took in ((f"{max(sizes)} alone", alone), (str(sizes), found[str(sizes)])):
            ratios = sorted(a["step"] / b["step"] for a, b in zip(took, alone, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            same = all(files == found[f"alone {size}"][0]["files"][size] for size, files in took[-1]["files"].items())
            step, memory = (statistics.median(one[key] for one in took) for key in ("step", "memory"))
            print(f"| {name} | {step:.2f} | {spread} | {memory:.0f} | {'yes' if same else 'NO'} |")


if __name__ == "__main__":
    main()
