"""With which statistics floats were normalised, as far as they tell: those of the source, or others in common use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CLOSE = 2e-3
"""Half a grey level: so far published statistics, rounded to three or four digits, move black and white."""

_ON_GRID = 0.1
"""How far from a whole number, in grey levels, values of 8 bits come out that published statistics normalised."""

_DISTINCT = 8
"""Grey levels that must be met: fewer can be whole numbers by chance."""

_ALIKE = 0.01
"""Bound on mean and on std - 1 of images that were standardised, with either definition of the deviation."""


@dataclass(frozen=True)
class Statistics:
    """What pixels in [0, 1] are normalised by, `(pixel - mean) / std` per channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def back(self, images: Tensor) -> Tensor:
        """Map normalised images, N x channels x H x W, back to pixels."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return images * std + mean

    def __str__(self) -> str:
        """Give name and numbers."""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{self.name} (mean {mean}, std {std})"


USUAL = (
    Statistics("those of most GANs and many tutorials", (0.5,) * 3, (0.5,) * 3),
    Statistics("those of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Statistics("those of CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    Statistics("those of CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    Statistics("those of CIFAR-10 as often quoted", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    Statistics("those of CIFAR-100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    Statistics("those of SVHN", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    Statistics("those of most GANs and many tutorials", (0.5,), (0.5,)),
    Statistics("those of MNIST", (0.1307,), (0.3081,)),
    Statistics("those of FashionMNIST", (0.2861,), (0.3530,)),
)


def usual(channels: int) -> Iterator[Statistics]:
    """List what pixels of so many channels are usually normalised by."""
    return (statistics for statistics in USUAL if len(statistics.mean) == channels)


def proves(statistics: Statistics, images: Tensor) -> bool:
    """Tell whether normalised images can hardly have been normalised by anything else.

    Mapped back they are pixels of 8 bits, or reach in every channel from black to white exactly and several times, as
    pixels do that were held in [0, 1]. Optimised images that were not held are proof of nothing.

    Args:
        statistics: What they may have been normalised by.
        images: Floats N x channels x H x W.
    """
    pixels = statistics.back(images)
    if bool((pixels < -_CLOSE).any()) or bool((pixels > 1 + _CLOSE).any()):
        return False
    levels = pixels * 255
    if bool(((levels - levels.round()).abs() < _ON_GRID).all()):
        return len(torch.unique(levels.round())) >= _DISTINCT
    channels = pixels.transpose(0, 1).flatten(1)
    return all(bool(((channels - bound).abs() < _CLOSE).sum(1).gt(1).all()) for bound in (0, 1))


def one_by_one(images: Tensor) -> bool:
    """Tell whether images, several N x channels x H x W, were each normalised by statistics of its own."""
    for each in (images.flatten(1), images.flatten(2)):
        alike = (each.mean(-1).abs() < _ALIKE) & ((each.std(-1) - 1).abs() < _ALIKE)
        if len(images) > 1 and bool(alike.all()):
            return True
    return False
