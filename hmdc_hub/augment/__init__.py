"""Differentiable augmentation of source-normalised images: DSA and CutMix.

Parameters are drawn on the CPU from a keyed generator (`draw`, `draw_cutmix`), so that two batches can share one draw
and every device sees the same one. They are tensors whose shapes follow from the recipe, and are applied (`apply`,
`apply_cutmix`, `mix_targets`) wherever they and the images are, without a look at any value.
"""

from hmdc_hub.augment.cutmix import CutmixDraw, apply_cutmix, draw_cutmix, mix_targets
from hmdc_hub.augment.dsa import Draw, apply, brightness, contrast, cutout, draw, flip, saturation
from hmdc_hub.augment.warps import crop, rotate, scale, warp
