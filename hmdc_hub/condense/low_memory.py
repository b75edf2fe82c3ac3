"""The image gradient with the graph of one model at a time.

Mutual distillation couples two models only through their projected taps u_1, u_2, which are small. With
p_k = dMD/du_k, the gradient of MD with respect to the parameters of model k is the product of p_k with the derivative
of u_k, which needs no graph of the other model. The distance D_k between two such gradients therefore depends on the
images x through model k alone, and through p_k, and

    dD/dx = sum_k  dD_k/dx at fixed p_k  +  sum_j (du_j/dx)^T sum_k (dp_k/du_j)^T dD_k/dp_k.

So one pass makes the taps, a second takes dD_k/dx and dD_k/dp_k model by model, and a third takes the last term model
by model. It costs a few more forward passes and one more backward pass of each model than holding the pair would, and
agrees with it up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.match import Derivatives, Gradient, Objectives, gradient, labels, squared_distance, trained
from hmdc_hub.models import Features

Sides = tuple[Tensor, Tensor]
"""Of a pair's two models."""


def image_derivatives(
    objectives: Objectives, real: Tensor, synthetic: Tensor, label: int, weights: Sequence[float] | None
) -> Derivatives:
    """Compute every target for one class and differentiate it, as `match.image_derivatives` does."""
    x = synthetic.detach().requires_grad_()
    found = Derivatives(x, len(objectives.names()), weights)
    pulls_real = _pulls(objectives.alignments, _projected(objectives, real))
    taps = _projected(objectives, x.detach())
    pulls = _pulls(objectives.alignments, taps)
    # What each pair's distance wants of p, filled in model by model.
    wanted_of_pulls: list[list[Tensor | None]] = [[None, None] for _ in objectives.alignments]
    for m in range(len(objectives.networks)):
        _differentiate_own(objectives, m, real, x, label, found)
        for place, side in _pairs_of(objectives, m):
            both = (_Pair(place, side, pulls_real[place][side]), _Pair(place, side, pulls[place][side]))
            wanted_of_pulls[place][side] = _differentiate_side(objectives, m, real, x, label, both, found)
    coupled = [_through_the_pulls(*args) for args in zip(objectives.alignments, taps, wanted_of_pulls, strict=True)]
    for m in range(len(objectives.networks)):
        _add_coupling(objectives, m, x, coupled, found)
    return found


def _pairs_of(objectives: Objectives, network: int) -> Iterator[tuple[int, int]]:
    """Give the alignments that a network takes part in, and on which of their sides."""
    for place, align in enumerate(objectives.alignments):
        if network in align.pair:
            yield place, align.pair.index(network)


def _features(objectives: Objectives, network: int, images: Tensor) -> Features:
    net = objectives.networks[network]
    features: Features = net(net.prepare(images))
    return features


@torch.no_grad()
def _projected(objectives: Objectives, images: Tensor) -> list[Sides]:
    """Compute the projected taps of every pair, model by model."""
    sides: list[list[Tensor]] = [[] for _ in objectives.alignments]
    for m in range(len(objectives.networks)):
        if any(m in align.pair for align in objectives.alignments):
            features = _features(objectives, m, images)
            for place, side in _pairs_of(objectives, m):
                sides[place].append(objectives.alignments[place].project(side, features))
    return [(first, second) for first, second in sides]


def _pulls(alignments: Sequence[Alignment], taps: Sequence[Sides]) -> list[Sides]:
    """Differentiate mutual distillation with respect to the projected taps: p of both models of each pair."""
    return [
        _pull(align, first, second, create_graph=False) for align, (first, second) in zip(alignments, taps, strict=True)
    ]


def _pull(align: Alignment, first: Tensor, second: Tensor, *, create_graph: bool) -> Sides:
    if not create_graph:
        first, second = first.detach().requires_grad_(), second.detach().requires_grad_()
    a, b = torch.autograd.grad(align.distance(first, second), (first, second), create_graph=create_graph)
    return a, b


def _gradient_of(
    objectives: Objectives, m: int, images: Tensor, label: int, pair: _Pair | None, *, create_graph: bool
) -> Gradient:
    """Compute what a target takes of one model: the parameter gradient of the cross-entropy, or of a distillation.

    A pass of its own for every target: a graph that is used once is freed while it is differentiated.
    """
    features, parameters = _features(objectives, m, images), trained(objectives.networks[m])
    if pair is None:
        return gradient(F.cross_entropy(features.logits, labels(images, label)), parameters, create_graph=create_graph)
    projected = objectives.alignments[pair.place].project(pair.side, features)
    return gradient(projected, parameters, vector=pair.pull, create_graph=create_graph)


@dataclass(frozen=True)
class _Pair:
    """One side of a pair with its p."""

    place: int
    side: int
    pull: Tensor


def _differentiate_own(objectives: Objectives, m: int, real: Tensor, x: Tensor, label: int, found: Derivatives) -> None:
    """Add a model's own target."""
    target = objectives.own(m)
    if target is None:
        return
    wanted = _gradient_of(objectives, m, real, label, None, create_graph=False)
    distance = squared_distance(wanted, _gradient_of(objectives, m, x, label, None, create_graph=True), like=x)
    found.add_loss(target, distance)
    found.add(target, gradient(found.weight(target) * distance, [x])[0])


def _differentiate_side(
    objectives: Objectives, m: int, real: Tensor, x: Tensor, label: int, pulls: tuple[_Pair, _Pair], found: Derivatives
) -> Tensor | None:
    """Add what one model contributes to a pair's target at fixed p; returns what that wants of p.

    `pulls` are the side of the pair with p for the real images, and for the synthetic ones.
    """
    target = objectives.mutual(pulls[0].place)
    pull = pulls[1].pull.detach().requires_grad_()
    wanted = _gradient_of(objectives, m, real, label, pulls[0], create_graph=False)
    given = _gradient_of(objectives, m, x, label, replace(pulls[1], pull=pull), create_graph=True)
    distance = squared_distance(wanted, given, like=x)
    del given
    found.add_loss(target, distance)
    at_fixed_pull, of_pull = gradient(found.weight(target) * distance, [x, pull])
    found.add(target, at_fixed_pull)
    return of_pull


def _through_the_pulls(align: Alignment, taps: Sides, wanted: Sequence[Tensor | None]) -> Sides | None:
    """Turn what the distance wants of p into what it wants of the projected taps; None if it wants nothing."""
    first, second = (side.detach().requires_grad_() for side in taps)
    pulls = _pull(align, first, second, create_graph=True)
    terms = [(pull * want).sum() for pull, want in zip(pulls, wanted, strict=True) if want is not None]
    if not terms:
        return None
    a, b = torch.autograd.grad(torch.stack(terms).sum(), (first, second))
    return a, b


def _add_coupling(
    objectives: Objectives, m: int, x: Tensor, coupled: Sequence[Sides | None], found: Derivatives
) -> None:
    """Add what the pairs want of one model's taps, from a pass of its own with a graph of first order."""
    parts = [(place, side, both[side]) for place, side in _pairs_of(objectives, m) if (both := coupled[place])]
    if not parts:
        return
    features = _features(objectives, m, x)
    for number, (place, side, wants) in enumerate(parts):
        projected = objectives.alignments[place].project(side, features)
        again = number < len(parts) - 1
        found.add(objectives.mutual(place), gradient(projected, [x], vector=wants, keep=again)[0])
