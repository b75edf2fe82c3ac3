"""k-means and herding in plain torch: choose representative real images (DREAM, Liu et al., ICCV 2023).

Everything is deterministic on a given device: nothing is added up atomically. Of points that are equally near to a
centre up to rounding, copies and the two of a cluster of two, the first is taken, on every processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CHUNK = 2**24  # distances held at once; bounds the memory that a large class takes
TOGETHER = 2**26  # coordinates of points that a GPU clusters at once; bounds the memory of their padded copy
ROUNDING = 1e-6  # squared distances below this share of the squared norms are zero in float32
ALIKE = 1e-5  # and those that differ by less are equal: centres are rounded, too


@torch.no_grad()
def kmeans(points: Tensor, k: int, gen: torch.Generator, max_iter: int = 100, weights: Tensor | None = None) -> Tensor:
    """Cluster points by Lloyd's iterations from a k-means++ initialisation (Arthur and Vassilvitskii, SODA 2007).

    Stops when no point changes its cluster; a cluster that loses all its points keeps its centre.

    Args:
        points: float32 P x D, P >= 1.
        k: Clusters, at least 1; min(k, P) are made.
        gen: CPU generator; the only source of randomness.
        max_iter: Lloyd iterations at most.
        weights: float32 P, positive: how often each point counts; None: once.

    Returns:
        float32 min(k, P) x D, the centres, on the device of `points`.
    """
    # Squared distances are differences of inner products: less is cancelled when the points lie around zero.
    middle = points.mean(dim=0)
    points = points - middle
    centres = points[_start(points, min(k, len(points)), gen, weights)]
    assigned = torch.full((len(points),), -1, device=points.device)
    for _ in range(max_iter):
        parts = torch.split(points, max(1, CHUNK // len(centres)))
        previous, assigned = assigned, torch.cat([_distances(part, centres).argmin(dim=1) for part in parts])
        if torch.equal(previous, assigned):
            break
        centres = _means(points, assigned, centres, weights)
    return centres + middle


@torch.no_grad()
def nearest(points: Tensor, centres: Tensor, distinct: bool = False) -> Tensor:
    """Find the point nearest to each centre; of several equally near, up to rounding, the first.

    Args:
        points: float32 P x D.
        centres: float32 k x D, on the same device.
        distinct: Give no point twice: the centres choose in their order, each the nearest point that is left; only the
            first P of more than P have one.

    Returns:
        int64 k, indices into `points`, in the order of the centres.
    """
    middle = points.mean(dim=0)
    points, centres = points - middle, centres - middle
    chosen: list[Tensor] = []
    taken = torch.zeros(len(points), device=points.device)
    for part in torch.split(centres, max(1, CHUNK // len(points))):
        distances, norms = _distances(part, points), _norms(part, points)
        if not distinct:
            chosen.append(_first_nearest(distances, norms))
            continue
        left = len(points) - len(chosen)
        for row, both in zip(distances[:left], norms[:left], strict=True):
            chosen.append(_first_nearest(row + taken, both).view(1))
            taken.index_fill_(0, chosen[-1], torch.inf)
    return torch.cat(chosen)


@torch.no_grad()
def representatives(
    points: Sequence[Tensor],
    k: int,
    gens: Sequence[torch.Generator],
    max_iter: int = 100,
    weights: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Find the point of each class nearest to each of the class's `kmeans` centres; the same point may come twice.

    On a GPU classes are clustered together, since one class after another costs thousands of tiny kernels each; the
    result is that of `kmeans` and `nearest` on each class alone, up to rounding. On a CPU each does go alone.

    Args:
        points: float32 P_c x D of each class c, P_c >= 1, all on the same device.
        k: Clusters per class; int64 min(k, P_c) indices into the points come back, in the order of the centres, on the
            CPU.
        gens: CPU generators, one per class; each draws what it would draw for `kmeans`.
        max_iter: Lloyd iterations at most.
        weights: float32 P_c of each class, positive: how often each point counts, as in weighted k-means; None: once.
    """
    chosen: dict[int, Tensor] = {}
    for group in _groups(points, k):
        if len(group) == 1:
            (c,) = group
            centres = kmeans(points[c], k, gens[c], max_iter, None if weights is None else weights[c])
            chosen[c] = nearest(points[c], centres).cpu()
        else:
            counted = None if weights is None else [weights[c] for c in group]
            found = _representatives([points[c] for c in group], k, [gens[c] for c in group], max_iter, counted)
            chosen.update(zip(group, found, strict=True))
    return [chosen[c] for c in range(len(points))]


