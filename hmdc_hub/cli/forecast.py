"""What `hmdc-hub condense --dry-run` prints: what can be counted, then what a probe measures. Writes nothing."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hmdc_hub import condense, evaluate, rng
from hmdc_hub.cli.flow import settled
from hmdc_hub.cli.output import amount, columns, duration
from hmdc_hub.cli.rows import Rows
from hmdc_hub.errors import HmdcError
from hmdc_hub.events import Listener, Stage
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.processes import begin_worker, interrupts_held_back, worker_context
from hmdc_hub.schema import Recipe, SourceInfo
from hmdc_hub.sources import ClassBank, Source, index_source

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SECONDS = 30.0
"""How long a dry run measures at most."""


@dataclass(frozen=True)
class Forecast:
    """What a run will be, as far as it is known.

    Attributes:
        recipe: With its source settled.
        rows: Classes and images of its source.
        condensing: Targets, steps, parameters of the pool, memory; time and operations once they are measured.
        evaluation: Trainings; time once it is measured.
        parameters: Of the evaluated networks, by name.
        device: Where.
        lost: Why measuring ended early; None if it did not.
    """

    recipe: Recipe
    rows: Rows
    condensing: condense.Plan
    evaluation: evaluate.EvaluationPlan
    parameters: dict[str, int]
    device: str
    lost: str | None = None

    @property
    def unmeasured(self) -> list[str]:
        """What is not measured, in the order that it is measured in."""
        return [
            *self.condensing.unmeasured,
            *(f"evaluation of {name}" for name in self.parameters if name not in self.evaluation.per_model),
        ]


def count(recipe: Recipe, device: torch.device, ranks: int, listener: Listener) -> Forecast:
    """Look at the source's rows and build every model: everything that is known without running one.

    Args:
        recipe: As loaded.
        device: Where it would run.
        ranks: Processes that condense together, on devices like this one.
        listener: Told what is going on.
    """
    listener(Stage("source", recipe.source.id))
    recipe = settled(recipe, None)
    rows = Rows.of(index_source(recipe.source))
    source = noise(recipe, rows)
    models = [build_for(spec, source) for spec in recipe.evaluate.settled().models]
    return Forecast(
        recipe=recipe,
        rows=rows,
        condensing=next(condense.planned(recipe, source, device, ranks)),
        evaluation=next(evaluate.planned(recipe, source, device)),
        parameters={model.spec.name: parameter_count(model) for model in models},
        device=str(device),
    )


def noise(recipe: Recipe, rows: Rows) -> Source:
    """Make a source of the same shape without reading an image: every image a window on one strip of noise."""
    spec, pixels = recipe.source, recipe.source.channels * recipe.source.size**2
    shape = (-1, spec.channels, spec.size, spec.size)
    most = max(sum(rows.train_counts), rows.test_count)
    strip = torch.randint(256, (most + pixels,), dtype=torch.uint8, generator=rng.generator(0, "noise"))
    images = strip.unfold(0, pixels, 1)[:most].view(shape)
    info = SourceInfo(
        id="noise", kind="builtin", revision=None, fingerprint="0" * 64, config=None, train_split="train",
        test_split="test", image_column="image", label_column="label", class_names=list(rows.class_names),
        train_counts=list(rows.train_counts), test_count=rows.test_count, size=spec.size, channels=spec.channels,
        mean=[0.5] * spec.channels, std=[0.25] * spec.channels, license=None, gated=False,
    )  # fmt: skip
    offsets = [0]
    for number in rows.train_counts:
        offsets.append(offsets[-1] + number)
    labels = torch.zeros(rows.test_count, dtype=torch.int64)
    return Source(ClassBank(images[: offsets[-1]], tuple(offsets)), images[: rows.test_count], labels, info)


@contextmanager
def measuring() -> Iterator[Connection]:
    """Start a process that measures, so that it imports its libraries meanwhile; it is gone after the block."""
    context = worker_context()
    ours, theirs = context.Pipe()
    child = context.Process(target=_measure, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    with interrupts_held_back():
        child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.kill()
        child.join()
        ours.close()


def measure(found: Forecast, probe: Connection, workers: int | None, listener: Listener) -> Forecast:
    """Measure one part after another; what is not reached within `SECONDS` of the probe's readiness stays unknown.

    Args:
        found: As counted.
        probe: Of `measuring`.
        workers: CPU processes of the evaluation; None: one per core.
        listener: Told what is measured.

    Raises:
        HmdcError: What the probe met, such as a model that does not run.
    """
    probe.send((found.recipe, found.rows, found.device, found.condensing.ranks, workers))
    try:
        probe.recv()
        end = time.monotonic() + SECONDS
        while found.unmeasured:
            left = end - time.monotonic()
            listener(Stage("measure", f"{found.unmeasured[0]}, {duration(max(left, 0))} left at most"))
            if not probe.poll(max(left, 0)):
                return replace(found, lost=f"{SECONDS:.0f} s are over")
            answer = probe.recv()
            if isinstance(answer, HmdcError):
                raise answer
            found = replace(found, **answer)
    except EOFError:
        found = replace(found, lost="the process that measured died; was there too little memory?")
    return found


def _measure(end: Connection) -> None:
    """Be the process that measures: plans go to `end` as they become fuller."""
    begin_worker()
    recipe, rows, name, ranks, workers = end.recv()
    device, source = torch.device(name), noise(recipe, rows)
    end.send(None)
    try:
        for plan in condense.planned(recipe, source, device, ranks):
            if plan.parts or "graphs" in plan.memory:
                end.send({"condensing": plan})
        for cost in evaluate.planned(recipe, source, device, workers):
            if cost.per_model:
                end.send({"evaluation": cost})
    except HmdcError as error:
        end.send(error)


def counted_text(forecast: Forecast) -> str:
    """Write for people what was counted."""
    recipe, plan, rows = forecast.recipe, forecast.condensing, forecast.rows
    models = [[name, f"{n:,}", "condenses"] for name, n in plan.parameters.items()]
    for name, number in forecast.parameters.items():
        known = next((row for row in models if row[0] == name), None)
        if known is None:
            models.append([name, f"{number:,}", "evaluated"])
        else:
            known[2] = "condenses, evaluated"
    memory = ", ".join(f"{name} {amount(n)}" for name, n in plan.memory.items())
    lines = [
        f"recipe      {recipe.name}",
        f"source      {recipe.source.id}, at {recipe.source.size} x {recipe.source.size} pixels",
        *(f"            {line}" for line in rows.said()),
        f"condensed   {plan.stored_images} stored images that hold {plan.training_images}",
        f"targets     {len(plan.targets)}: {', '.join(plan.targets)}",
        f"steps       {plan.image_steps}, networks reset {recipe.condense.resets} times",
        f"trainings   {forecast.evaluation.trainings} of {recipe.evaluate.length} in the evaluation",
        f"memory      {amount(plan.memory_bytes)} ({memory}), without libraries and graphs",
        *(_ranks(plan) if plan.ranks > 1 else []),
        "",
        columns(["MODEL", "PARAMETERS", "ROLE"], models),
        "\n",
    ]
    return "\n".join(lines)


def measured_text(forecast: Forecast) -> str:
    """Write for people what was measured, and what was not."""
    plan, evaluation = forecast.condensing, forecast.evaluation
    lines = [f"measured on {forecast.device}, on a few images of noise; as long as nothing else runs there"]
    if "graphs" in plan.memory:
        few, classes = plan.at_once, plan.classes_at_once
        many = f"{classes} class{'es' * (classes != 1)}" if few is None else f"{few} images"
        lines.append(
            f"memory      {amount(plan.memory_bytes)} beside the libraries' own, graphs {amount(plan.memory['graphs'])}"
            f", of {many} at a time, among it"
        )
    parts = ", ".join(f"{name} {duration(s)}" for name, s in plan.parts.items())
    if plan.parts:
        whole = "more than " + duration(sum(plan.parts.values())) if plan.seconds is None else duration(plan.seconds)
        flops = ", ".join(f"{name} {number / 1e12:,.3g}" for name, number in plan.flops.items())
        lines += [
            f"condensing  {whole} ({parts})",
            f"operations  {sum(plan.flops.values()) / 1e12:,.4g} TFLOP ({flops})",
        ]
    if evaluation.per_model:
        each = ", ".join(f"{name} {duration(s)}" for name, s in evaluation.per_model.items())
        whole = "? " if evaluation.seconds is None else duration(evaluation.seconds)
        lines.append(f"evaluation  {whole} (a training of {each})")
    if forecast.unmeasured:
        text = f"not known   {', '.join(forecast.unmeasured)}: {forecast.lost}"
        lines.append(textwrap.fill(text, 100, subsequent_indent=" " * 12))
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
    recipe, rows = forecast.recipe, forecast.rows
    return {
        "recipe": recipe.name,
        "condense_hash": recipe.condense_hash(),
        "protocol_hash": recipe.protocol_hash(),
        "source": recipe.source.model_dump(mode="json"),
        "classes": len(rows.class_names),
        "train_images": sum(rows.train_counts),
        "test_images": rows.test_count,
        "condense": asdict(forecast.condensing) | {"memory_bytes": forecast.condensing.memory_bytes},
        "evaluate": asdict(forecast.evaluation) | {"parameters": forecast.parameters},
        "device": forecast.device,
        "not_measured": forecast.unmeasured,
    }
