"""What the variables of S are (`condense.images.parametrisation`, `color`): the metric in which its gradient is taken.

S is pixels everywhere, in memory and in files. Let it be a linear function S = A z of other variables z. A step of SGD
with momentum in z, of whatever the gradient with respect to z is divided by (n), is

    m <- mu m + n(A^T g),    z <- z - lr m,    and so    A m <- mu A m + A n(A^T g),    S <- S - lr A m,

with g the gradient with respect to S. So it is a step in S with A m for momentum and A n(A^T g) for gradient, and there
is nothing to keep beside S and its momentum. Clamping fits in where A is onto: the z of a clamped S is any of those
that A maps to it, the same z with another finest level, say, and momentum is untouched, as without. (If z were kept
as it is while S is clamped, it would move on behind a bound, and S would only come back when it had moved back.)

g . A n(A^T g) is positive for every n that divides by positive numbers: what comes out goes downhill as g does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.schema import CondenseSpec
from hmdc_hub.sources import Source

CHUNK = 2**20  # pixels whose colours are multiplied at a time


class Parametrisation:
    """The map A of a recipe, on a device: levels of pixels that are enlarged and averaged, each of decorrelated colour.

    Every part of A is divided by a norm, so that `images.lr` keeps its meaning. With `condense.normalise` it is the
    largest sum of absolute values in a row: in a step no pixel moves farther than without A. Otherwise it is the
    spectral norm: no direction of S moves farther.

    Args:
        spec: Says which parts there are.
        source: Says how large images are, and which colours go together.
        device: Where S is.
    """

    def __init__(self, spec: CondenseSpec, source: Source, device: torch.device) -> None:
        order = float("inf") if spec.normalise else 2
        self.levels: list[Tensor] = []  # all but the finest, whose map is the identity: H x (f s) for a side of s
        if spec.images.parametrisation == "pyramid":
            # A tile is an image by itself, beside others by accident: levels do not reach beyond it.
            tile = source.train.side // spec.factor
            for side in (2**i for i in range((tile - 1).bit_length())):
                unit = torch.eye(side, device="cpu")[None]
                enlarged = F.interpolate(unit, size=tile, mode="linear", align_corners=True)[0].mT
                tiles = torch.block_diag(*[_divided(enlarged, order)] * spec.factor)  # type: ignore[no-untyped-call]
                self.levels.append(tiles.to(device))
        self.color: Tensor | None = None  # ch x ch
        if spec.images.color == "decorrelated":
            self.color = _divided(color_root(source), order).float().to(device)

    def direction(self, gradient: Tensor, scale: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Compute A n(A^T g), what S is moved along: the mean over levels l of E_l C n(C^T E_l^T g).

        E_l enlarges a level of s x s values for every tile bilinearly with aligned corners, as multi-formation does; C
        mixes colours. The levels are those of Linear Gradient Matching (Cazenavette, Torralba and Sitzmann, NeurIPS
        2025), sides of 1, 2, 4, ... pixels, and the tile's own; the colours those of lucid (Olah, Mordvintsev and
        Schubert, Feature Visualization, Distill 2017).

        Args:
            gradient: g, float32 k x n x ch x H x W.
            scale: n, of what is shaped k x n x ch x h x w: `matching.normalise` takes the largest value per synthetic
                image and channel, here of each level and decorrelated colour. None: the identity.

        Returns:
            Shaped like `gradient`; n(g) itself for pixels in RGB.
        """
        scaled = scale or (lambda values: values)
        values = gradient if self.color is None else _mixed(self.color.mT, gradient)
        moved = scaled(values)
        for enlarge in self.levels:
            moved = moved + enlarge @ scaled(enlarge.mT @ values @ enlarge) @ enlarge.mT
        if self.levels:
            moved = moved / (len(self.levels) + 1)
        return moved if self.color is None else _mixed(self.color, moved)


def color_root(source: Source) -> Tensor:
    """Compute C = U L^(1/2) with C C^T = U L U^T, the covariance of the channels over all pixels of the train split.

    Pixels are source-normalised, so this is the correlation of the channels, with ones on its diagonal but for
    channels that are constant. Lucid takes the same root of ImageNet's, divided by the largest norm of a column.

    Returns:
        float64 ch x ch, on the CPU; columns are decorrelated colours, in the order of growing variance.
    """
    images = source.train.images
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (source.info.mean, source.info.std))
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64)  # of whole numbers, so exact in any order
    for chunk in torch.split(images, max(1, CHUNK // (images.shape[2] * images.shape[3]))):
        colors = chunk.cpu().movedim(1, 0).flatten(1).double()
        products += colors @ colors.mT
    pixels = images.numel() // len(mean)
    covariance = (products / (255**2 * pixels) - torch.outer(mean, mean)) / torch.outer(std, std)
    values, vectors = torch.linalg.eigh(covariance)
    # A colour of which there is nothing has a variance of zero up to rounding.
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _divided(matrix: Tensor, order: float) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrix, order)
    return matrix / norm.clamp(min=torch.finfo(matrix.dtype).tiny)


def _mixed(matrix: Tensor, images: Tensor) -> Tensor:
    """Multiply the channels of ... x ch x h x w by a matrix."""
    return torch.einsum("dc,...chw->...dhw", matrix, images)
