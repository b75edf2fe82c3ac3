"""What moves the synthetic images (HMDC, section 3): objectives, their image gradients, and the balance between these.

An *objective* is one number to minimise. Every model gives one (`match/<model>`): the squared distance between the
parameter gradients of the cross-entropy on real and on synthetic images of a class. Every pair of models gives another
(`distill/<a>+<b>`): the same distance for the gradients of their mutual distillation loss.

What the condenser needs of an objective D = |g(X) - g(R)|^2 is its derivative with respect to the synthetic images X:
with v = 2 (g(X) - g(R)) held constant, dD/dX = d/dX <v, g(X)>, a second derivative, taken by double backward. Another
distance (`distances`) has another v = dD/dg(X), and nothing else changes.

Classes are a dimension of every tensor here: k of them at once, each for itself. Each has parameter gradients of its
own, so the networks run on as many copies of their parameters (views, which take no memory) with `torch.func.vmap`; the
backward passes are then ordinary ones. Where the graphs do not fit, the images are taken a few at a time: g is a sum
over images, so that each few of them give their own rows of the derivative, exactly, for one more pass over X.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from hmdc_hub.condenser.distances import compare
from hmdc_hub.condenser.distillation import Pair
from hmdc_hub.models import Features, PoolModel, TapOutput
from hmdc_hub.schema import Distance

Parameters = dict[str, Tensor]  # of one network, by name, k x ... each
Gradient = tuple[Tensor | None, ...]  # an entry per parameter, k x ...; None where the loss does not reach it: zero

EPSILON = 1e-6  # what the accumulators hold after a reset, and what keeps the normalisation from dividing by zero


# Section 3.1 and 3.3: which losses have their gradients matched


@dataclass(frozen=True)
class Objectives:
    """The models whose gradients are matched, which objectives are on, and how gradients are compared."""

    networks: Sequence[PoolModel]  # M of them, in evaluation mode
    pairs: Sequence[Pair]  # every two of them; empty when mutual distillation is off
    match: bool = True  # whether every model has an objective of its own
    distance: Distance = "squares"

    def names(self) -> list[str]:
        """Name the K objectives in the order that every function here keeps."""
        named = [net.spec.name for net in self.networks]
        own = [f"match/{name}" for name in named] if self.match else []
        return own + [f"distill/{named[pair.first]}+{named[pair.second]}" for pair in self.pairs]

    def reached(self) -> list[tuple[int, ...]]:
        """Say of which networks the gradient of each objective is taken."""
        own = [(m,) for m in range(len(self.networks))] if self.match else []
        return own + [(pair.first, pair.second) for pair in self.pairs]

    def losses(self, features: Sequence[Features], labels: Tensor, shares: Tensor) -> list[Tensor]:
        """Compute the K losses, each k, whose gradients are compared.

        Args:
            features: Of each network, k x B x ...
            labels: int64 k, the class of all B images.
            shares: k x B, the weight of each image; summing to 1 makes the loss a mean.
        """
        each_label = labels[:, None].expand_as(shares).flatten()
        losses = []
        if self.match:
            for out in features:
                each = F.cross_entropy(out.logits.flatten(0, 1), each_label, reduction="none")
                losses.append((each.view_as(shares) * shares).sum(1))
        for pair in self.pairs:
            each = pair.distillation(features[pair.first], features[pair.second], shares)
            losses.append((each * shares).sum(1))
        return losses


# Section 3.1: the gradients that real and synthetic images give, and the derivative of their distance


def image_gradients(
    objectives: Objectives,
    real: Tensor,
    real_shares: Tensor,
    synthetic: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute every objective for k classes and differentiate it with respect to their synthetic images.

    Args:
        objectives: Models and what is compared of them.
        real: k x B_r x ch x H x W, source-normalised, augmented.
        real_shares: k x B_r, summing to 1; a class with fewer real images than B_r has 0 for the rest.
        synthetic: k x B_s x ch x H x W, likewise, without a graph.
        labels: int64 k.
        weights: k x K of the objectives, for the derivative of their weighted sum; None: each derivative apart.
        at_once: Images of a class whose graphs are held at a time; None for all.

    Returns:
        The objectives, k x K, and their derivatives, k x J x B_s x ch x H x W with J = 1, or K without weights.
    """
    wanted = real_gradients(objectives, real, real_shares, labels, at_once)
    return distance_gradients(objectives, wanted, synthetic, labels, weights, at_once)


def real_gradients(
    objectives: Objectives, real: Tensor, shares: Tensor, labels: Tensor, at_once: int | None = None
) -> list[Gradient]:
    """Compute g(R), which synthetic images of any number are compared with: of each objective, without a graph.

    The arguments are those of `image_gradients`.
    """
    parameters = _parameters(objectives, len(labels))
    wanted: list[Gradient] = []
    few = at_once or real.shape[1]
    with plain_attention():
        for images, share in zip(torch.split(real, few, 1), torch.split(shares, few, 1), strict=True):
            wanted = _added(wanted, _gradients(objectives, parameters, images, labels, share, create_graph=False))
    return wanted


