"""HMDC from top to bottom: the loops of the paper (algorithm 1)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from hmdc_hub.condense import low_memory, match
from hmdc_hub.condense.balance import EPSILON, Balance, normalise
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.checkpoint import Position
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.views import View, draw_view
from hmdc_hub.errors import DivergedError
from hmdc_hub.schema import CondenseSpec


@dataclass(frozen=True)
class StepReport:
    """What one image step measured.

    Attributes:
        losses: Mean over classes of each target.
        shares: Each target's share of the gradient, summing to 1; None when the balance was not updated.
        accuracies: Of each network on the minibatches it trained on, in [0, 1].
        clamped: Share of pixels at a bound.
        images: Real and synthetic images that went through the matching step.
        seconds: Of the whole step.
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
        pool: Networks and alignments.
        images: S.
    """

    def __init__(self, spec: CondenseSpec, seed: int, real: RealImages, pool: Pool, images: StoredImages) -> None:
        self.spec, self.seed, self.real, self.pool, self.images = spec, seed, real, pool, images
        self.outer = self.inner = 0
        self.balance = self._fresh_balance()
        self.real_batches: list[Tensor] = []
        self.threads = pool.threads

    def step(self) -> StepReport:
        """Make the next image step, with a network reset before and network training after it where due."""
        began = time.monotonic()
        if self.inner == 0:
            self.pool.reset(self.outer, self.real)
            self.balance = self._fresh_balance()
        self.choose_real_batches()
        key = (self.outer, self.inner)
        gradient, losses, shares, count = self.image_gradient()
        self.images.step(gradient, self.spec.images)
        clamped = self.images.clamp()
        accuracies = self.pool.train_networks(self.real, key)
        self.pool.train_projections(self.real, key)
        self.inner += 1
        if self.inner == self.spec.networks.reset_every:
            self.outer, self.inner = self.outer + 1, 0
        return StepReport(losses, shares, accuracies, clamped, count, time.monotonic() - began)

    def image_gradient(self) -> tuple[Tensor, list[float], list[float] | None, int]:
        """Compute the gradient that reaches the image optimiser, class after class."""
        update = self.inner % self.spec.balance_every == 0
        gradient = torch.empty_like(self.images.pixels)
        losses, shares = [], []
        with plain_attention():
            parts = self.threads.map(partial(self.class_part, update), range(self.real.classes))
        for label, part in enumerate(parts):
            gradient[label], targets, share = part
            losses.append(targets.cpu())
            shares.append(share)
        mean_losses = torch.stack(losses).mean(0)
        if not bool(torch.isfinite(mean_losses).all() & torch.isfinite(gradient).all()):
            raise DivergedError(
                f"outer iteration {self.outer}, image step {self.inner}: a loss or image gradient is not finite "
                f"(losses {', '.join(f'{name} {x:.4g}' for name, x in self._named(mean_losses))})",
                hint="Lower pool.*.lr.condense or condense.images.lr in the recipe; the last checkpoint was kept.",
            )
        if self.spec.normalise:
            gradient = normalise(gradient)
        share = torch.stack(shares).mean(0)
        decoded = min(self.spec.batch, self.spec.ipc * self.spec.factor**2)
        count = sum(len(rows) + decoded for rows in self.real_batches)
        return (
            gradient,
            mean_losses.tolist(),
            (share / share.sum().clamp_min(EPSILON**2)).tolist() if update else None,
            count,
        )

    def class_part(self, update: bool, label: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute one class's part of the image gradient; see `class_gradient`."""
        rows = self.real_batches[label]
        view = draw_view(self.spec, self.real.side, len(rows), self.seed, (self.outer, self.inner, label))
        stored, real = self.images.pixels[label], self.real.take(rows)
        return class_gradient(
            self.pool.objectives, self.balance, stored, real, label, view, factor=self.spec.factor, update=update
        )

    def choose_real_batches(self) -> None:
        """Choose every class's real batch anew where it is due; the models take turns at embedding."""
        every = self.spec.cluster.every if self.spec.cluster.enabled else 1
        if self.inner % every:
            return
        refreshes = -(-self.spec.networks.reset_every // every)
        turn = self.outer * refreshes + self.inner // every
        model = self.pool.networks[turn % len(self.pool.networks)]
        key = (self.outer, self.inner)
        self.real_batches = self.threads.map(
            lambda label: self.real.matching_batch(model, label, key), range(self.real.classes)
        )

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint here needs; just after an outer iteration, images and momentum."""
        tensors = {"images": self.images.pixels, "momentum": self.images.momentum}
        if self.inner:
            tensors |= {f"pool.{name}": value for name, value in self.pool.state().items()}
            tensors |= {f"real.{label}": rows for label, rows in enumerate(self.real_batches)}
            tensors["balance"] = self.balance.accumulated
        return tensors

    def load_state(self, tensors: dict[str, Tensor], position: Position) -> None:
        """Go on from a checkpoint."""
        device = self.images.pixels.device
        self.images = replace(self.images, pixels=tensors["images"].to(device), momentum=tensors["momentum"].to(device))
        self.outer, self.inner = position.outer, position.inner
        if self.inner:
            self.pool.activate(self.outer)
            self.pool.load_state({k.removeprefix("pool."): v for k, v in tensors.items() if k.startswith("pool.")})
            self.real_batches = [tensors[f"real.{label}"] for label in range(self.real.classes)]
            self.balance.accumulated = tensors["balance"]

    def _fresh_balance(self) -> Balance:
        targets = len(self.pool.objectives.names())
        return Balance.fresh(self.real.classes, targets, enabled=self.spec.balance)

    def _named(self, values: Tensor) -> list[tuple[str, float]]:
        return list(zip(self.pool.objectives.names(), values.tolist(), strict=True))


def class_gradient(
    objectives: Objectives,
    balance: Balance,
    stored: Tensor,
    real: Tensor,
    label: int,
    view: View,
    *,
    factor: int,
    update: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one class's part of the image gradient, before normalisation; call it within `plain_attention`.

    Args:
        objectives: Models in evaluation mode and which targets are on.
        balance: Weighs the targets; changed in place when `update`.
        stored: n x ch x H x W, the class's part of S.
        real: B x ch x H x W, the real batch, source-normalised.
        label: The class.
        view: What is drawn for this class and step.
        factor: f.
        update: Whether the balance is updated.

    Returns:
        The gradient, shaped like `stored`; the K targets; each target's mean absolute share (see `Balance.combine`).
    """
    leaf = stored.detach().requires_grad_()
    synthetic = view.synthetic(leaf, factor)
    engine = low_memory if objectives.low_memory else match
    weights = None if update else balance.weights(label).tolist()
    found = engine.image_derivatives(objectives, view.real(real), synthetic, label, weights)
    # Decoding and augmentation are linear up to a constant: a product with their derivative does the rest.
    gradients = [torch.autograd.grad(synthetic, leaf, g, retain_graph=True)[0] for g in found.gradients]
    gradient, share = balance.combine(gradients, label) if update else (gradients[0], torch.zeros(len(found.losses)))
    return gradient, torch.stack(found.losses), share


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention plainly: fused kernels have no second derivative.

    The switch is one for the whole process, so it is set around all threads and not in each.
    """
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield
