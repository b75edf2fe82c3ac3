"""Mutual distillation of two unlike models, over a Spatial-Semantic Decomposition (HMDC, section 3.3).

In the paper's form the projections P can bring its loss to nothing by mapping everything to a constant; then nothing of
it is left to be matched. The other forms of `condense.distillation` take that way out, each in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hmdc_hub import multi_formation, rng
from hmdc_hub.models import Features, TapInfo, TapOutput
from hmdc_hub.schema import Distillation

# Added to variances and squared lengths that may be zero: where nothing varies both derivatives stay finite.
EPSILON = 1e-5  # batch norm's in PyTorch
VICREG_EPSILON = 1e-4


class MutualDistillation(nn.Module):
    """Spatial-Semantic Decomposition of the taps of two models, and their mutual distillation (HMDC, section 3.3).

    The taps of two unlike models are made comparable: every spatial map is resized to the smallest side s, every vector
    is projected to the smallest channel count d by a learnable affine map P, and the taps of the deeper model are mixed
    by a learnable matrix Q into as many as the shallower one has. Mutual distillation compares the two, a and b.
    P is `projections`, of which `[k][l]` is for tap l of model k of the pair; Q is `layer_matching`, L_1 x L_2.

    Args:
        taps: Of the two models.
        form: What of a and b is compared (`condense.distillation`). `paper`: the mean of (a - b)^2. `standardised`:
            the same of (a - mean) / sqrt(variance + 1e-5), the mean and variance of each tap and dimension over images
            and positions: 2 - 2 r, with r the correlation of a and b. `cosine`: the mean over taps and positions of
            1 - cos(a - mean, b - mean), over the d dimensions; without the means P would give a constant here, too.
            `variance`: as `paper`, and `learning_loss` has a term more.
    """

    def __init__(self, taps: tuple[Sequence[TapInfo], Sequence[TapInfo]], form: Distillation = "paper") -> None:
        super().__init__()
        self.form = form
        both = [*taps[0], *taps[1]]
        self.side, self.channels = min(tap.side for tap in both), min(tap.channels for tap in both)
        with rng.global_seed(rng.generator(0, "projections")):  # `reset` draws them anew
            self.projections = nn.ModuleList(
                nn.ModuleList(nn.Linear(tap.channels, self.channels) for tap in side) for side in taps
            )
        self.layer_matching = nn.Parameter(torch.zeros(len(taps[0]), len(taps[1])))

    def reset(self, gen: torch.Generator) -> None:
        """Draw P afresh (the library's default for linear maps) and set Q to zero, in place."""
        with torch.no_grad(), rng.global_seed(gen):
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    # Drawn on the CPU so that every device starts from the same values.
                    fresh = nn.Linear(module.in_features, module.out_features)
                    module.weight.copy_(fresh.weight)
                    module.bias.copy_(fresh.bias)
            self.layer_matching.zero_()

    def forward(self, first: Features, second: Features, shares: Tensor | None = None) -> Tensor:
        """Compute the loss of every image.

        Args:
            first: What the first model gives for ... x B images.
            second: What the second model gives for the same.
            shares: ... x B, the weight of each image in means and variances, summing to 1 over B. None: all alike.

        Returns:
            ... x B. Those of `standardised` and `cosine` are of the whole batch, not of a few images at a time.
        """
        return self._losses(*self.compared(first, second), shares)

    def learning_loss(self, first: Features, second: Features) -> Tensor:
        """Compute the number that P and Q are trained to lower, for B images: the mean loss of an image.

        In the form `variance` with VICReg's variance term (Bardes, Ponce and LeCun, ICLR 2022, equation 1) of a and of
        b: the mean over taps and dimensions of max(0, 1 - sqrt(variance + 1e-4)), the variance that over images and
        positions. The paper weights it as the mean squared difference, and so is it here.
        """
        compared = self.compared(first, second)
        loss = self._losses(*compared, None).mean()
        if self.form == "variance":
            variances = [_mean(_centred(vectors, None).square(), None) for vectors in compared]
            loss = loss + torch.stack([(1 - (v + VICREG_EPSILON).sqrt()).relu().mean() for v in variances]).sum()
        return loss

    def compared(self, first: Features, second: Features) -> tuple[Tensor, Tensor]:
        """Give what is compared, a and b: ... x B x L x (1 + s s) x d each, with L the taps of the shallower model."""
        deep, shallow = (self.project(side, features.taps) for side, features in enumerate((first, second)))
        matching: Tensor = self.layer_matching
        if deep.shape[-3] < shallow.shape[-3]:
            deep, shallow, matching = shallow, deep, matching.T
        return torch.einsum("ij,...itd->...jtd", matching.softmax(dim=1), deep), shallow

    def _losses(self, mixed: Tensor, shallow: Tensor, shares: Tensor | None) -> Tensor:
        if self.form == "cosine":
            mixed, shallow = (_unit(_centred(vectors, shares)) for vectors in (mixed, shallow))
            return (1 - (mixed * shallow).sum(-1)).mean((-2, -1))
        if self.form == "standardised":
            mixed, shallow = (_standardised(vectors, shares) for vectors in (mixed, shallow))
        return (mixed - shallow).square().mean((-3, -2, -1))

    def project(self, side: int, taps: Sequence[TapOutput]) -> Tensor:
        """Project the taps of one model of the pair, 0 for the first: ... x B x L x (1 + s s) x d, semantic first."""
        linears, projected = self.projections[side], []
        assert isinstance(linears, nn.ModuleList)
        for tap, linear in zip(taps, linears, strict=True):
            if tap.spatial.requires_grad:
                # The gradient comes back with channels last. Of a single image it could be read in two ways, and
                # torch's batch norm in evaluation mode reads it in the wrong one (seen in 2.11 to 2.15).
                tap.spatial.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
            spatial = multi_formation.resize(tap.spatial, self.side).flatten(-2).transpose(-2, -1)
            projected.append(linear(torch.cat([tap.semantic.unsqueeze(-2), spatial], dim=-2)))
        return torch.stack(projected, -3)


def _mean(values: Tensor, shares: Tensor | None) -> Tensor:
    """Average over images and positions: ... x B x L x positions x d to ... x 1 x L x 1 x d.

    Args:
        values: Of every vector.
        shares: ... x B, summing to 1 over B; None: all images alike.
    """
    if shares is None:
        return values.mean((-4, -2), keepdim=True)
    return ((shares / values.shape[-2])[..., None, None, None] * values).sum((-4, -2), keepdim=True)


def _centred(vectors: Tensor, shares: Tensor | None) -> Tensor:
    return vectors - _mean(vectors, shares)


def _standardised(vectors: Tensor, shares: Tensor | None) -> Tensor:
    centred = _centred(vectors, shares)
    return centred * (_mean(centred.square(), shares) + EPSILON).rsqrt()


def _unit(vectors: Tensor) -> Tensor:
    return vectors * (vectors.square().sum(-1, keepdim=True) + EPSILON).rsqrt()


class Pair(NamedTuple):
    """Two models, by their places, and their mutual distillation."""

    first: int
    second: int
    distillation: MutualDistillation
