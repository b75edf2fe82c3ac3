"""What each part of HMDC adds, on small real data: one line per variant, with the spread over condensing seeds.

    python benchmarks/ablation.py digits --out ablation-digits.json
    python benchmarks/ablation.py <folder with CIFAR-10> --out ablation-cifar10.json

Variants: one network alone (ConvNet, ViT), the pair without anything ("plain": gradients summed, not normalised, no
balance, no distillation), then normalisation, the Gradient Balance Module and mutual distillation added one by one, and
a pool of four. Each is condensed `--seeds` times with other condensing seeds, once with the same number of image steps
for all and once with the processor time that the full pair takes, and scored on architectures that are in none of the
pools. The step size of the plain pair is set so that its first step is as long as a normalised one: without
normalisation a learning rate means something else.

Everything finished is in the JSON file; the same command goes on where it stopped. Prints Markdown tables.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch
from stepper import Stepper

from hmdc_hub.catalog import load_model
from hmdc_hub.condenser import condense
from hmdc_hub.condenser.matching import normalise
from hmdc_hub.evaluator import evaluate, of_run
from hmdc_hub.metrics import estimate
from hmdc_hub.processes import Work
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store.rundir import RunDir

CPU = torch.device("cpu")
PAIR = ["convnet3_narrow", "vit_micro"]
FOUR = ["convnet3_narrow", "resnet18_narrow", "vit_micro", "convnext_micro"]
NONE = {"normalise": False, "balance": False, "distill": False}
VARIANTS: dict[str, tuple[list[str], dict[str, bool]]] = {
    "ConvNet only": (PAIR[:1], NONE | {"normalise": True}),
    "ViT only": (PAIR[1:], NONE | {"normalise": True}),
    "pair, plain": (PAIR, NONE),
    "pair + normalise": (PAIR, NONE | {"normalise": True}),
    "pair + normalise + GBM": (PAIR, NONE | {"normalise": True, "balance": True}),
    "pair + normalise + GBM + MD": (PAIR, {}),
    "four, all of it": (FOUR, {}),
}
FULL = "pair + normalise + GBM + MD"

DIGITS: dict[str, Any] = {
    "source": {"id": "builtin:digits", "size": 16, "channels": 1},
    "condense": {
        "ipc": 1, "resets": 4, "batch": 32, "images": {"lr": 0.02}, "augment": {"flip": False},
        "networks": {"reset_every": 20, "batches_per_step": 4, "batch": 64}, "projection": {"batches_per_step": 2},
    },
    "evaluate": {"epochs": 150, "augment": {"flip": False}},
}  # fmt: skip
CIFAR: dict[str, Any] = {
    "source": {"size": 32, "channels": 3},
    "condense": {
        "ipc": 1, "resets": 3, "batch": 16, "images": {"lr": 0.02}, "cluster": {"candidates": 250},
        "networks": {"reset_every": 10, "batches_per_step": 4, "batch": 64}, "projection": {"batches_per_step": 2},
    },
    "evaluate": {"epochs": 150},
}  # fmt: skip


def make_recipe(data: str, variant: str, seed: int, resets: int | None, evaluation_seeds: int) -> Recipe:
    """Write the recipe of one cell."""
    pool, switches = VARIANTS[variant]
    base = DIGITS if data == "digits" else CIFAR
    source = base["source"] if data == "digits" else base["source"] | {"id": data}
    models = [load_model(name).model_dump(mode="json") for name in ("mlp", "swin_micro")]
    recipe = {
        "name": "ablation",
        "seed": seed,
        "source": source,
        "pool": [load_model(name).model_dump(mode="json") for name in pool],
        "condense": base["condense"] | switches | ({"resets": resets} if resets else {}),
        "evaluate": base["evaluate"]
        | {
            "models": models,
            "seeds": evaluation_seeds,
            "random_draws": 1,
            "baselines": ["random-encoded", "initialisation"],
        },
        "publish": {"name": "ablation", "config": "ablation"},
    }
    return Recipe.model_validate(recipe)


def equally_long_steps(recipe: Recipe, source: Source) -> float:
    """Find the learning rate with which a gradient that is not normalised moves pixels as far as a normalised one."""
    with closing(Stepper(recipe, source, CPU)) as stepper:
        gradient = stepper.gradients()
    return float(recipe.condense.images.lr * normalise(gradient).abs().mean() / gradient.abs().mean())


def cell(
    data: str, source: Source, variant: str, seed: int, resets: int | None, evaluation_seeds: int
) -> dict[str, Any]:
    """Condense once and score the result."""
    recipe = make_recipe(data, variant, seed, resets, evaluation_seeds)
    if not recipe.condense.normalise:
        images = recipe.condense.images.model_copy(update={"lr": equally_long_steps(recipe, source)})
        recipe = recipe.model_copy(update={"condense": recipe.condense.model_copy(update={"images": images})})
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        wall, processor = time.monotonic(), time.process_time()
        (info,) = condense(recipe, source, run, device=CPU)
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        scores = evaluate(of_run(recipe, run), recipe.evaluate, source, run, Work(CPU))
        assert scores is not None
    return {
        "image_steps": info.image_steps,
        "resets": recipe.condense.resets,
        "image_lr": recipe.condense.images.lr,
        "seconds": round(wall, 1),
        "processor_seconds": round(processor, 1),
        "accuracy": {
            name: {model: row.mean for model, row in columns.items()} for name, columns in scores.table.items()
        },
    }


def table(cells: dict[str, Any], mode: str, seeds: int) -> str:
    """Lay out one mode's results; the interval is over condensing seeds, differences are paired by them."""
    rows = []
    reference: list[float] | None = None
    for variant in VARIANTS:
        found = [cells[key] for seed in range(seeds) if (key := f"{mode}/{variant}/{seed}") in cells]
        if not found:
            continue
        values = [100 * c["accuracy"]["condensed"]["mean"] for c in found]
        gain = estimate([v - 100 * c["accuracy"]["initialisation"]["mean"] for v, c in zip(values, found, strict=True)])
        per_model = [
            f"{100 * statistics.fmean(c['accuracy']['condensed'][model] for c in found):.1f}"
            for model in ("mlp", "swin_micro")
        ]
        reference = values if variant == FULL else reference
        steps = statistics.fmean(c["image_steps"] for c in found)
        processor = statistics.fmean(c["processor_seconds"] for c in found)
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        low, high = (f"{x:+.1f}" if x is not None else "?" for x in (gain.low, gain.high))
        rows.append(
            f"| {variant} | {steps:.0f} | {processor:.0f} | {statistics.fmean(values):.1f} ± {spread:.1f} "
            f"| {per_model[0]} | {per_model[1]} | {gain.mean:+.1f} ({low} to {high}) |"
        )
    head = "| variant | image steps | CPU seconds | mean ± sd | mlp | swin_micro | over start (95 %) |\n"
    head += "|---|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


