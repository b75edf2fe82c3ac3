"""The Gradient Balance Module: targets of unlike size get a like say (HMDC, section 3.2)."""

from __future__ import annotations

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
        accumulated = self.accumulated[label]
        return accumulated.min() / accumulated if self.enabled else torch.ones_like(accumulated)

    def combine(self, targets: list[Tensor], stored: Tensor, label: int, *, update: bool) -> tuple[Tensor, Tensor]:
        """Differentiate the weighted sum of one class's targets with respect to its stored images.

        Args:
            targets: K scalars.
            stored: n x ch x H x W, the leaf they depend on.
            label: The class.
            update: Measure each target's gradient first and update the weights by it.

        Returns:
            The gradient, shaped like `stored`, and each target's mean absolute share in it, float32 K (zeros when
            not an update step: one derivative of the sum does not tell them apart).
        """
        if not update:
            weights = self.weights(label).tolist()
            total = torch.stack([weight * target for weight, target in zip(weights, targets, strict=True)]).sum()
            return _derivative(total, stored, keep=False), torch.zeros(len(targets))
        gradients = [_derivative(target, stored, keep=True) for target in targets]
        if self.enabled:
            self.accumulated[label] += torch.stack([g.abs().max() for g in gradients]).float().cpu()
        weights = self.weights(label).tolist()
        weighted = [weight * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        return torch.stack(weighted).sum(0), torch.stack([g.abs().mean() for g in weighted]).float().cpu()


def normalise(gradient: Tensor) -> Tensor:
    """Divide by the largest absolute value per stored image and channel (plus 1e-6), over the last two dimensions."""
    return gradient / (gradient.abs().amax(dim=(-2, -1), keepdim=True) + EPSILON)


def _derivative(target: Tensor, stored: Tensor, *, keep: bool) -> Tensor:
    if not target.requires_grad:  # a target that no trained parameter contributes to, such as MD with train: head
        return torch.zeros_like(stored)
    (gradient,) = torch.autograd.grad(target, stored, retain_graph=keep)
    return gradient
