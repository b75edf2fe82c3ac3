"""One training: a fresh network, a small set, a fixed number of epochs, one look at the test split at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import augment, rng
from hmdc_hub.events import StopFlag
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec

TEST_BATCH = 500


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images where they are needed.

    Attributes:
        pixels: uint8 M x ch x H x W.
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
        """Turn uint8 pixels into source-normalised float32."""
        return (pixels.float() / 255 - self.mean) / self.std


def train_and_score(
    model: PoolModel,
    train: Images,
    test: Images,
    normalise: Normalisation,
    protocol: EvaluateSpec,
    key: tuple[int, int],
    stop: StopFlag | None = None,
) -> float:
    """Train a model from fresh weights and return its last-epoch accuracy on the whole test split, in [0, 1].

    A training that diverges is scored like any other: logits of NaN name the first class, which is as good as chance.

    Args:
        model: On the device; reset here.
        train: What is learnt from; nothing else is.
        test: Looked at once, after the last epoch.
        normalise: Statistics of the source.
        protocol: Epochs, batch, optimiser, augmentation.
        key: Seed of the recipe and number of the training seed; the training set is not in it, so that trainings
            on different sets start alike.
        stop: Looked at after every epoch.

    Raises:
        Interrupted: `stop` was set; this training is given up.
    """
    name = model.spec.name
    model.reset(rng.generator(key[0], "evaluate-weights", name, key[1]))
    if model.spec.batch_norm == "frozen":
        parts = (part for part in torch.split(train.pixels, protocol.batch) if len(part) > 1)
        model.calibrate(model.prepare(normalise(part)) for part in parts)
    optimizer = torch.optim.SGD(
        model.trained().values(),
        lr=model.spec.lr.evaluate,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        fused=True,
    )
    gen = rng.generator(key[0], "evaluate-batches", name, key[1])
    one_hot = F.one_hot(train.labels, model.num_classes).float()
    model.train()
    for _ in range(protocol.epochs):
        order = torch.randperm(len(train.labels), generator=gen).to(train.labels.device)
        for rows in torch.split(order, protocol.batch):
            images, targets = _augmented(normalise(train.pixels[rows]), one_hot[rows], protocol, model, gen)
            optimizer.zero_grad()
            F.cross_entropy(model.logits(model.prepare(images)), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if stop is not None:
            stop.raise_if_set("stopped within a training")
    model.eval()
    return accuracy(model, test, normalise)


@torch.no_grad()
def accuracy(model: PoolModel, test: Images, normalise: Normalisation) -> float:
    """Return the share of test images whose largest logit is at their label; the model is in evaluation mode."""
    parts = zip(torch.split(test.pixels, TEST_BATCH), torch.split(test.labels, TEST_BATCH), strict=True)
    correct = [(model.logits(model.prepare(normalise(x))).argmax(1) == y).sum() for x, y in parts]
    return int(torch.stack(correct).sum()) / len(test.labels)


def _augmented(
    images: Tensor, targets: Tensor, protocol: EvaluateSpec, model: PoolModel, gen: torch.Generator
) -> tuple[Tensor, Tensor]:
    side = images.shape[-1]
    images = augment.apply(augment.draw(protocol.augment, gen, side, len(images)), images)
    if protocol.cutmix.evaluate and model.spec.cutmix:
        mix = augment.draw_cutmix(gen, len(images), side, protocol.cutmix.probability)
        if mix is not None:
            return augment.apply_cutmix(mix, images), augment.mix_targets(mix, targets)
    return images, targets
