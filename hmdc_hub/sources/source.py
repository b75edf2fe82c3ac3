"""A source dataset to compute with: uint8 images by class to condense, and a test split to score on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

STD_FLOOR = 1 / 255  # least standard deviation: one grey level, so that a constant channel can be normalised
PYTHON = "python:"  # begins the ids of objects of this process; see `hmdc_hub.sources.register_dataset`
STATISTICS_CHUNK = 2**20  # pixels of one channel that are counted at a time: numpy makes eight bytes of each
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class ClassSortedImages:
    """Images sorted by class; classes may differ in size."""

    images: Tensor  # uint8 N x channels x side x side, class after class; within a class in the order of the dataset
    offsets: tuple[int, ...]  # C + 1 numbers; class c is rows `offsets[c]` to `offsets[c + 1]`

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
    """A source dataset: what is condensed, what is scored on, and where both come from."""

    train: ClassSortedImages
    test_images: Tensor  # uint8 N x channels x side x side, in the order of the dataset
    test_labels: Tensor  # int64 N, in 0..C-1
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
        train, labels = self.train.to(device), self.test_labels.to(device)
        return replace(self, train=train, test_images=self.test_images.to(device), test_labels=labels)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _per_channel(tuple(self.info.mean), device), _per_channel(tuple(self.info.std), device)


@cache  # captured functions go on reading them
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return float32 channels x 1 x 1; kept, since a copy to a GPU in every step would stop it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device="cpu").to(device).view(-1, 1, 1)


@dataclass(frozen=True)
class SourceSummary:
    """What a source's labels say, in a form that can be sent to another process."""

    spec: SourceSpec  # with nothing left to detection
    facts: SourceFacts
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]  # images per class that are condensed
    test_count: int  # images that are scored on; 0: there is no split for it

    def lines(self) -> list[str]:
        """Say what of the source is used as what, and what of it is not used."""
        spec, counts, shown = self.spec, self.train_counts, self.class_names[:_SHOWN]
        each = f"{min(counts)}" + (f" to {max(counts)}" if min(counts) < max(counts) else "")
        names = ", ".join(shown) + (", ..." if len(self.class_names) > _SHOWN else "")
        fraction, what = spec.validation_fraction or spec.test_fraction, " to condense" * bool(spec.validation_fraction)
        part = f"{fraction:.0%} of each class of {spec.train_split}{what}" if fraction else "no split"
        return [
            f"{sum(counts)} images of {spec.train_split} to condense, {each} in each of {len(counts)} classes: {names}",
            f"{self.test_count} to score on, {spec.test_split or part}; columns {spec.image_column} and "
            f"{spec.label_column}",
            *left_out_notes(self.facts.left_out),
        ]

    def document(self) -> dict[str, Any]:
        """Say the same as plain data."""
        rows = {"class_names": self.class_names, "train_counts": self.train_counts, "test_count": self.test_count}
        left_out = [one.model_dump(mode="json") for one in self.facts.left_out]
        return self.spec.model_dump(mode="json") | rows | {"left_out": left_out}


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Say in lines what of a folder is not used."""
    return [
        f"left out, {one.reason}: {one.count}"
        + (f" ({', '.join(one.examples)}{', ...' if one.count > len(one.examples) else ''})" if one.examples else "")
        for one in left_out
    ]


def make_source(
    train: ClassSortedImages,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    facts: SourceFacts,
    class_names: Sequence[str],
    **more: Any,
) -> Source:
    """Compute statistics and fingerprint of images and put everything together; all tensors are on the CPU.

    `test_images` are uint8 N x channels x side x side, their labels int64 N in 0..C-1; `more` are other fields of
    `SourceInfo`: splits and columns, where they have not the usual names, and what else is known.
    """
    more = {"train_split": "train", "test_split": "test", "image_column": "image", "label_column": "label"} | more
    mean, std = channel_statistics(train.images)
    digest = fingerprint(class_names, train, test_images, test_labels)
    id_ = facts.id
    if id_.startswith(PYTHON):  # which objects they were
        id_ = f"{LOCAL}{id_.removeprefix(PYTHON)}@{digest[:16]}"
    elif facts.kind == "local":  # not where the files are
        id_ = Path(id_).expanduser().resolve().name
    info = SourceInfo(
        **vars(facts) | {"id": id_, "left_out": list(facts.left_out)},
        fingerprint=digest,
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
