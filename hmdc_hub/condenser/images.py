"""S, the synthetic images: what they begin as, and the step that moves them."""

from __future__ import annotations

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

    Args:
        labels: Classes that are owned, in the order of the rows.
        pixels: float32 rows x n x ch x H x W, source-normalised; taken over.
        source: Says what pixels in [0, 1] are after normalisation.
    """

    def __init__(self, labels: Sequence[int], pixels: Tensor, source: Source) -> None:
        self.labels, self.pixels = list(labels), pixels
        self.momentum = torch.zeros_like(pixels)  # survives network resets and is untouched by clamping
        self.row = {label: row for row, label in enumerate(labels)}
        self.low, self.high = (bound.to(pixels.device) for bound in source.bounds())

    def step(self, rows: Tensor, gradient: Tensor, spec: ImagesSpec) -> None:
        """Move rows, int64 k, by a step of SGD along k x n x ch x H x W, and clamp to what pixels in [0, 1] allow."""
        momentum = self.momentum[rows].mul_(spec.momentum).add_(gradient)
        pixels = torch.clamp(self.pixels[rows].sub_(momentum, alpha=spec.lr), self.low, self.high)
        self.momentum.index_copy_(0, rows, momentum)
        self.pixels.index_copy_(0, rows, pixels)

    def clamped(self) -> Tensor:
        """Return the share of the pixels of each class that are at a bound, float32 rows."""
        return ((self.pixels <= self.low) | (self.pixels >= self.high)).float().flatten(1).mean(1)


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
    return multi_formation.encode(images, real.spec.factor, real.side).cpu().clamp(low, high)
