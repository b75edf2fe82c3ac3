"""S, the stored images, and the optimiser that moves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub import cluster, pack, rng
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.threads import Threads
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec, ImagesSpec
from hmdc_hub.sources import Source


@dataclass
class StoredImages:
    """S with the momentum of its optimiser.

    Attributes:
        pixels: float32 C x n x ch x H x W, source-normalised.
        momentum: Likewise; survives network resets and is untouched by clamping.
        low: ch x 1 x 1, what a pixel of 0 is after normalisation; `high` what a pixel of 1 is.
    """

    pixels: Tensor
    momentum: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def begin(cls, pixels: Tensor, source: Source) -> StoredImages:
        """Begin with these pixels and no momentum."""
        low, high = (bound.to(pixels.device) for bound in source.bounds())
        return cls(pixels, torch.zeros_like(pixels), low, high)

    def step(self, gradient: Tensor, spec: ImagesSpec) -> None:
        """Move by one step of SGD with momentum; `gradient` is shaped like `pixels`."""
        self.momentum.mul_(spec.momentum).add_(gradient)
        self.pixels.sub_(self.momentum, alpha=spec.lr)

    def clamp(self) -> float:
        """Clamp to what pixels in [0, 1] allow and return the share of pixels at a bound."""
        torch.clamp(self.pixels, self.low, self.high, out=self.pixels)
        at_bound = (self.pixels <= self.low) | (self.pixels >= self.high)
        return float(at_bound.float().mean())


def starting_images(model: PoolModel, real: RealImages, spec: CondenseSpec, seed: int, threads: Threads) -> Tensor:
    """Choose what S begins as: real images of every class, f x f of them encoded into each stored image.

    Args:
        model: The first model of the pool, freshly reset and calibrated; embeds the images for k-means.
        real: The source on the device.
        spec: Says ipc, factor and the kind of start.
        seed: Of the recipe.
        threads: Classes are worked on side by side.

    Returns:
        float32 C x n x ch x H x W, source-normalised and clamped to the pixel range.
    """
    per_class = spec.ipc * spec.factor**2

    def encoded(label: int) -> Tensor:
        rows = torch.arange(real.rows(label).start, real.rows(label).stop)
        gen = rng.generator(seed, "start", label)
        chosen = rows[torch.randperm(len(rows), generator=gen)[:per_class]]
        if spec.start == "kmeans" and len(rows) > per_class:
            points = real.embed(model, rows)
            centres = cluster.kmeans(points, per_class, gen, max_iter=spec.cluster.max_iter)
            chosen = rows[cluster.nearest(points, centres, distinct=True).cpu()]
        # A class with fewer images than there are places shows each of them more than once.
        chosen = chosen.repeat(-(-per_class // len(chosen)))[:per_class]
        return pack.encode(real.take(chosen), spec.factor, real.side)

    low, high = (bound.to(real.device) for bound in real.source.bounds())
    return torch.stack(threads.map(encoded, range(real.classes))).clamp(low, high)
