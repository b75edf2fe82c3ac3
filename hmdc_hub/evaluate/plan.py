"""What an evaluation will cost, measured on a few training steps before anything is written."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hmdc_hub.evaluate.workers import one_thread, usable_cores
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source

PROBE = 16
"""Images that a probe trains on; costs grow linearly from there."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What evaluating will do and take.

    Attributes:
        trainings: Architectures x training sets with their draws x seeds.
        seconds: Estimated, over all workers.
        per_model: Estimated seconds of one training on the condensed set, by architecture.
    """

    trainings: int
    seconds: float
    per_model: dict[str, float]


def plan(recipe: Recipe, source: Source, device: torch.device, workers: int | None = None) -> EvaluationPlan:
    """Estimate the time of an evaluation; trains each architecture for two steps, writes nothing.

    Args:
        recipe: Resolved.
        source: Loaded.
        device: Where it would run.
        workers: As for `evaluate`.
    """
    protocol, bank = recipe.evaluate, source.train
    small = bank.num_classes * recipe.condense.ipc
    full = small * recipe.condense.factor**2
    draws = {"random": protocol.random_draws, "random-encoded": protocol.random_draws}
    sizes = [full] + [
        small if name in ("random", "k-means") else full for name in protocol.against for _ in range(draws.get(name, 1))
    ]
    per_model = {}
    for spec in protocol.models:
        model = build_for(spec, source).to(device)
        pixels = bank.images[torch.arange(min(PROBE, len(bank.images)))]
        per_image = _step_seconds(model, source.normalise(pixels).to(device)) / len(pixels)
        per_model[spec.name] = protocol.epochs * full * per_image + len(source.test_labels) * per_image / 3
    parallel = 1 if device.type != "cpu" else min(workers or usable_cores(), usable_cores())
    total = sum(per_model.values()) * sum(size / full for size in sizes) * protocol.seeds
    return EvaluationPlan(len(per_model) * len(sizes) * protocol.seeds, total / parallel, per_model)


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
