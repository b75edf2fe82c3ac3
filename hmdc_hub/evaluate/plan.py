"""What an evaluation will cost, measured on a few training steps before anything is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from hmdc_hub.evaluate.baselines import TrainingSet
from hmdc_hub.evaluate.bench import Job, one_thread
from hmdc_hub.evaluate.train import steps_of
from hmdc_hub.measures import CONDENSED, FULL
from hmdc_hub.models import PoolModel, build_for, forward_flops
from hmdc_hub.processes import usable_cores
from hmdc_hub.schema import EvaluateSpec, Recipe
from hmdc_hub.sources import Source

PROBE = 16
"""Images that a probe trains on; costs grow linearly from there."""


STEP_SECONDS = 0.001
"""Least time of a training step; with the next, for guessing which trainings are long, and whether all are short."""

FLOPS_PER_SECOND = 1e10
"""Of one core, roughly."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What evaluating will do and take.

    Attributes:
        trainings: Architectures x training sets with their draws x seeds.
        seconds: Estimated, over all workers; None until all architectures are measured.
        per_model: Estimated seconds of one training on the condensed set, by architecture that is measured.
    """

    trainings: int
    seconds: float | None
    per_model: dict[str, float]


def planned(
    recipe: Recipe, source: Source, device: torch.device, workers: int | None = None
) -> Iterator[EvaluationPlan]:
    """Estimate the time of an evaluation: first what can be counted, then one architecture after another.

    Each is trained for a few steps; nothing is written. The values of the pixels are of no matter.

    Args:
        recipe: Resolved.
        source: Loaded, or of the same shape.
        device: Where it would run; nothing is put there before the first plan was taken.
        workers: As for `evaluate`.
    """
    protocol, bank = recipe.evaluate.settled(), source.train
    stored = bank.num_classes * recipe.condense.ipc
    decoded = stored * recipe.condense.factor**2
    sizes = {"random": stored, "k-means": stored, "herding": stored, FULL: len(bank.images)}
    names = [CONDENSED]
    for name in protocol.against:
        names += [name] * (protocol.random_draws if name.startswith("random") else 1)
    steps = [steps_of(protocol, sizes.get(name, decoded), full=name == FULL) for name in names]
    images = [n * min(protocol.batch, sizes.get(name, decoded)) for n, name in zip(steps, names, strict=True)]
    found = EvaluationPlan(len(protocol.models) * len(names) * protocol.seeds, None, {})
    yield found
    total, parallel = 0.0, 1 if device.type != "cpu" else min(workers or usable_cores(), usable_cores())
    for spec in protocol.models:
        model = build_for(spec, source).to(device)
        pixels = bank.images[torch.arange(min(PROBE, len(bank.images)))]
        per_image = _step_seconds(model, source.normalise(pixels).to(device)) / len(pixels)
        tested = len(source.test_labels) * per_image / 3
        total += protocol.seeds * sum(count * per_image + tested for count in images)
        per_model = found.per_model | {spec.name: images[0] * per_image + tested}
        seconds = total / parallel if len(per_model) == len(protocol.models) else None
        found = replace(found, per_model=per_model, seconds=seconds)
        yield found


def _step_seconds(model: PoolModel, images: torch.Tensor) -> float:
    """Time a training step: the fastest of three after a first one, with one thread on a CPU as the workers have."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    model.train()
    times = []
    with one_thread(images.device):
        for _ in range(4):
            began = time.perf_counter()
            F.cross_entropy(model.logits(model.prepare(images)), labels).backward()  # type: ignore[no-untyped-call]
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
            times.append(time.perf_counter() - began)
    return min(times[1:])


def guess_seconds(protocol: EvaluateSpec, source: Source, sets: Sequence[TrainingSet]) -> dict[Job, float]:
    """List every training with a rough guess of its time on one core."""
    flops = [forward_flops(build_for(spec, source)) for spec in protocol.models]
    guess = {}
    for place, training_set in enumerate(sets):
        images = len(training_set.labels)
        steps = steps_of(protocol, images, full=training_set.name == FULL)
        for model, forward in enumerate(flops):
            # Backward costs twice as much as forward.
            step = STEP_SECONDS + 3 * min(protocol.batch, images) * forward / FLOPS_PER_SECOND
            for seed in range(protocol.seeds):
                guess[Job(model, place, seed)] = steps * step
    return guess
