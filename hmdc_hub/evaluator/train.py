"""Trainings: fresh networks, a small set, the steps of the protocol, one look at the test split at the end.

The seeds of one network train side by side on a GPU: one graph has a step of each, on a stream of its own, since a
small network leaves most of a GPU idle. On a CPU a seed trains alone, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hmdc_hub import __version__, augment, rng
from hmdc_hub.evaluator.optim import make_optimizer, set_rate, share_of_rate
from hmdc_hub.events import Callback, StopFlag, silent
from hmdc_hub.execution import Execution, settings
from hmdc_hub.metrics import calibration_error
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec

TEST_BATCH = 500  # on a CPU
TEST_PIXELS = 2**21  # of a channel in a batch on a GPU: 2,048 images of 32 pixels

# The program, as far as a training's bits go: the number is raised whenever they change between two versions.
FORM = f"{__version__}+4"


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images where they are needed."""

    pixels: Tensor  # M x ch x H x W, uint8 or float32 in [0, 1]
    labels: Tensor  # int64 M
    targets: Tensor | None = None  # float32 M x classes in [0, 1], which are learnt in place of the labels

    def to(self, device: torch.device) -> Images:
        """Return them on a device."""
        targets = None if self.targets is None else self.targets.to(device)
        return Images(self.pixels.to(device), self.labels.to(device), targets)


@dataclass(frozen=True, eq=False)
class Setting:
    """What all trainings of an evaluation have in common."""

    protocol: EvaluateSpec  # steps, batch, optimiser, augmentation
    test: Images  # on the device of the trainings; looked at once, unless `protocol.best_every` asks for more
    mean: Tensor  # of the source's channels, float32 ch x 1 x 1 for pixels in [0, 1], on the device; `std` likewise
    std: Tensor
    stop: StopFlag = field(default_factory=StopFlag)  # looked at after every epoch
    device: torch.device = torch.device("cpu")  # where everything is
    callback: Callback = silent  # told where a step cannot run as was meant

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn pixels, uint8 or float32 in [0, 1], ... x ch x H x W, into source-normalised float32."""
        unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return (unit - self.mean) / self.std

    def precision(self) -> torch.autocast:
        """Give the context in which logits are computed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.protocol.precision == "bfloat16")


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


class _Minibatch(NamedTuple):
    rows: Tensor  # int64 B, of the training images
    draw: augment.Draw
    mix: augment.CutmixDraw | None  # where the protocol and the model want CutMix


class _Step(NamedTuple):
    share: Tensor  # float64, of the learning rate
    minibatches: tuple[_Minibatch, ...]  # of each seed


def train_and_score(
    models: Sequence[PoolModel], train: Images, seeds: Sequence[int], setting: Setting, *, full: bool = False
) -> list[TrainingResult]:
    """Train a model from fresh weights and score it on all test images after the last step, once for each seed.

    No seed feels another. A training that diverges is scored like any other: logits of NaN name the first class, which
    is as good as chance. Interrupted, and given up, where `setting.stop` is set.

    Args:
        models: On the device, the same one for every seed; reset here.
        train: What is learnt from, on the device; nothing else is.
        seeds: Which of the protocol's seeds, from 0. The training set is not in the keys of any generator, so that
            trainings on different sets start alike.
        setting: Everything else.
        full: Whether `train` is the full set.
    """
    protocol, device = setting.protocol, setting.device
    if train.targets is None:
        train = replace(train, targets=F.one_hot(train.labels, models[0].num_classes).float())
    total, done, epoch = steps_of(protocol, len(train.labels), full=full), 0, 0
    looks: list[list[float]] = [[] for _ in seeds]
    with settings(device):
        trainings = [_Training(*each, train, setting) for each in zip(models, seeds, strict=True)]
        execution = Execution(device, setting.callback)

        def step_of_all(inputs: _Step) -> None:
            steps = zip(trainings, inputs.minibatches, strict=True)
            execution.beside([partial(training.step, inputs.share, minibatch) for training, minibatch in steps])

        def steps_of_epoch() -> Iterator[_Step]:
            every = zip(*(training.epoch() for training in trainings), strict=True)
            for at, minibatches in zip(range(done, total), every, strict=False):
                share = share_of_rate(protocol, at / total)
                yield _Step(torch.tensor(share, dtype=torch.float64), minibatches)

        step = execution.function(step_of_all, f"training {models[0].spec.name}")
        while done < total:
            for inputs in execution.upload(steps_of_epoch()):
                step(inputs)
                done += 1
            epoch += 1
            setting.stop.raise_if_set("stopped within a training")
            if protocol.best_every and epoch % protocol.best_every == 0 and done < total:
                for seen, training in zip(looks, trainings, strict=True):
                    seen.append(training.score().accuracy)
        results = [training.score() for training in trainings]
        execution.forget()
    if not protocol.best_every:
        return results
    return [replace(result, best=max([*seen, result.accuracy])) for seen, result in zip(looks, results, strict=True)]


