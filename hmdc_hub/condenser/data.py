"""Real and synthetic images: real batches, views of both kinds, mixed minibatches, and the step that moves S.

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
from hmdc_hub.schema import CondenseSpec, ImagesSpec
from hmdc_hub.sources import Source

# Images per forward pass where nothing is differentiated; a CPU is no faster with more.
EMBED_BATCH, EMBED_BATCH_ON_CPU = 512, 64
RESIDENT = 0.5  # share of a GPU's free memory that a source may take to be copied there whole


class Classes(NamedTuple):
    """What is drawn for k classes in one image step."""

    labels: Tensor  # int64 k
    rows: Tensor  # int64 k, their places among the synthetic images of this rank
    real: Tensor  # int64 k x B indices into the source; or the uint8 images, where the source is not on the device
    shares: Tensor  # float32 k x B, 1 / n for the n images of a class, and 0 for those that fill up a smaller one
    chosen: Tensor | None  # int64 k x B_s, which decoded synthetic images take part; None for all of them
    augmentation: Draw  # siamese: one draw for all images of a class, real and synthetic
    mix_real: CutmixDraw | None  # within each class; None if it is off
    mix_synthetic: CutmixDraw | None


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
        self.batch = min(spec.batch, max(source.train.counts))  # B: real images of a class and step, at most
        self.decoded = spec.ipc * spec.factor**2  # images that the synthetic ones of a class hold
        self.drawn = min(self.decoded, spec.batch)  # B_s: those of them that take part in a step

    def pixels(self, images: Tensor) -> Tensor:
        """Give images by index, or uint8 ones, as float32 source-normalised ones on the device."""
        chosen = images if images.dtype == torch.uint8 else self.images[images]
        return self.source.normalise(chosen)

    def of_class(self, label: int) -> Tensor:
        """Return the indices of one class, int64."""
        return torch.arange(self.source.train.offsets[label], self.source.train.offsets[label + 1])

    def take(self, indices: Tensor) -> Tensor:
        """Prepare indices, on the CPU, for `pixels`: the images themselves where the source is not on the device."""
        return indices if self.resident else self.images[indices]

    def read(self, indices: Tensor) -> Tensor:
        """Give images by index, on the CPU, as `pixels` does."""
        return self.pixels(self.take(indices).to(self.device))

    def embed(self, model: PoolModel, indices: Tensor) -> Tensor:
        """Embed images by index with a model in evaluation mode, float32 P x D."""
        size = EMBED_BATCH_ON_CPU if self.device.type == "cpu" else EMBED_BATCH
        reduced = torch.autocast(self.device.type, torch.bfloat16, enabled=model.spec.precision == "bfloat16")
        with torch.no_grad(), reduced:
            parts = torch.split(indices, size)
            return torch.cat([model.embed(model.prepare(self.read(part))).flatten(1).float() for part in parts])

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
            found = cluster.representatives(points, batch, gens, max_iter=self.spec.cluster.max_iter)
            for place, nearest in zip(places, found, strict=True):
                chosen[place] = chosen[place][nearest]
        return chosen

    def draw_classes(
        self, labels: Sequence[int], rows: Sequence[int], real: Sequence[Tensor], key: tuple[int, int]
    ) -> Classes:
        """Draw what k classes see in one image step.

        Args:
            labels: The classes.
            rows: Their places among the synthetic images.
            real: Their real batches, indices.
            key: Outer iteration and image step.
        """
        spec, seed, batch = self.spec, self.seed, self.batch
        chosen, mixes, draws = [], dict[str, list[CutmixDraw]](real=[], synthetic=[]), []
        for label, indices in zip(labels, real, strict=True):
            if self.decoded > spec.batch:
                gen = rng.generator(seed, "choose", *key, label)
                chosen.append(torch.randperm(self.decoded, generator=gen)[: spec.batch])
            if spec.cutmix.match:
                for name, count in (("real", len(indices)), ("synthetic", self.drawn)):
                    gen = rng.generator(seed, "cutmix", name, *key, label)
                    mixes[name].append(augment.draw_cutmix(gen, count, self.side, spec.cutmix.probability))
            draws.append(augment.draw(spec.augment, rng.generator(seed, "augment", *key, label), self.side, None))
        spare = [batch - len(indices) for indices in real]
        filled = [F.pad(indices, (0, n), value=int(indices[0])) for indices, n in zip(real, spare, strict=True)]
        shares = [F.pad(torch.full((batch - n,), 1 / (batch - n)), (0, n)) for n in spare]
        # The images that fill up a batch are their own partners.
        mix_real = [
            mix._replace(partners=torch.cat([mix.partners, torch.arange(len(mix.partners), batch)]))
            for mix in mixes["real"]
        ]
        return Classes(
            labels=torch.tensor(labels),
            rows=torch.tensor(rows),
            real=self.take(torch.stack(filled)),
            shares=torch.stack(shares),
            chosen=torch.stack(chosen) if chosen else None,
            augmentation=_stacked(draws, torch.cat),
            mix_real=_stacked(mix_real, torch.stack),
            mix_synthetic=_stacked(mixes["synthetic"], torch.stack),
        )

    def view_real(self, classes: Classes) -> Tensor:
        """Return the real batches as they are compared, k x B x ch x H x W."""
        images = augment.apply(classes.augmentation, self.pixels(classes.real))
        return images if classes.mix_real is None else augment.apply_cutmix(classes.mix_real, images)

    def view_synthetic(self, classes: Classes, images: Tensor) -> Tensor:
        """Decode, choose and transform synthetic images k x n x ch x H x W; differentiable, k x B_s x ch x H x W."""
        images = multi_formation.decode(images, self.spec.factor)
        if classes.chosen is not None:
            first = torch.arange(len(images), device=images.device)[:, None]
            images = images[first, classes.chosen]
        images = augment.apply(classes.augmentation, images)
        return images if classes.mix_synthetic is None else augment.apply_cutmix(classes.mix_synthetic, images)

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

    def initial_images(self, model: PoolModel, label: int) -> Tensor:
        """Choose what a class's part of S begins as: real images, f x f of them encoded into each synthetic image.

        Args:
            model: Embeds the images for k-means; the first of the pool, freshly reset and calibrated.
            label: The class.

        Returns:
            float32 n x ch x H x W, source-normalised and clamped to the pixel range, on the CPU.
        """
        rows, gen = self.of_class(label), rng.generator(self.seed, "start", label)
        chosen = rows[torch.randperm(len(rows), generator=gen)[: self.decoded]]
        if self.spec.initialisation == "kmeans" and len(rows) > self.decoded:
            points = self.embed(model, rows)
            centres = cluster.kmeans(points, self.decoded, gen, max_iter=self.spec.cluster.max_iter)
            chosen = rows[cluster.nearest(points, centres, distinct=True).cpu()]
        # A class with fewer images than there are places shows each of them more than once.
        chosen = chosen.repeat(-(-self.decoded // len(chosen)))[: self.decoded]
        low, high = self.source.bounds()
        return multi_formation.encode(self.read(chosen), self.spec.factor, self.side).cpu().clamp(low, high)


def _stacked(draws: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Join the tensors of several draws, field by field; None if there are none."""
    if not draws:
        return None
    fields = zip(*draws, strict=True)
    return type(draws[0])(*(None if field[0] is None else join(list(field)) for field in fields))


