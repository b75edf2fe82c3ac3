"""Images of other programs as tensors: into pixels of 8 bits, if what normalised them, if anything, can be undone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub.errors import UsageError
from hmdc_hub.sources import Source
from hmdc_hub.store.parquet import to_uint8

ROUNDING = 1e-4
"""How far outside [0, 1] floats may lie that are meant to be in it."""

OVERSHOOT, OVERSHOOT_SHARE = 0.02, 0.05
"""Pixels mapped back may lie this far outside [0, 1], and this share of them further: optimised images do overshoot,
but those that other statistics normalised do so by more."""

_CLOSE = 2e-3  # half a grey level: so far published statistics, rounded to three or four digits, move black and white
_ON_GRID = 0.1  # how far from whole grey levels values of 8 bits come out that published statistics normalised
_DISTINCT = 8  # grey levels that must be met: fewer can be whole numbers by chance
_ALIKE = 0.01  # bound on mean and on std - 1 of standardised images, with either definition of the deviation


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
"""In common use."""


def pixels_of(
    what: str, images: Tensor, source: Source | None = None, *, normalised: bool = False
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Give images in 8 bits, the floats they were rounded from if there are any, and what to note.

    Args:
        what: Whose images, for errors.
        images: N x ch x H x W, uint8 or floats in [0, 1].
        source: Whose statistics the floats may be normalised by.
        normalised: They are, `(pixel - mean) / std`.

    Raises:
        UsageError: They are no pixels.
    """
    if images.dtype == torch.uint8:
        if normalised:
            raise not_normalised(what, "holds uint8 images, which are pixels")
        return images, None, ()
    if not images.is_floating_point():
        raise UsageError(
            f"{what}: images are {str(images.dtype).removeprefix('torch.')}; pixels are uint8 from 0 to 255 or floats "
            "from 0 to 1.",
            hint="Save images.to(torch.uint8).",
        )
    images = images.float()
    if bad := int((~images.isfinite()).sum()):
        raise UsageError(f"{what}: {bad} of {images.numel()} values of the images are NaN or infinite.")
    low, high = (float(bound) for bound in images.aminmax())
    inside = low >= -ROUNDING and high <= 1 + ROUNDING
    if normalised and source is not None:
        # Beside catching a mistake this makes the file's hash name one set: it can be read in one way only.
        if inside:
            raise not_normalised(what, f"holds images from {low:.4g} to {high:.4g}, as pixels are")
        exact, note = _mapped_back(what, images, source)
        return to_uint8(exact), exact, (note,)
    if not inside:
        raise UsageError(
            f"{what}: images reach from {low:.4g} to {high:.4g}; pixels are floats from 0 to 1, or uint8.",
            hint=(source is not None and _not_by_the_source(images, source))
            or "--normalised maps pixels that were normalised by the source's mean and std back; values up to 255 "
            "are saved as images.round().to(torch.uint8).",
        )
    exact = images.clamp(0, 1)
    return to_uint8(exact), exact, ()


def not_normalised(what: str, why: str) -> UsageError:
    """Say that nothing is there to be mapped back."""
    return UsageError(f"--normalised does not apply: {what} {why}.", hint="Leave it out.")


def _mapped_back(what: str, images: Tensor, source: Source) -> tuple[Tensor, str]:
    own = _of_source(source)
    if hint := _not_by_the_source(images, source):
        raise UsageError(
            f"{what}: these images cannot have been normalised by {own}, with which they would be mapped back.",
            hint=hint,
        )
    share = _share_outside(own.back(images))
    if share > OVERSHOOT_SHARE:
        fitting = [other for other in _usual(images) if _share_outside(other.back(images)) <= OVERSHOOT_SHARE]
        raise UsageError(
            f"{what}: {share:.1%} of the pixels lie more than {OVERSHOOT} outside [0, 1] when mapped back with {own}; "
            f"at most {OVERSHOOT_SHARE:.0%} may, so others must have normalised them.",
            hint="Map them back with the statistics they were made with, and save pixels from 0 to 1."
            + (f" Of those in use these would fit: {'; '.join(map(str, fitting))}." if fitting else ""),
        )
    pixels = source.denormalise(images)
    low, high = (float(bound) for bound in pixels.aminmax())
    clamped = int(((own.back(images) - pixels).abs() > ROUNDING).sum()) / pixels.numel()
    return pixels, f"mapped back to pixels from {low:.3f} to {high:.3f}, {clamped:.1%} of them clamped"


def _not_by_the_source(images: Tensor, source: Source) -> str:
    """Say what to do with floats that something else than the source's statistics made; empty if nothing shows it."""
    channels = images.shape[1]
    if _proves(_of_source(source), images):
        return ""
    if _proves(Statistics("255", (0.0,) * channels, (1 / 255,) * channels), images):
        return "They are pixels from 0 to 255: save images.round().to(torch.uint8), and leave --normalised out."
    for other in _usual(images):
        if _proves(other, images):
            mean, std = (f"torch.tensor({list(values)}).view(-1, 1, 1)" for values in (other.mean, other.std))
            return (
                f"They fit {other}. If that is it, save pixels, and leave --normalised out:\n"
                f"  images = (images * {std} + {mean}).clamp(0, 1)"
            )
    # Standardised channel by channel they are standardised as a whole too.
    each = images.flatten(1)
    alike = (each.mean(1).abs() < _ALIKE) & ((each.std(1) - 1).abs() < _ALIKE)
    if len(images) > 1 and bool(alike.all()):
        return (
            "Every image has mean 0 and standard deviation 1 by itself, so what it was normalised by is lost: save the "
            "pixels from before, from 0 to 1."
        )
    return ""


def _proves(statistics: Statistics, images: Tensor) -> bool:
    """Tell whether normalised images can hardly have been normalised by anything else.

    Mapped back they are pixels of 8 bits, or reach in every channel from black to white exactly and several times, as
    pixels do that were held in [0, 1]. Optimised images that were not held are proof of nothing.
    """
    pixels = statistics.back(images)
    if bool((pixels < -_CLOSE).any()) or bool((pixels > 1 + _CLOSE).any()):
        return False
    levels = pixels * 255
    if bool(((levels - levels.round()).abs() < _ON_GRID).all()):
        return len(torch.unique(levels.round())) >= _DISTINCT
    channels = pixels.transpose(0, 1).flatten(1)
    return all(bool(((channels - bound).abs() < _CLOSE).sum(1).gt(1).all()) for bound in (0, 1))


def _of_source(source: Source) -> Statistics:
    return Statistics("the source's", tuple(source.info.mean), tuple(source.info.std))


def _usual(images: Tensor) -> list[Statistics]:
    return [statistics for statistics in USUAL if len(statistics.mean) == images.shape[1]]


def _share_outside(pixels: Tensor) -> float:
    return int(((pixels - pixels.clamp(0, 1)).abs() > OVERSHOOT).sum()) / pixels.numel()
