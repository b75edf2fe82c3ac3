"""A residual network for small images, as narrow as wanted (He et al., CVPR 2016, with a stem that keeps the size)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Arg, Family, Shape, StagedNetwork, TapInfo
from hmdc_hub.models.layers import NORMS, halved, norm_layer


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where size or channels change.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: 1, or 2 to halve the side.
        norm: One of NORMS.
        side: Side of the output map.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, outputs, side)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, outputs, side)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm_layer(norm, outputs, side)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map B x inputs x s x s to B x outputs x side x side."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(StagedNetwork):
    """A 3x3 stem at full size, stages that double the channels and halve the side, average pooling, classifier.

    Args:
        width: Channels of stem and first stage.
        blocks: Number of basic blocks per stage.
        norm: One of NORMS.
        shape: What it is built for.
    """

    def __init__(self, width: int, blocks: list[int], norm: str, shape: Shape) -> None:
        sides = stage_sides(shape.side, len(blocks))
        widths = [width << i for i in range(len(blocks))]
        super().__init__(
            taps=(
                TapInfo("stem", "map", width, shape.side),
                *(TapInfo(f"stage{i + 1}", "map", widths[i], sides[i]) for i in range(len(blocks))),
            ),
            channels=shape.channels,
            heads=("classifier",),
        )
        self.conv = nn.Conv2d(shape.channels, width, 3, padding=1, bias=False)
        self.norm = norm_layer(norm, width, shape.side)
        self.layers = nn.ModuleList()
        inputs = width
        for i, count in enumerate(blocks):
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            parts = [
                BasicBlock(inputs if j == 0 else widths[i], widths[i], strides[j], norm, sides[i]) for j in range(count)
            ]
            self.layers.append(nn.Sequential(*parts))
            inputs = widths[i]
        self.classifier = nn.Linear(inputs, shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the maps of the stem and of every stage."""
        maps = [F.relu(self.norm(self.conv(x)))]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps

    def embed(self, stage: Tensor) -> Tensor:
        """Average the last map over space."""
        return stage.mean((2, 3))


def stage_sides(side: int, stages: int) -> list[int]:
    """Sides of the maps that the stages give; the first keeps the side."""
    sides = [side]
    for _ in range(stages - 1):
        sides.append(halved(sides[-1]))
    return sides


def make(args: Mapping[str, Any], shape: Shape) -> ResNet:
    """Build a residual network; raises ModelError if the side is too small for the stages."""
    stages = len(args["blocks"])
    # How often a map of at least 2 pixels must remain: before the last halving, or after it for instance
    # normalisation, which gives its bias for any map of one pixel.
    halvings = stages - 1 if args["norm"] == "instance" else max(stages - 2, 0)
    smallest = 2**halvings + 1
    if shape.side < smallest:
        raise ModelError(
            f"{stages} stages with norm {args['norm']} need a side of at least {smallest} pixels, "
            f"this one is {shape.side}",
            hint=f"Set input_size: {smallest} or more, or give fewer blocks (one number per stage).",
        )
    return ResNet(**args, shape=shape)


FAMILY = Family(
    args={"width": Arg(16), "blocks": Arg([2, 2, 2, 2]), "norm": Arg("batch", NORMS)},
    make=make,
    fixed={},
)
