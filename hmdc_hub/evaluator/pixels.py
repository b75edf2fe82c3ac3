"""Images of other programs as tensors: their shapes, and pixels of 8 bits, if what normalised them can be undone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hmdc_hub.errors import UsageError
from hmdc_hub.schema import canonical_json
from hmdc_hub.sources import Source
from hmdc_hub.store.parquet import to_uint8

ROUNDING = 1e-4  # how far outside [0, 1] floats may lie that are meant to be in it
# Pixels mapped back may lie this far outside [0, 1], and this share of them further: optimised images do overshoot, but
# those that other statistics normalised do so by more.
OVERSHOOT, OVERSHOOT_SHARE = 0.02, 0.05

_CLOSE = 2e-3  # half a grey level: so far published statistics, rounded to three or four digits, move black and white
_ON_GRID = 0.1  # how far from whole grey levels values of 8 bits come out that published statistics normalised
_DISTINCT = 8  # grey levels that must be met: fewer can be whole numbers by chance
_ALIKE = 0.01  # bound on mean and on std - 1 of standardised images, with either definition of the deviation


def images_and_labels(what: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return images with channels first, and labels as int64, both on the CPU; a UsageError as of `check_shapes`."""
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    check_shapes(what, "images", tuple(images.shape), "labels", tuple(labels.shape), whole)
    if images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    # They may lie on a GPU, and be what an optimiser has just changed.
    return images.detach().cpu().contiguous(), labels.detach().cpu().long()


def check_shapes(
    what: str, images: str, shape: Sequence[int], labels: str, labels_shape: Sequence[int], whole: bool
) -> None:
    """Refuse tensors that are not images and labels by their names and shapes, with a UsageError.

    Wanted are N x ch x H x W or N x H x W x ch with 1 or 3 channels, and N whole numbers.
    """
    if len(shape) != 4:
        raise UsageError(
            f"{what}: images are {times(shape)}, not N x channels x height x width.",
            hint="Grey images without channels become that by images[:, None], grouped ones by images.flatten(0, 1).",
        )
    count = shape[0]
    if count == 0:
        raise UsageError(f"{what} has no images: {images} is {times(shape)}.")
    if not whole and len(labels_shape) == 2 and labels_shape[0] == count:
        raise UsageError(
            f"{what}: {labels} holds {times(labels_shape)} floats, soft labels, and the protocols here train on hard "
            "ones. To take the largest of each silently would be to score another set.",
            hint=f"To score that other set, save {labels}.argmax(1) as labels, and say so wherever you give the score.",
        )
    if not whole or tuple(labels_shape) != (count,):
        kind = "whole numbers" if whole else "values that are no whole numbers"
        raise UsageError(
            f"{what}: {labels} holds {times(labels_shape)} {kind} instead of {count} class numbers, one per image.",
            hint="Save the class number of every image as int64, in the order of the images.",
        )
    if shape[1] not in (1, 3) and shape[3] not in (1, 3):
        raise UsageError(
            f"{what}: images are {times(shape)}; neither the second nor the last number is 1 (grey) or 3 (colour).",
            hint="Save them as N x channels x height x width.",
        )


def times(shape: Sequence[int]) -> str:
    """Write a shape: `5 x 3 x 8 x 8`."""
    return " x ".join(map(str, shape)) or "a single number"


def content_hash(images: Tensor, labels: Tensor, exact: Tensor | None) -> str:
    """Hash pixels (uint8), class indices (int64) and, if there are any, exact floats (float32) with SHA-256 (hex)."""
    digest = hashlib.sha256(canonical_json({"images": list(images.shape)}).encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.numpy().astype("<i8").data)
    if exact is not None:
        digest.update(exact.contiguous().numpy().astype("<f4").data)
    return digest.hexdigest()


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


def pixels_of(
    what: str, images: Tensor, source: Source, *, normalised: bool
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
    if normalised:
        # Beside catching a mistake this makes the file's hash name one set: it can be read in one way only.
        if inside:
            raise not_normalised(what, f"holds images from {low:.4g} to {high:.4g}, as pixels are")
        exact, note = _mapped_back(what, images, source)
        return to_uint8(exact), exact, (note,)
    if not inside:
        raise UsageError(
            f"{what}: images reach from {low:.4g} to {high:.4g}; pixels are floats from 0 to 1, or uint8.",
            hint=_not_by(_of_source(source), images)
            or "--normalised maps pixels that were normalised by the source's mean and std back; values up to 255 "
            "are saved as images.round().to(torch.uint8).",
        )
    exact = images.clamp(0, 1)
    return to_uint8(exact), exact, ()


def not_normalised(what: str, why: str) -> UsageError:
    """Say that nothing is there to be mapped back."""
    return UsageError(f"--normalised does not apply: {what} {why}.", hint="Leave it out.")


def _of_source(source: Source) -> Statistics:
    return Statistics("the source's", tuple(source.info.mean), tuple(source.info.std))


def _mapped_back(what: str, images: Tensor, source: Source) -> tuple[Tensor, str]:
    own = _of_source(source)
    if hint := _not_by(own, images):
        raise UsageError(
            f"{what}: these images cannot have been normalised by {own}, with which they would be mapped back.",
            hint=hint,
        )
    if (share := own.outside(images)) > OVERSHOOT_SHARE:
        fitting = [str(other) for other in _usual(images) if other.outside(images) <= OVERSHOOT_SHARE]
        raise UsageError(
            f"{what}: {share:.1%} of the pixels lie more than {OVERSHOOT} outside [0, 1] when mapped back with {own}; "
            f"at most {OVERSHOOT_SHARE:.0%} may, so others must have normalised them.",
            hint="Map them back with the statistics they were made with, and save pixels from 0 to 1."
            + (f" Of those in use these would fit: {'; '.join(fitting)}." if fitting else ""),
        )
    pixels = source.denormalise(images)
    low, high = (float(bound) for bound in pixels.aminmax())
    clamped = int(((own.back(images) - pixels).abs() > ROUNDING).sum()) / pixels.numel()
    return pixels, f"mapped back to pixels from {low:.3f} to {high:.3f}, {clamped:.1%} of them clamped"


def _not_by(own: Statistics, images: Tensor) -> str:
    """Say what to do with floats that something else than the source's statistics made; empty if nothing shows it."""
    if own.proves(images):
        return ""
    if Statistics("", (0.0,), (1 / 255,)).proves(images):
        return "They are pixels from 0 to 255: save images.round().to(torch.uint8), and leave --normalised out."
    for other in _usual(images):
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


def _usual(images: Tensor) -> list[Statistics]:
    return [statistics for statistics in USUAL if len(statistics.mean) == images.shape[1]]
