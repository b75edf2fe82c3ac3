"""A source dataset to compute with: uint8 images by class to condense, and a test split to score on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmdc_hub.schema import LOCAL, LeftOut, SourceInfo, SourceSpec, canonical_json
from hmdc_hub.sources.pixels import take
from hmdc_hub.sources.reader import SourceFacts

STD_FLOOR = 1 / 255
"""Least standard deviation: one grey level, so that a constant channel can be normalised."""

PYTHON = "python:"
"""Begins the ids of objects of this process; see `hmdc_hub.sources.register_dataset`."""

_SHOWN = 8

STATISTICS_CHUNK = 2**20
"""Pixels of one channel that are counted at a time: numpy makes eight bytes of each."""


@dataclass(frozen=True, eq=False)
class ClassSortedImages:
    """Images sorted by class; classes may differ in size.

    Attributes:
        images: uint8 N x channels x side x side, class after class; within a class in the order of the dataset.
        offsets: C + 1 numbers; class c is rows `offsets[c]` to `offsets[c + 1]`.
    """

    images: Tensor
    offsets: tuple[int, ...]

    @classmethod
    def from_unsorted(cls, images: Tensor, labels: Tensor, num_classes: int) -> ClassSortedImages:
        """Sort images, uint8 N x channels x side x side, by class, keeping their order within a class.

        `labels` are int64 N, in 0..num_classes-1. Many images are copied into a temporary file; RunError if that fails.
        """
        order = torch.argsort(labels, stable=True)
        return cls(take(images, order), offsets_of(torch.bincount(labels, minlength=num_classes).tolist()))

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Images per class."""
        return tuple(stop - start for start, stop in pairwise(self.offsets))

    @cached_property
    def labels(self) -> Tensor:
        """Class of every image, int64 N, on the device of the images."""
        device = self.images.device
        counts = torch.tensor(self.counts, device=device)
        return torch.repeat_interleave(torch.arange(self.num_classes, device=device), counts)

    @property
    def side(self) -> int:
        """Side in pixels."""
        return int(self.images.shape[-1])

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""
        return int(self.images.shape[1])

    def of_class(self, c: int) -> Tensor:
        """View the images of class c, uint8 N_c x channels x side x side."""
        return self.images[self.offsets[c] : self.offsets[c + 1]]

    def to(self, device: torch.device | str) -> ClassSortedImages:
        """Copy to a device; the same object if it is there already."""
        images = self.images.to(device)
        return self if images is self.images else replace(self, images=images)


