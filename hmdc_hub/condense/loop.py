"""HMDC from top to bottom: the loops of the paper (algorithm 1)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condense.balance import EPSILON, Balance, normalise
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.checkpoint import Checkpoint
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.team import Team, Values
from hmdc_hub.errors import DivergedError
from hmdc_hub.schema import CondenseSpec
from hmdc_hub.store import Parts

CLUSTERED_TOGETHER = 16
"""Classes whose embeddings are held at a time on a GPU."""

NO_ROW = -1
"""In a checkpoint: fills up the real batch of a class that has fewer images."""

ClassPart = tuple[Tensor, Tensor, Tensor, Tensor]
"""What `Hand.class_part` returns."""


@dataclass(frozen=True)
class StepReport:
    """What one image step measured.

    Attributes:
        losses: Mean over classes of each target.
        shares: Each target's share of the gradient, summing to 1; None when no class's balance was updated.
        accuracies: Of each network on the minibatches it trained on, in [0, 1].
        clamped: Share of pixels at a bound.
        images: Real and synthetic images that went through the matching step.
        seconds: Of the whole step, but for compiling.
    """

    losses: list[float]
    shares: list[float] | None
    accuracies: list[float]
    clamped: float
    images: int
    seconds: float


class Condenser:
    """The state of a run and the two moves it makes: reset the networks, make one image step.

    Args:
        spec: The condenser's part of the recipe.
        seed: Of the recipe.
        real: The source on the device.
        pool: Networks, alignments, who works with them and which ranks there are.
        images: S, the classes of this rank.
    """

    def __init__(self, spec: CondenseSpec, seed: int, real: RealImages, pool: Pool, images: StoredImages) -> None:
        self.spec, self.seed, self.real, self.pool, self.images = spec, seed, real, pool, images
        self.outer = self.inner = 0
        self._forget()
        self.clamped = torch.zeros(real.classes)
        for label in images.labels:
            self.clamped[label] = images.clamped(label)

    @property
    def team(self) -> Team:
        """Whoever does the parts of a step."""
        return self.pool.team

    def step(self) -> StepReport:
        """Make the next image step, with a network reset before and network training after it where due."""
        began = time.monotonic()
        if self.inner == 0:
            self.pool.reset(self.outer, self.real)
            self._forget()
        began += self.pool.hand.prepare()  # here nobody is at work on the networks
        drawn = self.drawn(self.inner)
        mine = [label for label in drawn if self.images.owns(label)]
        values = self.values()
        self.choose_real_batches(mine, values)
        # Networks learn from real images alone, so they can be trained while the stored ones are matched against the
        # networks as they were.
        training = self.team.aside(partial(self.pool.train, self.real, (self.outer, self.inner)))
        measured = self._move(drawn, mine, values)
        accuracies = training.result()
        report = self._report(drawn, measured, accuracies, began)
        for label in drawn:
            self.visits[label] += 1
        self.inner += 1
        if self.inner == self.spec.networks.reset_every:
            self.outer, self.inner = self.outer + 1, 0
        return report

    def drawn(self, inner: int) -> list[int]:
        """Say which classes take part in a step of this outer iteration: each has its turn before any again."""
        classes, count = self.real.classes, self.spec.classes_per_step
        if count is None or count >= classes:
            return list(range(classes))
        order = torch.randperm(classes, generator=rng.generator(self.seed, "classes", self.outer)).tolist()
        return sorted(order[(inner * count + i) % classes] for i in range(count))

    def values(self) -> Values:
        """Take the networks' values as they are now."""
        values = Values(self.outer, self.pool.members.values)
        if self.team.apart:
            _ = values.tensors  # now, before training goes on
        return values

    def choose_real_batches(self, labels: Sequence[int], values: Values) -> None:
        """Choose the real batch of those classes for which it is due; the models take turns at embedding."""
        every = self.spec.cluster.every if self.spec.cluster.enabled else 1
        refreshes, models = -(-self.spec.networks.reset_every // every), len(self.pool.members.networks)
        key = (self.outer, self.inner)
        due: dict[int, list[int]] = {}
        for label in labels:
            if self.visits[label] % every == 0:
                turn = self.outer * refreshes + self.visits[label] // every
                due.setdefault(turn % models, []).append(label)
        # A GPU clusters classes together; on a CPU they are one another's neighbours.
        size = 1 if self.real.device.type == "cpu" else CLUSTERED_TOGETHER
        items = [(m, few[i : i + size], key) for m, few in due.items() for i in range(0, len(few), size)]
        for (_, few, _), rows in zip(items, self.team.map(self.pool.hand.real_batches, items, values), strict=True):
            self.real_batches |= dict(zip(few, rows, strict=True))

    def class_parts(self, labels: Sequence[int], values: Values) -> Iterator[ClassPart]:
        """Compute the part of each class in the image gradient, before normalisation; see `Hand.class_part`."""
        items = [
            (
                (self.outer, self.inner),
                label,
                self.real_batches[label],
                self.images.of(label),
                self.balance.accumulated[label],
                self._updates(label),
            )
            for label in labels
        ]
        return self.team.map(self.pool.hand.class_part, items, values, plain=True)

    def state(self) -> dict[str, Parts]:
        """Return all that a checkpoint here needs; just after an outer iteration, images and momentum.

        With several ranks all of them go through this at the same time, in the order of `store.in_order`; parts of
        all classes come to the first.
        """
        tensors = {"images": self._gathered(self.images.pixels), "momentum": self._gathered(self.images.momentum)}
        if self.inner:
            tensors |= {f"pool.{name}": Parts.of(value) for name, value in self.pool.state().items()}
            real = torch.full((len(self.images.labels), self.spec.batch), NO_ROW)
            for place, label in enumerate(self.images.labels):
                rows = self.real_batches.get(label, real[:0, 0])
                real[place, : len(rows)] = rows
            tensors["real"] = self._gathered(real)
            tensors["balance"] = self._gathered(self.balance.accumulated[list(self.images.labels)])
        return tensors

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, which is of all classes; its images are here already."""
        own = list(self.images.labels)
        self.images.momentum = checkpoint.rows("momentum", own)
        self.outer, self.inner = checkpoint.position.outer, checkpoint.position.inner
        self._forget()
        if self.inner:
            self.pool.load_state(self.outer, checkpoint.below("pool."))
            for label, rows in zip(own, checkpoint.rows("real", own), strict=True):
                if len(chosen := rows[rows != NO_ROW]):
                    self.real_batches[label] = chosen
            self.balance.accumulated[own] = checkpoint.rows("balance", own)
            for inner in range(self.inner):
                for label in self.drawn(inner):
                    self.visits[label] += 1

    def _gathered(self, mine: Tensor) -> Parts:
        """Say how rows of this rank's classes become those of all."""
        classes = self.real.classes
        return Parts(mine.dtype, (classes, *mine.shape[1:]), self.pool.ranks.gather(mine, classes))

    def _forget(self) -> None:
        """Begin anew what belongs to one set of networks."""
        targets = len(self.pool.members.objectives.names())
        self.balance = Balance.fresh(self.real.classes, targets, enabled=self.spec.balance)
        self.real_batches: dict[int, Tensor] = {}
        self.visits = [0] * self.real.classes

    def _updates(self, label: int) -> bool:
        return self.visits[label] % self.spec.balance_every == 0

    def _move(self, drawn: Sequence[int], mine: Sequence[int], values: Values) -> Tensor:
        """Move the images of this rank's classes.

        Returns:
            For every class drawn its K targets, K shares and the number of images that went through; zeros for classes
            of other ranks.
        """
        targets, decoded = self.balance.accumulated.shape[1], min(self.spec.batch, self.spec.ipc * self.spec.factor**2)
        measured, row = torch.zeros(len(drawn), 2 * targets + 1), {label: row for row, label in enumerate(drawn)}
        for label, part in zip(mine, self.class_parts(mine, values), strict=True):
            gradient, losses, share, accumulated = part
            self._check_finite(label, gradient, losses)
            self.balance.accumulated[label] = accumulated
            self.images.step(label, normalise(gradient) if self.spec.normalise else gradient, self.spec.images)
            self.clamped[label] = self.images.clamped(label)
            seen = torch.tensor([float(len(self.real_batches[label]) + decoded)])
            measured[row[label]] = torch.cat([losses.float(), share, seen])
        return measured

    def _report(self, drawn: Sequence[int], measured: Tensor, accuracies: list[float], began: float) -> StepReport:
        """Put together what all ranks measured."""
        measured, clamped = self.pool.ranks.together(measured), self.pool.ranks.together(self.clamped)
        targets = measured.shape[1] // 2
        shares = measured[:, targets:-1].mean(0)
        updated = any(self._updates(label) for label in drawn)
        return StepReport(
            losses=measured[:, :targets].mean(0).tolist(),
            shares=(shares / shares.sum().clamp_min(EPSILON**2)).tolist() if updated else None,
            accuracies=accuracies,
            clamped=float(clamped.mean()),
            images=int(measured[:, -1].sum()),
            seconds=time.monotonic() - began,
        )

    def _check_finite(self, label: int, gradient: Tensor, losses: Tensor) -> None:
        if not bool(torch.isfinite(losses).all() & torch.isfinite(gradient).all()):
            named = zip(self.pool.members.objectives.names(), losses.tolist(), strict=True)
            raise DivergedError(
                f"outer iteration {self.outer}, image step {self.inner}, class {label}: a loss or image gradient is "
                f"not finite (losses {', '.join(f'{name} {x:.4g}' for name, x in named)})",
                hint="Lower pool.*.lr.condense or condense.images.lr in the recipe; the last checkpoint was kept.",
            )
