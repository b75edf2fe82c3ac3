"""The operations of DSA (Zhao and Bilen, ICML 2021) that move no pixel, as pure functions of images and parameters.

Images are N x ... x ch x H x W, source-normalised, so that the fill value 0 is the mean colour. Entry n of a parameter
holds for all of image n; one entry alone holds for everything. Parameters are on the images' device. Everything is
differentiable with respect to the images, as often as wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Shape one number per image so that it broadcasts over `x`."""
    return u.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _in_window(x: Tensor, side: int, centre: Tensor) -> Tensor:
    """Return bool N x side: which pixels a window of half the side covers."""
    size = int(side / 2 + 0.5)
    first = centre[:, None] - size // 2
    pixel = torch.arange(side, device=x.device)
    return (pixel >= first) & (pixel < first + size)
