"""Distances between the gradients that real and synthetic images give (`condense.distance`).

Each is a sum over parameters of |T(g(X)) - T(g(R))|^2 with a map T of its own: nothing for `squares`, rows of one
length for `cosine`, U V^T for `orthogonal`. So all of them need the same of a parameter: the difference of what T makes
of both gradients, and that difference pulled back through T to g(X), which is half the distance's derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
        gradients: ... x A x B; convolutions have a row for each output channel.

    Returns:
        Shaped like `gradients`. A row of zeros stays zero, with a derivative of zero.
    """
    return gradients * _one_over_length(2 * gradients.square().sum(-1, keepdim=True))


def orthogonal(gradients: Tensor) -> Tensor:
    """Give U V^T of each gradient U S V^T: what is left of a matrix without its singular values.

    Orthogonal Gradient Matching (CVPR 2026, "Beyond Soft Label") compares these. It sets every singular value to 1 by a
    decomposition. The gradients of one class are nearly of rank one, and most of their singular values are rounding; so
    ours are brought to 1 by a fixed number of rounds, in which those below some thousandth of the norm stay below 1.

    Args:
        gradients: ... x A x B; convolutions have a row for each output channel.

    Returns:
        Shaped like `gradients`. A matrix of zeros stays zero, with a derivative of zero.
    """
    unit = gradients * _one_over_length(gradients.square().sum((-2, -1), keepdim=True))
    return newton_schulz.orthogonalise(unit, newton_schulz.CONVERGENT)


# As in both sources, those that go by direction leave out vectors: biases and gains.
TRANSFORMS: Mapping[Distance, Transform | None] = {"squares": None, "cosine": unit_rows, "orthogonal": orthogonal}


def compare(
    distance: Distance, real: Sequence[Tensor | None], synthetic: Sequence[Tensor | None], zero: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Compare the gradients of an objective for k classes, each for itself.

    Args:
        distance: Which one.
        real: g(R), an entry per parameter, k x ...; None where the loss does not reach it.
        synthetic: g(X), likewise.
        zero: The distance of nothing at all, k zeros.

    Returns:
        The distances, k, and half their derivative with respect to g(X), an entry per parameter, k x ...; None where
        the parameter is left out.
    """
    transform = TRANSFORMS[distance]
    if transform is None:
        differences = [None if a is None or b is None else b - a for a, b in zip(real, synthetic, strict=True)]
        squares = [difference.square().flatten(1).sum(1) for difference in differences if difference is not None]
        return torch.stack(squares).sum(0) if squares else zero, tuple(differences)
    # Weights of one shape go together: a transformer has the same few in every block.
    alike: dict[torch.Size, list[tuple[int, Tensor, Tensor]]] = {}
    for place, (a, b) in enumerate(zip(real, synthetic, strict=True)):
        if a is not None and b is not None and b.ndim > 2:
            alike.setdefault(b.shape, []).append((place, a, b))
    total, halves = zero, dict[int, Tensor]()
    for few in alike.values():
        places, wanted, given = zip(*few, strict=True)
        with torch.enable_grad():
            leaf = torch.stack(given).flatten(3).detach().requires_grad_()
            turned = transform(leaf)
        difference = turned.detach() - transform(torch.stack(wanted).flatten(3))
        total = total + difference.square().sum((0, 2, 3))
        (pulled,) = torch.autograd.grad(turned, leaf, difference)
        halves |= {place: half.view_as(given[0]) for place, half in zip(places, pulled, strict=True)}
    return total, tuple(halves.get(place) for place in range(len(real)))


def _one_over_length(squares: Tensor) -> Tensor:
    # 0 where a length is 0, as is the derivative; whatever is smaller than the dtype can square counts as 0.
    return squares.where(squares > torch.finfo(squares.dtype).tiny, torch.inf).rsqrt()
