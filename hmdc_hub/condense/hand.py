"""The parts of an image step that do not depend on one another: what a thread, a process or a rank is given to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import cluster, pack, rng
from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.class_gradient import class_gradient, plain_attention
from hmdc_hub.condense.match import image_derivatives
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.memory import LOW
from hmdc_hub.condense.views import draw_view
from hmdc_hub.events import Note
from hmdc_hub.schema import CondenseSpec

_Result = TypeVar("_Result")

TrainingPart = tuple[list[Tensor | None], Tensor]
"""Of one part of a minibatch: a gradient per parameter, and how many images each network got right."""


class Hand:
    """Networks and real images with everything that is done to them side by side.

    No method changes anything, but the number of images at a time where memory ran out, and each gives the same bits
    wherever it is called.

    Args:
        spec: The condenser's part of the recipe.
        seed: Of the recipe.
        real: The source on the device.
        members: Networks and alignments.

    Attributes:
        most: Images of a minibatch at a time; None for as many as a part has.
    """

    def __init__(self, spec: CondenseSpec, seed: int, real: RealImages, members: Members) -> None:
        self.spec, self.seed, self.real, self.members = spec, seed, real, members
        self.most = max(1, spec.networks.batch // LOW) if spec.memory == "low" else None
        self._prepared: set[tuple[tuple[int, ...], int | None]] = set()

    def class_part(
        self, place: tuple[int, int], label: int, rows: Tensor, stored: Tensor, accumulated: Tensor, update: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute one class's part of the image gradient; call it with attention plain.

        Args:
            place: Outer iteration and image step.
            label: The class.
            rows: Its real batch, indices into the bank.
            stored: Its part of S, n x ch x H x W.
            accumulated: Its row of the balance's accumulators, K.
            update: Whether the balance is updated.

        Returns:
            The gradient before normalisation, the K targets, their K shares, and the accumulators; all on the CPU.
        """
        view = draw_view(self.spec, self.real.side, len(rows), self.seed, (*place, label))
        balance = Balance.fresh(self.real.classes, len(accumulated), enabled=self.spec.balance)
        balance.accumulated[label] = accumulated
        gradient, losses, share = self._with_fewer(
            max(len(rows), len(stored) * self.spec.factor**2),
            lambda: class_gradient(
                self.members.objectives,
                balance,
                stored.to(self.real.device, copy=True),
                self.real.take(rows),
                label,
                view,
                factor=self.spec.factor,
                update=update,
            ),
        )
        return gradient.cpu(), losses.cpu(), share.cpu(), balance.accumulated[label]

    def _with_fewer(self, images: int, work: Callable[[], _Result]) -> _Result:
        """Do work on so many images; with fewer of their graphs at a time, and again, where memory runs out."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if not self.members.take_fewer(images):
                    raise
            torch.cuda.empty_cache()  # out here: what the error came through holds tensors

    def prepare(self) -> float:
        """Compile the matching step of the networks that work now, if the recipe wants it and it has not been done.

        Call it with nothing else at work on them, and before `class_part`, which compiles nothing.

        Returns:
            Seconds that it took.

        Raises:
            RunError: Torch cannot compile it here.
        """
        compiled, began = self.members.compiled, time.monotonic()
        if compiled is None or (self.members.active, self.members.at_once) in self._prepared:
            return 0.0
        self.members.listener(Note("compiling the matching step; the first time this takes minutes"))
        spec, bank = self.spec, self.real.source.train
        real = min(spec.batch, max(bank.counts))
        synthetic = min(spec.batch, spec.ipc * spec.factor**2)
        images = torch.zeros(max(real, synthetic), bank.channels, bank.side, bank.side, device=self.real.device)
        weights = [1.0] * len(self.members.objectives.names())
        with compiled.learning(), plain_attention():
            self._with_fewer(
                len(images),
                lambda: image_derivatives(self.members.objectives, images[:real], images[:synthetic], 0, weights),
            )
        self._prepared.add((self.members.active, self.members.at_once))
        return time.monotonic() - began

    def real_batches(self, model: int, labels: Sequence[int], key: tuple[int, int]) -> list[Tensor]:
        """Choose the real batches of classes with one of the networks; see `RealImages.matching_batches`."""
        return self.real.matching_batches(self.members.networks[model], labels, key)

    def starting_images(self, label: int) -> Tensor:
        """Choose what a class's part of S begins as: real images, f x f of them encoded into each stored image.

        The first model of the pool, freshly reset and calibrated, embeds the images for k-means.

        Returns:
            float32 n x ch x H x W, source-normalised and clamped to the pixel range, on the CPU.
        """
        per_class = self.spec.ipc * self.spec.factor**2
        rows = torch.arange(self.real.rows(label).start, self.real.rows(label).stop)
        gen = rng.generator(self.seed, "start", label)
        chosen = rows[torch.randperm(len(rows), generator=gen)[:per_class]]
        if self.spec.start == "kmeans" and len(rows) > per_class:
            points = self.real.embed(self.members.networks[0], rows)
            centres = cluster.kmeans(points, per_class, gen, max_iter=self.spec.cluster.max_iter)
            chosen = rows[cluster.nearest(points, centres, distinct=True).cpu()]
        # A class with fewer images than there are places shows each of them more than once.
        chosen = chosen.repeat(-(-per_class // len(chosen)))[:per_class]
        low, high = self.real.source.bounds()
        return pack.encode(self.real.take(chosen), self.spec.factor, self.real.side).cpu().clamp(low, high)

    def training_part(self, images: Tensor, targets: Tensor, share: float) -> TrainingPart:
        """Differentiate one part of a minibatch's loss, weighted by its share so that the parts add up to the mean.

        Args:
            images: B x ch x H x W, source-normalised, augmented.
            targets: B x C.
            share: Of the minibatch.
        """
        images, targets = images.to(self.real.device), targets.to(self.real.device)
        # Batch norm that learns needs the whole minibatch.
        whole = self.members.learns_statistics
        while True:
            few = len(images) if whole else min(self.most or len(images), len(images))
            cut = in_parts(images, -(-len(images) // few))
            shares = [share * (len(images[s]) / len(images)) for s in cut]
            try:
                done = [self._training_part(images[s], targets[s], x) for s, x in zip(cut, shares, strict=True)]
                break
            except torch.OutOfMemoryError:
                if few == 1 or whole:
                    raise
            self.most = -(-few // 2)
            self.members.listener(Note(f"out of memory; networks are trained on {self.most} images at a time"))
            torch.cuda.empty_cache()
        columns = zip(*(gradients for gradients, _ in done), strict=True)
        summed = [None if column[0] is None else sum(column[1:], start=column[0]) for column in columns]
        return summed, torch.stack([hits for _, hits in done]).sum(0)

    def _training_part(self, images: Tensor, targets: Tensor, share: float) -> TrainingPart:
        features = {m: net(net.prepare(images)) for m, net in enumerate(self.members.networks)}
        loss = torch.stack([F.cross_entropy(f.logits, targets) for f in features.values()]).sum()
        if self.members.alignments:
            loss = loss + torch.stack([align(features) for align in self.members.alignments]).mean()
        hits = [(f.logits.detach().argmax(1) == targets.argmax(1)).sum() for f in features.values()]
        gradients = torch.autograd.grad(loss * share, self.members.trained(), allow_unused=True)
        return list(gradients), torch.stack(hits)

    def projection_part(self, images: Tensor, share: float) -> TrainingPart:
        """Differentiate one part of the mean mutual distillation with respect to P and Q, likewise; nobody hits."""
        images = images.to(self.real.device)
        with torch.no_grad():
            features = {m: net(net.prepare(images)) for m, net in enumerate(self.members.networks)}
        loss = torch.stack([align(features) for align in self.members.alignments]).mean()
        gradients = torch.autograd.grad(loss * share, self.members.learnt())
        return list(gradients), torch.zeros(len(features), device=images.device)


def in_parts(images: Tensor, parts: int) -> Sequence[slice]:
    """Cut a minibatch into parts of like size, no more than there are images."""
    parts = min(parts, len(images))
    bounds = [len(images) * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
