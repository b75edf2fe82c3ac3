"""Which real images are used, by the judgement of networks that were trained on the source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.models import PoolModel

CROPS = 5  # of each image, as many as RDED tries
SMALLEST = 0.08  # share of an image's area that a crop has at least, as of torchvision's RandomResizedCrop


def difficulty(real: RealImages, observers: Sequence[PoolModel]) -> Tensor:
    """Score every image of the train split by EL2N (Paul et al., NeurIPS 2021): how far a network is from its label.

    Args:
        real: The source.
        observers: Networks that were trained on it for some epochs, in evaluation mode.

    Returns:
        float32 N on the CPU, the mean over observers of | softmax(logits) - one-hot label |, from 0 to the root of 2.
    """
    labels, every = F.one_hot(real.labels.cpu(), real.classes), torch.arange(len(real.labels))
    scores = [(real.logits(net, every).cpu().softmax(1) - labels).norm(dim=1) for net in observers]
    return torch.stack(scores).mean(0)


def kept(real: RealImages, scores: Tensor) -> list[Tensor]:
    """Choose, of each class, the easiest or hardest images as the recipe says, at least one; indices in their order."""
    spec, found = real.spec.difficulty, []
    for label in range(real.classes):
        rows = real.of_class(label)
        order = scores[rows].argsort(stable=True, descending=spec.of == "hardest")
        found.append(rows[order[: max(1, round(spec.keep * len(rows)))]].sort().values)
    return found


def confident_crops(real: RealImages, observer: PoolModel, label: int, wanted: int) -> Tensor:
    """Cut the crops of a class that a network is surest of (RDED, Sun et al., CVPR 2024): the best one of each image.

    Of each image `CROPS` random squares, of `SMALLEST` of its area to all of it, are enlarged to the whole side and
    shown to the observer; there RDED lays the shrunk crop on black.

    Args:
        real: The source; of `cluster.candidates` images per class where the recipe says so.
        observer: A network that was trained on it, in evaluation mode.
        label: The class.
        wanted: How many crops, each of another image.

    Returns:
        float32 k x ch x H x W, source-normalised, on the device; the lowest cross-entropy first. k is `wanted`, or the
        number of images if there are fewer.
    """
    rows, gen = real.of_class(label), rng.generator(real.seed, "mosaic", label)
    most = max(real.spec.cluster.candidates or len(rows), wanted)
    rows = rows[torch.randperm(len(rows), generator=gen)[:most]]
    share = (SMALLEST + (1 - SMALLEST) * torch.rand(CROPS, len(rows), generator=gen)).sqrt()
    shift = (1 - share)[..., None] * (2 * torch.rand(CROPS, len(rows), 2, generator=gen) - 1)
    losses = torch.stack(
        [
            torch.cat([real.losses(observer, _crops(real, *part), label) for part in _parts(rows, *boxes)])
            for boxes in zip(share, shift, strict=True)
        ]
    ).cpu()
    lowest, best = losses.min(0)
    chosen = lowest.argsort(stable=True)[:wanted]
    return _crops(real, rows[chosen], share[best[chosen], chosen], shift[best[chosen], chosen])


def _parts(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, 512) for tensor in tensors), strict=True)


def _crops(real: RealImages, rows: Tensor, share: Tensor, shift: Tensor) -> Tensor:
    """Cut a square of each image and enlarge it to the image's side, bilinearly.

    `share`, float32 P, is its share of the side; `shift`, P x 2, moves it along x and y, where 1 is half a side.
    """
    images = real.read(rows)
    theta = torch.zeros(len(rows), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
