"""The plain form of an image step, for `benchmarks/image_step.py` to compare with.

Eager, one class after another, torch's own threads inside each operation, the whole graph held, double backward down to
the stored images: what the method's description says, written down without a thought for time or memory. Networks,
clustering, augmentation and everything that is drawn are the condenser's, so that both compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.condense.loop import Condenser
from hmdc_hub.condense.threads import Threads
from hmdc_hub.condense.views import draw_view

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Serial(Threads):
    """No threads of our own: one thing after another, minibatches whole."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, 1)
        super().close()
        self.parallel, self._executor = False, None

    def map(self, work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        return [work(item) for item in items]


class PlainCondenser(Condenser):
    """A condenser, made with `Serial` threads, whose matching is plain."""

    def class_part(self, update: bool, label: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.real_batches[label]
        view = draw_view(self.spec, self.real.side, len(rows), self.seed, (self.outer, self.inner, label))
        leaf = self.images.pixels[label].detach().requires_grad_()
        wanted = self._gradients(view.real(self.real.take(rows)), label, create_graph=False)
        given = self._gradients(view.synthetic(leaf, self.spec.factor), label, create_graph=True)
        losses = [
            torch.stack(
                [(a - b).square().sum() for a, b in zip(*both, strict=True) if a is not None and b is not None]
            ).sum()
            for both in zip(wanted, given, strict=True)
        ]
        if update:
            apart = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses]
            gradient, share = self.balance.combine(apart, label)
        else:
            weights = self.balance.weights(label).to(leaf.device)
            gradient = torch.autograd.grad((weights * torch.stack(losses)).sum(), leaf)[0]
            share = torch.zeros(len(losses))
        return gradient, torch.stack([loss.detach() for loss in losses]), share

    def real_gradients(self) -> None:
        """Compute what real images give, and no more."""
        for label in range(self.real.classes):
            self._gradients(self.real.take(self.real_batches[label]), label, create_graph=False)

    def _gradients(self, images: Tensor, label: int, *, create_graph: bool) -> list[tuple[Tensor | None, ...]]:
        """Compute the parameter gradient of every loss, all of them from one pass of each network."""
        targets = self.pool.objectives
        nets = self.pool.networks
        features = {m: net(net.prepare(images)) for m, net in enumerate(nets)}
        labels = torch.full((len(images),), label, device=images.device)
        trained = [list(net.trained().values()) for net in nets]
        losses = [(F.cross_entropy(features[m].logits, labels), trained[m]) for m in features if targets.match]
        losses += [(align(features), trained[align.pair[0]] + trained[align.pair[1]]) for align in targets.alignments]
        return [
            torch.autograd.grad(loss, over, create_graph=create_graph, retain_graph=True, allow_unused=True)
            for loss, over in losses
        ]
