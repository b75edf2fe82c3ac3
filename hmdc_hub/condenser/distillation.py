"""Mutual distillation of two unlike models, over a Spatial-Semantic Decomposition (HMDC, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hmdc_hub import multi_formation, rng
from hmdc_hub.models import Features, TapInfo, TapOutput


class MutualDistillation(nn.Module):
    """Spatial-Semantic Decomposition of the taps of two models, and their mutual distillation (HMDC, section 3.3).

    The taps of two unlike models are made comparable: every spatial map is resized to the smallest side s, every vector
    is projected to the smallest channel count d by a learnable affine map P, and the taps of the deeper model are mixed
    by a learnable matrix Q into as many as the shallower one has. Mutual distillation is their mean squared difference.
    P is `projections`, of which `[k][l]` is for tap l of model k of the pair; Q is `layer_matching`, L_1 x L_2.
    """

    def __init__(self, taps: tuple[Sequence[TapInfo], Sequence[TapInfo]]) -> None:
        super().__init__()
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

    def forward(self, first: Features, second: Features) -> Tensor:
        """Return the loss of every image, ... x B, from what the two models give for the same ... x B images."""
        deep, shallow = (self.project(side, features.taps) for side, features in enumerate((first, second)))
        matching: Tensor = self.layer_matching
        if deep.shape[-3] < shallow.shape[-3]:
            deep, shallow, matching = shallow, deep, matching.T
        mixed = torch.einsum("ij,...itd->...jtd", matching.softmax(dim=1), deep)
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


class Pair(NamedTuple):
    """Two models, by their places, and their mutual distillation."""

    first: int
    second: int
    distillation: MutualDistillation
