"""One training: a fresh network, a small set, the steps of the protocol, one look at the test split at the end.

Several seeds of one network can also train as one: parameters stacked, minibatches side by side. A small network leaves
most of a GPU idle, and a step of five takes hardly longer than a step of one. On a CPU it is the other way round, and
seeds train in processes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hmdc_hub import __version__, augment, rng
from hmdc_hub.events import StopFlag
from hmdc_hub.metrics import calibration_error
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec

TEST_BATCH = 500

# The program, as far as a training's bits go: the number is raised whenever they change between two versions.
FORM = f"{__version__}+3"


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images where they are needed."""

    pixels: Tensor  # M x ch x H x W, uint8 or float32 in [0, 1]
    labels: Tensor  # int64 M

    def to(self, device: torch.device) -> Images:
        """Return them on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Setting:
    """What all trainings of an evaluation have in common."""

    protocol: EvaluateSpec  # steps, batch, optimiser, augmentation
    test: Images  # on the device of the trainings; looked at once, unless `protocol.best_every` asks for more
    mean: Tensor  # of the source's channels, float32 ch x 1 x 1 for pixels in [0, 1], on the device; `std` likewise
    std: Tensor
    stop: StopFlag = field(default_factory=StopFlag)  # looked at after every epoch

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn pixels, uint8 or float32 in [0, 1], ... x ch x H x W, into source-normalised float32."""
        unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return (unit - self.mean) / self.std

    def precision(self) -> torch.autocast:
        """Give the context in which logits are computed."""
        kind = self.test.pixels.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.protocol.precision == "bfloat16")


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a training came to."""

    predicted: NDArray[np.uint16]  # N, the class of the largest logit for every image that is scored on
    accuracy: float  # share of them at their label; in [0, 1]
    ece: float  # expected calibration error; in [0, 1]
    best: float | None = None  # best accuracy of all looks, where the protocol asks for looks before the end
    seconds: float = 0.0  # time that it took


def steps_of(protocol: EvaluateSpec, images: int, *, full: bool = False) -> int:
    """Count the optimiser steps of a training on so many images; the full set has epochs of its own."""
    per_epoch = -(-images // protocol.batch)
    if full:
        return protocol.full_epochs * per_epoch
    return protocol.steps or protocol.epochs * per_epoch


Forward = Callable[[Sequence[Tensor]], Tensor]


def train_and_score(
    model: PoolModel, train: Images, seeds: Sequence[int], setting: Setting, *, full: bool = False
) -> list[TrainingResult]:
    """Train a model from fresh weights and score it on all test images after the last step, once for each seed.

    Several seeds train as one, with the results of one after another up to rounding. A training that diverges is scored
    like any other: logits of NaN name the first class, which is as good as chance. Interrupted, and given up, where
    `setting.stop` is set.

    Args:
        model: On the device; reset here.
        train: What is learnt from, on the device; nothing else is.
        seeds: Which of the protocol's seeds, from 0. The training set is not in the keys of any generator, so that
            trainings on different sets start alike.
        setting: Everything else.
        full: Whether `train` is the full set.
    """
    protocol, test, rate = setting.protocol, setting.test, model.spec.lr.evaluate
    parameters, forward = (_alone if len(seeds) == 1 else _stacked)(model, train, seeds, setting)

    @torch.no_grad()
    def scored() -> list[TrainingResult]:
        model.eval()
        with setting.precision():
            parts = [forward([setting.normalise(part)]).float() for part in torch.split(test.pixels, TEST_BATCH)]
        return [_result(logits, test.labels) for logits in torch.cat(parts, dim=1)]

    optimizer = _make_optimizer(parameters, rate, protocol)
    gens = [rng.generator(protocol.seed, "evaluate-batches", model.spec.name, seed) for seed in seeds]
    one_hot = F.one_hot(train.labels, model.num_classes).float()
    total, done, epoch = steps_of(protocol, len(train.labels), full=full), 0, 0
    looks: list[list[float]] = [[] for _ in seeds]
    model.train()
    while done < total:
        orders = [torch.randperm(len(train.labels), generator=gen).to(train.labels.device) for gen in gens]
        for rows in zip(*(torch.split(order, protocol.batch)[: total - done] for order in orders), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * _share_of_rate(protocol, done / total)
            minibatches = [
                _augmented(setting.normalise(train.pixels[part]), one_hot[part], protocol, model, gen)
                for part, gen in zip(rows, gens, strict=True)
            ]
            images, targets = zip(*minibatches, strict=True)
            optimizer.zero_grad()
            with setting.precision():
                logits = forward(images)
            # The mean over a seed's own images, summed over seeds: no seed feels another.
            loss = F.cross_entropy(logits.float().flatten(0, 1), torch.cat(targets)) * len(seeds)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        epoch += 1
        setting.stop.raise_if_set("stopped within a training")
        if protocol.best_every and epoch % protocol.best_every == 0 and done < total:
            for seen, result in zip(looks, scored(), strict=True):
                seen.append(result.accuracy)
            model.train()
    results = scored()
    if not protocol.best_every:
        return results
    return [replace(result, best=max([*seen, result.accuracy])) for seen, result in zip(looks, results, strict=True)]


def _alone(model: PoolModel, train: Images, seeds: Sequence[int], setting: Setting) -> tuple[list[Tensor], Forward]:
    """Give what is trained of one seed, and the model as a function from [B x ...] images to 1 x B x classes logits."""
    _reset(model, train, seeds[0], setting)
    return [*model.trained().values()], lambda images: model.logits(model.prepare(images[0]))[None]


def _stacked(model: PoolModel, train: Images, seeds: Sequence[int], setting: Setting) -> tuple[list[Tensor], Forward]:
    """Do the same for S seeds: what is trained and everything else stacked, S x its shape, from each fresh network.

    The function maps S minibatches B x ..., or one that all seeds see, to S x B x classes logits.
    """
    whole, states = _Logits(model), []
    for seed in seeds:
        _reset(model, train, seed, setting)
        values = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        states.append({name: value.detach().clone() for name, value in values.items()})
    fixed = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    names = sorted(name for name, value in whole.named_parameters() if value.requires_grad)
    trained = {name: fixed.pop(name).requires_grad_() for name in names}

    def one(values: dict[str, Tensor], others: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(whole, {**values, **others}, (images,))
        return logits

    def forward(images: Sequence[Tensor]) -> Tensor:
        every, dim = (images[0], None) if len(images) == 1 else (torch.stack([*images]), 0)
        logits: Tensor = vmap(one, in_dims=(0, 0, dim), randomness="different")(trained, fixed, every)
        return logits

    return [*trained.values()], forward


def _reset(model: PoolModel, train: Images, seed: int, setting: Setting) -> None:
    """Draw new weights; frozen running statistics become those of the fresh network on the training images."""
    protocol = setting.protocol
    model.reset(rng.generator(protocol.seed, "evaluate-weights", model.spec.name, seed))
    if model.spec.batch_norm == "frozen":
        parts = (part for part in torch.split(train.pixels, protocol.batch) if len(part) > 1)
        model.calibrate(model.prepare(setting.normalise(part)) for part in parts)


def _augmented(
    images: Tensor, targets: Tensor, protocol: EvaluateSpec, model: PoolModel, gen: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augment a minibatch, and mix it where the protocol and the model want CutMix; all draws from `gen`."""
    side, device = images.shape[-1], images.device
    images = augment.apply(augment.draw(protocol.augment, gen, side, len(images)).to(device), images)
    if protocol.cutmix.evaluate and model.spec.cutmix:
        mix = augment.draw_cutmix(gen, len(images), side, protocol.cutmix.probability).to(device)
        images, targets = augment.apply_cutmix(mix, images), augment.mix_targets(mix, targets)
    return images, targets


def _make_optimizer(parameters: list[Tensor], rate: float, protocol: EvaluateSpec) -> torch.optim.Optimizer:
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=protocol.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=rate, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
    )


def _share_of_rate(protocol: EvaluateSpec, progress: float) -> float:
    """Give the share of the learning rate after a share of the steps, both in [0, 1]."""
    if protocol.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 0.1 if protocol.schedule == "step" and progress >= 0.5 else 1.0


def _result(logits: Tensor, labels: Tensor) -> TrainingResult:
    """Score logits, float32 N x C, of the N test images."""
    predicted = logits.argmax(1)
    right = predicted == labels
    # A network that gives NaN says nothing of any class.
    confidence = logits.softmax(1).amax(1).nan_to_num(1 / logits.shape[1])
    ece = calibration_error(confidence.cpu().numpy(), right.cpu().numpy())
    return TrainingResult(predicted.cpu().numpy().astype(np.uint16), int(right.sum()) / len(labels), ece)


class _Logits(nn.Module):
    """A model as one function from source-normalised images to logits, which `functional_call` can call."""

    def __init__(self, model: PoolModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(self.model.prepare(images))
