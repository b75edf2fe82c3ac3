"""What an evaluation will cost, measured on a few training steps before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.train import steps_of
from hmdc_hub.evaluator.trainer import TrainingJob, one_thread
from hmdc_hub.execution import timed
from hmdc_hub.metrics import FULL
from hmdc_hub.models import PoolModel, build_for, forward_flops
from hmdc_hub.processes import usable_cores
from hmdc_hub.schema import TRAINING_SETS, EvaluateSpec, Recipe
from hmdc_hub.sources import Source

PROBE = 16  # images that a probe trains on; costs grow linearly from there

# For guessing which trainings are long, and whether all are short.
STEP_SECONDS = 0.001  # least time of a training step
FLOPS_PER_SECOND = 1e10  # of one core, roughly


@dataclass(frozen=True)
class EvaluationCost:
    """What evaluating will do and take."""

    trainings: int  # architectures x training sets with their draws x seeds
    seconds: float | None  # estimated, over all workers; None until all architectures are measured
    per_model: dict[str, float]  # estimated, of one training on the condensed set, by architecture that is measured


def planned(
    recipe: Recipe, source: Source, device: torch.device, workers: int | None = None
) -> Iterator[EvaluationCost]:
    """Estimate the time of an evaluation: first what can be counted, then one architecture after another.

    Each is trained for a few steps; nothing is written. The values of the source's pixels are of no matter, and nothing
    is put on the device before the first estimate was taken.
    """
    protocol, train = recipe.evaluate.settled(), source.train
    synthetic = train.num_classes * recipe.condense.ipc
    sizes = {"decoded": synthetic * recipe.condense.factor**2, "chosen": synthetic, "all": len(train.images)}
    images = []  # that each training sees
    for name, _ in protocol.training_sets():
        size = sizes[TRAINING_SETS[name].size]
        images.append(steps_of(protocol, size, full=name == FULL) * min(protocol.batch, size))
    found = EvaluationCost(len(protocol.models) * len(images) * protocol.seeds, None, {})
    yield found
    total, parallel = 0.0, 1 if device.type != "cpu" else min(workers or usable_cores(), usable_cores())
    pixels = source.normalise(train.images[: min(PROBE, len(train.images))]).to(device)
    for spec in protocol.models:
        per_image = _step_seconds(build_for(spec, source).to(device), pixels) / len(pixels)
        tested = len(source.test_labels) * per_image / 3
        total += protocol.seeds * sum(count * per_image + tested for count in images)
        per_model = found.per_model | {spec.name: images[0] * per_image + tested}
        seconds = total / parallel if len(per_model) == len(protocol.models) else None
        found = replace(found, per_model=per_model, seconds=seconds)
        yield found


def _step_seconds(model: PoolModel, images: Tensor) -> float:
    """Time a training step: the fastest of three after a first one, with one thread on a CPU as the workers have."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    model.train()

    def step() -> None:
        F.cross_entropy(model.logits(model.prepare(images)), labels).backward()  # type: ignore[no-untyped-call]

    with one_thread(images.device):
        step()
        return timed(step, images.device)


def guess_seconds(protocol: EvaluateSpec, source: Source, sets: Sequence[TrainingSet]) -> dict[TrainingJob, float]:
    """List every training with a rough guess of its time on one core."""
    flops = [forward_flops(build_for(spec, source)) for spec in protocol.models]
    guess = {}
    for index, training_set in enumerate(sets):
        images = len(training_set.labels)
        steps = steps_of(protocol, images, full=training_set.name == FULL)
        for model, forward in enumerate(flops):
            # Backward costs twice as much as forward.
            step = STEP_SECONDS + 3 * min(protocol.batch, images) * forward / FLOPS_PER_SECOND
            for seed in range(protocol.seeds):
                guess[TrainingJob(model, index, seed)] = steps * step
    return guess