class SyntheticImages:
    """S, the synthetic images: the part that a rank owns, with the momentum of its optimiser, on its device.

    Args:
        labels: Classes that are owned, in the order of the rows.
        pixels: float32 rows x n x ch x H x W, source-normalised; taken over.
        source: Says what pixels in [0, 1] are after normalisation.
    """

    def __init__(self, labels: Sequence[int], pixels: Tensor, source: Source) -> None:
        self.labels, self.pixels = list(labels), pixels
        self.momentum = torch.zeros_like(pixels)  # survives network resets and is untouched by clamping
        self.row = {label: row for row, label in enumerate(labels)}
        self.low, self.high = (bound.to(pixels.device) for bound in source.bounds())

    def step(self, rows: Tensor, gradient: Tensor, spec: ImagesSpec) -> None:
        """Move rows, int64 k, by a step of SGD along k x n x ch x H x W, and clamp to what pixels in [0, 1] allow."""
        momentum = self.momentum[rows].mul_(spec.momentum).add_(gradient)
        pixels = torch.clamp(self.pixels[rows].sub_(momentum, alpha=spec.lr), self.low, self.high)
        self.momentum.index_copy_(0, rows, momentum)
        self.pixels.index_copy_(0, rows, pixels)

    def clamped(self) -> Tensor:
        """Return the share of the pixels of each class that are at a bound, float32 rows."""
        return ((self.pixels <= self.low) | (self.pixels >= self.high)).float().flatten(1).mean(1)
