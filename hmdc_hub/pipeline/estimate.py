"""What a run will cost: what can be counted, then what a probe of half a minute measures. Writes nothing."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from hmdc_hub import rng
from hmdc_hub.condenser import CostEstimate
from hmdc_hub.condenser import estimate_cost_stepwise as condensing_costs
from hmdc_hub.errors import HmdcError
from hmdc_hub.evaluator import EvaluationCost
from hmdc_hub.evaluator import planned as evaluation_costs
from hmdc_hub.events import Callback, Stage, silent
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.pipeline.job import settled
from hmdc_hub.pipeline.progress import columns
from hmdc_hub.processes import begin_worker, starting_workers, worker_context
from hmdc_hub.schema import Recipe, SourceInfo
from hmdc_hub.sources import ClassSortedImages, Source, SourceSummary, index_source
from hmdc_hub.text import amount, count, duration

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SECONDS = 30.0  # how long is measured at most


@dataclass(frozen=True)
class RunEstimate:
    """What a run will be, as far as it is known; its text is for people."""

    recipe: Recipe  # with its source settled
    rows: SourceSummary  # classes and images of its source
    condensing: CostEstimate  # objectives, steps, parameters, memory; time and operations once they are measured
    evaluation: EvaluationCost  # trainings; time once it is measured
    parameters: dict[str, int]  # of the evaluated networks, by name
    device: str
    lost: str | None = None  # why measuring ended early

    @property
    def unmeasured(self) -> list[str]:
        """What is not measured, in the order that it is measured in."""
        return [
            *self.condensing.unmeasured,
            *(f"evaluation of {name}" for name in self.parameters if name not in self.evaluation.per_model),
        ]

    def __str__(self) -> str:
        return f"{_counted_text(self)}\n\n{_measured_text(self)}"

    def __repr__(self) -> str:
        plan = self.condensing
        took = "time unknown" if plan.seconds is None else f"condensing {duration(plan.seconds)}"
        return (
            f"RunEstimate({self.recipe.name}: {plan.image_steps} image steps, {amount(plan.memory_bytes)}, {took}, "
            f"{self.evaluation.trainings} trainings, on {self.device})"
        )

    def document(self) -> dict[str, Any]:
        """Write everything as plain data."""
        recipe, rows = self.recipe, self.rows
        return {
            "recipe": recipe.name,
            "condense_hash": recipe.condense_hash(),
            "protocol_hash": recipe.protocol_hash(),
            "source": recipe.source.model_dump(mode="json"),
            "classes": len(rows.class_names),
            "train_images": sum(rows.train_counts),
            "test_images": rows.test_count,
            "condense": asdict(self.condensing) | {"memory_bytes": self.condensing.memory_bytes},
            "evaluate": asdict(self.evaluation) | {"parameters": self.parameters},
            "device": self.device,
            "not_measured": self.unmeasured,
        }


def estimate_run(
    recipe: Recipe, device: torch.device, *, ranks: int = 1, workers: int | None = None, callback: Callback = silent
) -> RunEstimate:
    """Look at the source's rows, build every model, and measure each on a few images of noise."""
    # Models of this session are known in this process alone.
    here = any(not spec.reproducible for spec in (*recipe.pool, *recipe.evaluate.models))
    with nullcontext() if here else _probing() as probe:
        callback(Stage("source", recipe.source.id))
        recipe = settled(recipe, None)
        rows = index_source(recipe.source).summary()
        source = _noise(recipe, rows)
        models = [build_for(spec, source) for spec in recipe.evaluate.settled().models]
        found = RunEstimate(
            recipe=recipe,
            rows=rows,
            condensing=next(condensing_costs(recipe, source, device, ranks)),
            evaluation=next(evaluation_costs(recipe, source, device)),
            parameters={model.spec.name: parameter_count(model) for model in models},
            device=str(device),
        )
        if probe is not None:
            return _measured(found, probe, workers, callback)
    end = time.monotonic() + SECONDS
    for part in _parts(recipe, rows, device, ranks, workers):
        found = replace(found, **part)
        if time.monotonic() > end and found.unmeasured:
            return replace(found, lost=f"{SECONDS:.0f} s are over")
    return found


def _noise(recipe: Recipe, rows: SourceSummary) -> Source:
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
    offsets = (0, *accumulate(rows.train_counts))
    labels = torch.zeros(rows.test_count, dtype=torch.int64)
    return Source(ClassSortedImages(images[: offsets[-1]], offsets), images[: rows.test_count], labels, info)


