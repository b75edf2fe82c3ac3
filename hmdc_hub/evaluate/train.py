"""One training: a fresh network, a small set, the steps of the protocol, one look at the test split at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hmdc_hub import __version__, augment, rng
from hmdc_hub.events import StopFlag
from hmdc_hub.measures import calibration_error
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec

TEST_BATCH = 500

FORM = f"{__version__}+3"
"""The program, as far as a training's bits go: the number is raised whenever they change between two versions."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images where they are needed.

    Attributes:
        pixels: M x ch x H x W, uint8 or float32 in [0, 1].
        labels: int64 M.
    """

    pixels: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Images:
        """Return them on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Source statistics, float32 ch x 1 x 1 for pixels in [0, 1], on the device."""

    mean: Tensor
    std: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Turn pixels into source-normalised float32."""
        unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return (unit - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training came to.

    Attributes:
        predicted: uint16 N, the class of the largest logit for every image that is scored on.
        accuracy: Share of them at their label; in [0, 1].
        ece: Expected calibration error; in [0, 1].
        best: Best accuracy of all looks, where the protocol asks for looks before the end.
    """

    predicted: NDArray[np.uint16]
    accuracy: float
    ece: float
    best: float | None


def steps_of(protocol: EvaluateSpec, images: int, *, full: bool = False) -> int:
    """Count the optimiser steps of a training on so many images.

    Args:
        protocol: Says epochs or steps.
        images: Training images.
        full: Whether they are the full set, which has epochs of its own.
    """
    per_epoch = -(-images // protocol.batch)
    if full:
        return protocol.full_epochs * per_epoch
    return protocol.steps or protocol.epochs * per_epoch


def train_and_score(
    model: PoolModel,
    train: Images,
    test: Images,
    normalise: Normalisation,
    protocol: EvaluateSpec,
    seed: int,
    *,
    full: bool = False,
    stop: StopFlag | None = None,
) -> Outcome:
    """Train a model from fresh weights and score it on all test images after the last step.

    A training that diverges is scored like any other: logits of NaN name the first class, which is as good as chance.

    Args:
        model: On the device; reset here.
        train: What is learnt from; nothing else is.
        test: Looked at once, after the last step, unless `protocol.best_every` asks for more.
        normalise: Statistics of the source.
        protocol: Steps, batch, optimiser, augmentation.
        seed: Which of the protocol's seeds, from 0. The training set is not in the keys of any generator, so that
            trainings on different sets start alike.
        full: Whether `train` is the full set.
        stop: Looked at after every epoch.

    Raises:
        Interrupted: `stop` was set; this training is given up.
    """
    name, total = model.spec.name, steps_of(protocol, len(train.labels), full=full)
    model.reset(rng.generator(protocol.seed, "evaluate-weights", name, seed))
    calibrated(model, train, normalise, protocol)
    optimizer = make_optimizer(list(model.trained().values()), model.spec.lr.evaluate, protocol)
    gen = rng.generator(protocol.seed, "evaluate-batches", name, seed)
    one_hot = F.one_hot(train.labels, model.num_classes).float()
    model.train()
    done, epoch, looks = 0, 0, list[float]()
    while done < total:
        order = torch.randperm(len(train.labels), generator=gen).to(train.labels.device)
        for rows in torch.split(order, protocol.batch)[: total - done]:
            for group in optimizer.param_groups:
                group["lr"] = model.spec.lr.evaluate * share_of_rate(protocol, done / total)
            images, targets = augmented(normalise(train.pixels[rows]), one_hot[rows], protocol, model, gen)
            optimizer.zero_grad()
            with precision_of(protocol, images.device):
                logits = model.logits(model.prepare(images))
            F.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        epoch += 1
        if stop is not None:
            stop.raise_if_set("stopped within a training")
        if protocol.best_every and epoch % protocol.best_every == 0 and done < total:
            looks.append(outcome_of(_logits(model.eval(), test, normalise, protocol), test, None).accuracy)
            model.train()
    return outcome_of(_logits(model.eval(), test, normalise, protocol), test, looks if protocol.best_every else None)


def calibrated(model: PoolModel, train: Images, normalise: Normalisation, protocol: EvaluateSpec) -> None:
    """Set frozen running statistics to those of the fresh network on the training images."""
    if model.spec.batch_norm == "frozen":
        parts = (part for part in torch.split(train.pixels, protocol.batch) if len(part) > 1)
        model.calibrate(model.prepare(normalise(part)) for part in parts)


def precision_of(protocol: EvaluateSpec, device: torch.device) -> torch.autocast:
    """Give the context of forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16")


def make_optimizer(parameters: Sequence[Tensor], rate: float, protocol: EvaluateSpec) -> torch.optim.Optimizer:
    """Make the protocol's optimiser at the full learning rate."""
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=protocol.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=rate, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
    )


def share_of_rate(protocol: EvaluateSpec, progress: float) -> float:
    """Give the share of the learning rate after a share of the steps, both in [0, 1]."""
    if protocol.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 0.1 if protocol.schedule == "step" and progress >= 0.5 else 1.0


def test_parts(test: Images) -> Sequence[Tensor]:
    """Split the pixels that are scored on into batches."""
    return torch.split(test.pixels, TEST_BATCH)


@torch.no_grad()
def _logits(model: PoolModel, test: Images, normalise: Normalisation, protocol: EvaluateSpec) -> Tensor:
    with precision_of(protocol, test.pixels.device):
        return torch.cat([model.logits(model.prepare(normalise(pixels))).float() for pixels in test_parts(test)])


def outcome_of(logits: Tensor, test: Images, looks: list[float] | None) -> Outcome:
    """Score the answers of a trained network.

    Args:
        logits: float32 N x C.
        test: The N images with their labels.
        looks: Accuracies before the end; None: nobody asked.
    """
    predicted = logits.argmax(1)
    right = predicted == test.labels
    # A network that gives NaN says nothing of any class.
    confidence = logits.softmax(1).amax(1).nan_to_num(1 / logits.shape[1])
    accuracy = int(right.sum()) / len(test.labels)
    return Outcome(
        predicted=predicted.cpu().numpy().astype(np.uint16),
        accuracy=accuracy,
        ece=calibration_error(confidence.cpu().numpy(), right.cpu().numpy()),
        best=None if looks is None else max([*looks, accuracy]),
    )


def augmented(
    images: Tensor, targets: Tensor, protocol: EvaluateSpec, model: PoolModel, gen: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augment one minibatch, and mix it where the protocol and the model want CutMix; all draws from `gen`."""
    side, device = images.shape[-1], images.device
    images = augment.apply(augment.draw(protocol.augment, gen, side, len(images)).to(device), images)
    if protocol.cutmix.evaluate and model.spec.cutmix:
        mix = augment.draw_cutmix(gen, len(images), side, protocol.cutmix.probability).to(device)
        images, targets = augment.apply_cutmix(mix, images), augment.mix_targets(mix, targets)
    return images, targets
