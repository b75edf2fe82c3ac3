"""The plain form of an image step, for benchmarks to compare with.

Eager, one class after another, torch's own threads inside each operation, the whole graph held, double backward down to
the synthetic images: what the method's description says, written down without a thought for time or memory. ModelPool,
clustering, augmentation and everything that is drawn are the condenser's, so that both compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.condenser.data import Classes
from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.matching import accumulate, combine, normalise, plain_attention


class PlainHMDC(HMDC):
    """The algorithm with a plain matching, for one size; `at_once` must be one class."""

    def image_step(self, drawn: Classes, *, update: bool) -> None:
        rows, (label,), (shares,), (size,) = drawn.rows, drawn.labels, drawn.shares, self.sizes
        stored = size.images.pixels[rows].requires_grad_()
        accumulated = size.accumulated[rows]
        real, synthetic = self.real.view_real(drawn)[0], self.real.view_synthetic(drawn, stored)[0]
        with plain_attention():
            wanted = self._gradients(real, label, shares, create_graph=False)
            alike = torch.full_like(synthetic[:, 0, 0, 0], 1 / len(synthetic))
            given = self._gradients(synthetic, label, alike, create_graph=True)
            losses = torch.stack([_distance(*both) for both in zip(wanted, given, strict=True)])
            if update:
                apart = [torch.autograd.grad(loss, stored, retain_graph=True)[0] for loss in losses]
                gradients = torch.stack(apart, 1)
                if self.spec.balance:
                    accumulated = accumulate(accumulated, gradients)
                gradient, share = combine(gradients, self._weights(accumulated))
            else:
                gradient = torch.autograd.grad((self._weights(accumulated)[0] * losses).sum(), stored)[0]
                share = torch.zeros_like(accumulated)
        size.accumulated[rows] = accumulated
        size.images.step(rows, self.parametrisation.direction(gradient, normalise if self.spec.normalise else None))
        size.measured[rows] = torch.cat([losses.detach()[None], share, torch.ones_like(share[:, :1])], 1)

    def _gradients(
        self, images: Tensor, label: Tensor, shares: Tensor, *, create_graph: bool
    ) -> list[tuple[Tensor | None, ...]]:
        """Compute the parameter gradient of every loss, all of them from one pass of each network."""
        objectives = self.networks.objectives
        features = [net(net.prepare(images)) for net in objectives.networks]
        labels = label.expand(len(images))
        losses = []
        if objectives.match:
            losses += [F.cross_entropy(f.logits, labels, reduction="none") @ shares for f in features]
        losses += [pair.distillation(features[pair.first], features[pair.second]) @ shares for pair in objectives.pairs]
        trained = [list(net.trained().values()) for net in objectives.networks]
        over = [[p for m in reached for p in trained[m]] for reached in objectives.reached()]
        return [
            torch.autograd.grad(loss, some, create_graph=create_graph, retain_graph=True, allow_unused=True)
            for loss, some in zip(losses, over, strict=True)
        ]


def _distance(wanted: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> Tensor:
    both = zip(wanted, given, strict=True)
    return torch.stack([(a - b).square().sum() for a, b in both if a is not None and b is not None]).sum()
