"""DSA (Zhao and Bilen, ICML 2021) in the order of IDC: what is drawn, and the operations that move no pixel.

The operations are pure functions of images N x ... x ch x H x W, source-normalised, so that the fill value 0 is the
mean colour, and parameters on their device: entry n holds for all of image n, one entry alone for everything. They are
differentiable with respect to the images, as often as wanted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hmdc_hub.augment import warps
from hmdc_hub.schema import AugmentSpec

MAX_SHIFT = 1 / 8
MAX_SCALE = 1.2
MAX_DEGREES = 15.0


class Draw(NamedTuple):
    """Parameters of one augmentation; None for what the recipe turns off, and never by chance.

    Shapes follow from the recipe and the number of rows alone, so that one captured program applies every draw. Row n
    holds for image n; one row holds for all images, the Siamese case. Attributes stand in the order in which they are
    applied, and are named like the functions of `hmdc_hub.augment` that take them.

    Attributes:
        flip, brightness, saturation, contrast: float32 (N,), uniform in [0, 1).
        warp: float32 N x 6, of whichever of crop, scale and rotate was drawn.
        cutout: int64 N x 2.
    """

    flip: Tensor | None = None
    brightness: Tensor | None = None
    saturation: Tensor | None = None
    contrast: Tensor | None = None
    warp: Tensor | None = None
    cutout: Tensor | None = None

    def to(self, device: torch.device) -> Draw:
        """Return the parameters on a device."""
        return Draw(**{name: None if value is None else value.to(device) for name, value in self._asdict().items()})


def draw(spec: AugmentSpec, gen: torch.Generator, side: int, count: int | None) -> Draw:
    """Draw the parameters of one augmentation, on the CPU.

    Args:
        spec: Says which operations are on.
        gen: CPU generator; the only source of randomness.
        side: Of the images in pixels.
        count: Images, each with parameters of its own; None for one Siamese draw that all images share. Which one of
            crop, scale and rotate is applied is drawn once either way, among those that are on.
    """
    rows = 1 if count is None else count
    on = {*spec.color, *(["flip"] if spec.flip else [])}
    uniform = [name for name in ("flip", "brightness", "saturation", "contrast") if name in on]
    found = {name: torch.rand(rows, generator=gen) for name in uniform} | {"warp": _draw_warp(spec, gen, side, rows)}
    if spec.cutout:
        # An even square is centred between pixels, so that there is one place more for it.
        found["cutout"] = torch.randint(0, side + 1 - _cutout_side(side) % 2, (rows, 2), generator=gen)
    return Draw(**found)


def _draw_warp(spec: AugmentSpec, gen: torch.Generator, side: int, rows: int) -> Tensor | None:
    enabled = [name for name in ("crop", "scale", "rotate") if getattr(spec, name)]
    if not enabled:
        return None
    name = enabled[int(torch.randint(len(enabled), (), generator=gen))]
    if name == "crop":
        most = int(side * MAX_SHIFT + 0.5)
        return warps.crop(torch.randint(-most, most + 1, (rows, 2), generator=gen))
    if name == "scale":
        least = 1 / MAX_SCALE
        return warps.scale(least + (MAX_SCALE - least) * torch.rand(rows, 2, generator=gen), side)
    return warps.rotate(MAX_DEGREES * (2 * torch.rand(rows, generator=gen) - 1), side)


def apply(draw: Draw, x: Tensor) -> Tensor:
    """Apply a draw to images; reads nothing back and branches on no value.

    Args:
        draw: Of N rows, on the device of `x`.
        x: float32 or float64 N x ... x ch x H x W, source-normalised: row n holds for all of x[n]. With one row, any
            leading dimensions.

    Returns:
        Shaped like `x`, differentiable with respect to it.
    """
    for parameter, operation in (
        (draw.flip, flip),
        (draw.brightness, brightness),
        (draw.saturation, saturation),
        (draw.contrast, contrast),
        (draw.warp, warps.warp),
        (draw.cutout, cutout),
    ):
        if parameter is not None:
            x = operation(x, parameter)
    return x


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left to right where u < 0.5, with `u` (N,) in [0, 1)."""
    return torch.where(_per_image(u, x) < 0.5, x.flip(-1), x)


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Add u - 0.5, with `u` (N,) in [0, 1)."""
    return x + (_per_image(u, x) - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Multiply the distance of every pixel from its mean over channels by 2u, with `u` (N,) in [0, 1).

    Leaves grey images (one channel) as they are.
    """
    mean = x.mean(dim=-3, keepdim=True)
    return (x - mean) * (2 * _per_image(u, x)) + mean


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Multiply the distance from the mean of the whole image by u + 0.5, with `u` (N,) in [0, 1)."""
    mean = x.mean(dim=(-3, -2, -1), keepdim=True)
    return (x - mean) * (_per_image(u, x) + 0.5) + mean


def cutout(x: Tensor, centre: Tensor) -> Tensor:
    """Set a square of half the side, int(side / 2 + 0.5) pixels, to zero.

    Args:
        x: N x ... x ch x H x W.
        centre: int64 N x 2, of the square in rows and columns; what lies outside the image is clipped.
    """
    rows, columns = (_in_window(x, side, at) for side, at in zip(x.shape[-2:], centre.unbind(1), strict=True))
    blank = rows[:, :, None] & columns[:, None, :]
    return x.masked_fill(blank.view(-1, *[1] * (x.dim() - 3), *blank.shape[1:]), 0.0)


def _per_image(u: Tensor, x: Tensor) -> Tensor:
    return u.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _in_window(x: Tensor, side: int, centre: Tensor) -> Tensor:
    """Return bool N x side: which pixels a window of half the side covers."""
    size = _cutout_side(side)
    first = centre[:, None] - size // 2
    pixel = torch.arange(side, device=x.device)
    return (pixel >= first) & (pixel < first + size)


def _cutout_side(side: int) -> int:
    return int(side / 2 + 0.5)
