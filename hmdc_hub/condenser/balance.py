"""The Gradient Balance Module: objectives of unlike size get a like say (HMDC, section 3.2).

Everything here is of k classes at once, each for itself.
"""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-6
"""What the accumulators hold after a reset, and what keeps the normalisation from dividing by zero."""


def accumulate(accumulated: Tensor, gradients: Tensor) -> Tensor:
    """Add the largest absolute image gradient of each objective to its accumulator A.

    Args:
        accumulated: float32 k x K, the sums since the last network reset.
        gradients: k x K x n x ch x H x W.
    """
    return accumulated + gradients.abs().amax((2, 3, 4, 5)).to(accumulated.dtype)


def balance_weights(accumulated: Tensor) -> Tensor:
    """Compute the weight of each objective, `min(A) / A_k`; float32 k x K, of which the largest in a row is 1."""
    return accumulated.amin(1, keepdim=True) / accumulated


def combine(gradients: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the image gradients of the objectives with their weights.

    Args:
        gradients: k x K x n x ch x H x W.
        weights: k x K.

    Returns:
        The sum, k x n x ch x H x W, and the mean absolute share of each objective in it, float32 k x K.
    """
    weighted = weights[:, :, None, None, None, None] * gradients
    return weighted.sum(1), weighted.abs().mean((2, 3, 4, 5)).to(weights.dtype)


def normalise(gradient: Tensor) -> Tensor:
    """Divide by the largest absolute value per synthetic image and channel (plus 1e-6), over the last dimensions."""
    return gradient / (gradient.abs().amax(dim=(-2, -1), keepdim=True) + EPSILON)
