"""What `hmdc-hub condense --dry-run` prints: the plan, its memory and its time. Writes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hmdc_hub.cli.flow import build, settled
from hmdc_hub.cli.output import amount, columns, duration
from hmdc_hub.condense import Plan, plan
from hmdc_hub.events import Listener, Stage, silent
from hmdc_hub.models import PoolModel, parameter_count
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source, load_source

PROBE = 16
"""Images that a training step is timed on; its cost grows linearly from there."""


@dataclass(frozen=True)
class Forecast:
    """What a run will be.

    Attributes:
        recipe: With its source settled.
        classes: C.
        train_images: Real images that are condensed; `test_images` that are scored on.
        plan: Of condensing.
        trainings: Of the evaluation, over architectures, training sets, draws and seeds.
        parameters: Of the evaluated networks, by name.
        evaluation_seconds: Estimated.
        device: Where.
    """

    recipe: Recipe
    classes: int
    train_images: int
    test_images: int
    plan: Plan
    trainings: int
    parameters: dict[str, int]
    evaluation_seconds: float
    device: str


def forecast(
    recipe: Recipe, device: torch.device, *, workers: int | None = None, listener: Listener = silent
) -> Forecast:
    """Load the source, build every model and time a few steps of each part.

    Args:
        recipe: As loaded.
        device: Where it would run.
        workers: CPU processes of the evaluation; None: one per core.
        listener: Told what is going on.
    """
    recipe = settled(recipe, None)
    listener(Stage("source", recipe.source.id))
    source = load_source(recipe.source)
    models = [build(spec, source) for spec in recipe.evaluate.models]
    listener(Stage("probe", f"a few steps of each part on {device}"))
    condensing = plan(recipe, source, device)
    share = 1 if device.type != "cpu" else workers or os.cpu_count() or 1
    return Forecast(
        recipe=recipe,
        classes=source.train.num_classes,
        train_images=len(source.train.images),
        test_images=len(source.test_images),
        plan=condensing,
        trainings=len(models) * sum(n for n, _ in training_sets(recipe, condensing)),
        parameters={model.spec.name: parameter_count(model) for model in models},
        evaluation_seconds=sum(_training(model, recipe, source, condensing, device) for model in models) / share,
        device=str(device),
    )


def training_sets(recipe: Recipe, condensing: Plan) -> list[tuple[int, int]]:
    """List how often an architecture is trained on each training set, and on how many images."""
    spec = recipe.evaluate
    sets = [(spec.seeds, condensing.training_images)]
    for name in spec.against:
        draws = spec.random_draws if name in ("random", "random-encoded") else 1
        budget = condensing.stored_images if name in ("random", "k-means") else condensing.training_images
        sets.append((spec.seeds * draws, budget))
    return sets


def _training(model: PoolModel, recipe: Recipe, source: Source, condensing: Plan, device: torch.device) -> float:
    """Estimate the seconds of all trainings of one architecture by one process."""
    image = _seconds_per_image(model.to(device), source, device)
    epochs = recipe.evaluate.epochs
    # Scoring is a forward pass, about a third of a training step.
    return sum(n * image * (epochs * budget + len(source.test_images) / 3) for n, budget in training_sets(
        recipe, condensing
    ))  # fmt: skip


def _seconds_per_image(model: PoolModel, source: Source, device: torch.device) -> float:
    images = source.normalise(source.train.images[:PROBE].to(device))
    targets = source.train.labels[: len(images)].to(device)

    def step() -> None:
        F.cross_entropy(model.logits(model.prepare(images)), targets).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with _one_thread(device):
        step()
        began = time.perf_counter()
        step()
        step()
        return (time.perf_counter() - began) / 2 / len(images)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Give torch one CPU thread in the block, as every process of the evaluation has."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def forecast_text(forecast: Forecast) -> str:
    """Write a forecast for people."""
    recipe, plan_ = forecast.recipe, forecast.plan
    spec, parts = recipe.condense, ", ".join(f"{name} {duration(s)}" for name, s in plan_.parts.items())
    models = [[name, f"{n:,}", "condenses"] for name, n in plan_.parameters.items()]
    for name, count in forecast.parameters.items():
        known = next((row for row in models if row[0] == name), None)
        if known is None:
            models.append([name, f"{count:,}", "evaluated"])
        else:
            known[2] = "condenses, evaluated"
    lines = [
        f"recipe      {recipe.name}",
        f"source      {recipe.source.id}, {forecast.classes} classes, {forecast.train_images} train and "
        f"{forecast.test_images} test images of {recipe.source.size} x {recipe.source.size}",
        f"condensed   {plan_.stored_images} stored images that hold {plan_.training_images}",
        f"targets     {len(plan_.targets)}: {', '.join(plan_.targets)}",
        f"steps       {plan_.image_steps}, networks reset {spec.resets} times",
        f"trainings   {forecast.trainings} of {recipe.evaluate.epochs} epochs in the evaluation",
        "",
        columns(["MODEL", "PARAMETERS", "ROLE"], models),
        "",
        f"estimated on {forecast.device}",
        f"memory      {amount(plan_.memory_bytes)} beside the libraries' own",
        f"condensing  {duration(plan_.seconds)} ({parts})",
        f"evaluation  {duration(forecast.evaluation_seconds)}",
    ]
    return "\n".join(lines)


def forecast_document(forecast: Forecast) -> dict[str, Any]:
    """Write a forecast as plain data for `--json`."""
    recipe = forecast.recipe
    return {
        "recipe": recipe.name,
        "condense_hash": recipe.condense_hash(),
        "protocol_hash": recipe.protocol_hash(),
        "source": recipe.source.model_dump(mode="json"),
        "classes": forecast.classes,
        "train_images": forecast.train_images,
        "test_images": forecast.test_images,
        "condense": asdict(forecast.plan),
        "evaluate": {
            "trainings": forecast.trainings,
            "parameters": forecast.parameters,
            "seconds": forecast.evaluation_seconds,
        },
        "device": forecast.device,
    }
