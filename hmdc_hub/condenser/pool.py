"""The networks that condense together, with the mutual distillation of their pairs, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser.data import Minibatch, RealImages
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.matching import Objectives
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.models import BATCH_NORMS, Features, PoolModel
from hmdc_hub.schema import CondenseSpec

if TYPE_CHECKING:
    from hmdc_hub.condenser.stages import Bank

LOW = 10  # `memory: low` holds the graphs of this part of a batch at a time


class ModelPool:
    """The models of a pool, those of them that work in this outer iteration, and their optimisers.

    Whatever changes, changes in place: functions that were captured go on reading the same tensors.

    Args:
        models: All M of them, on the device.
        real: The source, and what the recipe says of condensing it.
        ranks: That share the parts of a minibatch; None: this one alone.
    """

    def __init__(self, models: Sequence[PoolModel], real: RealImages, ranks: Ranks | None = None) -> None:
        self.models, self.real, self.ranks = list(models), real, ranks or Ranks()
        self.spec, self.seed, spec = real.spec, real.seed, real.spec
        self.parts = parts_of_a_minibatch(spec)
        self.bank: Bank | None = None  # that networks begin from at a reset, in place of fresh weights
        self._distillations = {
            (a, b): MutualDistillation((self.models[a].taps, self.models[b].taps), spec.distillation).to(real.device)
            for a, b in (combinations(range(len(self.models)), 2) if spec.distill else ())
        }
        self._adam = {
            pair: torch.optim.Adam(module.parameters(), lr=spec.projection.lr, capturable=real.device.type == "cuda")
            for pair, module in self._distillations.items()
        }
        self._correct = torch.zeros(len(self.models), device=real.device)
        self.activate(0)

    def activate(self, outer: int) -> None:
        """Choose which models work in an outer iteration (`pool_strategy`): all of them, or a pair."""
        self.active = tuple(range(len(self.models)))  # their places
        if self.spec.pool_strategy == "pair" and len(self.models) > 2:
            drawn = torch.randperm(len(self.models), generator=rng.generator(self.seed, "pair", outer))[:2]
            self.active = tuple(sorted(drawn.tolist()))
        self.networks = [self.models[m] for m in self.active]
        self.correct = self._correct[: len(self.active)]  # training images got right since somebody set it to zero
        self.objectives = self._objectives(self.active)
        self._pairs = [pair for pair in combinations(self.active, 2) if pair in self._distillations]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(net.trained().values(), lr=net.spec.lr.condense) for net in self.networks
        ]
        self._projection_optimizers = [self._adam[pair] for pair in self._pairs]
        self.trained = [p for net in self.networks for p in net.trained().values()]
        self.learnt = [p for pair in self._pairs for p in self._distillations[pair].parameters()]  # P and Q

    def constitutions(self) -> list[Objectives]:
        """List the objectives for every constitution that the pool may have: one, or one for each pair."""
        alike = len(self.active) == len(self.models)
        return [self._objectives(few) for few in ([self.active] if alike else combinations(range(len(self.models)), 2))]

    def _objectives(self, active: tuple[int, ...]) -> Objectives:
        pairs = [(a, b) for a, b in combinations(active, 2) if (a, b) in self._distillations]
        return Objectives(
            [self.models[m] for m in active],
            [Pair(active.index(a), active.index(b), self._distillations[a, b]) for a, b in pairs],
            self.spec.match,
            self.spec.distance,
        )

    def reset(self, outer: int) -> None:
        """Make everything that works in an outer iteration fresh, and calibrate batch norm on real images.

        Networks from a bank come with the running statistics of their stage.
        """
        self.activate(outer)
        for m, net in zip(self.active, self.networks, strict=True):
            if self.bank is not None:
                self.bank.start(m, net, rng.generator(self.seed, "bank", outer, m))
            else:
                net.reset(rng.generator(self.seed, "network", outer, m))
        for a, b in self._pairs:
            self._distillations[a, b].reset(rng.generator(self.seed, "projection", outer, a, b))
            for state in self._adam[a, b].state.values():
                for value in state.values():
                    value.zero_()
        for net in self.networks:
            if self.bank is None:
                net.calibrate(net.prepare(batch) for batch in self.real.calibration_batches(outer))
            net.eval()

    def train(self, batch: Minibatch) -> None:
        """Train all networks on one minibatch, together through mutual distillation; P and Q are held.

        The loss is the sum of cross-entropies and the mean of the mutual distillations (HMDC, algorithm 1).
        """
        images, labels = self.real.view_minibatch(batch)
        for net in self.networks:
            net.train()

        def gradients(part: slice) -> list[Tensor]:
            features = self._features(images[part])
            loss = torch.stack([F.cross_entropy(f.logits, labels[part]) for f in features]).sum()
            if self.objectives.pairs:
                loss = loss + self._mutual_distillation(features)
            found = torch.autograd.grad(
                loss * (len(images[part]) / len(images)), self.trained, allow_unused=True, materialize_grads=True
            )
            # Of mixed images the stronger label counts.
            hits = [(f.logits.detach().argmax(1) == labels[part].argmax(1)).sum() for f in features]
            return [*found, torch.stack(hits).to(found[0].dtype)]

        *summed, hits = self._summed(gradients, len(images), whole=self.trains_whole)
        _step(self._optimizers, self.trained, summed)
        self.correct += hits
        for net in self.networks:
            net.eval()

    def train_projections(self, batch: Minibatch) -> None:
        """Train P and Q on one minibatch with the networks held; the loss is the mean over pairs."""
        images, _ = self.real.view_minibatch(batch)

        def gradients(part: slice) -> list[Tensor]:
            with torch.no_grad():
                features = self._features(images[part])
            each = [
                pair.distillation.learning_loss(features[pair.first], features[pair.second])
                for pair in self.objectives.pairs
            ]
            return list(torch.autograd.grad(torch.stack(each).mean() * (len(images[part]) / len(images)), self.learnt))

        _step(self._projection_optimizers, self.learnt, self._summed(gradients, len(images), whole=self.learns_whole))

    def state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint inside an outer iteration needs, by name; no copies."""
        tensors = {f"network.{m}.{k}": v for m, net in enumerate(self.networks) for k, v in net.state_dict().items()}
        for i, (pair, adam) in enumerate(zip(self.objectives.pairs, self._projection_optimizers, strict=True)):
            tensors |= {f"distillation.{i}.{k}": v for k, v in pair.distillation.state_dict().items()}
            for place, entry in adam.state_dict()["state"].items():
                tensors |= {f"adam.{i}.{place}.{key}": value for key, value in entry.items()}
        return tensors

    def load_state(self, outer: int, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned in an outer iteration."""
        self.activate(outer)
        for m, net in enumerate(self.networks):
            net.load_state_dict(_below(tensors, f"network.{m}."))
            net.eval()
        for i, (pair, adam) in enumerate(zip(self.objectives.pairs, self._projection_optimizers, strict=True)):
            pair.distillation.load_state_dict(_below(tensors, f"distillation.{i}."))
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(tensors, f"adam.{i}.").items():
                place, key = name.split(".", 1)
                state.setdefault(int(place), {})[key] = value.clone()
            adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})

    def _features(self, images: Tensor) -> list[Features]:
        return [net.run_with({}, net.prepare(images)) for net in self.networks]

    def _mutual_distillation(self, features: Sequence[Features]) -> Tensor:
        each = [pair.distillation(features[pair.first], features[pair.second]) for pair in self.objectives.pairs]
        return torch.stack([losses.mean() for losses in each]).mean()

    @property
    def trains_whole(self) -> bool:
        """Say whether batch norm or mutual distillation goes by the whole minibatch in the training of networks."""
        if self.spec.distils_batches:
            return True
        learning = (net for net in self.networks if net.spec.batch_norm == "train")
        return any(isinstance(part, BATCH_NORMS) for net in learning for part in net.modules())

    @property
    def learns_whole(self) -> bool:
        """Say whether P and Q learn from statistics of the minibatch, which must then stay whole."""
        return self.spec.distils_batches or self.spec.distillation == "variance"

    def _summed(self, work: Callable[[slice], list[Tensor]], images: int, *, whole: bool) -> list[Tensor]:
        """Sum what is computed of the parts of a minibatch, always in their order."""
        parts = 1 if whole else min(self.parts, images)
        cut = [slice(a, b) for a, b in pairwise(images * i // parts for i in range(parts + 1))]
        if parts == 1:  # done by every rank
            return work(cut[0])
        # A rank with no part of its own does the first again: it must know what is exchanged.
        mine = [work(part) for part in cut[self.ranks.index :: self.ranks.count] or cut[:1]]
        every = self.ranks.all_parts(mine, parts)
        return [torch.stack(column).sum(0) for column in zip(*every, strict=True)]


def parts_of_a_minibatch(spec: CondenseSpec) -> int:
    """Say in how many parts a minibatch is differentiated."""
    low = min(LOW, spec.networks.batch) if spec.memory == "low" else 1
    return max(spec.networks.accumulation_steps or 1, low)


def _step(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keep the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
