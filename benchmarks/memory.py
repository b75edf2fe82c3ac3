"""Peak memory and time of one class's matching in its two forms, each in a fresh process.

    python benchmarks/memory.py [MODEL ...] [--images 16] [--side 32] [--threads 4]

Pools: each model alone, then the first two, three, ... of them, `fast` (holds the graphs of a pair for all images) and
`low` (for a tenth of them, or for `--at-once`). Memory is what tensors grow by at most within the step; time is the
fastest of three steps, or of fewer once five seconds have passed. Prints a Markdown table with ratios to the largest
model alone.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from typing import Any

import click

FORMS = ("alone", "fast", "low")


def measure(
    names: list[str], at_once: int | None, images: int, side: int, threads: int, device: str
) -> tuple[int, float]:
    """Run one pool in this process, with the graphs of so many images at a time; bytes and seconds."""
    import torch

    from hmdc_hub import rng
    from hmdc_hub.catalog import load_model
    from hmdc_hub.condenser.cost import peak_bytes
    from hmdc_hub.condenser.distillation import MutualDistillation, Pair
    from hmdc_hub.condenser.matching import Objectives, image_gradients
    from hmdc_hub.execution import timed
    from hmdc_hub.models import build_model

    torch.set_num_threads(threads)
    place = torch.device(device)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    models = []
    for name in names:
        spec = load_model(name).model_copy(update={"weights": "none", "revision": None})
        model = build_model(spec, num_classes=10, source_size=side, channels=3, mean=mean, std=std)
        model.reset(rng.generator(0, "memory", name))
        models.append(model.to(place).eval())
    pairs = [
        Pair(a, b, MutualDistillation((models[a].taps, models[b].taps)).to(place))
        for a, b in combinations(range(len(models)), 2)
    ]
    objectives = Objectives(models, pairs)
    real, synthetic = (
        torch.randn(1, images, 3, side, side, generator=rng.generator(i, "memory")).to(place) for i in range(2)
    )
    shares, label = torch.full((1, images), 1 / images, device=place), torch.ones(1, dtype=torch.int64, device=place)
    weights = torch.ones(1, len(objectives.names()), device=place)

    def step() -> Any:
        return image_gradients(objectives, real, shares, synthetic, label, weights, at_once)

    step()  # what is made at a first call and kept is no part of it
    return peak_bytes(step), timed(step, place)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="[default: all]")
@click.option("--images", default=16, show_default=True, help="Real ones, and as many synthetic ones.")
@click.option("--at-once", type=int, help="Images whose graphs `low` holds.  [default: a tenth of them]")
@click.option("--side", default=32, show_default=True, help="Of the source's images.")
@click.option("--threads", default=4, show_default=True, help="On a CPU.")
@click.option("--device", default="cpu", show_default=True)
def main(
    names: tuple[str, ...],
    forms: tuple[str, ...],
    images: int,
    at_once: int | None,
    side: int,
    threads: int,
    device: str,
) -> None:
    """Measure and print."""
    from hmdc_hub.condenser.pool import LOW

    models = list(names or ("convnet3", "vit_tiny", "resnet18"))
    jobs = [([name], "alone") for name in models]
    jobs += [(models[:count], form) for count in range(2, len(models) + 1) for form in ("fast", "low")]
    jobs = [job for job in jobs if job[1] in (forms or FORMS)]
    rows, spawn = [], multiprocessing.get_context("spawn")
    for pool, form in jobs:
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            few = (at_once or max(1, images // LOW)) if form == "low" else None
            grown, seconds = process.submit(measure, pool, few, images, side, threads, device).result()
        rows.append((pool, form, grown, seconds))
        click.echo(f"{' + '.join(pool)}: {grown / 2**20:.0f} MiB, {seconds:.2f} s", err=True)
    largest = max((grown for _, form, grown, _ in rows if form == "alone"), default=None)
    print(f"{images} + {images} images of {side} pixels, {device}, {threads} threads\n")
    print("| pool | memory | MiB | to the largest alone | s | to fast |\n|---|---|---|---|---|---|")
    for pool, form, grown, seconds in rows:
        fast = next((s for p, other, _, s in rows if p == pool and other == "fast"), None)
        shares = f"{grown / largest:.2f}" if largest else "", f"{seconds / fast:.2f}" if fast else ""
        print(f"| {' + '.join(pool)} | {form} | {grown / 2**20:.0f} | {shares[0]} | {seconds:.2f} | {shares[1]} |")


if __name__ == "__main__":
    main()
