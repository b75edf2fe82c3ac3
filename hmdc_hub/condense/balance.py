"""The Gradient Balance Module: targets of unlike size get a like say (HMDC, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-6
"""What the accumulators hold after a reset, and what keeps the normalisation from dividing by zero."""


@dataclass
class Balance:
    """Accumulators and weights of every class.

    Attributes:
        accumulated: A, float32 C x K: summed largest absolute image gradient of each target since the last reset.
        enabled: Off: every weight is 1.
    """

    accumulated: Tensor
    enabled: bool = True

    @classmethod
    def fresh(cls, classes: int, targets: int, *, enabled: bool) -> Balance:
        """Make the state after a network reset."""
        return cls(torch.full((classes, targets), EPSILON), enabled)

    def weights(self, label: int) -> Tensor:
        """Return `min(A) / A_k` of one class, float32 K."""
        return self._weights(self.accumulated[label])

    def combine(self, gradients: Sequence[Tensor], label: int) -> tuple[Tensor, Tensor]:
        """Update the weights of one class by the gradients of its targets, and sum these with them.

        The accumulators change last: whoever runs out of memory in here may try again.

        Args:
            gradients: K of them, each n x ch x H x W.
            label: The class.

        Returns:
            The weighted sum, and each target's mean absolute share in it, float32 K.
        """
        accumulated = self.accumulated[label]
        if self.enabled:
            accumulated = accumulated + torch.stack([g.abs().max() for g in gradients]).float().cpu()
        weights = self._weights(accumulated).tolist()
        weighted = [weight * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        summed, shares = torch.stack(weighted).sum(0), torch.stack([g.abs().mean() for g in weighted]).float().cpu()
        self.accumulated[label] = accumulated
        return summed, shares

    def _weights(self, accumulated: Tensor) -> Tensor:
        return accumulated.min() / accumulated if self.enabled else torch.ones_like(accumulated)


def normalise(gradient: Tensor) -> Tensor:
    """Divide by the largest absolute value per stored image and channel (plus 1e-6), over the last two dimensions."""
    return gradient / (gradient.abs().amax(dim=(-2, -1), keepdim=True) + EPSILON)
