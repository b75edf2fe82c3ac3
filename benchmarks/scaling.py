"""How condensing grows with ranks, with classes and images per class; and a plan for what is too large to run.

    python benchmarks/scaling.py ranks [RECIPE] [-o key=value ...] [--source FOLDER] [--count 1 --count 2 ...]
    python benchmarks/scaling.py classes [--classes 10 --classes 1000] [--ipc 1 ...] [--steps 30]
    python benchmarks/scaling.py plan [RECIPE] [--classes 1000] [--per-class 1300] [--ranks 8] [-o key=value ...]

`ranks` starts the real command under torchrun, one thread each, in turn for every count, and prints image steps per
second without the start of processes, the whole time, and the SHA-256 of what came out. `classes` condenses generated
images in fresh processes, 10 classes a step, and prints time for each class in a step and memory: anonymous (the
greatest of a look after every step), and how large the mapped source and the synthetic images are. `plan` prints what
`--dry-run` would for generated images of the recipe's size, which lie in a file of holes and take no space.
"""

from __future__ import annotations

import hashlib
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

SMALL = {
    "source": {"id": "builtin:digits", "size": 32},
    "condense": {
        "factor": 2, "resets": 1, "batch": 32, "classes_per_step": 10, "cluster": {"candidates": 64},
        "networks": {"batches_per_step": 2, "batch": 64}, "projection": {"batches_per_step": 1},
    },
    "publish": {"name": "scaling", "config": "scaling"},
}  # fmt: skip


@click.group()
def main() -> None:
    """Measure and print."""


