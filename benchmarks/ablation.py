"""What each part of HMDC adds, on small real data: a sweep of variants, with the spread over condensing seeds.

    python benchmarks/ablation.py digits
    python benchmarks/ablation.py <folder with CIFAR-10> --seconds 93

Variants: one network alone (ConvNet, ViT), the pair without anything ("plain": gradients summed, not normalised, no
balance, no distillation), then normalisation and the Gradient Balance Module added one by one, and a pool of four; the
pair with all of it is the recipe. Each has the same number of image steps, or with `--seconds` the same processor time,
and is scored on architectures that are in none of the pools, on images held back from the train split. The step size of
the plain pair is set so that its first step is as long as a normalised one: without normalisation a learning rate means
something else.

The same command goes on where it stopped; the runs lie in runs/sweeps/ablation-*. Prints Markdown.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click
import torch
from stepper import Stepper

import hmdc_hub
from hmdc_hub.catalog import load_model
from hmdc_hub.condenser.matching import normalise
from hmdc_hub.report.sweep import sweep_markdown
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import load_source, resolve_source

PAIR = ["convnet3_narrow", "vit_micro"]
FOUR = ["convnet3_narrow", "resnet18_narrow", "vit_micro", "convnext_micro"]
ALONE = {"condense.balance": False, "condense.distill": False}
PLAIN = {**ALONE, "condense.normalise": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "ConvNet only": {"pool": PAIR[:1], **ALONE},
    "ViT only": {"pool": PAIR[1:], **ALONE},
    "pair, plain": PLAIN,
    "pair + normalise": ALONE,
    "pair + normalise + GBM": {"condense.distill": False},
    "four, all of it": {"pool": FOUR},
}

SCORED = ["mlp", "swin_micro"]

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


def make_recipe(data: str, evaluation_seeds: int) -> Recipe:
    """Write the recipe with all of it, the pair of networks."""
    base = DIGITS if data == "digits" else CIFAR
    pool, scored = ([load_model(name).model_dump(mode="json") for name in names] for names in (PAIR, SCORED))
    recipe = {
        "name": "ablation",
        "source": {"id": data} | base["source"],
        "pool": pool,
        "condense": base["condense"],
        "evaluate": base["evaluate"] | {"models": scored, "seeds": evaluation_seeds, "random_draws": 1},
        "publish": {"name": "ablation", "config": "ablation"},
    }
    return Recipe.model_validate(recipe)


def equally_long_steps(recipe: Recipe) -> float:
    """Find the learning rate with which a gradient that is not normalised moves pixels as far as a normalised one."""
    recipe = hmdc_hub.load_recipe(recipe, source={"validation_fraction": 0.2}, **PLAIN)
    source = load_source(resolve_source(recipe.source))
    with closing(Stepper(recipe, source, torch.device("cpu"))) as stepper:
        gradient = stepper.gradients()
    return float(recipe.condense.images.lr * normalise(gradient).abs().mean() / gradient.abs().mean())


@click.command()
@click.argument("data", default="digits")
@click.option("--seeds", default=3, show_default=True, help="Condensing seeds.")
@click.option("--evaluation-seeds", default=3, show_default=True, help="Trainings per architecture and set.")
@click.option("--seconds", type=float, help="Processor time of each, in place of equally many image steps.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Variants; default: all.")
@click.option("--workers", type=int, help="Runs at a time; default: one per core.")
def main(
    data: str, seeds: int, evaluation_seeds: int, seconds: float | None, only: tuple[str, ...], workers: int | None
) -> None:
    """Run what is missing and print the tables."""
    recipe = make_recipe(data, evaluation_seeds)
    variants = {name: keys for name, keys in VARIANTS.items() if not only or name in only}
    if "pair, plain" in variants:
        variants["pair, plain"] = PLAIN | {"condense.images.lr": equally_long_steps(recipe)}
    overrides = ["evaluate.baselines=[random-encoded, initialisation]"]
    found = hmdc_hub.sweep(
        recipe, variants=variants, seconds=seconds, seeds=seeds, device="cpu", workers=workers, overrides=overrides
    )
    click.echo(f"torch {torch.__version__}\n\n{sweep_markdown(found.results)}")


if __name__ == "__main__":
    main()
