"""Who works in an outer iteration: networks, and the alignments of their pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hmdc_hub import rng
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.compiled import Compiled
from hmdc_hub.condense.match import Objectives
from hmdc_hub.events import Listener, Note, silent
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec


class Members:
    """The models of a pool, those of them that work now, and the alignments of these.

    Args:
        everybody: M models on the device.
        spec: Says which parts are on.
        seed: Of the recipe.
        at_once: Images whose graphs the matching step holds at a time; None for all of a batch.
        listener: Told when that number is lowered.

    Attributes:
        active: Places of the models that work now: all of them, or the pair of this outer iteration.
        networks: Those models; everything else here is about them alone.
        alignments: Of their pairs, which count places among the active ones.
    """

    def __init__(
        self,
        everybody: Sequence[PoolModel],
        spec: CondenseSpec,
        seed: int,
        *,
        at_once: int | None = None,
        listener: Listener = silent,
    ) -> None:
        self.everybody, self.spec, self.seed, self.at_once = list(everybody), spec, seed, at_once
        self.listener = listener
        self.compiled = Compiled() if spec.derivative == "compiled" else None
        self.activate(0)

    def activate(self, outer: int) -> None:
        """Choose who works in an outer iteration (`pool_strategy`); the alignments are made anew."""
        self.outer = outer
        count = len(self.everybody)
        self.active = tuple(range(count))
        if self.spec.pool_strategy == "pair" and count > 2:
            drawn = torch.randperm(count, generator=rng.generator(self.seed, "pair", outer))[:2]
            self.active = tuple(sorted(drawn.tolist()))
        self.networks = [self.everybody[m] for m in self.active]
        device = next(self.networks[0].parameters()).device
        pairs = combinations(range(len(self.networks)), 2) if self.spec.distill else ()
        self.alignments = [
            Alignment((a, b), (self.networks[a].taps, self.networks[b].taps)).to(device) for a, b in pairs
        ]

    def reset(self, outer: int, real: RealImages) -> None:
        """Make every network and alignment fresh, and calibrate batch norm on real images."""
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

    @property
    def learns_statistics(self) -> bool:
        """Whether batch norm goes by the minibatch now, which must then stay whole."""
        return any(m.training for net in self.networks for m in net.modules() if isinstance(m, _BatchNorm))

    @property
    def objectives(self) -> Objectives:
        """The targets of the matching step."""
        return Objectives(self.networks, self.alignments, self.spec.match, self.at_once, self.compiled)

    def trained(self) -> list[Tensor]:
        """List the parameters that network training moves."""
        return [p for net in self.networks for p in net.trained().values()]

    def learnt(self) -> list[Tensor]:
        """List P and Q."""
        return [p for align in self.alignments for p in align.parameters()]

    def take_fewer(self, images: int) -> bool:
        """Halve the number of images at a time, of so many; False if it is one already."""
        now = min(self.at_once or images, images)
        if now == 1:
            return False
        self.at_once = -(-now // 2)
        self.listener(Note(f"out of memory; going on with the graphs of {self.at_once} images at a time"))
        return True

    def values(self) -> dict[str, Tensor]:
        """Return everything that says what the networks and alignments compute, by name; no copies."""
        tensors = {f"network.{m}.{k}": v for m, net in enumerate(self.networks) for k, v in net.state_dict().items()}
        return tensors | {f"align.{i}.{k}": v for i, a in enumerate(self.alignments) for k, v in a.state_dict().items()}

    def load_values(self, outer: int, values: Mapping[str, Tensor]) -> None:
        """Take the values of an outer iteration."""
        if outer != self.outer:
            self.activate(outer)
        for m, net in enumerate(self.networks):
            net.load_state_dict(below(values, f"network.{m}."))
        for i, align in enumerate(self.alignments):
            align.load_state_dict(below(values, f"align.{i}."))
        self.hold()


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keep the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
