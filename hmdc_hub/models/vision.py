"""Residual networks of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Network, Shape, TapInfo
from hmdc_hub.models.layers import halved

SMALLEST_SIDE = 17
"""Below it the last stage would halve a map of one pixel."""


class TorchvisionResNet(Network):
    """A ResNet of torchvision, run child by child; taps: the stem after max-pooling and the four stages.

    It takes three channels, as its weights do: grey images are repeated.

    Args:
        model: As the library built it; its in-place ReLUs are made ordinary ones, which matching differentiates twice.
        side: Side of its input in pixels.
    """

    def __init__(self, model: nn.Module, side: int) -> None:
        parts: Any = model
        taps = [TapInfo("maxpool", "map", parts.bn1.num_features, halved(halved(side)))]
        for i in range(4):
            stage_side = halved(taps[-1].side) if i else taps[-1].side
            taps.append(TapInfo(f"layer{i + 1}", "map", parts.fc.in_features >> (3 - i), stage_side))
        super().__init__(taps=tuple(taps), channels=3, head="model.fc")
        self.model = model
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the maps of the stem and of the four stages."""
        model: Any = self.model
        maps = [model.maxpool(model.relu(model.bn1(model.conv1(x))))]
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def embed(self, stage: Tensor) -> Tensor:
        """Average the last map over space."""
        return stage.mean((2, 3))


def make_resnet18(args: Mapping[str, Any], shape: Shape) -> TorchvisionResNet:
    """Build torchvision's ResNet-18; raises ModelError for a side below SMALLEST_SIDE."""
    from torchvision.models import resnet18

    if shape.side < SMALLEST_SIDE:
        raise ModelError(
            f"torchvision's resnet18 needs a side of at least {SMALLEST_SIDE} pixels, this one is {shape.side}",
            hint=f"Set input_size: {SMALLEST_SIDE} or more; 32 is usual for small images.",
        )
    return TorchvisionResNet(resnet18(num_classes=shape.classes, **args), shape.side)


RESNET18 = Family(args={}, make=make_resnet18, fixed={"num_classes": "it is the source's number of classes"})
