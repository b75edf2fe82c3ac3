"""Gradient matching: the distance between the gradients that real and synthetic images give (HMDC, section 3.1).

A *target* is one number to minimise. Every model gives one (`match/<model>`): the squared distance between the
parameter gradients of the cross-entropy on real and on synthetic images of a class. Every pair of models gives another
(`distill/<a>+<b>`): the same distance for the gradients of their mutual distillation loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    networks: Sequence[PoolModel]
    alignments: Sequence[Alignment]
    match: bool = True

    def names(self) -> list[str]:
        """Name the targets in the order that every function here keeps."""
        named = [net.spec.name for net in self.networks]
        own = [f"match/{name}" for name in named] if self.match else []
        return own + [f"distill/{named[a]}+{named[b]}" for a, b in (align.pair for align in self.alignments)]

    def gradients(self, images: Tensor, labels: Tensor, *, create_graph: bool) -> list[Gradient]:
        """Compute the parameter gradient of every target's loss.

        Args:
            images: B x ch x H x W, source-normalised and already augmented.
            labels: int64 B.
            create_graph: Keep the graph, so that the result can be differentiated with respect to `images`.
        """
        features = [net(net.prepare(images)) for net in self.networks]
        trained = [list(net.trained().values()) for net in self.networks]
        losses: list[tuple[Tensor, list[torch.nn.Parameter]]] = []
        if self.match:
            losses += [(F.cross_entropy(f.logits, labels), p) for f, p in zip(features, trained, strict=True)]
        losses += [(align(features), trained[align.pair[0]] + trained[align.pair[1]]) for align in self.alignments]
        return [
            torch.autograd.grad(loss, parameters, create_graph=create_graph, retain_graph=True, allow_unused=True)
            for loss, parameters in losses
        ]

    def distances(self, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
        """Compute every target for one class, differentiable with respect to the synthetic images.

        Args:
            real: B_r x ch x H x W, source-normalised, augmented.
            synthetic: B_s x ch x H x W, likewise, part of a graph.
            label: The class.

        Returns:
            One scalar per target, in the order of `names`.
        """
        wanted = self.gradients(real, _labels(real, label), create_graph=False)
        given = self.gradients(synthetic, _labels(synthetic, label), create_graph=True)
        return [squared_distance(a, b, like=synthetic) for a, b in zip(wanted, given, strict=True)]


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
            total = total + (a.float() - b.float()).square().sum()
    return total


def _labels(images: Tensor, label: int) -> Tensor:
    return torch.full((images.shape[0],), label, dtype=torch.int64, device=images.device)
