"""A multilayer perceptron on the flattened image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub.models.family import Arg, Family, Shape, StagedNetwork, TapInfo, TapOutput


class MLP(StagedNetwork):
    """Hidden layers with ReLU, then a linear classifier. A tap is a layer's activations, as a map of one pixel.

    Args:
        depth: Number of hidden layers.
        width: Units of each.
        shape: What it is built for.
    """

    def __init__(self, depth: int, width: int, shape: Shape) -> None:
        super().__init__(
            taps=tuple(TapInfo(f"layer{i}", "map", width, 1) for i in range(1, depth + 1)),
            channels=shape.channels,
            heads=("classifier",),
        )
        pixels = shape.channels * shape.side**2
        self.layers = nn.ModuleList(nn.Linear(width if i else pixels, width) for i in range(depth))
        self.classifier = nn.Linear(width, shape.classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute each hidden layer's activations, B x width."""
        x = x.flatten(1)
        activations = []
        for layer in self.layers:
            x = F.relu(layer(x))
            activations.append(x)
        return activations

    def tap(self, index: int, stage: Tensor) -> TapOutput:
        """Give the activations twice, the second time as B x width x 1 x 1."""
        return TapOutput(stage, stage[:, :, None, None])

    def embed(self, stage: Tensor) -> Tensor:
        """Give the last activations."""
        return stage


def make(args: Mapping[str, Any], shape: Shape) -> MLP:
    """Build an MLP."""
    return MLP(**args, shape=shape)


FAMILY = Family(args={"depth": Arg(2), "width": Arg(128)}, make=make, fixed={})
