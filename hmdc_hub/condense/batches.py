"""Real images for the condenser: a clustered batch per class for matching, mixed minibatches for training networks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import augment, cluster, rng
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import CondenseSpec
from hmdc_hub.sources import Source

EMBED_BATCH = 512
"""Images per forward pass where nothing is differentiated."""


class RealImages:
    """The source's train split on the device, and every way the condenser draws from it.

    Args:
        source: Its bank is copied to the device once, as uint8.
        spec: Says batch sizes, clustering and augmentation.
        seed: Of the recipe.
        device: Where batches are made.
    """

    def __init__(self, source: Source, spec: CondenseSpec, seed: int, device: torch.device) -> None:
        self.source, self.spec, self.seed, self.device = source, spec, seed, device
        self.images = source.train.images.to(device)
        self.labels = source.train.labels.to(device)
        self.side, self.classes = source.train.side, source.train.num_classes

    def take(self, indices: Tensor) -> Tensor:
        """Return images by index into the bank, float32 source-normalised on the device."""
        return self.source.normalise(self.images[indices.to(self.device)])

    def rows(self, label: int) -> range:
        """Return the rows of the bank that hold one class."""
        return range(self.source.train.offsets[label], self.source.train.offsets[label + 1])

    def embed(self, model: PoolModel, indices: Tensor) -> Tensor:
        """Embed images by index with a model in evaluation mode, float32 P x D."""
        with torch.no_grad():
            parts = [model.embed(model.prepare(self.take(part))) for part in torch.split(indices, EMBED_BATCH)]
        return torch.cat(parts).flatten(1).float()

    def matching_batch(self, model: PoolModel, label: int, key: tuple[int, int]) -> Tensor:
        """Choose a class's real batch: B representative images by clustering (DREAM), or B at random.

        Args:
            model: Embeds the class; in evaluation mode.
            label: The class.
            key: Outer iteration and image step.

        Returns:
            int64 indices into the bank, min(B, class size) of them; representatives may repeat.
        """
        rows = torch.arange(self.rows(label).start, self.rows(label).stop)
        gen = rng.generator(self.seed, "real-batch", *key, label)
        if len(rows) <= self.spec.batch:
            return rows
        if not self.spec.cluster.enabled:
            return rows[torch.randperm(len(rows), generator=gen)[: self.spec.batch]]
        candidates = self.spec.cluster.candidates
        if candidates is not None and candidates < len(rows):
            rows = rows[torch.randperm(len(rows), generator=gen)[: max(candidates, self.spec.batch)]]
        points = self.embed(model, rows)
        centres = cluster.kmeans(points, self.spec.batch, gen, max_iter=self.spec.cluster.max_iter)
        return rows[cluster.nearest(points, centres).cpu()]

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
            targets = F.one_hot(self.labels[indices.to(self.device)], self.classes).float()
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
