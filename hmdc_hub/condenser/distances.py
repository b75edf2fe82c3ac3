"""Distances between the gradients that real and synthetic images give (`condense.distance`).

Each is a sum over parameters of |T(g(X)) - T(g(R))|^2 with a map T of its own: nothing for `squares`, rows of one
length for `cosine`, U V^T for `orthogonal`. So all of them need the same of a parameter: the difference of what T makes
of both gradients, and that difference pulled back through T to g(X), which is half the distance's derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hmdc_hub import newton_schulz
from hmdc_hub.schema import Distance

Transform = Callable[[Tensor], Tensor]


def unit_rows(gradients: Tensor) -> Tensor:
    """Give every row the length 1/sqrt(2), so that the squared distance of two rows is 1 minus their cosine.

    This is the distance of Dataset Condensation (Zhao, Mopuri and Bilen, ICLR 2021) and DSA: a row is what leads to one
    output, and rows and layers are summed. Their program adds 1e-6 to the product of two rows' lengths, which is no
    small number for a trained network; here, as in the paper's formula, the size of a gradient is of no matter.

    Args:
        gradients: Of one parameter for k classes, k x A x ...; convolutions have a row for each output channel.

    Returns:
        k x A x rest. A row of zeros stays zero, with a derivative of zero.
    """
    rows = gradients.flatten(2)
    return rows * _one_over_length(2 * rows.square().sum(2, keepdim=True))


def orthogonal(gradients: Tensor) -> Tensor:
    """Give U V^T of each gradient U S V^T: what is left of a matrix without its singular values.

    Orthogonal Gradient Matching (CVPR 2026, "Beyond Soft Label") compares these. It sets every singular value to 1 by a
    decomposition. The gradients of one class are nearly of rank one, and most of their singular values are rounding; so
    ours are brought to 1 by a fixed number of rounds, in which those below some thousandth of the norm stay below 1.

    Args:
        gradients: Of one parameter for k classes, k x A x ...; convolutions are matrices of A rows.

    Returns:
        k x A x rest. A matrix of zeros stays zero, with a derivative of zero.
    """
    matrices = gradients.flatten(2)
    unit = matrices * _one_over_length(matrices.square().sum((1, 2), keepdim=True))
    return newton_schulz.orthogonalise(unit, newton_schulz.CONVERGENT)


# As in both sources, those that go by direction leave out vectors: biases and gains.
TRANSFORMS: Mapping[Distance, Transform | None] = {"squares": None, "cosine": unit_rows, "orthogonal": orthogonal}


def compare(distance: Distance, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor] | None:
    """Compare the gradients of one parameter for k classes, each for itself.

    Args:
        distance: Which one.
        real: g(R), k x ...
        synthetic: g(X), likewise.

    Returns:
        The distances, k, and half their derivative with respect to g(X), k x ...; None if the parameter is left out.
    """
    transform = TRANSFORMS[distance]
    if transform is None:
        difference = synthetic - real
        return difference.square().flatten(1).sum(1), difference
    if synthetic.ndim == 2:
        return None
    with torch.enable_grad():
        leaf = synthetic.detach().requires_grad_()
        given = transform(leaf)
    difference = given.detach() - transform(real)
    (pulled,) = torch.autograd.grad(given, leaf, difference)
    return difference.square().flatten(1).sum(1), pulled


def _one_over_length(squares: Tensor) -> Tensor:
    # 0 where a length is 0, as is the derivative; whatever is smaller than the dtype can square counts as 0.
    return squares.where(squares > torch.finfo(squares.dtype).tiny, torch.inf).rsqrt()