@torch.no_grad()
def herd(points: Tensor, n: int) -> Tensor:
    """Choose points one after another so that the mean of those chosen stays closest to the mean of all.

    Source: Welling, Herding Dynamical Weights to Learn, ICML 2009, in the greedy form of iCaRL (Rebuffi et al., CVPR
    2017, algorithm 4), without choosing a point twice.

    Of `points`, float32 P x D, come int64 n indices in the order in which they were chosen; n is at most P.
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


def _start(points: Tensor, k: int, gen: torch.Generator, counted: Tensor | None = None) -> Tensor:
    """Choose k distinct points by k-means++: each with a chance proportional to its squared distance from the others.

    The largest of `weight / exponential noise` is a draw in proportion to the weights, which needs no running sum
    (its order of adding varies on GPUs) and no number back from the device.
    """
    noise = _noise(k, len(points), gen).to(points)
    squares = points.square().sum(dim=1)
    weights, closest = torch.ones_like(squares), torch.full_like(squares, torch.inf)
    chosen: list[Tensor] = []
    for row in noise:
        chances = weights if counted is None else weights * counted
        chosen.append((chances / row).argmax().view(1))
        centre = points.index_select(0, chosen[-1])
        closest = _closer(closest, squares + centre.square().sum(), points @ centre[0])
        weights = closest.index_fill_(0, chosen[-1], 0.0)
    return torch.cat(chosen)


def _noise(k: int, count: int, gen: torch.Generator) -> Tensor:
    """Return float32 k x P, the noise by which `_start` draws, on the CPU."""
    return torch.empty(k, count).exponential_(generator=gen).clamp_(min=1e-30)


def _closer(closest: Tensor, total: Tensor, products: Tensor) -> Tensor:
    """Update ... x P squared distances from the closest centres by a new one.

    `total` are the squares of the points plus that of the new centre, `products` their inner products.
    """
    distances = total - 2 * products
    # Rounding noise is no distance. Copies of chosen points keep so small a weight that it decides only among them.
    return torch.minimum(closest, distances.where(distances > ROUNDING * total, 1e-30))


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return P x k or G x P x k squared distances, each row short of the same amount: the point's own square."""
    squares = centres.square().sum(dim=-1)
    if centres.dim() == 2:
        return torch.addmm(squares, points, centres.mT, alpha=-2)
    return torch.baddbmm(squares[:, None], points, centres.mT, alpha=-2)


def _norms(points: Tensor, centres: Tensor) -> Tensor:
    """Return ... x P x k sums of both squared norms, of which the rounding of a squared distance is a share."""
    return points.square().sum(dim=-1)[..., None] + centres.square().sum(dim=-1)[..., None, :]


def _first_nearest(distances: Tensor, norms: Tensor) -> Tensor:
    """Find the first of the least of ... x P squared distances; they may be short of an amount that a row shares."""
    least = distances.min(dim=-1, keepdim=True).values
    return (distances <= least + ALIKE * norms).byte().argmax(dim=-1)