@main.command()
@click.argument("recipe", default="digits_ipc1")
@click.option("-o", "overrides", multiple=True, help="As for hmdc-hub condense.")
@click.option("--count", "counts", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--rounds", default=2, show_default=True)
def ranks(recipe: str, overrides: tuple[str, ...], counts: tuple[int, ...], rounds: int) -> None:
    """Let 1, 2, ... processes condense a recipe together."""
    options = [word for override in overrides for word in ("-o", override)]
    rates: dict[int, list[float]] = {count: [] for count in counts}
    wholes: dict[int, list[float]] = {count: [] for count in counts}
    digests = dict[int, str]()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for count in counts:
                run = Path(folder) / f"{count}-{i}"
                launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                arguments = ["condense", recipe, *options, "--run-dir", str(run), "--no-evaluate"]
                began = time.monotonic()
                command = [sys.executable, *launch, "-m", "hmdc_hub", *arguments]
                subprocess.run(command, check=True, capture_output=True, env=environment)
                wholes[count].append(time.monotonic() - began)
                speeds = [
                    json.loads(line)["images_per_second"] for line in (run / "log.jsonl").read_text().splitlines()
                ]
                rates[count].append(statistics.harmonic_mean(speeds[1:]))
                digests[count] = hashlib.sha256((run / "condensed.safetensors").read_bytes()).hexdigest()
                click.echo(f"{count} ranks: {rates[count][-1]:.0f} images/s, {wholes[count][-1]:.0f} s", err=True)
    print(f"{recipe} {' '.join(overrides)}; one thread each; {rounds} rounds in turn; load {os.getloadavg()[0]:.1f}\n")
    print("| ranks | images/s | to one | start to end, s | to one | SHA-256 |\n|---:|---:|---:|---:|---:|---|")
    first = counts[0]
    for count in counts:
        speed = sorted(b / a for a, b in zip(rates[first], rates[count], strict=True))
        whole = statistics.median(a / b for a, b in zip(wholes[first], wholes[count], strict=True))
        print(
            f"| {count} | {statistics.median(rates[count]):.0f} "
            f"| {statistics.median(speed):.2f} ({speed[0]:.2f} to {speed[-1]:.2f}) "
            f"| {statistics.median(wholes[count]):.0f} | {whole:.2f} | {digests[count][:16]} |"
        )


def generated(classes: int, per_class: int, side: int, *, filled: bool = True) -> Any:
    """Make a source of generated images in a mapped file."""
    import torch

    from hmdc_hub.schema import SourceInfo
    from hmdc_hub.sources import ClassSortedImages, Source

    shape = (classes * per_class, 3, side, side)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(shape[0] * 3 * side * side)  # a file of holes
        images = torch.from_file(file.name, shared=True, size=shape[0] * 3 * side * side, dtype=torch.uint8).view(shape)
    gen = torch.Generator().manual_seed(0)
    for label in range(classes if filled else 0):
        rough = torch.rand(per_class, 3, 4, 4, generator=gen) + torch.rand(1, 3, 4, 4, generator=gen)
        pixels = torch.nn.functional.interpolate(rough, size=(side, side), mode="bilinear")
        images[label * per_class : (label + 1) * per_class] = (127 * pixels).to(torch.uint8)
    info = SourceInfo(
        id="generated", kind="builtin", fingerprint="0" * 64, train_split="train", test_split="test",
        image_column="image", label_column="label", class_names=[f"class {i}" for i in range(classes)],
        train_counts=[per_class] * classes, test_count=0, config=None, license=None, gated=False, private=False,
        revision=None, size=side, channels=3, mean=[0.5] * 3, std=[0.25] * 3,
    )  # fmt: skip
    offsets = tuple(range(0, classes * per_class + 1, per_class))
    return Source(ClassSortedImages(images, offsets), images[:0], torch.empty(0, dtype=torch.int64), info)


def anonymous() -> int:
    """Look up how much memory of this process is backed by no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measure(classes: int, ipc: int, steps: int) -> dict[str, float]:
    """Condense generated images in this process."""
    import torch

    from hmdc_hub.catalog import load_model
    from hmdc_hub.condenser import condense
    from hmdc_hub.events import Event, ImageStep
    from hmdc_hub.schema import Recipe
    from hmdc_hub.store.rundir import RunDir

    torch.set_num_threads(1)
    pool = [load_model(name).model_dump(mode="json") for name in ("convnet3_narrow", "vit_micro")]
    spec: dict[str, Any] = SMALL | {"name": "scaling", "pool": pool, "evaluate": {"models": pool[:1]}}
    spec["condense"] = spec["condense"] | {"ipc": ipc}
    spec["condense"]["networks"] = spec["condense"]["networks"] | {"reset_every": steps}
    source, peak, moments = generated(classes, 100, 32), 0, list[float]()

    def callback(event: Event) -> None:
        nonlocal peak
        if isinstance(event, ImageStep):
            peak = max(peak, anonymous())
            moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        before = anonymous()
        recipe = Recipe.model_validate(spec)
        condense(recipe, source, RunDir(Path(folder)), device=torch.device("cpu"), callback=callback)
    took = [b - a for a, b in zip(moments, moments[1:], strict=False)]
    stored = 2 * 4 * classes * ipc * 3 * 32 * 32
    return {
        "seconds": statistics.median(took) / 10, "before": before, "grown": peak - before,
        "source": source.train.images.nbytes, "stored": stored,
    }  # fmt: skip


@main.command()
@click.option("--classes", "counts", multiple=True, type=int, default=(10, 1000), show_default=True)
@click.option("--ipc", "ipcs", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--steps", default=30, show_default=True)
@click.option("--only", hidden=True, is_flag=True)
def classes(counts: tuple[int, ...], ipcs: tuple[int, ...], steps: int, only: bool) -> None:
    """Condense few and many classes."""
    if only:
        print(json.dumps(measure(counts[0], ipcs[0], steps)))
        return
    print(f"10 classes a step, {steps} steps, one thread, 100 images of 32 pixels in each class\n")
    print("| classes | ipc | ms per class in a step | memory grown, MiB | synthetic images, MiB | mapped source, MiB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in counts:
        for ipc in ipcs:
            one = [
                sys.executable,
                __file__,
                "classes",
                "--classes",
                str(count),
                "--ipc",
                str(ipc),
                "--steps",
                str(steps),
            ]
            done = subprocess.run([*one, "--only"], check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            mib = {key: value / 2**20 for key, value in found.items()}
            print(
                f"| {count} | {ipc} | {1000 * found['seconds']:.0f} | {mib['grown']:.0f} | {mib['stored']:.1f} "
                f"| {mib['source']:.0f} |",
                flush=True,
            )


@main.command()
@click.argument("recipe", default="cifar10_ipc50")
@click.option("-o", "overrides", multiple=True, help="As for hmdc-hub condense.")
@click.option("--classes", "count", default=1000, show_default=True)
@click.option("--per-class", default=1300, show_default=True)
@click.option("--ranks", "processes", default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--rate", "rates", multiple=True, type=float, default=(20.0, 50.0, 100.0), help="TFLOP/s, assumed.")
def plan(
    recipe: str, overrides: tuple[str, ...], count: int, per_class: int, processes: int, device: str, rates: list[float]
) -> None:
    """Plan a large set."""
    import torch

    from hmdc_hub.catalog import load_recipe
    from hmdc_hub.condenser import estimate_cost_stepwise
    from hmdc_hub.text import amount, duration

    resolved = load_recipe(recipe, list(overrides))
    source = generated(count, per_class, resolved.source.size, filled=False)
    *_, found = estimate_cost_stepwise(resolved, source, torch.device(device), processes)
    seconds = {name: duration(value) for name, value in found.parts.items()}
    print(f"{recipe} {' '.join(overrides)}: {count} classes, {found.image_steps} steps, {processes} ranks\n")
    print("| term | value | where it comes from |\n|---|---|---|")
    for name, value in found.memory.items():
        how = "measured on 16 images" if name == "graphs" else "counted"
        print(f"| memory of a rank: {name} | {amount(value)} | {how} |")
    print(f"| classes that are matched at a time | {found.classes_at_once} | chosen for this machine |")
    print(f"| images of a class | {found.at_once or 'a whole batch'} | chosen for this machine |")
    print(f"| a checkpoint on disk, of which two are kept | {amount(found.checkpoint_bytes)} | counted |")
    print(f"| network, received by a rank in a step | {amount(found.exchanged_bytes)} | counted |")
    whole = "not measured" if found.seconds is None else duration(found.seconds)
    print(f"| time of a rank on {device} | {whole} ({seconds}) | measured on 16 images |")
    total = sum(found.flops.values())
    shares = {name: f"{value / 1e12:,.0f}" for name, value in found.flops.items()}
    print(f"| operations of all ranks, TFLOP | {total / 1e12:,.0f} ({shares}) | counted on 16 images |")
    for rate in rates:
        print(f"| time at {rate:g} TFLOP/s on each rank | {duration(total / processes / rate / 1e12)} | rate assumed |")


if __name__ == "__main__":
    main()