def distance_gradients(
    objectives: Objectives,
    wanted: list[Gradient],
    synthetic: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what is left of `image_gradients` once g(R), here `wanted`, is known."""
    parameters = _parameters(objectives, len(labels))
    parts = [part.detach().requires_grad_() for part in torch.split(synthetic, at_once or synthetic.shape[1], 1)]
    shares = [part.new_full(part.shape[:2], 1 / synthetic.shape[1]) for part in parts]
    whole = len(parts) == 1  # then the graph of g(X) is there already when v is known
    given: list[Gradient] = []  # g(X)
    with plain_attention():
        for part, share in zip(parts, shares, strict=True):
            given = _added(given, _gradients(objectives, parameters, part, labels, share, create_graph=whole))
        distances, differences = _differences(wanted, given, synthetic.new_zeros(len(synthetic)), objectives.distance)
        found = []
        for part, share in zip(parts, shares, strict=True):
            graph = given if whole else _gradients(objectives, parameters, part, labels, share, create_graph=True)
            found.append(_pulled(graph, differences, weights, part))
    return distances, torch.cat(found, 2)


def _parameters(objectives: Objectives, classes: int) -> list[Parameters]:
    """Give each class views of the parameters of its own, to be differentiated by."""
    return [
        {name: p.detach().expand(classes, *p.shape).requires_grad_() for name, p in net.trained().items()}
        for net in objectives.networks
    ]


def _gradients(
    objectives: Objectives,
    parameters: list[Parameters],
    images: Tensor,
    labels: Tensor,
    shares: Tensor,
    *,
    create_graph: bool,
) -> list[Gradient]:
    """Compute g, the parameter gradient of each loss."""
    features = [run(net, values, images) for net, values in zip(objectives.networks, parameters, strict=True)]
    found: list[Gradient] = []
    for loss, over in zip(objectives.losses(features, labels, shares), objectives.reached(), strict=True):
        leaves = [p for m in over for p in parameters[m].values()]
        # Each class has leaves of its own, so the gradient of the sum over classes is the gradient of each.
        found.append(
            torch.autograd.grad(loss.sum(), leaves, create_graph=create_graph, retain_graph=True, allow_unused=True)
            if loss.requires_grad and leaves
            else (None,) * len(leaves)
        )
    return found


def run(net: PoolModel, parameters: Parameters, images: Tensor) -> Features:
    """Run a network on k batches, k x B x ch x H x W, each with parameters of its own; features k x B x ..."""
    prepared = net.prepare(images.flatten(0, 1))
    prepared = prepared.view(*images.shape[:2], *prepared.shape[1:])
    if len(images) > 1:
        together: Features = vmap(net.run_with)(parameters, prepared)
        return together
    # One class needs no vmap, which costs a quarter where the work is large.
    alone = net.run_with({name: p.view(p.shape[1:]) for name, p in parameters.items()}, prepared[0])
    taps = tuple(TapOutput(tap.semantic[None], tap.spatial[None]) for tap in alone.taps)
    return Features(alone.logits[None], taps)


def takes_classes_together(net: PoolModel) -> bool:
    """Try whether a network can run on several classes at a time; some operations cannot go through `vmap`."""
    device = next(net.parameters()).device
    images = torch.zeros(2, 2, net.net.channels, net.input_size, net.input_size, device=device)
    parameters = {name: p.detach().expand(2, *p.shape) for name, p in net.trained().items()}
    try:
        with torch.no_grad(), plain_attention():
            vmap(net.run_with)(parameters, images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError):  # what torch.func says no with
        return False
    return True


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention plainly: fused kernels have no second derivative."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


def _added(total: list[Gradient], more: list[Gradient]) -> list[Gradient]:
    if not total:
        return more
    pairs = (zip(a, b, strict=True) for a, b in zip(total, more, strict=True))
    return [tuple(None if x is None or y is None else x + y for x, y in both) for both in pairs]


@torch.no_grad()
def _differences(
    wanted: list[Gradient], given: list[Gradient], zero: Tensor, distance: Distance
) -> tuple[Tensor, list[Gradient]]:
    """Give the distances, k x K, and what differs, half of v: for `squares` g(X) - g(R), of each objective."""
    both = zip(wanted, given, strict=True)
    distances, differences = zip(*(compare(distance, *each, zero) for each in both), strict=True)
    return torch.stack(distances, 1), list(differences)


def _pulled(given: list[Gradient], differences: list[Gradient], weights: Tensor | None, images: Tensor) -> Tensor:
    """Give d/dX <v, g(X)>, v twice what differs, of each objective or of the weighted sum, k x J x B x ch x H x W."""
    terms: list[list[tuple[Tensor, Tensor]]] = [[] for _ in given]
    for place, (gradients, apart) in enumerate(zip(given, differences, strict=True)):
        scale = 2 if weights is None else 2 * weights[:, place]
        for gradient, difference in zip(gradients, apart, strict=True):
            if gradient is not None and difference is not None and gradient.requires_grad:
                each = scale.view(-1, *[1] * (difference.ndim - 1)) if isinstance(scale, Tensor) else scale
                terms[place].append((gradient, each * difference))
    if weights is not None:
        terms = [[term for group in terms for term in group]]
    last = max((place for place, group in enumerate(terms) if group), default=None)
    rows = []
    for place, group in enumerate(terms):
        if group:
            outputs, vectors = zip(*group, strict=True)
            rows.append(torch.autograd.grad(outputs, images, vectors, retain_graph=place != last)[0])
        else:
            rows.append(torch.zeros_like(images))
    return torch.stack(rows, 1)


# Section 3.2, the Gradient Balance Module: objectives of unlike size get a like say


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
    """Sum the image gradients of the objectives, k x K x n x ch x H x W, with their weights, k x K.

    Returns:
        The sum, k x n x ch x H x W, and the mean absolute share of each objective in it, float32 k x K.
    """
    weighted = weights[:, :, None, None, None, None] * gradients
    return weighted.sum(1), weighted.abs().mean((2, 3, 4, 5)).to(weights.dtype)


def normalise(gradient: Tensor) -> Tensor:
    """Divide by the largest absolute value per synthetic image and channel (plus 1e-6), over the last dimensions."""
    return gradient / (gradient.abs().amax(dim=(-2, -1), keepdim=True) + EPSILON)
