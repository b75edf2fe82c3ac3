"""What the matching step sees of one class: chosen images, one augmentation for both sides, CutMix within the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub import augment, pack, rng
from hmdc_hub.augment import CutmixDraw, Draw
from hmdc_hub.schema import CondenseSpec


@dataclass(frozen=True)
class View:
    """Everything drawn for one class in one image step.

    Attributes:
        chosen: int64, which decoded synthetic images take part; None for all of them.
        augmentation: One Siamese draw for real and synthetic images; None for none.
        cutmix: Draws for the real and the synthetic batch, each with its own partners and box; None where not mixed.
    """

    chosen: Tensor | None = None
    augmentation: Draw | None = None
    cutmix: tuple[CutmixDraw | None, CutmixDraw | None] = (None, None)

    def real(self, images: Tensor) -> Tensor:
        """Transform a real batch, B x ch x H x W source-normalised."""
        return self._transform(images, self.cutmix[0])

    def synthetic(self, stored: Tensor, factor: int) -> Tensor:
        """Decode, choose and transform stored images n x ch x H x W; differentiable."""
        decoded = pack.decode(stored, factor)
        if self.chosen is not None:
            decoded = decoded[self.chosen.to(decoded.device)]
        return self._transform(decoded, self.cutmix[1])

    def _transform(self, images: Tensor, mix: CutmixDraw | None) -> Tensor:
        if self.augmentation is not None:
            images = augment.apply(self.augmentation, images)
        return images if mix is None else augment.apply_cutmix(mix, images)


def draw_view(spec: CondenseSpec, side: int, real_count: int, seed: int, key: tuple[int, int, int]) -> View:
    """Draw the view of one class and image step.

    Args:
        spec: Says batch, factor, augmentation and CutMix.
        side: Side of the source's images in pixels.
        real_count: Images in the real batch.
        seed: Of the recipe.
        key: Outer iteration, image step within it, class.
    """
    decoded = spec.ipc * spec.factor**2
    chosen = None
    if decoded > spec.batch:
        chosen = torch.randperm(decoded, generator=rng.generator(seed, "choose", *key))[: spec.batch]
    mix: tuple[CutmixDraw | None, CutmixDraw | None] = (None, None)
    if spec.cutmix.match:
        counts = (("real", real_count), ("synthetic", min(decoded, spec.batch)))
        real, synthetic = (
            augment.draw_cutmix(rng.generator(seed, "cutmix", name, *key), count, side, spec.cutmix.probability)
            for name, count in counts
        )
        mix = (real, synthetic)
    return View(chosen, augment.draw(spec.augment, rng.generator(seed, "augment", *key), side, None), mix)
