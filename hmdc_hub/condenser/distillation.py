"""Spatial-Semantic Decomposition and mutual distillation between two models (HMDC, section 3.3).

The taps of two unlike models are made comparable: every spatial map is resized to the smallest side, every vector is
projected to the smallest channel count by a learnable affine map P, and the taps of the deeper model are mixed by a
learnable matrix Q into as many as the shallower one has. Mutual distillation is their mean squared difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hmdc_hub import multi_formation, rng
from hmdc_hub.models import Features, TapInfo, TapOutput


class MutualDistillation(nn.Module):
    """P and Q of one pair of models with L_1 and L_2 taps.

    Attributes:
        side: s, the smallest side over all taps.
        channels: d, the smallest channel count over all taps.
        projections: P, `projections[k][l]` maps tap l of model k of the pair to d channels.
        layer_matching: Q, L_1 x L_2.
    """

    def __init__(self, taps: tuple[Sequence[TapInfo], Sequence[TapInfo]]) -> None:
        super().__init__()
        both = [*taps[0], *taps[1]]
        self.side = min(tap.side for tap in both)
        self.channels = min(tap.channels for tap in both)
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

    def forward(self, first: Features, second: Features) -> Tensor:
        """Return the loss of every image, ... x B, from what the two models give for the same ... x B images."""
        one, other = (self.project(side, features.taps) for side, features in enumerate((first, second)))
        if one.shape[-3] >= other.shape[-3]:
            one = _mix(one, self.layer_matching)
        else:
            other = _mix(other, self.layer_matching.T)
        return (one - other).square().mean((-3, -2, -1))

    def project(self, side: int, taps: Sequence[TapOutput]) -> Tensor:
        """Project the taps of one model of the pair, 0 for the first: ... x B x L x (1 + s s) x d, semantic first."""
        linears = self.projections[side]
        assert isinstance(linears, nn.ModuleList)
        return torch.stack([self._project(tap, linear) for tap, linear in zip(taps, linears, strict=True)], -3)

    def _project(self, tap: TapOutput, linear: nn.Module) -> Tensor:
        if tap.spatial.requires_grad:
            # The gradient comes back with channels last. Of a single image it could be read in two ways, and torch's
            # batch norm in evaluation mode reads it in the wrong one (seen in 2.11 to 2.15).
            tap.spatial.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        spatial = multi_formation.resize(tap.spatial, self.side).flatten(-2).transpose(-2, -1)
        projected: Tensor = linear(torch.cat([tap.semantic.unsqueeze(-2), spatial], dim=-2))
        return projected


def _mix(taps: Tensor, matching: Tensor) -> Tensor:
    """Mix ... x L_deep x T x d taps into ... x L_shallow x T x d by the softmax over each row of L_deep x L_shallow."""
    return torch.einsum("ij,...itd->...jtd", matching.softmax(dim=1), taps)
