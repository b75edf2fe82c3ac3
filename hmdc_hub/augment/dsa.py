"""Drawing and applying a whole augmentation: DSA (Zhao and Bilen, ICML 2021) in the order of IDC."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub.augment import operations
from hmdc_hub.schema import AugmentSpec

MAX_SHIFT = 1 / 8
MAX_SCALE = 1.2
MAX_DEGREES = 15.0


@dataclass(frozen=True)
class Draw:
    """Parameters of one augmentation, on the CPU; None for an operation that is not applied.

    Each has one entry (or row) for all images, the Siamese case, or one per image. At most one of `crop`, `scale` and
    `rotate` is set. Attributes stand in the order in which they are applied, and are named like the functions of
    `hmdc_hub.augment.operations` that take them.
    """

    flip: Tensor | None = None
    brightness: Tensor | None = None
    saturation: Tensor | None = None
    contrast: Tensor | None = None
    crop: Tensor | None = None
    scale: Tensor | None = None
    rotate: Tensor | None = None
    cutout: Tensor | None = None


def draw(spec: AugmentSpec, gen: torch.Generator, side: int, count: int | None) -> Draw:
    """Draw the parameters of one augmentation.

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
    shape = _draw_shape(spec, gen, side, rows)
    cutout = None
    if spec.cutout:
        size = int(side / 2 + 0.5)
        # An even square is centred between pixels, so that there is one place more for it.
        cutout = torch.randint(0, side + (1 - size % 2), (rows, 2), generator=gen)
    return Draw(flip=flip, cutout=cutout, **colour, **shape)


def apply(draw: Draw, x: Tensor) -> Tensor:
    """Apply a draw to images.

    Args:
        draw: Siamese, or drawn for as many images as there are.
        x: Floats B x ch x H x W, source-normalised, on any device.

    Returns:
        B x ch x H x W, differentiable with respect to `x`.
    """
    for parameter, operation in (
        (draw.flip, operations.flip),
        (draw.brightness, operations.brightness),
        (draw.saturation, operations.saturation),
        (draw.contrast, operations.contrast),
        (draw.crop, operations.crop),
        (draw.scale, operations.scale),
        (draw.rotate, operations.rotate),
        (draw.cutout, operations.cutout),
    ):
        if parameter is not None:
            x = operation(x, parameter)
    return x


def _draw_shape(spec: AugmentSpec, gen: torch.Generator, side: int, rows: int) -> dict[str, Tensor]:
    """Choose one of crop, scale and rotate and draw its parameters; empty if all are off."""
    enabled = [name for name in ("crop", "scale", "rotate") if getattr(spec, name)]
    if not enabled:
        return {}
    name = enabled[int(torch.randint(len(enabled), (), generator=gen))]
    if name == "crop":
        most = int(side * MAX_SHIFT + 0.5)
        return {name: torch.randint(-most, most + 1, (rows, 2), generator=gen)}
    if name == "scale":
        least = 1 / MAX_SCALE
        return {name: least + (MAX_SCALE - least) * torch.rand(rows, 2, generator=gen)}
    return {name: MAX_DEGREES * (2 * torch.rand(rows, generator=gen) - 1)}
