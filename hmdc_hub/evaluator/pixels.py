"""What normalised pixels: the statistics in common use, and what shows that it were they."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Pixels mapped back may lie this far outside [0, 1], and this share of them further: optimised images do overshoot, but
# those that other statistics normalised do so by more.
OVERSHOOT, OVERSHOOT_SHARE = 0.02, 0.05
_CLOSE = 2e-3  # half a grey level: so far published statistics, rounded to three or four digits, move black and white
_ON_GRID = 0.1  # how far from whole grey levels values of 8 bits come out that published statistics normalised
_DISTINCT = 8  # grey levels that must be met: fewer can be whole numbers by chance
_ALIKE = 0.01  # bound on mean and on std - 1 of standardised images, with either definition of the deviation


class Statistics(NamedTuple):
    """What pixels in [0, 1] are normalised by, `(pixel - mean) / std` per channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def back(self, images: Tensor) -> Tensor:
        """Map normalised images, N x channels x H x W, back to pixels."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return images * std + mean

    def outside(self, images: Tensor) -> float:
        """Measure the share of pixels that lie more than OVERSHOOT outside [0, 1] when mapped back."""
        pixels = self.back(images)
        return int(((pixels - pixels.clamp(0, 1)).abs() > OVERSHOOT).sum()) / pixels.numel()

    def proves(self, images: Tensor) -> bool:
        """Tell whether normalised images can hardly have been normalised by anything else.

        Mapped back they are pixels of 8 bits, or reach in every channel from black to white exactly and several times,
        as pixels do that were held in [0, 1]. Optimised images that were not held are proof of nothing.
        """
        pixels = self.back(images)
        if bool((pixels < -_CLOSE).any()) or bool((pixels > 1 + _CLOSE).any()):
            return False
        levels = pixels * 255
        if bool(((levels - levels.round()).abs() < _ON_GRID).all()):
            return len(torch.unique(levels.round())) >= _DISTINCT
        channels = pixels.transpose(0, 1).flatten(1)
        return all(bool(((channels - bound).abs() < _CLOSE).sum(1).gt(1).all()) for bound in (0, 1))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{self.name} (mean {mean}, std {std})"


# In common use, for three channels and for one.
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


def usual(images: Tensor) -> list[Statistics]:
    """Give those in common use for so many channels, N x channels x H x W."""
    return [statistics for statistics in USUAL if len(statistics.mean) == images.shape[1]]


def not_by(own: Statistics, images: Tensor) -> str:
    """Say what to do with floats that something else than the source's statistics made; empty if nothing shows it."""
    if own.proves(images):
        return ""
    if Statistics("", (0.0,), (1 / 255,)).proves(images):
        return "They are pixels from 0 to 255: save images.round().to(torch.uint8), and leave --normalised out."
    for other in usual(images):
        if other.proves(images):
            mean, std = (f"torch.tensor({list(values)}).view(-1, 1, 1)" for values in (other.mean, other.std))
            return (
                f"They fit {other}. If that is it, save pixels, and leave --normalised out:\n"
                f"  images = (images * {std} + {mean}).clamp(0, 1)"
            )
    # Standardised channel by channel they are standardised as a whole too.
    each = images.flatten(1)
    if len(images) > 1 and bool(((each.mean(1).abs() < _ALIKE) & ((each.std(1) - 1).abs() < _ALIKE)).all()):
        return (
            "Every image has mean 0 and standard deviation 1 by itself, so what it was normalised by is lost: save the "
            "pixels from before, from 0 to 1."
        )
    return ""
