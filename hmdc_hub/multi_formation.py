"""Multi-formation: how one synthetic image holds factor x factor training images (IDC, Kim et al., ICML 2022).

`decode` is part of the path that is differentiated, so every resize here is two small matrix products: their backward
is a matrix product too, deterministic on every device, where bilinear interpolation adds up atomically on GPUs.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.errors import UsageError
from hmdc_hub.schema import Encoding


def resize(x: Tensor, side: int) -> Tensor:
    """Resize images or maps to a square, bilinearly with aligned corners.

    Equal to `F.interpolate(mode="bilinear", align_corners=True)`, but with a deterministic backward, and
    differentiable as often as wanted, in forward mode too.

    Args:
        x: Floats ... x h x w, with any leading dimensions; half precision is computed in float32.
        side: Wanted height and width in pixels.

    Returns:
        ... x side x side, of the type of `x`; `x` itself if it has that size already.
    """
    return _resize(x, side, side)


def decode(images: Tensor, factor: int) -> Tensor:
    """Cut every synthetic image into factor x factor tiles and enlarge each to a training image (U in the paper).

    Args:
        images: Floats ... x n x ch x H x W; H and W are divisible by `factor`.
        factor: f, tiles per row and per column.

    Returns:
        ... x (n f f) x ch x H x W. The tile in tile row r and tile column q of image j is at index
        `(q * f + r) * n + j`.

    Raises:
        UsageError: H or W is not divisible by `factor`.
    """
    if factor == 1:
        return images
    *lead, n, channels, height, width = images.shape
    _check_divisible(height, factor)
    _check_divisible(width, factor)
    tiles = images.reshape(prod(lead), n, channels, factor, height // factor, factor, width // factor)
    tiles = tiles.permute(0, 5, 3, 1, 2, 4, 6)  # lead, tile column, tile row, n, ch, h, w
    return _resize(tiles, height, width).reshape(*lead, factor * factor * n, channels, height, width)


def encode(images: Tensor, factor: int, side: int, method: Encoding = "antialias") -> Tensor:
    """Shrink images and lay factor x factor of them into each synthetic image: the inverse of `decode`, shape by shape.

    Args:
        images: Floats ... x (n f f) x ch x h x w, in the order of `decode`.
        factor: f, tiles per row and per column.
        side: Height and width of a synthetic image, divisible by `factor`.
        method: How an image becomes a tile of side/f. `antialias`: resized with antialiasing; `bilinear`: resized with
            aligned corners, as `decode` enlarges; `least-squares`: the tile whose enlargement as in `decode`, to the
            size that the image has, is nearest to the image in the sum of squares.

    Returns:
        ... x n x ch x side x side. The nearest tiles go a little below and above the range of `images`: clamp them.

    Raises:
        UsageError: `side`, or the number of images, does not fit `factor`.
    """
    *lead, count, channels, height, width = images.shape
    _check_divisible(side, factor)
    if count % factor**2:
        raise UsageError(
            f"{count} images cannot be laid {factor} x {factor} into synthetic images: their number must be a "
            f"multiple of {factor**2}."
        )
    n, small = count // factor**2, side // factor
    tiles = images.reshape(-1, channels, height, width)
    if method == "antialias":
        tiles = F.interpolate(tiles, size=(small, small), mode="bilinear", align_corners=False, antialias=True)
    else:
        tiles = _resize(tiles, small, small, nearest=method == "least-squares")
    tiles = tiles.reshape(prod(lead), factor, factor, n, channels, small, small)  # lead, tile column, tile row, n, ...
    return tiles.permute(0, 3, 4, 2, 5, 1, 6).reshape(*lead, n, channels, side, side)


def _resize(x: Tensor, height: int, width: int, nearest: bool = False) -> Tensor:
    if x.shape[-2:] == (height, width):
        return x
    # Under autocast, or for half precision, the products would round pixels to 8 bits; interpolation does not.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        wide = x if x.dtype == torch.float64 else x.float()
        matrix = _nearest if nearest else _interpolation
        rows, columns = (
            matrix(old, new, wide.dtype, x.device) for old, new in zip(x.shape[-2:], (height, width), strict=True)
        )
        return (rows @ (wide @ columns.mT)).to(x.dtype)


@cache  # captured functions go on reading them
def _interpolation(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix new x old of linear interpolation with aligned corners."""
    # The cache outlives the caller's mode: a tensor made in inference mode could not be differentiated through later.
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(old, dtype=dtype, device="cpu")[None]
        return F.interpolate(unit, size=new, mode="linear", align_corners=True)[0].mT.contiguous().to(device)


@cache
def _nearest(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix new x old that makes of old values the new ones whose interpolation is nearest to them."""
    if new > old:  # then many are equally near
        return _interpolation(old, new, dtype, device)
    with torch.inference_mode(False), torch.no_grad():
        enlarge = _interpolation(new, old, torch.float64, torch.device("cpu"))
        inverse: Tensor = torch.linalg.pinv(enlarge)
        return inverse.to(dtype).to(device)


def _check_divisible(side: int, factor: int) -> None:
    if side % factor:
        raise UsageError(
            f"A side of {side} pixels cannot be cut into {factor} tiles: it must be divisible by condense.factor.",
            hint="Choose another source.size or condense.factor in the recipe.",
        )
