"""What `hmdc-hub condense --dry-run` prints: the plan, its memory and its time. Writes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from hmdc_hub import condense, evaluate
from hmdc_hub.cli.flow import settled
from hmdc_hub.cli.output import amount, columns, duration
from hmdc_hub.events import Listener, Stage, silent
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import load_source


@dataclass(frozen=True)
class Forecast:
    """What a run will be.

    Attributes:
        recipe: With its source settled.
        classes: C.
        train_images: Real images that are condensed; `test_images` that are scored on.
        condensing: Targets, steps, parameters of the pool, time and memory.
        evaluation: Trainings and time.
        parameters: Of the evaluated networks, by name.
        device: Where.
    """

    recipe: Recipe
    classes: int
    train_images: int
    test_images: int
    condensing: condense.Plan
    evaluation: evaluate.EvaluationPlan
    parameters: dict[str, int]
    device: str


def forecast(
    recipe: Recipe, device: torch.device, *, workers: int | None = None, ranks: int = 1, listener: Listener = silent
) -> Forecast:
    """Load the source, build every model and time a few steps of each part.

    Args:
        recipe: As loaded.
        device: Where it would run.
        workers: CPU processes of the evaluation; None: one per core.
        ranks: Processes that condense together, on devices like this one.
        listener: Told what is going on.
    """
    recipe = settled(recipe, None)
    listener(Stage("source", recipe.source.id))
    source = load_source(recipe.source, listener=listener)
    models = [build_for(spec, source) for spec in recipe.evaluate.settled().models]
    listener(Stage("probe", f"a few steps of each part on {device}"))
    return Forecast(
        recipe=recipe,
        classes=source.train.num_classes,
        train_images=len(source.train.images),
        test_images=len(source.test_images),
        condensing=condense.plan(recipe, source, device, ranks),
        evaluation=evaluate.plan(recipe, source, device, workers),
        parameters={model.spec.name: parameter_count(model) for model in models},
        device=str(device),
    )


def forecast_text(forecast: Forecast) -> str:
    """Write a forecast for people."""
    recipe, plan = forecast.recipe, forecast.condensing
    spec, parts = recipe.condense, ", ".join(f"{name} {duration(s)}" for name, s in plan.parts.items())
    memory = ", ".join(f"{name} {amount(n)}" for name, n in plan.memory.items())
    if plan.at_once is not None:
        memory += f"; graphs of {plan.at_once} images at a time"
    flops = ", ".join(f"{name} {number / 1e12:,.3g}" for name, number in plan.flops.items())
    models = [[name, f"{n:,}", "condenses"] for name, n in plan.parameters.items()]
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
        f"condensed   {plan.stored_images} stored images that hold {plan.training_images}",
        f"targets     {len(plan.targets)}: {', '.join(plan.targets)}",
        f"steps       {plan.image_steps}, networks reset {spec.resets} times",
        f"trainings   {forecast.evaluation.trainings} of {recipe.evaluate.length} in the evaluation",
        "",
        columns(["MODEL", "PARAMETERS", "ROLE"], models),
        "",
        f"estimated on {forecast.device}",
        f"memory      {amount(plan.memory_bytes)} beside the libraries' own ({memory})",
        f"condensing  {duration(plan.seconds)} ({parts})",
        f"operations  {sum(plan.flops.values()) / 1e12:,.4g} TFLOP ({flops})",
        f"evaluation  {duration(forecast.evaluation.seconds)}",
        *(_ranks(plan) if plan.ranks > 1 else []),
    ]
    return "\n".join(lines)


def _ranks(plan: condense.Plan) -> list[str]:
    """Write what several processes exchange; memory and time above are then one's."""
    received = amount(plan.exchanged_bytes) if plan.exchanged_bytes else "nothing"
    return [
        f"ranks       {plan.ranks}, each on a device like this one; memory and condensing are of one of them",
        f"network     {received} received by each in an image step, "
        f"{amount(plan.exchanged_bytes * plan.image_steps)} in all (parameters counted)",
        f"checkpoint  {amount(plan.checkpoint_bytes)} on disk, of which two are kept (images counted)",
    ]


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
        "condense": asdict(forecast.condensing) | {"memory_bytes": forecast.condensing.memory_bytes},
        "evaluate": asdict(forecast.evaluation) | {"parameters": forecast.parameters},
        "device": forecast.device,
    }
