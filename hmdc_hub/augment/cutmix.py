"""CutMix (Yun et al., ICCV 2019): paste a box of another image and mix the targets by area."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class CutmixDraw(NamedTuple):
    """One CutMix of a batch, or of several batches of one size with each field stacked.

    Attributes:
        partners: int64 ... x B, a permutation: the image whose box each image receives.
        box: int64 ... x 4: top, bottom, left, right in pixels, bottom and right exclusive; the same for the whole
            batch, and empty where it is not mixed.
        lam: float32 ..., the share of each image that stays its own: one minus the box's share of the area after
            clipping.
    """

    partners: Tensor
    box: Tensor
    lam: Tensor

    def to(self, device: torch.device) -> CutmixDraw:
        """Return the draw on a device."""
        return CutmixDraw(self.partners.to(device), self.box.to(device), self.lam.to(device))


def draw_cutmix(gen: torch.Generator, count: int, side: int, probability: float) -> CutmixDraw:
    """Draw whether a batch is mixed, and how, on the CPU.

    Lambda is uniform in [0, 1), the box has the side `side * sqrt(1 - lambda)` and its centre anywhere, clipped at the
    border. The generator moves on by the same amount whether the batch is mixed or not.

    Args:
        gen: CPU generator.
        count: Images in the batch.
        side: Of the images in pixels.
        probability: Chance that the batch is mixed, in [0, 1].
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
