"""Gradient matching: the distance between the gradients that real and synthetic images give (HMDC, section 3.1).

A *target* is one number to minimise. Every model gives one (`match/<model>`): the squared distance between the
parameter gradients of the cross-entropy on real and on synthetic images of a class. Every pair of models gives another
(`distill/<a>+<b>`): the same distance for the gradients of their mutual distillation loss.

What the condenser needs of a target D = |g(X) - g(R)|^2 is its derivative with respect to the synthetic images X: with
v = 2 (g(X) - g(R)) held constant, dD/dX = d/dX <v, g(X)>, a second derivative. It is taken by double backward, with the
graphs of at most two models at a time. Where those do not fit, the images are taken a few at a time: g is a mean over
images, so that each few of them give their own rows of the derivative, exactly, for one more pass over X.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.compiled import Compiled
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
        at_once: Images whose graphs are held at a time; None for all of a batch.
        compiled: Functions that stand in for what is done here eagerly, as far as it has them.
    """

    networks: Sequence[PoolModel]
    alignments: Sequence[Alignment]
    match: bool = True
    at_once: int | None = None
    compiled: Compiled | None = None

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

    def run(self, work: Callable[..., Any], group: Group, images: Tensor, *rest: Any) -> Any:
        """Do a group's `work(objectives, group, images, ...)`, in its compiled form if there is one."""
        if self.compiled is None:
            return work(self, group, images, *rest)
        modules: list[nn.Module] = [self.networks[m] for m in group.networks]
        modules += [] if group.alignment is None else [self.alignments[group.alignment]]
        key = work.__name__, self.match, tuple(net.spec.name for net in self.networks), group, len(images)
        return self.compiled.run(key, partial(work, self, group), modules, images, *rest)


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
        weights: K weights, float32, if only the weighted sum of the derivatives is wanted, otherwise None.
        losses: K targets, scalars without graph.
        gradients: K derivatives shaped like the images, or the one weighted sum.
    """

    like: Tensor
    count: int
    weights: Tensor | None
    losses: list[Tensor] = field(init=False)
    gradients: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = [torch.zeros((), device=self.like.device) for _ in range(self.count)]
        self.gradients = [torch.zeros_like(self.like) for _ in range(self.count if self.weights is None else 1)]

    def add(self, losses: Mapping[int, Tensor], derivatives: Mapping[int, Tensor]) -> None:
        """Add what a group gave, by the places of its targets; a weighted sum stands at the first's."""
        for target, loss in losses.items():
            self.losses[target] = self.losses[target] + loss
        for target, derivative in derivatives.items():
            place = target if self.weights is None else 0
            self.gradients[place] = self.gradients[place] + derivative


def image_derivatives(
    objectives: Objectives, real: Tensor, synthetic: Tensor, label: int, weights: Sequence[float] | None
) -> Derivatives:
    """Compute every target for one class and differentiate it with respect to the synthetic images.

    Args:
        objectives: Models and targets.
        real: B_r x ch x H x W, source-normalised, augmented.
        synthetic: B_s x ch x H x W, likewise, without a graph.
        label: The class.
        weights: K weights; None: each derivative apart, which is computed eagerly.
    """
    total = None
    if weights is None:
        objectives = replace(objectives, compiled=None)
    else:
        total = torch.tensor(weights, device=synthetic.device)
    found = Derivatives(synthetic.detach(), len(objectives.names()), total)
    at_once = objectives.at_once
    for group in objectives.groups():
        if at_once is None or at_once >= max(len(real), len(synthetic)):
            _differentiate_whole(objectives, group, real, label, found)
        else:
            _differentiate_in_parts(objectives, group, real, label, found, at_once)
    return found


def _differentiate_whole(objectives: Objectives, group: Group, real: Tensor, label: int, found: Derivatives) -> None:
    x = found.like
    wanted = objectives.run(_gradients, group, real, labels(real, label))
    found.add(*objectives.run(_derivatives, group, x, labels(x, label), wanted, found.weights))


def _differentiate_in_parts(
    objectives: Objectives, group: Group, real: Tensor, label: int, found: Derivatives, at_once: int
) -> None:
    # Without a second derivative an image takes less than half as much.
    wanted, given = (_mean_gradients(objectives, group, images, label, 2 * at_once) for images in (real, found.like))
    losses, directions = _directions(wanted, given)
    del wanted, given
    rows: dict[int, list[Tensor]] = {}
    for few in torch.split(found.like, at_once):
        done = objectives.run(_products, group, few, labels(few, label), directions, found.weights)
        for target, derivative in done.items():
            rows.setdefault(target, []).append(derivative * (len(few) / len(found.like)))
    found.add(losses, {target: torch.cat(derivatives) for target, derivatives in rows.items()})


def _gradients(objectives: Objectives, group: Group, images: Tensor, classes: Tensor) -> dict[int, Gradient]:
    return parameter_gradients(objectives, group, images, classes, create_graph=False)


