"""Real and synthetic images: real batches, views of both kinds, and mixed minibatches.

Everything random is drawn on the CPU by key, as one tuple of tensors for a function of an image step; what these
tensors say is done where the images are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import augment, cluster, multi_formation, rng
from hmdc_hub.augment import CutmixDraw, Draw
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec
from hmdc_hub.sources import Source

# Images per forward pass where nothing is differentiated; a CPU is no faster with more.
EMBED_BATCH, EMBED_BATCH_ON_CPU = 512, 64
RESIDENT = 0.5  # share of a GPU's free memory that a source may take to be copied there whole


class Classes(NamedTuple):
    """What is drawn for k classes in one image step; B counts the images of all V views of a class."""

    labels: Tensor  # int64 k
    rows: Tensor  # int64 k, their places among the synthetic images of this rank
    # int64 k x B indices into the source, view after view; or the uint8 images, where the source is not on the device
    real: Tensor
    shares: Tensor  # float32 k x B, 1 / (V n) for the n images of a view, and 0 for those that fill up a smaller one
    # Of each size, int64 k x B_s / V, which decoded synthetic images take part; None for all of them.
    chosen: tuple[Tensor | None, ...]
    augmentation: Draw  # k V rows; siamese: one draw for all images of a view, real and synthetic
    mix_real: CutmixDraw | None  # within each of k V views; None if it is off
    mix_synthetic: tuple[CutmixDraw | None, ...]  # of each size


class Minibatch(NamedTuple):
    """What is drawn for one minibatch over all classes."""

    images: Tensor  # int64 B indices into the source, or the uint8 images
    labels: Tensor  # int64 B
    augmentation: Draw  # of each image
    mix: CutmixDraw | None  # None if it is off


class RealImages:
    """The source's train split, on the device where it fits, and every way the condenser draws from it.

    Args:
        source: Its images, uint8 sorted by class, are copied to a GPU once where they take half of what is free.
        spec: The condenser's part of the recipe.
        seed: Of the recipe.
        device: Where batches are made.
    """

    def __init__(self, source: Source, spec: CondenseSpec, seed: int, device: torch.device) -> None:
        self.source, self.spec, self.seed, self.device = source, spec, seed, device
        self.images, self.labels = source.train.images, source.train.labels
        self.resident = device.type != "cuda" or self.images.nbytes <= RESIDENT * torch.cuda.mem_get_info(device)[0]
        if self.resident:
            self.images = self.images.to(device)
        self.side, self.classes = source.train.side, source.train.num_classes
        # B: real images of a class and step, at most; a multiple of the number of views that they are dealt out among
        self.batch = -(-min(spec.batch, max(source.train.counts)) // spec.views) * spec.views
        self.kept: list[Tensor] | None = None  # of each class, the images that may be matched; None for all of them

    def decoded(self, ipc: int) -> int:
        """Count the images that so many synthetic ones of a class hold."""
        return ipc * self.spec.factor**2

    def drawn(self, ipc: int) -> int:
        """Count the views of them that take part in a step, B_s."""
        return min(self.decoded(ipc), self.spec.batch) * self.spec.views

    def pixels(self, images: Tensor) -> Tensor:
        """Give images by index, or uint8 ones, as float32 source-normalised ones on the device."""
        chosen = images if images.dtype == torch.uint8 else self.images[images]
        return self.source.normalise(chosen)

    def of_class(self, label: int) -> Tensor:
        """Return the indices of one class, int64: of those of its images that are matched, and begun with."""
        if self.kept is not None:
            return self.kept[label]
        return torch.arange(self.source.train.offsets[label], self.source.train.offsets[label + 1])

    def take(self, indices: Tensor) -> Tensor:
        """Prepare indices, on the CPU, for `pixels`: the images themselves where the source is not on the device."""
        return indices if self.resident else self.images[indices]

    def read(self, indices: Tensor) -> Tensor:
        """Give images by index, on the CPU, as `pixels` does."""
        return self.pixels(self.take(indices).to(self.device))

    def embed(self, model: PoolModel, indices: Tensor) -> Tensor:
        """Embed images by index with a model in evaluation mode, float32 P x D."""
        return self._through(model, model.embed, indices).flatten(1)

    def logits(self, model: PoolModel, indices: Tensor) -> Tensor:
        """Compute the logits of images by index with a model in evaluation mode, float32 P x C."""
        return self._through(model, model.logits, indices)

    def _through(self, model: PoolModel, work: Callable[[Tensor], Tensor], indices: Tensor) -> Tensor:
        size = EMBED_BATCH_ON_CPU if self.device.type == "cpu" else EMBED_BATCH
        with torch.no_grad(), self._reduced(model):
            return torch.cat([work(model.prepare(self.read(part))).float() for part in torch.split(indices, size)])

    def losses(self, model: PoolModel, images: Tensor, label: int) -> Tensor:
        """Compute the cross-entropy of source-normalised images of one class, float32 P, with a model in evaluation."""
        with torch.no_grad(), self._reduced(model):
            return _losses(model.logits(model.prepare(images)).float(), label)

    def _reduced(self, model: PoolModel) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=model.spec.precision == "bfloat16")

    def real_batches(self, model: PoolModel, labels: Sequence[int], key: tuple[int, int]) -> list[Tensor]:
        """Choose the real batches of classes: B representative images by clustering (DREAM), or B at random.

        Args:
            model: Embeds the classes; in evaluation mode.
            labels: The classes; on a GPU they are clustered together.
            key: Outer iteration and image step.

        Returns:
            For each class int64 indices, min(B, class size) of them; representatives may repeat.
        """
        batch, candidates = self.spec.batch, self.spec.cluster.candidates
        chosen: list[Tensor] = []
        waiting: list[tuple[int, torch.Generator]] = []
        for place, label in enumerate(labels):
            rows, gen = self.of_class(label), rng.generator(self.seed, "real-batch", *key, label)
            if len(rows) > batch and not self.spec.cluster.enabled:
                rows = rows[torch.randperm(len(rows), generator=gen)[:batch]]
            elif len(rows) > batch:
                waiting.append((place, gen))
                if candidates is not None and candidates < len(rows):
                    rows = rows[torch.randperm(len(rows), generator=gen)[: max(candidates, batch)]]
            chosen.append(rows)
        if waiting:
            places, gens = zip(*waiting, strict=True)
            points = [self.embed(model, chosen[place]) for place in places]
            weights = None
            if self.spec.cluster.weights == "loss":
                weights = [_losses(self.logits(model, chosen[place]), labels[place]) for place in places]
            found = cluster.representatives(points, batch, gens, max_iter=self.spec.cluster.max_iter, weights=weights)
            for place, nearest in zip(places, found, strict=True):
                chosen[place] = chosen[place][nearest]
        return chosen

    def draw_classes(
        self,
        labels: Sequence[int],
        rows: Sequence[int],
        real: Sequence[Tensor],
        key: tuple[int, int],
        sizes: Sequence[int],
    ) -> Classes:
        """Draw what k classes see in one image step; what a size gets depends on no other.

        Args:
            labels: The classes.
            rows: Their places among the synthetic images.
            real: Their real batches, indices.
            key: Outer iteration and image step.
            sizes: Synthetic images per class of each set that is made.
        """
        spec, seed, views = self.spec, self.seed, self.spec.views
        few = self.batch // views
        # A view has every V-th image of the class, or one where there are fewer images than views.
        dealt = [indices[v % len(indices) :: views] for indices in real for v in range(views)]

        def mix(name: str, counts: Sequence[int]) -> list[CutmixDraw]:
            if not spec.cutmix.match:
                return []
            gens = [rng.generator(seed, "cutmix", name, *key, label) for label in labels]
            each = zip((gen for gen in gens for _ in range(views)), counts, strict=True)
            return [augment.draw_cutmix(gen, count, self.side, spec.cutmix.probability) for gen, count in each]

        def choice(label: int, decoded: int) -> Tensor:
            gen = rng.generator(seed, "choose", *key, label)
            return torch.randperm(decoded, generator=gen)[: spec.batch]

        gens = [rng.generator(seed, "augment", *key, label) for label in labels]
        draws = [augment.draw(spec.augment, gen, self.side, None) for gen in gens for _ in range(views)]
        decoded = [self.decoded(ipc) for ipc in sizes]
        spare = [few - len(indices) for indices in dealt]
        filled = [F.pad(indices, (0, n), value=int(indices[0])) for indices, n in zip(dealt, spare, strict=True)]
        shares = [F.pad(torch.full((few - n,), 1 / (views * (few - n))), (0, n)) for n in spare]
        # The images that fill up a batch are their own partners.
        mix_real = [
            mixed._replace(partners=torch.cat([mixed.partners, torch.arange(len(mixed.partners), few)]))
            for mixed in mix("real", [len(indices) for indices in dealt])
        ]
        return Classes(
            labels=torch.tensor(labels),
            rows=torch.tensor(rows),
            real=self.take(torch.stack(filled).view(len(labels), -1)),
            shares=torch.stack(shares).view(len(labels), -1),
            chosen=tuple(
                torch.stack([choice(label, n) for label in labels]) if n > spec.batch else None for n in decoded
            ),
            augmentation=_stacked(draws, torch.cat),
            mix_real=_stacked(mix_real, torch.stack),
            mix_synthetic=tuple(
                _stacked(mix("synthetic", [self.drawn(ipc) // views] * len(dealt)), torch.stack) for ipc in sizes
            ),
        )

    def view_real(self, classes: Classes) -> Tensor:
        """Return the real batches as they are compared, k x B x ch x H x W."""
        images = self.pixels(classes.real)
        return self._viewed(classes.augmentation, classes.mix_real, images).view_as(images)

    def view_synthetic(self, classes: Classes, images: Tensor, size: int = 0) -> Tensor:
        """Decode, choose and transform synthetic images k x n x ch x H x W; differentiable, k x B_s x ch x H x W.

        Args:
            classes: What was drawn.
            images: The synthetic images of those classes.
            size: The place of their n among the sizes that were drawn for.
        """
        images, chosen = multi_formation.decode(images, self.spec.factor), classes.chosen[size]
        if chosen is not None:
            first = torch.arange(len(images), device=images.device)[:, None]
            images = images[first, chosen]
        if self.spec.views > 1:
            images = images.repeat(1, self.spec.views, 1, 1, 1)
        return self._viewed(classes.augmentation, classes.mix_synthetic[size], images).view_as(images)

    def _viewed(self, augmentation: Draw, mix: CutmixDraw | None, images: Tensor) -> Tensor:
        """Transform the views of k classes, k x B x ch x H x W, each by a draw of its own: k V x B / V x ch x H x W."""
        views = images.reshape(-1, images.shape[1] // self.spec.views, *images.shape[2:])
        views = augment.apply(augmentation, views)
        return views if mix is None else augment.apply_cutmix(mix, views)

    def draw_minibatches(self, purpose: str, key: tuple[int, int], count: int) -> Iterator[Minibatch]:
        """Draw minibatches over all classes, at most `count`; `purpose` names the random stream."""
        order = torch.randperm(len(self.labels), generator=rng.generator(self.seed, purpose, "order", *key))
        for i, indices in enumerate(torch.split(order, self.spec.networks.batch)[:count]):
            gen, mix = rng.generator(self.seed, purpose, "augment", *key, i), None
            drawn = augment.draw(self.spec.augment, gen, self.side, len(indices))
            if self.spec.cutmix.train:
                mix = augment.draw_cutmix(gen, len(indices), self.side, self.spec.cutmix.probability)
            yield Minibatch(self.take(indices), self.labels[indices].cpu(), drawn, mix)

    def view_minibatch(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Return augmented and perhaps mixed images, B x ch x H x W, and their soft labels, B x C."""
        images = augment.apply(batch.augmentation, self.pixels(batch.images))
        labels = (batch.labels[:, None] == torch.arange(self.classes, device=images.device)).float()
        if batch.mix is None:
            return images, labels
        return augment.apply_cutmix(batch.mix, images), augment.mix_targets(batch.mix, labels)

    def calibration_batches(self, outer: int, count: int = 8) -> Iterator[Tensor]:
        """Draw unaugmented minibatches to calibrate running statistics after a reset."""
        order = torch.randperm(len(self.labels), generator=rng.generator(self.seed, "calibrate", outer))
        for indices in torch.split(order, self.spec.networks.batch)[:count]:
            yield self.read(indices)


def _losses(logits: Tensor, label: int) -> Tensor:
    """Compute the cross-entropy of each of P x C logits, of one class."""
    return F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device), reduction="none")


def _stacked(draws: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Join the tensors of several draws, field by field; None if there are none."""
    if not draws:
        return None
    fields = zip(*draws, strict=True)
    return type(draws[0])(*(None if field[0] is None else join(list(field)) for field in fields))