class _Training:
    """A seed: a fresh network on the way to its score."""

    def __init__(self, model: PoolModel, seed: int, train: Images, setting: Setting) -> None:
        _reset(model, train, seed, setting)
        self.model, self.train, self.setting = model, train, setting
        self.parameters = [*model.trained().values()]
        self.gen = rng.generator(setting.protocol.seed, "evaluate-batches", model.spec.name, seed)
        self.optimizer = make_optimizer(model, setting.protocol, setting.device)
        model.train()

    def epoch(self) -> Iterator[_Minibatch]:
        """Draw the minibatches of a pass over the images, on the CPU."""
        protocol, side = self.setting.protocol, self.train.pixels.shape[-1]
        for rows in torch.split(torch.randperm(len(self.train.labels), generator=self.gen), protocol.batch):
            drawn, mix = augment.draw(protocol.augment, self.gen, side, len(rows)), None
            if protocol.cutmix.evaluate and self.model.spec.cutmix:
                mix = augment.draw_cutmix(self.gen, len(rows), side, protocol.cutmix.probability)
            yield _Minibatch(rows, drawn, mix)

    def step(self, share: Tensor, minibatch: _Minibatch) -> None:
        """Take a step of the optimiser."""
        rows, drawn, mix = minibatch
        assert self.train.targets is not None
        images, targets = self.setting.normalise(self.train.pixels[rows]), self.train.targets[rows]
        images = augment.apply(drawn, images)
        if mix is not None:
            images, targets = augment.apply_cutmix(mix, images), augment.mix_targets(mix, targets)
        with self.setting.precision():
            logits = self.model.logits(self.model.prepare(images))
        loss = F.cross_entropy(logits.float(), targets)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # In the order of the parameter's memory, as `backward` leaves it, since fused optimisers need that.
            other = gradient is not None and gradient.stride() != parameter.stride()
            parameter.grad = torch.empty_like(parameter).copy_(gradient) if other else gradient
        set_rate(self.optimizer, self.model.spec.lr.evaluate, share)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def score(self) -> TrainingResult:
        """Look at all test images."""
        logits = logits_of(self.model, self.setting.test.pixels, self.setting)
        self.model.train()
        return _result(logits, self.setting.test.labels)


@torch.no_grad()
def logits_of(model: PoolModel, pixels: Tensor, setting: Setting) -> Tensor:
    """Compute the logits of a trained model, which is in evaluation mode then, on images as they are.

    Args:
        model: On the device.
        pixels: uint8 or float32 in [0, 1], N x ch x H x W, anywhere.
        setting: Statistics, precision, device.

    Returns:
        float32 N x C, on the device.
    """
    batch = TEST_BATCH
    if setting.device.type == "cuda":
        batch = max(TEST_BATCH // 2, TEST_PIXELS // (model.spec.input_size or pixels.shape[-1]) ** 2)
    model.eval()
    with setting.precision():
        parts = (setting.normalise(part.to(setting.device)) for part in torch.split(pixels, batch))
        return torch.cat([model.logits(model.prepare(part)).float() for part in parts])


def _reset(model: PoolModel, train: Images, seed: int, setting: Setting) -> None:
    """Draw new weights; frozen running statistics become those of the fresh network on the training images."""
    protocol = setting.protocol
    model.reset(rng.generator(protocol.seed, "evaluate-weights", model.spec.name, seed))
    if model.spec.batch_norm == "frozen":
        parts = (part for part in torch.split(train.pixels, protocol.batch) if len(part) > 1)
        model.calibrate(model.prepare(setting.normalise(part)) for part in parts)


def _result(logits: Tensor, labels: Tensor) -> TrainingResult:
    """Score logits, float32 N x C, of the N test images."""
    predicted = logits.argmax(1)
    right = predicted == labels
    # A network that gives NaN says nothing of any class.
    confidence = logits.softmax(1).amax(1).nan_to_num(1 / logits.shape[1])
    ece = calibration_error(confidence.cpu().numpy(), right.cpu().numpy())
    return TrainingResult(predicted.cpu().numpy().astype(np.uint16), int(right.sum()) / len(labels), ece)
