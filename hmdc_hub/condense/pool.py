"""What trains the networks and projections between image steps (HMDC, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.hand import Hand, TrainingPart, in_parts
from hmdc_hub.condense.members import below
from hmdc_hub.condense.ranks import Alone, Ranks
from hmdc_hub.condense.team import Team, Values
from hmdc_hub.schema import NetworksSpec

MOST_PARTS = 4
"""Parts of a minibatch on a CPU; a fixed number, because sums of another cut differ in their last bits."""

PART = 32
"""Images that a part has at least there: fewer are hardly faster than these."""


class Pool:
    """Networks and alignments with their optimisers.

    Args:
        hand: What the parts of a minibatch are done with.
        team: Does them.
        ranks: Share them.
    """

    def __init__(self, hand: Hand, team: Team, ranks: Ranks | None = None) -> None:
        self.hand, self.members, self.spec = hand, hand.members, hand.spec
        self.team, self.ranks = team, ranks or Alone()
        self._make_optimizers()

    def reset(self, outer: int, real: RealImages) -> None:
        """Make every network, projection and optimiser fresh; see `Members.reset`."""
        self.members.reset(outer, real)
        self._make_optimizers()

    def activate(self, outer: int) -> None:
        """Choose who works in an outer iteration; optimisers are made anew."""
        self.members.activate(outer)
        self._make_optimizers()

    def train(self, real: RealImages, key: tuple[int, int]) -> list[float]:
        """Train networks, then projections; see `train_networks`."""
        accuracies = self.train_networks(real, key)
        self.train_projections(real, key)
        return accuracies

    def train_networks(self, real: RealImages, key: tuple[int, int]) -> list[float]:
        """Train all networks on the same minibatches, together through mutual distillation; P and Q are held.

        Returns:
            Accuracy of each network on the minibatches it trained on (against the stronger label of mixed images).
        """
        networks, trained = self.members.networks, self.members.trained()
        correct, seen = torch.zeros(len(networks), device=real.device), 0
        for net in networks:
            net.train()
        whole = self.members.learns_statistics
        for images, targets in real.minibatches("train-networks", key, self.spec.networks.batches_per_step):
            cut = self._cut(images, whole=whole)
            hits = self._differentiate(
                self.hand.training_part, [(images[s], targets[s], len(images[s]) / len(images)) for s in cut], trained
            )
            for optimizer in self.optimizers:
                optimizer.step()
            correct += hits
            seen += len(images)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.members.hold()
        return [float(share) for share in (correct / max(seen, 1)).tolist()]

    def train_projections(self, real: RealImages, key: tuple[int, int]) -> None:
        """Train P and Q on fresh minibatches with the networks held."""
        if self.projection_optimizer is None:
            return
        learnt = self.members.learnt()
        for images, _ in real.minibatches("train-projections", key, self.spec.projection.batches_per_step):
            items = [(images[s], len(images[s]) / len(images)) for s in self._cut(images)]
            self._differentiate(self.hand.projection_part, items, learnt)
            self.projection_optimizer.step()
        self.projection_optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint inside an outer iteration needs, by name."""
        tensors = self.members.values()
        if self.projection_optimizer is not None:
            for place, entry in self.projection_optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{place}.{key}": value for key, value in entry.items()}
        return tensors

    def load_state(self, outer: int, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned in an outer iteration."""
        self.activate(outer)
        self.members.load_values(outer, tensors)
        if self.projection_optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in below(tensors, "adam.").items():
                place, key = name.split(".", 1)
                state.setdefault(int(place), {})[key] = value.clone()
            groups = self.projection_optimizer.state_dict()["param_groups"]
            self.projection_optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _cut(self, images: Tensor, *, whole: bool = False) -> Sequence[slice]:
        return in_parts(images, 1 if whole else parts_of(self.spec.networks, images.device))

    def _differentiate(
        self, work: Callable[..., TrainingPart], items: list[tuple[Any, ...]], parameters: Sequence[Tensor]
    ) -> Tensor:
        """Set the gradients of parameters to the sum over parts, in their order; returns the sum of the hits."""
        values = Values(self.members.outer, self.members.values)
        # What is in one part is done by every rank.
        mine = self.ranks.share(len(items)) if len(items) > 1 else range(1)
        parts = self.team.parts(work, [items[i] for i in mine], values)
        if len(items) > 1:
            parts = self.ranks.all_parts(parts, len(items), parameters, len(self.members.networks))
        for place, parameter in enumerate(parameters):
            present = [g for gradients, _ in parts if (g := gradients[place]) is not None]
            parameter.grad = torch.stack(present).sum(0) if present else None
        return torch.stack([hits for _, hits in parts]).sum(0)

    def _make_optimizers(self) -> None:
        self.optimizers = [
            torch.optim.SGD(net.trained().values(), lr=net.spec.lr.condense) for net in self.members.networks
        ]
        learnt = self.members.learnt()
        self.projection_optimizer = torch.optim.Adam(learnt, lr=self.spec.projection.lr) if learnt else None


def parts_of(spec: NetworksSpec, device: torch.device) -> int:
    """Say into how many parts a minibatch is cut: as the recipe says, by its size on a CPU, not at all on a GPU."""
    if spec.parts is not None:
        return spec.parts
    return min(MOST_PARTS, max(1, spec.batch // PART)) if device.type == "cpu" else 1
