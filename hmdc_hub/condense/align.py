"""Spatial-Semantic Decomposition and mutual distillation between two models (HMDC, section 3.3).

The taps of two unlike models are made comparable: every spatial map is resized to the smallest side, every vector is
projected to the smallest channel count by a learnable affine map P, and the taps of the deeper model are mixed by a
learnable matrix Q into as many as the shallower one has. Mutual distillation is their mean squared difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hmdc_hub import pack, rng
from hmdc_hub.models import Features, TapInfo, TapOutput


class Alignment(nn.Module):
    """P and Q of one pair of models.

    Args:
        pair: Places of the two models in the pool.
        taps: Their taps, L_1 and L_2 of them.

    Attributes:
        side: s, the smallest side over all taps.
        channels: d, the smallest channel count over all taps.
        projections: P, `projections[k][l]` maps tap l of model k of the pair to d channels.
        layer_matching: Q, L_1 x L_2.
    """

    def __init__(self, pair: tuple[int, int], taps: tuple[Sequence[TapInfo], Sequence[TapInfo]]) -> None:
        super().__init__()
        self.pair = pair
        both = [*taps[0], *taps[1]]
        self.side = min(tap.side for tap in both)
        self.channels = min(tap.channels for tap in both)
        self.projections = nn.ModuleList(
            nn.ModuleList(nn.Linear(tap.channels, self.channels) for tap in side) for side in taps
        )
        self.layer_matching = nn.Parameter(torch.zeros(len(taps[0]), len(taps[1])))

    def reset(self, gen: torch.Generator) -> None:
        """Draw P afresh (the library's default for linear maps) and set Q to zero."""
        with torch.no_grad(), rng.global_seed(gen):
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    # Drawn on the CPU so that every device starts from the same values.
                    fresh = nn.Linear(module.in_features, module.out_features)
                    module.weight.copy_(fresh.weight)
                    module.bias.copy_(fresh.bias)
            self.layer_matching.zero_()

    def forward(self, features: Mapping[int, Features]) -> Tensor:
        """Return the mutual distillation loss, a scalar.

        Args:
            features: Outputs of the models for one batch, by their places in the pool.
        """
        first, second = (self.project(side, features[m]) for side, m in enumerate(self.pair))
        return self.distance(first, second)

    def project(self, side: int, features: Features) -> Tensor:
        """Project the taps of one model of the pair.

        Args:
            side: 0 for the first, 1 for the second.
            features: Its outputs.

        Returns:
            B x L x (1 + s s) x d, semantic vectors first.
        """
        linears = self.projections[side]
        assert isinstance(linears, nn.ModuleList)
        parts = [self._project(tap, linear) for tap, linear in zip(features.taps, linears, strict=True)]
        return torch.stack(parts, 1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the mean squared difference of the projected taps, the deeper model's mixed by Q."""
        if first.shape[1] >= second.shape[1]:
            first = _mix(first, self.layer_matching)
        else:
            second = _mix(second, self.layer_matching.T)
        return (first - second).square().mean()

    def _project(self, tap: TapOutput, linear: nn.Module) -> Tensor:
        """Turn one tap into B x (1 + s s) x d, the semantic vector first."""
        if tap.spatial.requires_grad:
            # The gradient comes back with channels last. Of a single image it could be read in two ways, and torch's
            # batch norm in evaluation mode reads it in the wrong one (seen in 2.11 to 2.15).
            tap.spatial.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        spatial = pack.resize(tap.spatial, self.side).flatten(2).transpose(1, 2)
        tokens = torch.cat([tap.semantic.unsqueeze(1), spatial], dim=1)
        projected: Tensor = linear(tokens)
        return projected


def _mix(taps: Tensor, matching: Tensor) -> Tensor:
    """Mix B x L_deep x ... taps into B x L_shallow x ... with the softmax over each row of L_deep x L_shallow."""
    return torch.einsum("ij,bitd->bjtd", matching.softmax(dim=1), taps)
