"""HMDC from top to bottom (Moon, Kim and Park, ECCV 2024, algorithm 1): networks and images take turns.

What is done to tensors is in four functions, `image_step` with and without an update of the balance and the two kinds
of training, which a CPU runs as they are and a GPU captures (`execution`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser.checkpoint import Checkpoint
from hmdc_hub.condenser.cost import AtOnce
from hmdc_hub.condenser.data import Classes, Minibatch
from hmdc_hub.condenser.images import SyntheticImages
from hmdc_hub.condenser.matching import (
    EPSILON,
    Gradient,
    accumulate,
    balance_weights,
    combine,
    distance_gradients,
    normalise,
    real_gradients,
)
from hmdc_hub.condenser.parametrisation import Parametrisation
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.errors import DivergedError
from hmdc_hub.events import ImageStep, Note
from hmdc_hub.execution import Compiled, Execution, Packed
from hmdc_hub.schema import CondenseSpec
from hmdc_hub.store.condensed import Parts
from hmdc_hub.text import count

CLUSTERED_TOGETHER = 16  # classes whose embeddings are held at a time on a GPU
NO_ROW = -1  # in a checkpoint: fills up the real batch of a class that has fewer images


def prefix(spec: CondenseSpec, ipc: int) -> str:
    """Say what stands before the names of what is of one size; empty where there is one, which is no list."""
    return f"ipc{ipc}/" if isinstance(spec.ipc, list) else ""


class Size:
    """One of the sets that a run makes: S with so many images per class, its balance, and how its last steps went.

    Args:
        images: S, the classes of this rank.
        objectives: K, how many there are.
        prefix: Of what is named after it, in a run of several sizes.
    """

    def __init__(self, images: SyntheticImages, objectives: int, prefix: str) -> None:
        rows, device = len(images.labels), images.pixels.device
        self.images, self.prefix, self.ipc = images, prefix, images.pixels.shape[1]
        self.accumulated = torch.empty(rows, objectives, device=device)  # A of the balance, rows x K
        # Rows x (2 K + 1): of each class's last step the objectives, their shares of the gradient (0 where the balance
        # was not updated), and 1 if everything was finite.
        self.measured = torch.empty(rows, 2 * objectives + 1, device=device)

    def rows(self) -> dict[str, Tensor]:
        """Name what a checkpoint between network resets has of it."""
        return {f"{self.prefix}{name}": rows for name, rows in self.images.state().items()}


class HMDC:
    """The state of a run, and the algorithm that moves it on.

    Networks, their training, real batches and what these give are there once; every size has the rest for itself, and
    what it computes depends on no other.

    Args:
        networks: The pool; it knows the source, the recipe's part and the ranks that share the work.
        images: S of each size that is made, the classes of this rank.
        at_once: How many classes and images are matched at a time.
        execution: Runs the functions of a step.
    """

    def __init__(
        self, networks: ModelPool, images: Sequence[SyntheticImages], at_once: AtOnce, execution: Execution
    ) -> None:
        self.networks, self.at_once, self.execution = networks, at_once, execution
        self.spec, self.seed, self.real, self.ranks = networks.spec, networks.seed, networks.real, networks.ranks
        objectives = len(networks.objectives.names())
        self.sizes = [
            Size(each, objectives, prefix(self.spec, ipc)) for each, ipc in zip(images, self.spec.sizes, strict=True)
        ]
        self.labels, self.row = images[0].labels, images[0].row  # alike for all
        self.outer = self.inner = 0  # t, outer iterations finished; o, image steps done in the next: 0 before a reset
        self.block = at_once.block(self.real.device)
        self.parametrisation = Parametrisation(self.spec, self.real.source, self.real.device)
        self.real_batches: dict[int, Tensor] = {}  # of each class, int64 indices into the source
        self.visits: list[int] = []  # steps of each class since the reset
        self.seconds = self._compiling = 0.0  # that the last step took, but for compiling
        self._functions: dict[Any, Callable[[Packed[Any]], Any]] = {}
        self._compiled: dict[Any, Compiled] = {}
        self._begin_anew()

    def run(self) -> Iterator[ImageStep]:
        """Go on to the end; after each image step a run can be left, and gone on from."""
        spec, networks, every = self.spec, self.networks, self.spec.networks.reset_every
        for t in range(self.outer, spec.resets):
            if self.inner == 0:
                networks.reset(t)
                self._begin_anew()
            for o in range(self.inner, every):
                began, self._compiling = time.monotonic(), 0.0
                classes = self.classes_of_step(t, o)
                self.choose_real_batches(classes, (t, o))
                for size in self.sizes:
                    size.images.schedule((t * every + o) / (spec.resets * every))
                # S moves by the gradients of these networks; then the networks learn, for the next step.
                self._match(classes, (t, o))
                networks.correct.zero_()
                images = self._train("networks", networks.train, spec.networks.batches_per_step, (t, o))
                if networks.objectives.pairs:
                    self._train("projections", networks.train_projections, spec.projection.batches_per_step, (t, o))
                done = self._report(classes, images, (t, o))
                for label in classes:
                    self.visits[label] += 1
                self.outer, self.inner = divmod(t * every + o + 1, every)
                self.seconds = time.monotonic() - began - self._compiling
                yield done

    def _begin_anew(self) -> None:
        """Forget what belonged to one set of networks."""
        for size in self.sizes:
            size.accumulated.fill_(EPSILON)
        self.real_batches = {}
        self.visits = [0] * self.real.classes

    def classes_of_step(self, outer: int, inner: int) -> list[int]:
        """Say which classes take part in a step: each has its turn before any again."""
        classes, few = self.real.classes, self.spec.classes_per_step
        if few is None or few >= classes:
            return list(range(classes))
        order = torch.randperm(classes, generator=rng.generator(self.seed, "classes", outer)).tolist()
        return sorted(order[(inner * few + i) % classes] for i in range(few))

    def choose_real_batches(self, labels: Sequence[int], key: tuple[int, int]) -> None:
        """Choose the real batch of those classes for which it is due; the models take turns at embedding."""
        every = self.spec.cluster.every if self.spec.cluster.enabled else 1
        refreshes, models = -(-self.spec.networks.reset_every // every), self.networks.networks
        due: dict[int, list[int]] = {}
        for label in labels:
            if label in self.row and self.visits[label] % every == 0:
                turn = key[0] * refreshes + self.visits[label] // every
                due.setdefault(turn % len(models), []).append(label)
        # A GPU clusters classes together; on a CPU they are one another's neighbours.
        size = 1 if self.real.device.type == "cpu" else CLUSTERED_TOGETHER
        for m, few in due.items():
            for i in range(0, len(few), size):
                part = few[i : i + size]
                self.real_batches |= dict(zip(part, self.real.real_batches(models[m], part, key), strict=True))

    def _match(self, classes: Sequence[int], key: tuple[int, int]) -> None:
        """Make the image step of this rank's classes; with less of it at a time where memory runs out."""
        chunks = self.chunks(classes)
        row, chosen, sizes = self.row, self.real_batches, [size.ipc for size in self.sizes]
        drawn = (
            self.real.draw_classes(few, [row[c] for c in few], [chosen[c] for c in few], key, sizes)
            for _, few in chunks
        )
        for place, inputs in enumerate(self.execution.upload(drawn, together=self.real.resident)):
            update, labels = chunks[place]
            images = self.at_once.images or self.spec.batch
            try:
                self._function("matching", partial(self.image_step, update=update), update)(inputs)
                continue
            except torch.OutOfMemoryError:
                if max(len(labels), images) == 1 or (len(labels) == 1 and self.spec.distils_batches):
                    raise
            # Out here, since what the error came through holds tensors: half as many classes, or images of one.
            half = -(-len(labels) // 2)
            if len(labels) > 1:
                self.at_once = replace(self.at_once, classes=half)
            else:
                images = -(-images // 2)
                self.at_once = replace(self.at_once, classes=1, images=images)
            fewer = f"{half} classes" if half > 1 else count(images, "image")
            self._recapture(f"going on with the graphs of {fewer} at a time")
            self._match([label for _, few in chunks[place:] for label in few], key)
            return

    def chunks(self, classes: Sequence[int]) -> list[tuple[bool, list[int]]]:
        """Cut this rank's part of the classes into those that are computed together, and say whether they update."""
        found = []
        # On a CPU with their neighbours, whichever other classes and ranks there are; on a GPU with any.
        block = self.block if self.real.device.type == "cpu" else self.real.classes
        for update in (True, False):
            own = [c for c in classes if c in self.row and self._updates(c) == update]
            for _, neighbours in groupby(own, lambda label: label // block):
                group = list(neighbours)
                pieces = -(-len(group) // self.at_once.classes)
                bounds = [len(group) * i // pieces for i in range(pieces + 1)]
                found += [(update, group[a:b]) for a, b in pairwise(bounds)]
        return found

    def _updates(self, label: int) -> bool:
        return self.visits[label] % self.spec.balance_every == 0

    def image_step(self, drawn: Classes, *, update: bool) -> None:
        """Move the synthetic images of k classes by what was drawn for them, and note in `measured` how it went.

        With `update` the derivative of each objective is taken apart, and the balance learns how large it is.
        """
        wanted = self._derivative(
            "real", real_gradients, self.real.view_real(drawn), drawn.shares, drawn.labels, compiled=not update
        )
        moves = [self._move(place, drawn, wanted, update=update) for place in range(len(self.sizes))]
        # What stays changes last: where memory runs out before, the whole step is made again.
        for size, (direction, accumulated, measured) in zip(self.sizes, moves, strict=True):
            size.images.step(drawn.rows, direction)
            size.accumulated.index_copy_(0, drawn.rows, accumulated)
            size.measured.index_copy_(0, drawn.rows, measured)

    def _move(
        self, place: int, drawn: Classes, wanted: list[Gradient], *, update: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute where the images of a size go: along what, A afterwards, and what is to be noted in `measured`."""
        spec, size = self.spec, self.sizes[place]
        images = size.images.pixels[drawn.rows].requires_grad_()
        synthetic, accumulated = self.real.view_synthetic(drawn, images, place), size.accumulated[drawn.rows]
        weights = None if update else self._weights(accumulated)
        given = (wanted, synthetic.detach(), drawn.labels, weights)
        losses, found = self._derivative(place, distance_gradients, *given, compiled=not update)
        # Decoding and augmentation are linear up to a constant: one product with their adjoint does the rest.
        gradients = torch.stack(
            [torch.autograd.grad(synthetic, images, each, retain_graph=True)[0] for each in found.unbind(1)], 1
        )
        if update:
            if spec.balance:
                accumulated = accumulate(accumulated, gradients)
            gradient, shares = combine(gradients, self._weights(accumulated))
        else:
            gradient, shares = gradients[:, 0], torch.zeros_like(accumulated)
        finite = torch.isfinite(gradient).flatten(1).all(1) & torch.isfinite(losses).all(1)
        measured = torch.cat([losses.to(shares.dtype), shares, finite[:, None].to(shares.dtype)], 1)
        direction = self.parametrisation.direction(gradient, normalise if spec.normalise else None)
        return direction, accumulated, measured

    def _weights(self, accumulated: Tensor) -> Tensor:
        return balance_weights(accumulated) if self.spec.balance else torch.ones_like(accumulated)

    def _derivative(self, of: int | str, work: Callable[..., Any], *arguments: Any, compiled: bool) -> Any:
        """Do a part of `image_gradients`, compiled if the recipe says so; single derivatives are not worth compiling.

        Each part is compiled by itself, so that the bits of a size do not depend on the others either.
        """
        objectives, labels = self.networks.objectives, arguments[2]
        work = partial(work, objectives, at_once=self.at_once.images)
        if self.spec.derivative == "eager" or not compiled:
            return work(*arguments)
        key = (of, self.networks.active, self.at_once.images, len(labels))
        if key not in self._compiled:
            if of == "real":  # the first part of all
                self.execution.callback(Note("compiling the matching step; the first time this takes minutes"))
            began = time.monotonic()
            modules = [*objectives.networks, *(pair.distillation for pair in objectives.pairs)]
            self._compiled[key] = Compiled(work, modules, arguments)
            self._compiling += time.monotonic() - began
        return self._compiled[key](*arguments)

    def _train(self, what: str, work: Callable[[Minibatch], None], most: int, key: tuple[int, int]) -> int:
        """Train on so many minibatches, each in more parts where memory runs out; returns the number of images."""
        if not most:
            return 0
        images, drawn = 0, self.real.draw_minibatches(f"train-{what}", key, most)
        for batch in self.execution.upload(drawn, together=self.real.resident):
            images += len(batch.tensors.labels)
            while True:
                try:
                    self._function(f"training of {what}", work)(batch)
                    break
                except torch.OutOfMemoryError:
                    whole = self.networks.trains_whole if what == "networks" else self.networks.learns_whole
                    whole = whole or self.ranks.count > 1  # all ranks must cut alike
                    if whole or self.networks.parts >= self.spec.networks.batch:
                        raise
                self.networks.parts *= 2
                self._recapture(f"networks are trained on {self.networks.parts} parts of a batch")
        return images

    def _function(self, name: str, work: Callable[[Any], Any], *key: Any) -> Callable[[Packed[Any]], Any]:
        """Give a function as this device runs it, the same for the same networks."""
        wanted = (name, key, self.networks.active)
        if wanted not in self._functions:
            self._functions[wanted] = self.execution.function(work, name)
        return self._functions[wanted]

    def _recapture(self, text: str) -> None:
        """Forget the functions as this device ran them: memory is out, and less is to be done at a time."""
        self._functions.clear()
        self.execution.forget()
        self.execution.callback(Note(f"out of memory; {text}"))

    def _report(self, classes: Sequence[int], images: int, key: tuple[int, int]) -> ImageStep:
        """Read back what the step measured, once, and put together what all ranks did."""
        names, networks, sizes = self.networks.objectives.names(), self.networks.networks, self.sizes
        mine = torch.cat([size.measured for size in sizes], 1)
        clamped = torch.stack([size.images.clamped() for size in sizes])
        read = torch.cat([mine.flatten(), clamped.flatten(), self.networks.correct]).cpu()
        found, clamped, correct = torch.split(read, [mine.numel(), clamped.numel(), len(networks)])
        measured = torch.zeros(len(classes), mine.shape[1] + 1)
        for into, label in zip(measured, classes, strict=True):
            if label in self.row:
                into[:-1] = found.view(mine.shape)[self.row[label]]
                into[-1] = len(self.real_batches[label]) + sum(self.real.drawn(size.ipc) for size in sizes)
        measured = self.ranks.together(measured)
        each, seen = measured[:, :-1].reshape(len(classes), len(sizes), -1), measured[:, -1]
        for label, of_class in zip(classes, each, strict=True):
            for size, values in zip(sizes, of_class.tolist(), strict=True):
                self._raise_if_diverged(size, values, label, key)
        named = [f"{size.prefix}{name}" for size in sizes for name in names]
        losses, shares, _ = torch.split(each.mean(0), [len(names), len(names), 1], 1)
        shares = shares / shares.sum(1, keepdim=True).clamp_min(EPSILON**2)
        every = self.spec.networks.reset_every
        return ImageStep(
            outer=key[0],
            inner=key[1],
            done=key[0] * every + key[1] + 1,
            total=self.spec.resets * every,
            losses=dict(zip(named, losses.flatten().tolist(), strict=True)),
            shares=dict(zip(named, shares.flatten().tolist(), strict=True)) if any(map(self._updates, classes)) else {},
            accuracies=dict(zip((n.spec.name for n in networks), (correct / max(images, 1)).tolist(), strict=True)),
            clamped=float(self.ranks.together(clamped.sum()[None]) / (self.real.classes * len(sizes))),
            images=round(float(seen.sum())),
        )

    def _raise_if_diverged(self, size: Size, measured: list[float], label: int, key: tuple[int, int]) -> None:
        *values, finite = measured
        if finite == 1:
            return
        losses = zip(self.networks.objectives.names(), values, strict=False)
        named = ", ".join(f"{size.prefix}{name} {loss:.4g}" for name, loss in losses)
        raise DivergedError(
            f"outer iteration {key[0]}, image step {key[1]}, class {label}: a loss or image gradient is not finite "
            f"(losses {named})",
            hint="Lower pool.*.lr.condense or condense.images.lr in the recipe; the last checkpoint was kept.",
        )

    def state(self) -> dict[str, Parts]:
        """Return all that a checkpoint here needs; just after an outer iteration, images and their optimiser.

        With several ranks all of them go through this at the same time, in the order of `store.in_order`; parts of
        all classes come to the first.
        """
        rows, tensors = dict[str, Tensor](), dict[str, Parts]()
        for size in self.sizes:
            rows |= size.rows()
        if self.inner:
            tensors = {f"pool.{name}": Parts.of(value) for name, value in self.networks.state().items()}
            rows["real"] = torch.full((len(self.labels), self.spec.batch), NO_ROW)
            for place, label in enumerate(self.labels):
                if label in self.real_batches:
                    rows["real"][place, : len(self.real_batches[label])] = self.real_batches[label]
            rows |= {f"{size.prefix}balance": size.accumulated for size in self.sizes}
        return tensors | {
            name: Parts(mine.dtype, (self.real.classes, *mine.shape[1:]), self.all_rows(mine))
            for name, mine in rows.items()
        }

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, which is of all classes; its images are here already."""
        own = self.labels
        for size in self.sizes:
            for name, rows in size.rows().items():
                rows.copy_(checkpoint.rows(name, own))
        self.outer, self.inner = checkpoint.position.outer, checkpoint.position.inner
        if self.inner:
            self.networks.load_state(self.outer, checkpoint.below("pool."))
            self._begin_anew()
            for label, rows in zip(own, checkpoint.rows("real", own), strict=True):
                if len(chosen := rows[rows != NO_ROW]):
                    self.real_batches[label] = chosen
            for size in self.sizes:
                size.accumulated.copy_(checkpoint.rows(f"{size.prefix}balance", own))
            for inner in range(self.inner):
                for label in self.classes_of_step(self.outer, inner):
                    self.visits[label] += 1

    def all_rows(self, mine: Tensor) -> Iterator[Tensor]:
        """Give the first rank the rows of all classes from those of each rank's classes; see `Ranks.gather`."""
        return self.ranks.gather(mine, [self.ranks.owner(label, self.block) for label in range(self.real.classes)])