def _derivatives(
    objectives: Objectives,
    group: Group,
    images: Tensor,
    classes: Tensor,
    wanted: Mapping[int, Gradient],
    weights: Tensor | None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Compute a group's targets, and their derivatives with respect to all the synthetic images."""
    x = images.detach().requires_grad_()
    given = parameter_gradients(objectives, group, x, classes, create_graph=True)
    losses, directions = _directions(wanted, given)
    return losses, _pulled(given, directions, x, weights)


def _products(
    objectives: Objectives,
    group: Group,
    images: Tensor,
    classes: Tensor,
    directions: Mapping[int, Gradient],
    weights: Tensor | None,
) -> dict[int, Tensor]:
    """Compute d/dX <v, g(X)> of a group's targets for a few of the synthetic images, given v."""
    x = images.detach().requires_grad_()
    given = parameter_gradients(objectives, group, x, classes, create_graph=True)
    return _pulled(given, directions, x, weights)


@torch.no_grad()
def _directions(
    wanted: Mapping[int, Gradient], given: Mapping[int, Gradient]
) -> tuple[dict[int, Tensor], dict[int, Gradient]]:
    """Give each target's distance, and v: twice the difference; gradients of float32 parameters are float32."""
    losses: dict[int, Tensor] = {}
    directions: dict[int, Gradient] = {}
    for target in given:
        pairs = zip(wanted[target], given[target], strict=True)
        apart = [None if a is None or b is None else b - a for a, b in pairs]
        squares = [difference.square().sum() for difference in apart if difference is not None]
        if squares:
            losses[target] = torch.stack(squares).sum()
        directions[target] = tuple(None if difference is None else 2 * difference for difference in apart)
    return losses, directions


def _pulled(
    given: Mapping[int, Gradient], directions: Mapping[int, Gradient], x: Tensor, weights: Tensor | None
) -> dict[int, Tensor]:
    """Give d/dX <v, g(X)> of each target, or of their weighted sum, which counts as the first's."""
    products: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for target, gradients in given.items():
        for gradient, direction in zip(gradients, directions[target], strict=True):
            if gradient is not None and direction is not None and gradient.requires_grad:
                vector = direction if weights is None else weights[target] * direction
                place = target if weights is None else next(iter(given))
                products.setdefault(place, []).append((gradient, vector))
    last = next(reversed(products), None)
    found: dict[int, Tensor] = {}
    for target, pairs in products.items():
        outputs, vectors = zip(*pairs, strict=True)
        found[target] = torch.autograd.grad(outputs, x, vectors, retain_graph=target != last)[0]
    return found


def _mean_gradients(
    objectives: Objectives, group: Group, images: Tensor, label: int, at_once: int
) -> dict[int, Gradient]:
    """Compute what `_gradients` does, a few images at a time."""
    summed: dict[int, list[Tensor | None]] = {}
    for part in torch.split(images, at_once):
        share = len(part) / len(images)
        for target, parts in objectives.run(_gradients, group, part, labels(part, label)).items():
            total = summed.setdefault(target, [None] * len(parts))
            for place, gradient in enumerate(parts):
                if gradient is not None:
                    before = total[place]
                    total[place] = gradient * share if before is None else before.add_(gradient, alpha=share)
    return {target: tuple(total) for target, total in summed.items()}


def parameter_gradients(
    objectives: Objectives, group: Group, images: Tensor, classes: Tensor, *, create_graph: bool
) -> dict[int, Gradient]:
    """Compute the parameter gradient of each of a group's losses, by the place of its target."""
    nets = objectives.networks
    features = {m: nets[m](nets[m].prepare(images)) for m in group.networks}
    losses: list[tuple[int, Tensor, list[Tensor]]] = []
    for m in group.own:
        if (target := objectives.own(m)) is not None:
            losses.append((target, F.cross_entropy(features[m].logits, classes), trained(nets[m])))
    if group.alignment is not None:
        a, b = group.networks
        both = trained(nets[a]) + trained(nets[b])
        losses.append((objectives.mutual(group.alignment), objectives.alignments[group.alignment](features), both))
    return {target: gradient(loss, over, create_graph=create_graph) for target, loss, over in losses}


def gradient(loss: Tensor, over: Sequence[Tensor], *, create_graph: bool) -> Gradient:
    """Differentiate a loss, whose graph is kept; None for what it does not depend on."""
    if not loss.requires_grad or not over:
        return tuple(None for _ in over)
    return torch.autograd.grad(loss, list(over), create_graph=create_graph, retain_graph=True, allow_unused=True)


def trained(net: PoolModel) -> list[Tensor]:
    """List the parameters of a model that are matched."""
    return list(net.trained().values())


def labels(images: Tensor, label: int) -> Tensor:
    """Make the labels of a batch of one class."""
    return torch.full((images.shape[0],), label, dtype=torch.int64, device=images.device)
