"""One training: a fresh network, a small set, the steps of the protocol, one look at the test split at the end.

Several seeds of one network can also train as one (`train_and_score_stacked`): parameters stacked, minibatches side by
side. A small network leaves most of a GPU idle, and a step of five takes hardly longer than a step of one. On a CPU it
is the other way round, and seeds train in processes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
class TrainingResult:
    """What a training came to.

    Attributes:
        predicted: uint16 N, the class of the largest logit for every image that is scored on.
        accuracy: Share of them at their label; in [0, 1].
        ece: Expected calibration error; in [0, 1].
        best: Best accuracy of all looks, where the protocol asks for looks before the end.
        seconds: Time that it took.
    """

    predicted: NDArray[np.uint16]
    accuracy: float
    ece: float
    best: float | None
    seconds: float = 0.0


def steps_of(protocol: EvaluateSpec, images: int, *, full: bool = False) -> int:
    """Count the optimiser steps of a training on so many images; the full set has epochs of its own."""
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
) -> TrainingResult:
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
    _fresh(model, train, normalise, protocol, seed)
    model.train()

    def loss_of(minibatches: list[tuple[Tensor, Tensor]]) -> Tensor:
        ((images, targets),) = minibatches
        with _precision(protocol, images.device):
            logits = model.logits(model.prepare(images))
        return F.cross_entropy(logits.float(), targets)

    @torch.no_grad()
    def answers() -> Tensor:
        model.eval()
        with _precision(protocol, test.pixels.device):
            return torch.cat([model.logits(model.prepare(normalise(part))).float() for part in _test_batches(test)])

    looks = list[float]()
    parameters = list[Tensor](model.trained().values())
    for epoch in _epochs(loss_of, parameters, model, train, normalise, protocol, [seed], full=full, stop=stop):
        if protocol.best_every and epoch % protocol.best_every == 0:
            looks.append(_result(answers(), test, None).accuracy)
            model.train()
    return _result(answers(), test, looks if protocol.best_every else None)


def train_and_score_stacked(
    model: PoolModel,
    train: Images,
    test: Images,
    normalise: Normalisation,
    protocol: EvaluateSpec,
    seeds: Sequence[int],
    *,
    full: bool = False,
    stop: StopFlag | None = None,
) -> list[TrainingResult]:
    """Train a model once for each seed, all at once; up to rounding what `train_and_score` does one after another.

    Arguments and errors as there; looks before the end (`protocol.best_every`) are not made.
    """
    whole = _Logits(model)
    trained, fixed = _stacked(whole, train, normalise, protocol, seeds)

    def one(values: dict[str, Tensor], others: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(whole, {**values, **others}, (images,))
        return logits

    def forward(images: Tensor, dim: int | None) -> Tensor:
        """Map S x B x ... images, or B x ... that all seeds see (`dim` None), to S x B x classes logits."""
        logits: Tensor = vmap(one, in_dims=(0, 0, dim), randomness="different")(trained, fixed, images)
        return logits

    def loss_of(minibatches: list[tuple[Tensor, Tensor]]) -> Tensor:
        images, targets = (torch.stack(column) for column in zip(*minibatches, strict=True))
        with _precision(protocol, images.device):
            logits = forward(images, 0)
        # The mean over a seed's own images, summed over seeds: no seed feels another.
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(0, 1)) * len(seeds)

    whole.train()
    parameters = list(trained.values())
    for _ in _epochs(loss_of, parameters, model, train, normalise, protocol, seeds, full=full, stop=stop):
        pass
    whole.eval()
    with torch.no_grad(), _precision(protocol, test.pixels.device):
        found = torch.cat([forward(normalise(pixels), None).float() for pixels in _test_batches(test)], dim=1)
    return [_result(logits, test, None) for logits in found]


def _epochs(
    loss_of: Callable[[list[tuple[Tensor, Tensor]]], Tensor],
    parameters: list[Tensor],
    model: PoolModel,
    train: Images,
    normalise: Normalisation,
    protocol: EvaluateSpec,
    seeds: Sequence[int],
    *,
    full: bool,
    stop: StopFlag | None,
) -> Iterator[int]:
    """Make the steps of a training, minibatches of every seed side by side; yields after each epoch but the last."""
    rate, total = model.spec.lr.evaluate, steps_of(protocol, len(train.labels), full=full)
    optimizer = _make_optimizer(parameters, rate, protocol)
    gens = [rng.generator(protocol.seed, "evaluate-batches", model.spec.name, seed) for seed in seeds]
    one_hot = F.one_hot(train.labels, model.num_classes).float()
    done = epoch = 0
    while done < total:
        orders = [torch.randperm(len(train.labels), generator=gen).to(train.labels.device) for gen in gens]
        for rows in zip(*(torch.split(order, protocol.batch)[: total - done] for order in orders), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * _share_of_rate(protocol, done / total)
            minibatches = [
                _augmented(normalise(train.pixels[part]), one_hot[part], protocol, model, gen)
                for part, gen in zip(rows, gens, strict=True)
            ]
            optimizer.zero_grad()
            loss_of(minibatches).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        epoch += 1
        if stop is not None:
            stop.raise_if_set("stopped within a training")
        if done < total:
            yield epoch


def _fresh(model: PoolModel, train: Images, normalise: Normalisation, protocol: EvaluateSpec, seed: int) -> None:
    """Draw new weights; frozen running statistics become those of the fresh network on the training images."""
    model.reset(rng.generator(protocol.seed, "evaluate-weights", model.spec.name, seed))
    if model.spec.batch_norm == "frozen":
        parts = (part for part in torch.split(train.pixels, protocol.batch) if len(part) > 1)
        model.calibrate(model.prepare(normalise(part)) for part in parts)


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


def _precision(protocol: EvaluateSpec, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16")


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


def _test_batches(test: Images) -> Sequence[Tensor]:
    return torch.split(test.pixels, TEST_BATCH)


def _result(logits: Tensor, test: Images, looks: list[float] | None) -> TrainingResult:
    """Score logits, float32 N x C, of the N test images; `looks` are accuracies before the end, if they were asked."""
    predicted = logits.argmax(1)
    right = predicted == test.labels
    # A network that gives NaN says nothing of any class.
    confidence = logits.softmax(1).amax(1).nan_to_num(1 / logits.shape[1])
    accuracy = int(right.sum()) / len(test.labels)
    return TrainingResult(
        predicted=predicted.cpu().numpy().astype(np.uint16),
        accuracy=accuracy,
        ece=calibration_error(confidence.cpu().numpy(), right.cpu().numpy()),
        best=None if looks is None else max([*looks, accuracy]),
    )


class _Logits(nn.Module):
    """A model as one function from source-normalised images to logits, which `functional_call` can call."""

    def __init__(self, model: PoolModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(self.model.prepare(images))


def _stacked(
    whole: _Logits, train: Images, normalise: Normalisation, protocol: EvaluateSpec, seeds: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack what is trained and everything else, each value S x its shape, from the fresh network of every seed."""
    states = []
    for seed in seeds:
        _fresh(whole.model, train, normalise, protocol, seed)
        values = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        states.append({name: value.detach().clone() for name, value in values.items()})
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    names = {name for name, value in whole.named_parameters() if value.requires_grad}
    trained = {name: stacked.pop(name).requires_grad_() for name in sorted(names)}
    return trained, stacked
