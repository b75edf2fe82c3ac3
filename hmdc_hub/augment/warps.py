"""Crop, scale and rotate, each an affine warp of six numbers per image: static, exact for whole numbers, deterministic.

A warp (a, b, c, d, e, f) says where output pixel (i, j) looks in the input, in pixels: at row a i + b j + c and column
d i + e j + f; bilinear, zeros outside.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(shift: Tensor) -> Tensor:
    """Give the warps float32 N x 6 that shift images: output row i shows input row i + shift, int64 N x 2."""
    rows, columns = shift.float().unbind(1)
    one, zero = torch.ones_like(rows), torch.zeros_like(rows)
    return torch.stack([one, zero, rows, zero, one, columns], 1)


def scale(factors: Tensor, side: int) -> Tensor:
    """Give the warps float32 N x 6 that stretch the sampling grid about the centre of images of `side` pixels.

    Args:
        factors: N x 2, for x and y; above 1 the image shrinks.
        side: Of the images in pixels.
    """
    horizontal, vertical = factors.double().unbind(1)
    zero = torch.zeros_like(vertical)
    return _about_centre(torch.stack([vertical, zero, zero, horizontal]), side)


def rotate(degrees: Tensor, side: int) -> Tensor:
    """Give the warps float32 N x 6 that turn images of `side` pixels about their centre by `degrees` (N,)."""
    angle = degrees.double().deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return _about_centre(torch.stack([cos, sin, -sin, cos]), side)


def warp(x: Tensor, coefficients: Tensor) -> Tensor:
    """Warp images; differentiable with respect to them, as often as wanted, with equal bits at every call.

    Args:
        x: float32 or float64 N x ... x H x W.
        coefficients: float32 N x 6; where N is 1, they hold for all of `x`, whatever its leading dimensions. The
            backward is right for warps no stronger than what `draw` makes: rotations by at most 15 degrees, factors
            in [1/1.2, 1.2], any shift.

    Returns:
        Shaped like `x`.
    """
    warped: Tensor = _Warp.apply(x, coefficients, False)
    return warped


def _about_centre(matrix: Tensor, side: int) -> Tensor:
    """Return the warps of linear maps about the centre, with a, b, d and e as the rows of `matrix`, float64 4 x N."""
    # Corners aligned in the grid but not in the sampling: DSA's own combination, kept for comparability. The grid
    # reaches from centre to centre of the outermost pixels and is read as reaching from edge to edge.
    a, b, d, e = matrix * (side / max(side - 1, 1))
    middle = (side - 1) / 2
    return torch.stack([a, b, middle - middle * (a + b), d, e, middle - middle * (d + e)], 1).float()


class _Warp(torch.autograd.Function):
    """A warp or its adjoint; each is the derivative of the other.

    The derivative of `grid_sample` adds up atomically on a GPU, in another order at every call.
    """

    @staticmethod
    def forward(x: Tensor, coefficients: Tensor, adjoint: bool) -> Tensor:
        return (_adjoint if adjoint else _sample)(x, coefficients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, coefficients, ctx.adjoint = inputs
        ctx.save_for_backward(coefficients)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Warp.apply(grad, *ctx.saved_tensors, not ctx.adjoint), None, None


def _sample(x: Tensor, coefficients: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    a, b, c, d, e, f = _unpacked(coefficients, x)
    i, j = _pixels(x)
    at = torch.stack([d * i + e * j + f, a * i + b * j + c], -1).view(-1, height, width, 2)
    # With a power of two as side, whole numbers of pixels survive the grid's own units exactly.
    side = 1 << (max(height, width) - 1).bit_length()
    padded = F.pad(x.reshape(len(coefficients), -1, height, width), (0, side - width, 0, side - height))
    return F.grid_sample(padded, at * (2 / side) + (1 / side - 1), align_corners=False).reshape(x.shape)


def _adjoint(x: Tensor, coefficients: Tensor) -> Tensor:
    """Apply the transposes of warps: every input pixel gathers from the output pixels that looked at it.

    Output pixel p looks at A p + t, and reaches input pixel q if that is less than a pixel from q along both axes. So p
    is less than a row sum of the absolute inverse of A from inv(A) (q - t), along both axes: at most 1.23 for rotations
    by 15 degrees, 1.2 for factors of 1/1.2. With at most 0.5 for rounding that is below 2: 3 x 3 candidates hold them.
    """
    height, width = x.shape[-2:]
    values = x.reshape(len(coefficients), -1, height * width)
    a, b, c, d, e, f = _unpacked(coefficients, x)
    i, j = _pixels(x)
    down, right, determinant = i - c, j - f, a * e - b * d
    rows, columns = ((e * down - b * right) / determinant).round(), ((a * right - d * down) / determinant).round()
    result = torch.zeros_like(values)
    for row, column in product((rows - 1, rows, rows + 1), (columns - 1, columns, columns + 1)):
        weight = _hat(a * row + b * column + c - i) * _hat(d * row + e * column + f - j)
        inside_row, inside_column = row.clamp(0, height - 1), column.clamp(0, width - 1)
        weight = weight * ((inside_row == row) & (inside_column == column))
        index = (inside_row * width + inside_column).long()[:, None].expand_as(values)
        result.addcmul_(values.gather(2, index), weight[:, None])
    return result.reshape(x.shape)


def _unpacked(coefficients: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Return the six coefficients in the type of `x`, each N x 1."""
    return coefficients.to(x.dtype)[:, :, None].unbind(1)


def _pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of all pixels of an image, each H W."""
    sides = (torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[-2:])
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return rows.flatten(), columns.flatten()


def _hat(distance: Tensor) -> Tensor:  # bilinear weights
    return (1 - distance.abs()).clamp(min=0)
