"""Differentiable augmentation of source-normalised images: DSA and CutMix.

Parameters are drawn on the CPU from a keyed generator (`draw`, `draw_cutmix`), so that two batches can share one draw
and every device sees the same one. They are tensors whose shapes follow from the recipe, and are applied (`apply`,
`apply_cutmix`, `mix_targets`) wherever they and the images are, without a look at any value.

DSA (Zhao and Bilen, ICML 2021) is that of IDC, in its order. Its operations are pure functions of images N x ... x ch x
H x W, source-normalised, so that the fill value 0 is the mean colour, and parameters on their device: entry n holds for
all of image n, one entry alone for everything. They are differentiable with respect to the images, as often as wanted.
Crop, scale and rotate are each an affine warp of six numbers per image: static, exact for whole numbers, deterministic.
A warp (a, b, c, d, e, f) says where output pixel (i, j) looks in the input, in pixels: at row a i + b j + c and column
d i + e j + f; bilinear, zeros outside.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.schema import AugmentSpec

MAX_SHIFT = 1 / 8
MAX_SCALE = 1.2
MAX_DEGREES = 15.0


class Draw(NamedTuple):
    """Parameters of one augmentation, in the order in which they are applied; None for what the recipe turns off.

    Shapes follow from the recipe and the number of rows alone, so that one captured program applies every draw. Row n
    holds for image n; one row holds for all images, the Siamese case.
    """

    flip: Tensor | None = None  # float32 (N,) in [0, 1), as are the next three
    brightness: Tensor | None = None
    saturation: Tensor | None = None
    contrast: Tensor | None = None
    warp: Tensor | None = None  # float32 N x 6, of whichever of crop, scale and rotate was drawn
    cutout: Tensor | None = None  # int64 N x 2

    def to(self, device: torch.device) -> Draw:
        """Return the parameters on a device."""
        return Draw(**{name: None if value is None else value.to(device) for name, value in self._asdict().items()})


def draw(spec: AugmentSpec, gen: torch.Generator, side: int, count: int | None) -> Draw:
    """Draw the parameters of one augmentation of images of `side` pixels, on the CPU.

    Each of `count` images gets parameters of its own; None is one Siamese draw that all images share. Which one of
    crop, scale and rotate is applied is drawn once either way, among those that are on. `gen` is a CPU generator, the
    only source of randomness.
    """
    rows = 1 if count is None else count
    on = {*spec.color, *(["flip"] if spec.flip else [])}
    uniform = [name for name in ("flip", "brightness", "saturation", "contrast") if name in on]
    found: dict[str, Tensor] = {name: torch.rand(rows, generator=gen) for name in uniform}
    if enabled := [name for name in ("crop", "scale", "rotate") if getattr(spec, name)]:
        name = enabled[int(torch.randint(len(enabled), (), generator=gen))]
        if name == "crop":
            most = int(side * MAX_SHIFT + 0.5)
            found["warp"] = crop(torch.randint(-most, most + 1, (rows, 2), generator=gen))
        elif name == "scale":
            least = 1 / MAX_SCALE
            found["warp"] = scale(least + (MAX_SCALE - least) * torch.rand(rows, 2, generator=gen), side)
        else:
            found["warp"] = rotate(MAX_DEGREES * (2 * torch.rand(rows, generator=gen) - 1), side)
    if spec.cutout:
        # An even square is centred between pixels, so that there is one place more for it.
        found["cutout"] = torch.randint(0, side + 1 - _cutout_side(side) % 2, (rows, 2), generator=gen)
    return Draw(**found)


def apply(draw: Draw, x: Tensor) -> Tensor:
    """Apply a draw to images; reads nothing back and branches on no value.

    Args:
        draw: Of N rows, on the device of `x`.
        x: float32 or float64 N x ... x ch x H x W, source-normalised: row n holds for all of x[n]. With one row, any
            leading dimensions.

    Returns:
        Shaped like `x`, differentiable with respect to it.
    """
    for parameter, operation in zip(draw, (flip, brightness, saturation, contrast, warp, cutout), strict=True):
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

    `centre`, int64 N x 2, is that of the square in rows and columns; what lies outside the image is clipped.
    """
    covered = []
    for side, at in zip(x.shape[-2:], centre.unbind(1), strict=True):
        size = _cutout_side(side)
        first, pixel = at[:, None] - size // 2, torch.arange(side, device=x.device)
        covered.append((pixel >= first) & (pixel < first + size))
    blank = covered[0][:, :, None] & covered[1][:, None, :]
    return x.masked_fill(blank.view(-1, *[1] * (x.dim() - 3), *blank.shape[1:]), 0.0)


def _cutout_side(side: int) -> int:
    return int(side / 2 + 0.5)


def _per_image(u: Tensor, x: Tensor) -> Tensor:
    return u.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


# Warps


def crop(shift: Tensor) -> Tensor:
    """Give the warps float32 N x 6 that shift images: output row i shows input row i + shift, int64 N x 2."""
    rows, columns = shift.float().unbind(1)
    one, zero = torch.ones_like(rows), torch.zeros_like(rows)
    return torch.stack([one, zero, rows, zero, one, columns], 1)