def _means(points: Tensor, assigned: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return k x D means of the points of each cluster; where there are none, the old centre."""
    if weights is not None:
        member = F.one_hot(assigned, len(centres)).to(points.dtype) * weights[:, None]
        total = member.sum(0)[:, None]
        return torch.where(total > 0, (member.mT @ points) / total.clamp(min=1e-30), centres)
    counts = assigned.bincount(minlength=len(centres))[:, None]
    # Adding by index is twice as fast on a CPU, where it goes in order; on a GPU the order varies.
    if points.device.type == "cpu":
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
    else:
        sums = _sums_by_product(points, assigned, len(centres))
    return torch.where(counts > 0, sums / counts.clamp(min=1), centres)


def _sums_by_product(points: Tensor, assigned: Tensor, k: int) -> Tensor:
    sums = points.new_zeros(k, points.shape[1])
    size = max(1, CHUNK // k)
    for part, index in zip(torch.split(points, size), torch.split(assigned, size), strict=True):
        sums.addmm_(F.one_hot(index, k).to(points.dtype).mT, part)
    return sums


def _groups(points: Sequence[Tensor], k: int) -> Iterator[list[int]]:
    """Yield the classes to cluster together: on a GPU as many as fit, alike in size so that little is padded."""
    left = sorted(range(len(points)), key=lambda c: len(points[c]), reverse=True)
    while left:
        count, dims = points[left[0]].shape
        fitting = min(CHUNK // (count * min(k, count)), TOGETHER // (count * dims))
        size = 1 if points[left[0]].device.type == "cpu" else max(1, fitting)
        yield left[:size]
        left = left[size:]


def _representatives(
    points: Sequence[Tensor],
    k: int,
    gens: Sequence[torch.Generator],
    max_iter: int,
    weights: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Do what `representatives` does for G classes at once, padded to the P points and k centres of the largest."""
    sizes = [len(part) for part in points]
    made = [min(k, size) for size in sizes]
    padding = (torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]).to(points[0].device)
    together = pad_sequence(list(points), batch_first=True)
    together -= together.sum(dim=1, keepdim=True) / (~padding).sum(dim=1)[:, None, None]
    counted = None if weights is None else pad_sequence(list(weights), batch_first=True)
    noise = [_noise(n, size, gen) for n, size, gen in zip(made, sizes, gens, strict=True)]
    start = _start_together(together, noise, counted)
    centres = together.gather(1, start[:, :, None].expand(-1, -1, together.shape[2]))
    assigned = torch.full_like(padding, -1, dtype=torch.int64)
    for _ in range(max_iter):
        previous = assigned
        assigned = _distances(together, centres).argmin(dim=2).masked_fill_(padding, -1)
        # A class that has come to rest may go on with the others: from the same clusters follow the same means.
        if torch.equal(previous, assigned):
            break
        centres = _means_together(together, assigned, centres, counted)
    distances = _distances(centres, together).masked_fill_(padding[:, None], torch.inf)
    chosen = _first_nearest(distances, _norms(centres, together)).cpu()
    return tuple(row[:count] for row, count in zip(chosen, made, strict=True))


def _start_together(points: Tensor, noise: Sequence[Tensor], counted: Tensor | None = None) -> Tensor:
    """Do what `_start` does for G classes at once, points G x P x D padded, noise k_c x P_c of each class on the CPU.

    A class that has fewer than k points goes on with the first of them, which changes nothing: where its points are,
    there are centres already.
    """
    squares = points.square().sum(dim=2)
    weights, closest = torch.ones_like(squares), torch.full_like(squares, torch.inf)
    # Under endless noise padding weighs nothing, less than any point not chosen yet.
    shape = (max(len(part) for part in noise), *squares.shape)
    padded = torch.full(shape, torch.inf)
    for c, part in enumerate(noise):
        padded[: part.shape[0], c, : part.shape[1]] = part
    chosen: list[Tensor] = []
    for row in padded.to(points):
        chances = weights if counted is None else weights * counted
        chosen.append((chances / row).argmax(dim=1, keepdim=True))
        centre = points.gather(1, chosen[-1][:, :, None].expand(-1, -1, points.shape[2]))
        closest = _closer(closest, squares + centre.square().sum(dim=2), (points @ centre.mT)[:, :, 0])
        weights = closest.scatter_(1, chosen[-1], 0.0)
    return torch.cat(chosen, dim=1)


def _means_together(points: Tensor, assigned: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """Do what `_means` does for each class; points assigned to -1 do not count."""
    member = (assigned[:, :, None] == torch.arange(centres.shape[1], device=points.device)).to(points.dtype)
    if weights is not None:
        member = member * weights[:, :, None]
    counts = member.sum(dim=1)[:, :, None]
    return torch.where(counts > 0, (member.mT @ points) / counts.clamp(min=1 if weights is None else 1e-30), centres)
