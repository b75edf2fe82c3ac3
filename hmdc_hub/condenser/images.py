"""S, the synthetic images: what they begin as, and the step that moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hmdc_hub import cluster, multi_formation, rng
from hmdc_hub.condenser.choice import confident_crops
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import ImagesSpec
from hmdc_hub.sources import Source


class SyntheticImages:
    """S, the synthetic images: the part that a rank owns, with the momentum of its optimiser, on its device.

    With `images.average` there is also the average of what S was after every step of a class, which is what becomes
    the condensed set (Polyak and Juditsky, 1992; exponential, as in Adam): weights fall by the factor a from a step to
    the one before it and sum to one, so that nothing of the initialisation is in it but what the steps left. S itself
    goes on from where it is, not from the average.

    Args:
        labels: Classes that are owned, in the order of the rows.
        pixels: float32 rows x n x ch x H x W, source-normalised; taken over.
        source: Says what pixels in [0, 1] are after normalisation.
        spec: The optimiser.
    """

    def __init__(self, labels: Sequence[int], pixels: Tensor, source: Source, spec: ImagesSpec) -> None:
        self.labels, self.pixels, self.spec = list(labels), pixels, spec
        self.momentum = torch.zeros_like(pixels)  # survives network resets and is untouched by clamping
        self.average = pixels.clone() if spec.average else None
        # 1 + a + a^2 + ..., a term for each step of a class: what the weights of its average are divided by.
        self.average_weight = pixels.new_zeros(len(pixels)) if spec.average else None
        self.rate = pixels.new_full((), spec.lr)  # where captured steps read it, if it changes
        self.row = {label: row for row, label in enumerate(labels)}
        self.low, self.high = (bound.to(pixels.device) for bound in source.bounds())

    @property
    def condensed(self) -> Tensor:
        """What is written as the condensed set: the average where there is one, otherwise S."""
        return self.pixels if self.average is None else self.average

    def schedule(self, progress: float) -> None:
        """Set the learning rate of steps after a share of those of the whole run, in [0, 1]."""
        if self.spec.schedule == "cosine":
            self.rate.fill_(self.spec.lr * (1 + math.cos(math.pi * progress)) / 2)

    def step(self, rows: Tensor, gradient: Tensor) -> None:
        """Move rows, int64 k, by a step of SGD along k x n x ch x H x W, and clamp to what pixels in [0, 1] allow."""
        momentum = self.momentum[rows].mul_(self.spec.momentum).add_(gradient)
        if self.spec.schedule == "constant":
            moved = self.pixels[rows].sub_(momentum, alpha=self.spec.lr)
        else:
            moved = self.pixels[rows].sub_(momentum * self.rate)
        pixels = torch.clamp(moved, self.low, self.high)
        if self.average is not None and self.average_weight is not None:
            weight = self.average_weight[rows].mul_(self.spec.average).add_(1)
            average = torch.lerp(self.average[rows], pixels, weight.reciprocal().view(-1, 1, 1, 1, 1))
            self.average_weight.index_copy_(0, rows, weight)
            self.average.index_copy_(0, rows, average)
        self.momentum.index_copy_(0, rows, momentum)
        self.pixels.index_copy_(0, rows, pixels)

    def clamped(self) -> Tensor:
        """Return the share of the pixels of each class that are at a bound, float32 rows; of the average if any."""
        return ((self.condensed <= self.low) | (self.condensed >= self.high)).float().flatten(1).mean(1)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs, a row for each class."""
        rows = {"images": self.pixels, "momentum": self.momentum}
        if self.average is not None and self.average_weight is not None:
            rows |= {"average": self.average, "average_weight": self.average_weight}
        return rows


def initial_images(real: RealImages, model: PoolModel, label: int, ipc: int) -> Tensor:
    """Choose what a class's part of S begins as: real images, f x f of them encoded into each synthetic image.

    Args:
        real: The source, and what the recipe says of condensing it.
        model: The first of the pool, in evaluation mode: to embed the images for k-means freshly reset and calibrated,
            to judge them for a mosaic trained on the source.
        label: The class.
        ipc: How many images, n.

    Returns:
        float32 n x ch x H x W, source-normalised and clamped to the pixel range, on the CPU.
    """
    (low, high), wanted = real.source.bounds(), real.decoded(ipc)
    rows, gen = real.of_class(label), rng.generator(real.seed, "start", label)
    if real.spec.initialisation == "mosaic":
        images = confident_crops(real, model, label, wanted)
    else:
        chosen = rows[torch.randperm(len(rows), generator=gen)[:wanted]]
        if real.spec.initialisation == "kmeans" and len(rows) > wanted:
            points = real.embed(model, rows)
            centres = cluster.kmeans(points, wanted, gen, max_iter=real.spec.cluster.max_iter)
            chosen = rows[cluster.nearest(points, centres, distinct=True).cpu()]
        images = real.read(chosen)
    # A class with fewer images than there are places shows each of them more than once.
    images = images.repeat(-(-wanted // len(images)), 1, 1, 1)[:wanted]
    stored = multi_formation.encode(images, real.spec.factor, real.side, real.spec.encode)
    return stored.cpu().clamp(low, high)
