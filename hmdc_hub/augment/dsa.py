"""Drawing and applying a whole augmentation: DSA (Zhao and Bilen, ICML 2021) in the order of IDC."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hmdc_hub.augment import operations, warps
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

    def uniform() -> Tensor:
        return torch.rand(rows, generator=gen)

    flip = uniform() if spec.flip else None
    colour = {name: uniform() for name in ("brightness", "saturation", "contrast") if name in spec.color}
    warp = _draw_warp(spec, gen, side, rows)
    cutout = None
    if spec.cutout:
        size = int(side / 2 + 0.5)
        # An even square is centred between pixels, so that there is one place more for it.
        cutout = torch.randint(0, side + (1 - size % 2), (rows, 2), generator=gen)
    return Draw(flip=flip, warp=warp, cutout=cutout, **colour)


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
        (draw.flip, operations.flip),
        (draw.brightness, operations.brightness),
        (draw.saturation, operations.saturation),
        (draw.contrast, operations.contrast),
        (draw.warp, warps.warp),
        (draw.cutout, operations.cutout),
    ):
        if parameter is not None:
            x = operation(x, parameter)
    return x


def _draw_warp(spec: AugmentSpec, gen: torch.Generator, side: int, rows: int) -> Tensor | None:
    """Choose one of crop, scale and rotate and draw its parameters; None if all are off."""
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
