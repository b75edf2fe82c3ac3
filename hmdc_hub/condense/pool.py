"""The pool of networks and what trains them between image steps (HMDC, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.match import Objectives
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec


class Pool:
    """Networks, the alignments of their pairs, and their optimisers.

    Args:
        networks: M models on the device.
        spec: Says which parts are on and how they are trained.
        seed: Of the recipe.
    """

    def __init__(self, networks: Sequence[PoolModel], spec: CondenseSpec, seed: int) -> None:
        self.networks, self.spec, self.seed = list(networks), spec, seed
        device = next(self.networks[0].parameters()).device
        pairs = combinations(range(len(self.networks)), 2) if spec.distill else ()
        self.alignments = [Alignment((a, b), (networks[a].taps, networks[b].taps)).to(device) for a, b in pairs]
        self.optimizers = self._network_optimizers()
        self.projection_optimizer = self._projection_optimizer()

    @property
    def objectives(self) -> Objectives:
        """The targets of the matching step."""
        return Objectives(self.networks, self.alignments, match=self.spec.match)

    def reset(self, outer: int, real: RealImages) -> None:
        """Make every network, projection and optimiser fresh, and calibrate batch norm on real images."""
        for m, net in enumerate(self.networks):
            net.reset(rng.generator(self.seed, "network", outer, m))
        for align in self.alignments:
            align.reset(rng.generator(self.seed, "projection", outer, *align.pair))
        self.optimizers = self._network_optimizers()
        self.projection_optimizer = self._projection_optimizer()
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
        correct = torch.zeros(len(self.networks), device=real.device)
        seen = 0
        for net in self.networks:
            net.train()
        for images, targets in real.minibatches("train-networks", key, self.spec.networks.batches_per_step):
            features = [net(net.prepare(images)) for net in self.networks]
            loss = torch.stack([F.cross_entropy(f.logits, targets) for f in features]).sum()
            if self.alignments:
                loss = loss + torch.stack([align(features) for align in self.alignments]).mean()
            trained = [p for net in self.networks for p in net.trained().values()]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            for optimizer in self.optimizers:
                optimizer.step()
            hits = [(f.logits.detach().argmax(1) == targets.argmax(1)).sum() for f in features]
            correct += torch.stack(hits)
            seen += len(images)
        self._drop_gradients()
        self.hold()
        return [float(share) for share in (correct / max(seen, 1)).tolist()]

    def train_projections(self, real: RealImages, key: tuple[int, int]) -> None:
        """Train P and Q on fresh minibatches with the networks held."""
        if self.projection_optimizer is None:
            return
        for images, _ in real.minibatches("train-projections", key, self.spec.projection.batches_per_step):
            with torch.no_grad():
                features = [net(net.prepare(images)) for net in self.networks]
            loss = torch.stack([align(features) for align in self.alignments]).mean()
            self.projection_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.projection_optimizer.step()
        self.projection_optimizer.zero_grad()

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

    def _drop_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