@dataclass(frozen=True, eq=False)
class Source:
    """A source dataset: what is condensed, what is scored on, and where both come from.

    Attributes:
        train: The images to condense.
        test_images: uint8 N x channels x side x side, in the order of the dataset.
        test_labels: int64 N, in 0..C-1.
        info: Provenance, class names and statistics.
    """

    train: ClassSortedImages
    test_images: Tensor
    test_labels: Tensor
    info: SourceInfo

    @cached_property
    def mean(self) -> Tensor:
        """Channel means of the train split, pixels in [0, 1], float32."""
        return torch.tensor(self.info.mean, dtype=torch.float32)

    @cached_property
    def std(self) -> Tensor:
        """Channel standard deviations of the train split, pixels in [0, 1], float32."""
        return torch.tensor(self.info.std, dtype=torch.float32)

    def normalise(self, images: Tensor) -> Tensor:
        """Map ... x channels x h x w, uint8 or floats in [0, 1], to float32 `(pixel - mean) / std` per channel."""
        mean, std = self._statistics(images.device)
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return (pixels - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Map source-normalised ... x channels x h x w back to [0, 1]; what lies outside is clamped."""
        mean, std = self._statistics(images.device)
        return (images * std + mean).clamp(0, 1)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Give the source-normalised values of black and of white, each float32 channels x 1 x 1."""
        mean, std = self._statistics(torch.device("cpu"))
        return -mean / std, (1 - mean) / std

    def to(self, device: torch.device | str) -> Source:
        """Copy images and labels to a device."""
        return replace(
            self,
            train=self.train.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _per_channel(tuple(self.info.mean), device), _per_channel(tuple(self.info.std), device)


@cache  # captured functions go on reading them
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return float32 channels x 1 x 1; kept, since a copy to a GPU in every step would stop it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device="cpu").to(device).view(-1, 1, 1)


def make_source(
    train: ClassSortedImages,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    facts: SourceFacts,
    class_names: Sequence[str],
    splits: tuple[str, str] = ("train", "test"),
    columns: tuple[str, str] = ("image", "label"),
    **more: Any,
) -> Source:
    """Compute statistics and fingerprint of images and put everything together.

    Args:
        train: The images to condense, on the CPU.
        test_images: uint8 N x channels x side x side, on the CPU.
        test_labels: int64 N, in 0..C-1.
        facts: Where the images come from.
        class_names: C names.
        splits: Train and test split as in the recipe.
        columns: Image and label column.
        more: `test_fraction`, `repeated` and `bits` of `SourceInfo`, where they are known.
    """
    mean, std = channel_statistics(train.images)
    digest = fingerprint(class_names, train, test_images, test_labels)
    info = SourceInfo(
        **{field.name: getattr(facts, field.name) for field in fields(facts)}
        | {"id": _public_id(facts, digest), "left_out": list(facts.left_out)},
        fingerprint=digest,
        train_split=splits[0],
        test_split=splits[1],
        image_column=columns[0],
        label_column=columns[1],
        class_names=list(class_names),
        train_counts=list(train.counts),
        test_count=len(test_images),
        size=train.side,
        channels=train.channels,
        mean=mean,
        std=std,
        **more,
    )
    return Source(train, test_images, test_labels, info)


def _public_id(facts: SourceFacts, digest: str) -> str:
    """Leave out of the id of local data where they are, and say of objects which they were."""
    if facts.kind != "local":
        return facts.id
    if facts.id.startswith(PYTHON):
        return f"{LOCAL}{facts.id.removeprefix(PYTHON)}@{digest[:16]}"
    return Path(facts.id).expanduser().resolve().name


def source_notes(
    spec: SourceSpec,
    class_names: Sequence[str],
    train_counts: Sequence[int],
    test_count: int,
    left_out: Sequence[LeftOut],
) -> list[str]:
    """Say in lines what of a source is used as what, and what of it is not used.

    The arguments are a recipe's section with nothing left to detection, C class names, images per class that are
    condensed, images that are scored on, and `left_out` of `SourceFacts`.
    """
    each = f"{min(train_counts)}" + (f" to {max(train_counts)}" if min(train_counts) < max(train_counts) else "")
    names = ", ".join(class_names[:_SHOWN]) + (", ..." if len(class_names) > _SHOWN else "")
    test = spec.test_split or f"{spec.test_fraction:.0%} of each class of {spec.train_split}"
    return [
        f"{sum(train_counts)} images of {spec.train_split} to condense, {each} in each of {len(class_names)} classes: "
        f"{names}",
        f"{test_count} to score on, {test}; columns {spec.image_column} and {spec.label_column}",
        *left_out_notes(left_out),
    ]


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Say in lines what of a folder is not used."""
    return [
        f"left out, {one.reason}: {one.count}"
        + (f" ({', '.join(one.examples)}{', ...' if one.count > len(one.examples) else ''})" if one.examples else "")
        for one in left_out
    ]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation, at least `STD_FLOOR`, per channel of uint8 images as pixels in [0, 1].

    The sums are exact, over whole numbers from a histogram, so that no order, thread count or machine changes a bit.
    """
    histogram = np.zeros((images.shape[1], 256), dtype=np.int64)
    for chunk in torch.split(images, max(1, STATISTICS_CHUNK // math.prod(images.shape[2:]))):
        for channel in range(images.shape[1]):
            histogram[channel] += np.bincount(chunk[:, channel].reshape(-1).numpy(), minlength=256)
    mean, std = [], []
    for counts in histogram.tolist():
        n = sum(counts)
        first = sum(count * value for value, count in enumerate(counts))
        second = sum(count * value * value for value, count in enumerate(counts))
        mean.append(first / (255 * n))
        std.append(max(STD_FLOOR, math.sqrt((n * second - first * first) / (n * n)) / 255))
    return mean, std


def fingerprint(class_names: Sequence[str], train: ClassSortedImages, test_images: Tensor, test_labels: Tensor) -> str:
    """Hash class names, and pixels and labels of both splits, with SHA-256 (hex); tensors on the CPU."""
    head = {"classes": list(class_names), "train": list(train.images.shape), "test": list(test_images.shape)}
    digest = hashlib.sha256(canonical_json(head).encode())
    for tensor in (train.images, train.labels, test_images, test_labels):
        array = tensor.contiguous().view(-1).numpy()
        digest.update(array.data if array.dtype == np.uint8 else array.astype("<i8").data)
    return digest.hexdigest()


def offsets_of(counts: Sequence[int]) -> tuple[int, ...]:
    """Add up class sizes to the offsets of a `ClassSortedImages`."""
    return (0, *np.cumsum(counts).tolist())
