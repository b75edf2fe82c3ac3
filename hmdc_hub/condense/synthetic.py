"""S, the synthetic images as they are stored, and the optimiser that moves them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmdc_hub.schema import ImagesSpec
from hmdc_hub.sources import Source


class SyntheticImages:
    """The part of S that a rank owns, with the momentum of its optimiser, on its device.

    Args:
        labels: Classes that are owned, in the order of the rows.
        pixels: float32 rows x n x ch x H x W, source-normalised; taken over.
        source: Says what pixels in [0, 1] are after normalisation.

    Attributes:
        row: Of each class that is here.
        momentum: Likewise shaped; survives network resets and is untouched by clamping.
    """

    def __init__(self, labels: Sequence[int], pixels: Tensor, source: Source) -> None:
        self.labels, self.pixels, self.momentum = list(labels), pixels, torch.zeros_like(pixels)
        self.row = {label: row for row, label in enumerate(labels)}
        self.low, self.high = (bound.to(pixels.device) for bound in source.bounds())

    def step(self, rows: Tensor, gradient: Tensor, spec: ImagesSpec) -> None:
        """Move images by one step of SGD with momentum, and clamp them to what pixels in [0, 1] allow.

        Args:
            rows: int64 k.
            gradient: k x n x ch x H x W.
            spec: Says learning rate and momentum.
        """
        momentum = self.momentum[rows].mul_(spec.momentum).add_(gradient)
        pixels = torch.clamp(self.pixels[rows].sub_(momentum, alpha=spec.lr), self.low, self.high)
        self.momentum.index_copy_(0, rows, momentum)
        self.pixels.index_copy_(0, rows, pixels)

    def clamped(self) -> Tensor:
        """Return the share of the pixels of each class that are at a bound, float32 rows."""
        return ((self.pixels <= self.low) | (self.pixels >= self.high)).float().flatten(1).mean(1)
