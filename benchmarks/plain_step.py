"""The plain form of an image step, for benchmarks to compare with.

Eager, one class after another, torch's own threads inside each operation, the whole graph held, double backward down to
the stored images: what the method's description says, written down without a thought for time or memory. Networks,
clustering, augmentation and everything that is drawn are the condenser's, so that both compute the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.team import Threads
from hmdc_hub.condense.views import draw_view


class Serial(Threads):
    """No threads of our own: one thing after another, each operation with torch's threads."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, 1)
        self._on_cpu = False


class PlainHand(Hand):
    """Parts of a step with a plain matching."""

    def class_part(
        self, place: tuple[int, int], label: int, rows: Tensor, stored: Tensor, accumulated: Tensor, update: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        view = draw_view(self.spec, self.real.side, len(rows), self.seed, (*place, label))
        balance = Balance.fresh(self.real.classes, len(accumulated), enabled=self.spec.balance)
        balance.accumulated[label] = accumulated
        leaf = stored.detach().to(self.real.device).requires_grad_()
        wanted = self.gradients(view.real(self.real.take(rows)), label, create_graph=False)
        given = self.gradients(view.synthetic(leaf, self.spec.factor), label, create_graph=True)
        losses = [
            torch.stack(
                [(a - b).square().sum() for a, b in zip(*both, strict=True) if a is not None and b is not None]
            ).sum()
            for both in zip(wanted, given, strict=True)
        ]
        if update:
            apart = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses]
            gradient, share = balance.combine(apart, label)
        else:
            weights = balance.weights(label).to(leaf.device)
            gradient = torch.autograd.grad((weights * torch.stack(losses)).sum(), leaf)[0]
            share = torch.zeros(len(losses))
        found = torch.stack([loss.detach() for loss in losses])
        return gradient.cpu(), found.cpu(), share, balance.accumulated[label]

    def gradients(self, images: Tensor, label: int, *, create_graph: bool) -> list[tuple[Tensor | None, ...]]:
        """Compute the parameter gradient of every loss, all of them from one pass of each network."""
        targets = self.members.objectives
        nets = self.members.networks
        features = {m: net(net.prepare(images)) for m, net in enumerate(nets)}
        labels = torch.full((len(images),), label, device=images.device)
        trained = [list(net.trained().values()) for net in nets]
        losses = [(F.cross_entropy(features[m].logits, labels), trained[m]) for m in features if targets.match]
        losses += [(align(features), trained[align.pair[0]] + trained[align.pair[1]]) for align in targets.alignments]
        return [
            torch.autograd.grad(loss, over, create_graph=create_graph, retain_graph=True, allow_unused=True)
            for loss, over in losses
        ]
