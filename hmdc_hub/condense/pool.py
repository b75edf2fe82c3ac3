"""The pool of networks and what trains them between image steps (HMDC, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hmdc_hub import rng
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.threads import Threads
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec

_Part = tuple[tuple[Tensor, ...], Tensor]
"""Of one part of a minibatch: a gradient per parameter, and how many images each network got right."""


class Pool:
    """Networks, the alignments of their pairs, and their optimisers.

    Args:
        members: M models on the device.
        spec: Says which parts are on and how they are trained.
        seed: Of the recipe.
        threads: For the parts of a minibatch, and for whoever works with the pool.
        low_memory: Whether the matching step holds the graph of one model at a time, or of two.

    Attributes:
        active: Places of the members that work now: all of them, or the pair of this outer iteration.
        networks: Those members; everything else here is about them alone.
        alignments: Of their pairs, which count places among the active ones.
    """

    def __init__(
        self,
        members: Sequence[PoolModel],
        spec: CondenseSpec,
        seed: int,
        threads: Threads,
        *,
        low_memory: bool = False,
    ) -> None:
        self.members, self.spec, self.seed, self.threads = list(members), spec, seed, threads
        self.low_memory = low_memory
        self.activate(0)

    def activate(self, outer: int) -> None:
        """Choose who works in an outer iteration (`pool_strategy`); projections and optimisers are made anew."""
        count = len(self.members)
        self.active = tuple(range(count))
        if self.spec.pool_strategy == "pair" and count > 2:
            drawn = torch.randperm(count, generator=rng.generator(self.seed, "pair", outer))[:2]
            self.active = tuple(sorted(drawn.tolist()))
        self.networks = [self.members[m] for m in self.active]
        device = next(self.networks[0].parameters()).device
        pairs = combinations(range(len(self.networks)), 2) if self.spec.distill else ()
        self.alignments = [
            Alignment((a, b), (self.networks[a].taps, self.networks[b].taps)).to(device) for a, b in pairs
        ]
        self.optimizers = self._network_optimizers()
        self.projection_optimizer = self._projection_optimizer()

    @property
    def objectives(self) -> Objectives:
        """The targets of the matching step."""
        return Objectives(self.networks, self.alignments, match=self.spec.match, low_memory=self.low_memory)

    def reset(self, outer: int, real: RealImages) -> None:
        """Make every network, projection and optimiser fresh, and calibrate batch norm on real images."""
        self.activate(outer)
        for m, net in zip(self.active, self.networks, strict=True):
            net.reset(rng.generator(self.seed, "network", outer, m))
        for align in self.alignments:
            align.reset(rng.generator(self.seed, "projection", outer, *(self.active[m] for m in align.pair)))
        batches = real.calibration_batches(outer)
        for net in self.networks:
            net.calibrate(net.prepare(batch) for batch in batches)
        self.hold()

    def hold(self) -> None:
        """Put every network into evaluation mode: running statistics, nothing random."""
        for net in self.networks:
            net.eval()

    def train_networks(self, real: RealImages, key: tuple[int, int]) -> list[float]:
        """Train all networks on the same minibatches, together through mutual distillation; P and Q are held.

        Returns:
            Accuracy of each network on the minibatches it trained on (against the stronger label of mixed images).
        """
        correct, seen = torch.zeros(len(self.networks), device=real.device), 0
        trained = [p for net in self.networks for p in net.trained().values()]
        for net in self.networks:
            net.train()
        for images, targets in real.minibatches("train-networks", key, self.spec.networks.batches_per_step):
            gradients, hits = self._sharded(partial(self._training_part, trained, images, targets), images)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            for optimizer in self.optimizers:
                optimizer.step()
            correct += hits
            seen += len(images)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.hold()
        return [float(share) for share in (correct / max(seen, 1)).tolist()]

    def train_projections(self, real: RealImages, key: tuple[int, int]) -> None:
        """Train P and Q on fresh minibatches with the networks held."""
        if self.projection_optimizer is None:
            return
        learnt = [p for align in self.alignments for p in align.parameters()]
        for images, _ in real.minibatches("train-projections", key, self.spec.projection.batches_per_step):
            gradients, _ = self._sharded(partial(self._projection_part, learnt, images), images)
            for parameter, gradient in zip(learnt, gradients, strict=True):
                parameter.grad = gradient
            self.projection_optimizer.step()
        self.projection_optimizer.zero_grad()

    def _training_part(self, trained: Sequence[Tensor], images: Tensor, targets: Tensor, part: slice) -> _Part:
        """Differentiate one part of a minibatch's loss, weighted so that the parts add up to the whole's mean."""
        features = {m: net(net.prepare(images[part])) for m, net in enumerate(self.networks)}
        loss = torch.stack([F.cross_entropy(f.logits, targets[part]) for f in features.values()]).sum()
        if self.alignments:
            loss = loss + torch.stack([align(features) for align in self.alignments]).mean()
        hits = [(f.logits.detach().argmax(1) == targets[part].argmax(1)).sum() for f in features.values()]
        share = (part.stop - part.start) / len(images)
        return torch.autograd.grad(loss * share, trained, allow_unused=True), torch.stack(hits)

    def _projection_part(self, learnt: Sequence[Tensor], images: Tensor, part: slice) -> _Part:
        with torch.no_grad():
            features = {m: net(net.prepare(images[part])) for m, net in enumerate(self.networks)}
        loss = torch.stack([align(features) for align in self.alignments]).mean()
        share = (part.stop - part.start) / len(images)
        return torch.autograd.grad(loss * share, learnt), torch.zeros(1)

    def _sharded(self, work: Callable[[slice], _Part], images: Tensor) -> tuple[list[Tensor | None], Tensor]:
        """Do something for every part of a minibatch and sum the results in the order of the parts."""
        # Batch norm looks at the whole minibatch, so it stays whole where a network normalises by it.
        whole = any(m.training for net in self.networks for m in net.modules() if isinstance(m, _BatchNorm))
        parts = self.threads.map(work, [slice(0, len(images))] if whole else self.threads.shards(images))
        columns = zip(*(gradients for gradients, _ in parts), strict=True)
        summed = [None if column[0] is None else torch.stack(column).sum(0) for column in columns]
        return summed, torch.stack([hits for _, hits in parts]).sum(0)

    def state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint inside an outer iteration needs, by name."""
        tensors = {f"network.{m}.{k}": v for m, net in enumerate(self.networks) for k, v in net.state_dict().items()}
        tensors |= {f"align.{i}.{k}": v for i, a in enumerate(self.alignments) for k, v in a.state_dict().items()}
        if self.projection_optimizer is not None:
            for place, entry in self.projection_optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{place}.{key}": value for key, value in entry.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for m, net in enumerate(self.networks):
            net.load_state_dict(_below(tensors, f"network.{m}."))
        for i, align in enumerate(self.alignments):
            align.load_state_dict(_below(tensors, f"align.{i}."))
        if self.projection_optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(tensors, "adam.").items():
                place, key = name.split(".", 1)
                state.setdefault(int(place), {})[key] = value.clone()
            groups = self.projection_optimizer.state_dict()["param_groups"]
            self.projection_optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.hold()

    def _network_optimizers(self) -> list[torch.optim.SGD]:
        return [torch.optim.SGD(net.trained().values(), lr=net.spec.lr.condense) for net in self.networks]

    def _projection_optimizer(self) -> torch.optim.Adam | None:
        parameters = [p for align in self.alignments for p in align.parameters()]
        return torch.optim.Adam(parameters, lr=self.spec.projection.lr) if parameters else None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
