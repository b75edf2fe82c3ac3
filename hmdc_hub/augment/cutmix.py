"""CutMix (Yun et al., ICCV 2019): paste a box of another image and mix the targets by area."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CutmixDraw:
    """One CutMix of a batch.

    Attributes:
        partners: int64 B, a permutation: the image whose box each image receives.
        box: Top, bottom, left, right in pixels, bottom and right exclusive; the same for the whole batch.
        lam: Share of each image that stays its own: one minus the box's share of the area after clipping.
    """

    partners: Tensor
    box: tuple[int, int, int, int]
    lam: float


def draw_cutmix(gen: torch.Generator, count: int, side: int, probability: float) -> CutmixDraw | None:
    """Draw whether a batch is mixed, and how.

    Lambda is uniform in [0, 1), the box has the side `side * sqrt(1 - lambda)` and its centre anywhere, clipped at the
    border. The generator moves on by the same amount whether the batch is mixed or not.

    Args:
        gen: CPU generator.
        count: Images in the batch.
        side: Of the images in pixels.
        probability: Chance that the batch is mixed, in [0, 1].

    Returns:
        The draw; None if the batch is not mixed.
    """
    mixed, lam = torch.rand(2, generator=gen, dtype=torch.float64).tolist()
    row, column = torch.randint(side, (2,), generator=gen).tolist()
    partners = torch.randperm(count, generator=gen)
    if mixed >= probability:
        return None
    half = int(side * math.sqrt(1 - lam)) // 2
    top, bottom = max(row - half, 0), min(row + half, side)
    left, right = max(column - half, 0), min(column + half, side)
    return CutmixDraw(partners, (top, bottom, left, right), 1 - (bottom - top) * (right - left) / side**2)


def apply_cutmix(draw: CutmixDraw, x: Tensor) -> Tensor:
    """Paste the box of each image's partner, differentiable with respect to both.

    Args:
        draw: Drawn for as many images as there are.
        x: B x ch x H x W.
    """
    top, bottom, left, right = draw.box
    inside = torch.zeros(x.shape[-2:], dtype=torch.bool, device=x.device)
    inside[top:bottom, left:right] = True
    return torch.where(inside, x[draw.partners.to(x.device)], x)


def mix_targets(draw: CutmixDraw, targets: Tensor) -> Tensor:
    """Mix targets B x C (one-hot or soft) with those of the partners, by the area that was pasted."""
    return draw.lam * targets + (1 - draw.lam) * targets[draw.partners.to(targets.device)]
