"""The ConvNet of dataset condensation (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Arg, Family, Shape, StagedNetwork, TapInfo
from hmdc_hub.models.layers import NORMS, POOLINGS, norm_layer


class ConvNet(StagedNetwork):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 pooling, then a linear classifier on the flattened map.

    Args:
        depth: Number of blocks.
        width: Channels of every block.
        norm: One of NORMS.
        pooling: One of POOLINGS.
        shape: What it is built for; the side must be at least 2 ** depth.
    """

    def __init__(self, depth: int, width: int, norm: str, pooling: str, shape: Shape) -> None:
        sides = [shape.side >> i for i in range(depth + 1)]
        super().__init__(
            taps=tuple(TapInfo(f"block{i}", "map", width, sides[i]) for i in range(1, depth + 1)),
            channels=shape.channels,
            heads=("classifier",),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(width if i else shape.channels, width, 3, padding=1),
                    norm=norm_layer(norm, width, sides[i]),
                    relu=nn.ReLU(),
                    pool=nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2),
                )
            )
            for i in range(depth)
        )
        self.classifier = nn.Linear(width * sides[-1] ** 2, shape.classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute each block's pooled output."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def embed(self, stage: Tensor) -> Tensor:
        """Flatten the last map."""
        return stage.flatten(1)


def make(args: Mapping[str, Any], shape: Shape) -> ConvNet:
    """Build a ConvNet; raises ModelError if the side cannot be halved `depth` times."""
    deepest = shape.side.bit_length() - 1
    if args["depth"] > deepest:
        good = f"args: depth of at most {deepest}, or " if deepest >= 1 else ""
        raise ModelError(
            f"depth {args['depth']} halves a side of {shape.side} pixels away: it needs at least {2 ** args['depth']}",
            hint=f"Set {good}input_size: {2 ** args['depth']} or more.",
        )
    return ConvNet(**args, shape=shape)


FAMILY = Family(
    args={
        "depth": Arg(3),
        "width": Arg(128),
        "norm": Arg("instance", NORMS),
        "pooling": Arg("avg", POOLINGS),
    },
    make=make,
    fixed={},
)