def scale(factors: Tensor, side: int) -> Tensor:
    """Give the warps float32 N x 6 that stretch the sampling grid about the centre of images of `side` pixels.

    `factors` are N x 2, for x and y; above 1 the image shrinks.
    """
    horizontal, vertical = factors.double().unbind(1)
    zero = torch.zeros_like(vertical)
    return _about_centre(torch.stack([vertical, zero, zero, horizontal]), side)


def rotate(degrees: Tensor, side: int) -> Tensor:
    """Give the warps float32 N x 6 that turn images of `side` pixels about their centre by `degrees` (N,)."""
    angle = degrees.double().deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return _about_centre(torch.stack([cos, sin, -sin, cos]), side)


def _about_centre(matrix: Tensor, side: int) -> Tensor:
    """Return the warps of linear maps about the centre, with a, b, d and e as the rows of `matrix`, float64 4 x N."""
    # Corners aligned in the grid but not in the sampling: DSA's own combination, kept for comparability. The grid
    # reaches from centre to centre of the outermost pixels and is read as reaching from edge to edge.
    a, b, d, e = matrix * (side / max(side - 1, 1))
    middle = (side - 1) / 2
    return torch.stack([a, b, middle - middle * (a + b), d, e, middle - middle * (d + e)], 1).float()


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
    (a, b, c, d, e, f), (i, j) = _unpacked(coefficients, x)
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
    (a, b, c, d, e, f), (i, j) = _unpacked(coefficients, x)
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


def _unpacked(coefficients: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the six coefficients, each N x 1, and rows and columns of all pixels of an image, each H W; as `x`."""
    sides = (torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[-2:])
    pixels = torch.meshgrid(*sides, indexing="ij")
    return coefficients.to(x.dtype)[:, :, None].unbind(1), tuple(one.flatten() for one in pixels)


def _hat(distance: Tensor) -> Tensor:  # bilinear weights
    return (1 - distance.abs()).clamp(min=0)


# CutMix


class CutmixDraw(NamedTuple):
    """One CutMix (Yun et al., ICCV 2019) of a batch, or of several batches of one size with each field stacked.

    Each image receives a box of another one, its partner, and targets are mixed by area.
    """

    partners: Tensor  # int64 ... x B, a permutation: the image whose box each image receives
    box: Tensor  # int64 ... x 4: top, bottom, left, right in pixels, ends exclusive; empty where nothing is mixed
    lam: Tensor  # float32 ..., the share of each image that stays its own: one minus the clipped box's of the area

    def to(self, device: torch.device) -> CutmixDraw:
        """Return the draw on a device."""
        return CutmixDraw(self.partners.to(device), self.box.to(device), self.lam.to(device))


def draw_cutmix(gen: torch.Generator, count: int, side: int, probability: float) -> CutmixDraw:
    """Draw on the CPU whether a batch of `count` images of `side` pixels is mixed, and how.

    Lambda is uniform in [0, 1), the box has the side `side * sqrt(1 - lambda)` and its centre anywhere, clipped at the
    border. The generator moves on by the same amount whether the batch is mixed or not.
    """
    mixed, lam = torch.rand(2, generator=gen, dtype=torch.float64).tolist()
    row, column = torch.randint(side, (2,), generator=gen).tolist()
    partners = torch.randperm(count, generator=gen)
    half = int(side * math.sqrt(1 - lam)) // 2 if mixed < probability else 0
    top, bottom = max(row - half, 0), min(row + half, side)
    left, right = max(column - half, 0), min(column + half, side)
    own = 1 - (bottom - top) * (right - left) / side**2
    return CutmixDraw(partners, torch.tensor([top, bottom, left, right]), torch.tensor(own))


def apply_cutmix(draw: CutmixDraw, x: Tensor) -> Tensor:
    """Paste the box of each image's partner, differentiable with respect to both.

    Args:
        draw: Of as many batches and images as there are, on the device of `x`.
        x: ... x B x ch x H x W.
    """
    height, width = x.shape[-2:]
    top, bottom, left, right = draw.box[..., None, None, None, None].unbind(draw.box.dim() - 1)
    row = torch.arange(height, device=x.device)[:, None]
    column = torch.arange(width, device=x.device)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return torch.where(inside, _of_partners(draw, x), x)


def mix_targets(draw: CutmixDraw, targets: Tensor) -> Tensor:
    """Mix targets ... x B x C (one-hot or soft) with those of the partners, by the area that was pasted."""
    own = draw.lam[..., None, None]
    return own * targets + (1 - own) * _of_partners(draw, targets)


def _of_partners(draw: CutmixDraw, values: Tensor) -> Tensor:
    # By one index, since `gather` has no deterministic backward of several dimensions on a GPU.
    partners, count = draw.partners, draw.partners.shape[-1]
    batches = torch.arange(partners.numel() // count, device=values.device).view(*partners.shape[:-1], 1)
    return values.flatten(0, partners.dim() - 1)[(partners + count * batches).flatten()].view_as(values)