@click.command()
@click.argument("data", default="digits")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file with every finished cell.")
@click.option("--seeds", default=3, show_default=True, help="Condensing seeds.")
@click.option("--evaluation-seeds", default=3, show_default=True, help="Trainings per architecture and set.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Variants; default: all.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(["steps", "seconds"]), default=("steps", "seconds"))
def main(
    data: str, out: Path, seeds: int, evaluation_seeds: int, only: tuple[str, ...], modes: tuple[str, ...]
) -> None:
    """Run what is missing and print the tables."""
    cells: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    first = make_recipe(data, FULL, 0, None, evaluation_seeds)
    source = load_source(resolve_source(first.source))
    for mode in modes:
        for seed in range(seeds):
            for variant in [name for name in VARIANTS if not only or name in only]:
                key = f"{mode}/{variant}/{seed}"
                if key in cells:
                    continue
                resets = None
                if mode == "seconds":
                    whole, mine = (cells[f"steps/{name}/{seed}"] for name in (FULL, variant))
                    resets = max(1, round(whole["processor_seconds"] / mine["processor_seconds"] * mine["resets"]))
                cells[key] = cell(data, source, variant, seed, resets, evaluation_seeds)
                out.write_text(json.dumps(cells, indent=1))
                click.echo(f"{key}: {cells[key]['accuracy']['condensed']} {cells[key]['seconds']} s", err=True)
    click.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads, n = {seeds} condensing seeds\n")
    for mode in modes:
        baselines = [c["accuracy"]["random-encoded"]["mean"] for k, c in cells.items() if k.startswith(f"steps/{FULL}")]
        click.echo(
            f"equal {mode}; random-encoded {100 * statistics.fmean(baselines):.1f}\n\n{table(cells, mode, seeds)}\n"
        )


if __name__ == "__main__":
    main()
