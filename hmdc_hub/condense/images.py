"""S, the stored images, and the optimiser that moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub.schema import ImagesSpec
from hmdc_hub.sources import Source


@dataclass
class StoredImages:
    """The part of S that a process owns, with the momentum of its optimiser; on the CPU, whatever the device.

    Attributes:
        labels: Classes that are owned, in the order of the rows.
        pixels: float32 rows x n x ch x H x W, source-normalised.
        momentum: Likewise; survives network resets and is untouched by clamping.
        low: ch x 1 x 1, what a pixel of 0 is after normalisation; `high` what a pixel of 1 is.
    """

    labels: Sequence[int]
    pixels: Tensor
    momentum: Tensor
    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        self._rows = {label: row for row, label in enumerate(self.labels)}

    @classmethod
    def begin(cls, labels: Sequence[int], pixels: Tensor, source: Source) -> StoredImages:
        """Begin with these pixels and no momentum."""
        low, high = source.bounds()
        return cls(labels, pixels, torch.zeros_like(pixels), low, high)

    def owns(self, label: int) -> bool:
        """Say whether a class is here."""
        return label in self._rows

    def of(self, label: int) -> Tensor:
        """View a class's images, n x ch x H x W."""
        return self.pixels[self._rows[label]]

    def step(self, label: int, gradient: Tensor, spec: ImagesSpec) -> None:
        """Move a class by one step of SGD with momentum and clamp it to what pixels in [0, 1] allow.

        Args:
            label: The class.
            gradient: n x ch x H x W.
            spec: Says learning rate and momentum.
        """
        pixels = self.of(label)
        pixels.sub_(self.momentum[self._rows[label]].mul_(spec.momentum).add_(gradient), alpha=spec.lr)
        torch.clamp(pixels, self.low, self.high, out=pixels)

    def clamped(self, label: int) -> float:
        """Return the share of a class's pixels at a bound."""
        pixels = self.of(label)
        return float(((pixels <= self.low) | (pixels >= self.high)).float().mean())
