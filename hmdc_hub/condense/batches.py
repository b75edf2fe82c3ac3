"""Real images for the condenser: a clustered batch per class for matching, mixed minibatches for training networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import augment, cluster, rng
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec
from hmdc_hub.sources import Source

EMBED_BATCH, EMBED_BATCH_ON_CPU = 512, 64
"""Images per forward pass where nothing is differentiated; a CPU is no faster with more."""

ON_DEVICE = 4 * 2**30
"""Bytes of a source up to which all of it is copied to a GPU; of a larger one goes there what a step needs."""


class RealImages:
    """The source's train split on the device, and every way the condenser draws from it.

    Args:
        source: Its bank, uint8, is copied to the device once where it is small.
        spec: Says batch sizes, clustering and augmentation.
        seed: Of the recipe.
        device: Where batches are made.
    """

    def __init__(self, source: Source, spec: CondenseSpec, seed: int, device: torch.device) -> None:
        self.source, self.spec, self.seed, self.device = source, spec, seed, device
        self.images = source.train.images
        if self.images.nbytes <= ON_DEVICE:
            self.images = self.images.to(device)
        self.labels = source.train.labels
        self.side, self.classes = source.train.side, source.train.num_classes

    def take(self, indices: Tensor) -> Tensor:
        """Return images by index into the bank, float32 source-normalised on the device."""
        return self.source.normalise(self.images[indices.to(self.images.device)].to(self.device))

    def rows(self, label: int) -> range:
        """Return the rows of the bank that hold one class."""
        return range(self.source.train.offsets[label], self.source.train.offsets[label + 1])

    def embed(self, model: PoolModel, indices: Tensor) -> Tensor:
        """Embed images by index with a model in evaluation mode, float32 P x D."""
        with torch.no_grad(), model.reduced(self.device):
            size = EMBED_BATCH_ON_CPU if self.device.type == "cpu" else EMBED_BATCH
            parts = [model.embed(model.prepare(self.take(part))) for part in torch.split(indices, size)]
        return torch.cat(parts).flatten(1).float()

    def matching_batches(self, model: PoolModel, labels: Sequence[int], key: tuple[int, int]) -> list[Tensor]:
        """Choose the real batches of classes: B representative images by clustering (DREAM), or B at random.

        Args:
            model: Embeds the classes; in evaluation mode.
            labels: The classes; on a GPU they are clustered together.
            key: Outer iteration and image step.

        Returns:
            For each class int64 indices into the bank, min(B, class size) of them; representatives may repeat.
        """
        batch, candidates = self.spec.batch, self.spec.cluster.candidates
        chosen: list[Tensor] = []
        waiting: list[tuple[int, torch.Generator]] = []
        for place, label in enumerate(labels):
            rows = torch.arange(self.rows(label).start, self.rows(label).stop)
            gen = rng.generator(self.seed, "real-batch", *key, label)
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

    def minibatches(self, purpose: str, key: tuple[int, int], count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw augmented minibatches over all classes, without replacement within one call.

        Args:
            purpose: Names the random stream.
            key: Outer iteration and image step.
            count: Minibatches wanted; fewer come if the source is smaller.

        Yields:
            Images B x ch x H x W, source-normalised, augmented one by one and perhaps mixed; soft targets B x C.
        """
        order = torch.randperm(len(self.images), generator=rng.generator(self.seed, purpose, "order", *key))
        for i, indices in enumerate(torch.split(order, self.spec.networks.batch)[:count]):
            images = self.take(indices)
            targets = F.one_hot(self.labels[indices], self.classes).float().to(self.device)
            gen = rng.generator(self.seed, purpose, "augment", *key, i)
            images = augment.apply(augment.draw(self.spec.augment, gen, self.side, len(indices)), images)
            if self.spec.cutmix.train:
                mix = augment.draw_cutmix(gen, len(indices), self.side, self.spec.cutmix.probability)
                if mix is not None:
                    images, targets = augment.apply_cutmix(mix, images), augment.mix_targets(mix, targets)
            yield images, targets

    def calibration_batches(self, outer: int, count: int = 8) -> list[Tensor]:
        """Draw unaugmented minibatches to calibrate running statistics after a reset."""
        order = torch.randperm(len(self.images), generator=rng.generator(self.seed, "calibrate", outer))
        return [self.take(indices) for indices in torch.split(order, self.spec.networks.batch)[:count]]
