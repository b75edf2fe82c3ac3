"""The operations of DSA (Zhao and Bilen, ICML 2021), as pure functions of images and their parameter.

Images are B x ch x H x W, source-normalised, so that the fill value 0 is the mean colour. A parameter has one entry
(or row) for all images, which is the Siamese case, or one per image. Everything is differentiable with respect to the
images, as often as wanted.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left to right where u < 0.5.

    Args:
        x: B x ch x H x W.
        u: (1,) or (B,), in [0, 1).
    """
    if len(u) == 1:
        return x.flip(-1) if u.item() < 0.5 else x
    return torch.where(_per_image(u, x) < 0.5, x.flip(-1), x)


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Add u - 0.5, with `u` (1,) or (B,) in [0, 1)."""
    return x + (_per_image(u, x) - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Multiply the distance of every pixel from its mean over channels by 2u, with `u` (1,) or (B,) in [0, 1).

    Leaves grey images (one channel) as they are.
    """
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * (2 * _per_image(u, x)) + mean


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Multiply the distance from the mean of the whole image by u + 0.5, with `u` (1,) or (B,) in [0, 1)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (_per_image(u, x) + 0.5) + mean


def crop(x: Tensor, shift: Tensor) -> Tensor:
    """Shift images and fill with zeros.

    Args:
        x: B x ch x H x W.
        shift: int64 (1 or B) x 2, in rows and columns: output row i shows input row i + shift, zero outside.
    """
    if len(shift) == 1:
        down, right = (int(s) for s in shift[0].tolist())
        return F.pad(x, (-right, right, -down, down))  # negative padding cuts
    height, width = x.shape[-2:]
    margin = int(shift.abs().max())
    padded = F.pad(x, (margin, margin, margin, margin))
    start = (shift + margin).to(x.device)
    rows = start[:, :1] + torch.arange(height, device=x.device)
    columns = start[:, 1:] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def scale(x: Tensor, factors: Tensor) -> Tensor:
    """Stretch the sampling grid about the centre; bilinear, zeros outside.

    Args:
        x: B x ch x H x W.
        factors: (1 or B) x 2, for x and y; above 1 the image shrinks.
    """
    horizontal, vertical = factors.unbind(1)
    zero = torch.zeros_like(vertical)
    return _affine(x, torch.stack([horizontal, zero, zero, zero, vertical, zero], 1))


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn images about their centre by `degrees`, (1,) or (B,); bilinear, zeros outside."""
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _affine(x, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def cutout(x: Tensor, offset: Tensor) -> Tensor:
    """Set a square of half the side, int(side / 2 + 0.5) pixels, to zero.

    Args:
        x: B x ch x H x W.
        offset: int64 (1 or B) x 2, centre of the square in rows and columns; what lies outside the image is clipped.
    """
    inside = [_in_window(x.shape[dim], offset[:, i], x.device) for i, dim in enumerate((-2, -1))]
    blank = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(blank, 0.0)


def _per_image(u: Tensor, x: Tensor) -> Tensor:
    """Shape one number per image so that it broadcasts over `x`."""
    return u.to(x.device, x.dtype).view(-1, 1, 1, 1)


def _in_window(side: int, centre: Tensor, device: torch.device) -> Tensor:
    """Return bool (1 or B) x side: which pixels a window of half the side covers."""
    size = int(side / 2 + 0.5)
    first = centre.to(device)[:, None] - size // 2
    pixel = torch.arange(side, device=device)
    return (pixel >= first) & (pixel < first + size)


def _affine(x: Tensor, theta: Tensor) -> Tensor:
    """Sample images on affinely transformed grids; `theta` is (1 or B) x 6."""
    matrices = theta.view(-1, 2, 3).to(x.device, x.dtype)
    # Corners aligned in the grid but not in the sampling: DSA's own combination, kept for comparability.
    grid = F.affine_grid(matrices, [len(matrices), *x.shape[1:]], align_corners=True)
    grid = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
