"""Gradient matching: the distance between the gradients that real and synthetic images give (HMDC, section 3.1).

A *target* is one number to minimise. Every model gives one (`match/<model>`): the squared distance between the
parameter gradients of the cross-entropy on real and on synthetic images of a class. Every pair of models gives another
(`distill/<a>+<b>`): the same distance for the gradients of their mutual distillation loss.

What the condenser needs of a target is its derivative with respect to the synthetic images, a second derivative. It is
taken here in the plain way, by double backward, with the graphs of at most two models at a time; `low_memory` takes it
with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.condense.align import Alignment
from hmdc_hub.models import PoolModel

Gradient = tuple[Tensor | None, ...]
"""One entry per parameter; None where the loss does not reach it, which counts as zero."""


@dataclass(frozen=True)
class Objectives:
    """The models whose gradients are matched, and which targets are on.

    Attributes:
        networks: The pool, in evaluation mode.
        alignments: One per pair of models; empty when mutual distillation is off.
        match: Whether every model has a target of its own.
        low_memory: Whether the graph of one model is held at a time, or of a pair.
    """

    networks: Sequence[PoolModel]
    alignments: Sequence[Alignment]
    match: bool = True
    low_memory: bool = False

    def names(self) -> list[str]:
        """Name the targets in the order that every function here keeps."""
        named = [net.spec.name for net in self.networks]
        own = [f"match/{name}" for name in named] if self.match else []
        return own + [f"distill/{named[a]}+{named[b]}" for a, b in (align.pair for align in self.alignments)]

    def own(self, network: int) -> int | None:
        """Give the place of a network's own target, None if there is none."""
        return network if self.match else None

    def mutual(self, alignment: int) -> int:
        """Give the place of a pair's target."""
        return alignment + (len(self.networks) if self.match else 0)

    def groups(self) -> list[Group]:
        """Cut the targets into groups of one or two models; each target is in one."""
        if not self.alignments:
            return [Group((m,), (m,)) for m in range(len(self.networks))]
        seen: set[int] = set()
        found = []
        for place, align in enumerate(self.alignments):
            fresh = tuple(m for m in align.pair if m not in seen)
            seen.update(fresh)
            found.append(Group(align.pair, fresh, place))
        return found


@dataclass(frozen=True)
class Group:
    """Targets that are computed together.

    Attributes:
        networks: Places of the one or two models.
        own: Those of them whose own target is computed here.
        alignment: Place of the pair's alignment; None for a model alone.
    """

    networks: tuple[int, ...]
    own: tuple[int, ...]
    alignment: int | None = None


@dataclass
class Derivatives:
    """Targets and their derivatives with respect to the synthetic images, gathered as they are computed.

    Attributes:
        like: The synthetic images, B x ch x H x W.
        weights: K weights if only the weighted sum of the derivatives is wanted, otherwise None.
        losses: K targets, scalars without graph.
        gradients: K derivatives shaped like the images, or the one weighted sum.
    """

    like: Tensor
    count: int
    weights: Sequence[float] | None
    losses: list[Tensor] = field(init=False)
    gradients: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = [torch.zeros((), device=self.like.device) for _ in range(self.count)]
        self.gradients = [torch.zeros_like(self.like) for _ in range(self.count if self.weights is None else 1)]

    def weight(self, target: int) -> float:
        """Give the weight of a target."""
        return 1.0 if self.weights is None else self.weights[target]

    def add_loss(self, target: int, part: Tensor) -> None:
        """Add a part of a target."""
        self.losses[target] = self.losses[target] + part.detach()

    def add(self, target: int, gradient: Tensor | None) -> None:
        """Add a part of a target's derivative, times its weight."""
        if gradient is not None:
            place = target if self.weights is None else 0
            self.gradients[place] = self.gradients[place] + gradient


