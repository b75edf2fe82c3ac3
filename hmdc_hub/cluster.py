"""k-means and herding in plain torch: choose representative real images (DREAM, Liu et al., ICCV 2023).

Everything is deterministic on a given device: nothing is added up atomically, and ties go to the lowest index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24
"""Distances held at once; bounds the memory that a large class takes."""

ROUNDING = 1e-6
"""Squared distances below this share of the squared norms are zero in float32."""


@torch.no_grad()
def kmeans(points: Tensor, k: int, gen: torch.Generator, max_iter: int = 100) -> Tensor:
    """Cluster points by Lloyd's iterations from a k-means++ start (Arthur and Vassilvitskii, SODA 2007).

    Stops when no point changes its cluster; a cluster that loses all its points keeps its centre.

    Args:
        points: float32 P x D, P >= 1.
        k: Clusters, at least 1; no more than P are made.
        gen: CPU generator; the only source of randomness.
        max_iter: Lloyd iterations at most.

    Returns:
        float32 min(k, P) x D, the centres, on the device of `points`.
    """
    # Squared distances are differences of inner products: less is cancelled when the points lie around zero.
    middle = points.mean(dim=0)
    points = points - middle
    centres = points[_start(points, min(k, len(points)), gen)]
    assigned = torch.full((len(points),), -1, device=points.device)
    for _ in range(max_iter):
        previous, assigned = assigned, _assign(points, centres)
        if torch.equal(previous, assigned):
            break
        centres = _means(points, assigned, centres)
    return centres + middle


@torch.no_grad()
def nearest(points: Tensor, centres: Tensor, distinct: bool = False) -> Tensor:
    """Find the point nearest to each centre.

    Args:
        points: float32 P x D.
        centres: float32 k x D, on the same device.
        distinct: Give no point twice: the centres choose in their order, each the nearest point that is left.

    Returns:
        int64 k, indices into `points`, in the order of the centres. With `distinct`, only the first P centres of more
        than P have a point to choose.
    """
    middle = points.mean(dim=0)
    points, centres = points - middle, centres - middle
    chosen: list[Tensor] = []
    taken = torch.zeros(len(points), device=points.device)
    for part in torch.split(centres, max(1, CHUNK // len(points))):
        distances = _distances(part, points)
        if not distinct:
            chosen.append(distances.argmin(dim=1))
            continue
        for row in distances[: len(points) - len(chosen)]:
            chosen.append((row + taken).argmin().view(1))
            taken.index_fill_(0, chosen[-1], torch.inf)
    return torch.cat(chosen)


@torch.no_grad()
def herd(points: Tensor, n: int) -> Tensor:
    """Choose points one after another so that the mean of those chosen stays closest to the mean of all.

    Source: Welling, Herding Dynamical Weights to Learn, ICML 2009, in the greedy form of iCaRL (Rebuffi et al., CVPR
    2017, algorithm 4), without choosing a point twice.

    Args:
        points: float32 P x D.
        n: How many, at most P.

    Returns:
        int64 n, indices into `points` in the order they were chosen.
    """
    points = points - points.mean(dim=0)
    squares = points.square().sum(dim=1)
    total, chosen = torch.zeros_like(points[0]), list[Tensor]()
    for _ in range(n):
        # |total + p|^2 without |total|^2, which all share.
        distances = squares + 2 * (points @ total)
        if chosen:
            distances[torch.cat(chosen)] = torch.inf
        chosen.append(distances.argmin().view(1))
        total = total + points[chosen[-1][0]]
    return torch.cat(chosen)


def _start(points: Tensor, k: int, gen: torch.Generator) -> Tensor:
    """Choose k distinct points by k-means++: each with a chance proportional to its squared distance from the others.

    The largest of `weight / exponential noise` is a draw in proportion to the weights, which needs no running sum
    (its order of adding varies on GPUs) and no number back from the device.

    Returns:
        int64 k, indices into `points`.
    """
    noise = torch.empty(k, len(points)).exponential_(generator=gen).clamp_(min=1e-30).to(points)
    squares = points.square().sum(dim=1)
    weights, closest = torch.ones_like(squares), torch.full_like(squares, torch.inf)
    chosen: list[Tensor] = []
    for row in noise:
        chosen.append((weights / row).argmax().view(1))
        centre = points.index_select(0, chosen[-1])
        total = squares + centre.square().sum()
        distances = total - 2 * (points @ centre[0])
        # Rounding noise is no distance. Copies of chosen points keep so small a weight that it decides only among them.
        closest = torch.minimum(closest, distances.where(distances > ROUNDING * total, 1e-30))
        weights = closest.index_fill_(0, chosen[-1], 0.0)
    return torch.cat(chosen)


def _assign(points: Tensor, centres: Tensor) -> Tensor:
    """Return int64 P, the nearest centre of each point."""
    parts = torch.split(points, max(1, CHUNK // len(centres)))
    return torch.cat([_distances(part, centres).argmin(dim=1) for part in parts])


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return P x k squared distances, each row short of the same amount: the point's own square."""
    return torch.addmm(centres.square().sum(dim=1), points, centres.mT, alpha=-2)


def _means(points: Tensor, assigned: Tensor, centres: Tensor) -> Tensor:
    """Return k x D means of the points of each cluster; where there are none, the old centre."""
    counts = assigned.bincount(minlength=len(centres))[:, None]
    # Adding by index is twice as fast on a CPU, where it goes in order; on a GPU the order varies.
    add = _sums_in_order if points.device.type == "cpu" else _sums_by_product
    return torch.where(counts > 0, add(points, assigned, len(centres)) / counts.clamp(min=1), centres)


def _sums_in_order(points: Tensor, assigned: Tensor, k: int) -> Tensor:
    return points.new_zeros(k, points.shape[1]).index_add_(0, assigned, points)


def _sums_by_product(points: Tensor, assigned: Tensor, k: int) -> Tensor:
    sums = points.new_zeros(k, points.shape[1])
    size = max(1, CHUNK // k)
    for part, index in zip(torch.split(points, size), torch.split(assigned, size), strict=True):
        sums.addmm_(F.one_hot(index, k).to(points.dtype).mT, part)
    return sums