@contextmanager
def _probing() -> Iterator[Connection]:
    """Start a process that measures, so that it imports its libraries meanwhile; it is gone after the block."""
    context = worker_context()
    ours, theirs = context.Pipe()
    child = context.Process(target=measure, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    with starting_workers():
        child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.kill()
        child.join()
        ours.close()


def _measured(found: RunEstimate, probe: Connection, workers: int | None, callback: Callback) -> RunEstimate:
    """Measure one part after another; what is not reached within `SECONDS` of the probe's readiness stays unknown."""
    probe.send((found.recipe, found.rows, found.device, found.condensing.ranks, workers))
    try:
        probe.recv()
        end = time.monotonic() + SECONDS
        while found.unmeasured:
            left = end - time.monotonic()
            callback(Stage("measure", f"{found.unmeasured[0]}, {duration(max(left, 0))} left at most"))
            if not probe.poll(max(left, 0)):
                return replace(found, lost=f"{SECONDS:.0f} s are over")
            answer = probe.recv()
            if isinstance(answer, HmdcError):
                raise answer
            found = replace(found, **answer)
    except EOFError:
        found = replace(found, lost="the process that measured died; was there too little memory?")
    return found


def measure(end: Connection) -> None:
    """Be the process that measures: estimates go to `end` as they become fuller."""
    begin_worker()
    recipe, rows, device, ranks, workers = end.recv()
    end.send(None)
    try:
        for part in _parts(recipe, rows, torch.device(device), ranks, workers):
            end.send(part)
    except HmdcError as error:
        end.send(error)


def _parts(
    recipe: Recipe, rows: SourceSummary, device: torch.device, ranks: int, workers: int | None
) -> Iterator[dict[str, Any]]:
    """Measure one part after another; each is given as fields of a `RunEstimate`."""
    source = _noise(recipe, rows)
    for plan in condensing_costs(recipe, source, device, ranks):
        if plan.parts or "graphs" in plan.memory:
            yield {"condensing": plan}
    for cost in evaluation_costs(recipe, source, device, workers):
        if cost.per_model:
            yield {"evaluation": cost}


def _counted_text(found: RunEstimate) -> str:
    recipe, plan = found.recipe, found.condensing
    roles = {name: (number, "condenses") for name, number in plan.parameters.items()}
    for name, number in found.parameters.items():
        roles[name] = (number, "condenses, evaluated" if name in roles else "evaluated")
    memory = ", ".join(f"{name} {amount(n)}" for name, n in plan.memory.items())
    ranks = []
    if plan.ranks > 1:
        received = amount(plan.exchanged_bytes) if plan.exchanged_bytes else "nothing"
        ranks = [
            f"ranks       {plan.ranks}, each on a device like this one; memory and condensing are of one of them",
            f"network     {received} received by each in an image step, "
            f"{amount(plan.exchanged_bytes * plan.image_steps)} in all (parameters counted)",
            f"checkpoint  {amount(plan.checkpoint_bytes)} on disk, of which two are kept (images counted)",
        ]
    lines = [
        f"recipe      {recipe.name}",
        f"source      {recipe.source.id}, at {recipe.source.size} x {recipe.source.size} pixels",
        *(f"            {line}" for line in found.rows.lines()),
        f"condensed   {plan.synthetic_images} synthetic images that hold {plan.training_images}",
        f"objectives  {len(plan.objectives)}: {', '.join(plan.objectives)}",
        f"steps       {plan.image_steps}, networks reset {recipe.condense.resets} times",
        *_bank_lines(plan),
        f"trainings   {found.evaluation.trainings} of {recipe.evaluate.length} in the evaluation",
        f"memory      {amount(plan.memory_bytes)} ({memory}), without libraries and graphs",
        *ranks,
        "",
        columns(["MODEL", "PARAMETERS", "ROLE"], [[name, f"{n:,}", role] for name, (n, role) in roles.items()]),
    ]
    return "\n".join(lines)


def _bank_lines(plan: CostEstimate) -> list[str]:
    if not plan.bank_networks:
        return []
    networks, there = count(plan.bank_networks, "network"), plan.bank_networks - plan.bank_missing
    return [f"bank        {networks}, {amount(plan.bank_bytes)}; there already, if the source is as it was: {there}"]


def _measured_text(found: RunEstimate) -> str:
    plan, evaluation = found.condensing, found.evaluation
    lines = [f"measured on {found.device}, on a few images of noise; as long as nothing else runs there"]
    if "graphs" in plan.memory:
        few, classes = plan.at_once, plan.classes_at_once
        many = count(classes or 0, "class", "classes") if few is None else f"{few} images"
        lines.append(
            f"memory      {amount(plan.memory_bytes)} beside the libraries' own, graphs {amount(plan.memory['graphs'])}"
            f", of {many} at a time, among it"
        )
    if plan.parts:
        parts = ", ".join(f"{name} {duration(s)}" for name, s in plan.parts.items())
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
    if found.unmeasured:
        text = f"not known   {', '.join(found.unmeasured)}: {found.lost}"
        lines.append(textwrap.fill(text, 100, subsequent_indent=" " * 12))
    return "\n".join(lines)