def image_derivatives(
    objectives: Objectives, real: Tensor, synthetic: Tensor, label: int, weights: Sequence[float] | None
) -> Derivatives:
    """Compute every target for one class and differentiate it with respect to the synthetic images.

    Args:
        objectives: Models and targets.
        real: B_r x ch x H x W, source-normalised, augmented.
        synthetic: B_s x ch x H x W, likewise, without a graph.
        label: The class.
        weights: K weights; None: each derivative apart.
    """
    x = synthetic.detach().requires_grad_()
    found = Derivatives(x, len(objectives.names()), weights)
    for group in objectives.groups():
        _differentiate_group(objectives, group, real, x, label, found)
    return found


def _differentiate_group(
    objectives: Objectives, group: Group, real: Tensor, x: Tensor, label: int, found: Derivatives
) -> None:
    wanted = parameter_gradients(objectives, group, real, label, create_graph=False)
    given = parameter_gradients(objectives, group, x, label, create_graph=True)
    distances = {target: squared_distance(wanted[target], given[target], like=x) for target in given}
    for target, distance in distances.items():
        found.add_loss(target, distance)
    reached = {target: distance for target, distance in distances.items() if distance.requires_grad}
    if found.weights is None:
        for target, distance in reached.items():
            found.add(target, torch.autograd.grad(distance, x, retain_graph=True)[0])
    elif reached:
        total = torch.stack([found.weight(target) * distance for target, distance in reached.items()]).sum()
        found.add(next(iter(reached)), torch.autograd.grad(total, x)[0])


def parameter_gradients(
    objectives: Objectives, group: Group, images: Tensor, label: int, *, create_graph: bool
) -> dict[int, Gradient]:
    """Compute the parameter gradient of each of a group's losses, by the place of its target."""
    nets = objectives.networks
    features = {m: nets[m](nets[m].prepare(images)) for m in group.networks}
    losses: list[tuple[int, Tensor, list[Tensor]]] = []
    for m in group.own:
        if (target := objectives.own(m)) is not None:
            losses.append((target, F.cross_entropy(features[m].logits, labels(images, label)), trained(nets[m])))
    if group.alignment is not None:
        a, b = group.networks
        both = trained(nets[a]) + trained(nets[b])
        losses.append((objectives.mutual(group.alignment), objectives.alignments[group.alignment](features), both))
    return {target: gradient(loss, over, create_graph=create_graph, keep=True) for target, loss, over in losses}


def gradient(
    of: Tensor, over: Sequence[Tensor], *, vector: Tensor | None = None, create_graph: bool = False, keep: bool = False
) -> Gradient:
    """Differentiate a tensor; None for what it does not depend on, everything if it has no graph at all.

    Args:
        of: A scalar, or any tensor with `vector`.
        over: What to differentiate with respect to.
        vector: Shaped like `of`: the product of its transpose with the derivative is taken.
        create_graph: Whether the result is differentiated in turn.
        keep: Whether the graph is used again.
    """
    if not of.requires_grad or not over:
        return tuple(None for _ in over)
    return torch.autograd.grad(
        of, list(over), vector, create_graph=create_graph, retain_graph=keep or create_graph, allow_unused=True
    )


def squared_distance(first: Gradient, second: Gradient, *, like: Tensor) -> Tensor:
    """Sum the squared differences of two gradients, subtracted and squared in float32.

    Args:
        first: Gradient per parameter.
        second: Gradient of the same parameters.
        like: Gives the device of a distance that no parameter contributes to.
    """
    total = torch.zeros((), device=like.device)
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            wide = torch.promote_types(a.dtype, torch.float32)
            total = total + (a.to(wide) - b.to(wide)).square().sum()
    return total


def trained(net: PoolModel) -> list[Tensor]:
    """List the parameters of a model that are matched."""
    return list(net.trained().values())


def labels(images: Tensor, label: int) -> Tensor:
    """Make the labels of a batch of one class."""
    return torch.full((images.shape[0],), label, dtype=torch.int64, device=images.device)
