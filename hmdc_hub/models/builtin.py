"""Networks of our own, for small images. A new one is a network, its arguments, and a line in BUILTIN."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Network, Pass, Shape, TapInfo, TapOutput
from hmdc_hub.schema.base import Positive, Strict

Norm = Literal["instance", "batch", "layer", "none"]


class StagedNetwork(Network):
    """Stages one after another, of which each is a tap, an embedding of the last, one linear classifier."""

    def __init__(self, taps: tuple[TapInfo, ...], shape: Shape) -> None:
        super().__init__(taps=taps, channels=shape.channels, heads=("classifier",))

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the features of all taps."""
        raise NotImplementedError

    def embed(self, stage: Tensor) -> Tensor:
        """Turn the last entry of `stages` into what the classifier sees, B x D."""
        return stage.flatten(1)

    def run(self, x: Tensor) -> Pass:
        """Run images through everything."""
        stages = self.stages(x)
        embedding = self.embed(stages[-1])
        return Pass(stages, embedding, self.get_submodule("classifier")(embedding))


class ConvNet(StagedNetwork):
    """The ConvNet of dataset condensation (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021).

    Blocks of 3x3 convolution, normalisation, ReLU and 2x2 pooling, then a linear classifier on the flattened map.
    """

    def __init__(self, depth: int, width: int, norm: str, pooling: str, shape: Shape) -> None:
        deepest = shape.side.bit_length() - 1
        if depth > deepest:
            good = f"args: depth of at most {deepest}, or " if deepest >= 1 else ""
            raise ModelError(
                f"depth {depth} halves a side of {shape.side} pixels away: it needs at least {2**depth}",
                hint=f"Set {good}input_size: {2**depth} or more.",
            )
        sides = [shape.side >> i for i in range(depth + 1)]
        super().__init__(tuple(TapInfo(f"block{i}", "map", width, sides[i]) for i in range(1, depth + 1)), shape)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            conv = nn.Conv2d(width if i else shape.channels, width, 3, padding=1)
            pool = nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2)
            parts = OrderedDict(conv=conv, norm=_norm(norm, width, sides[i]), relu=nn.ReLU(), pool=pool)
            self.blocks.append(nn.Sequential(parts))
        self.classifier = nn.Linear(width * sides[-1] ** 2, shape.classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute each block's pooled output."""
        return _one_after_another(self.blocks, x)


class MLP(StagedNetwork):
    """Hidden layers with ReLU on the flattened image, then a classifier; a tap is a map of one pixel."""

    def __init__(self, depth: int, width: int, shape: Shape) -> None:
        super().__init__(tuple(TapInfo(f"layer{i}", "map", width, 1) for i in range(1, depth + 1)), shape)
        pixels = shape.channels * shape.side**2
        self.layers = nn.ModuleList(nn.Linear(width if i else pixels, width) for i in range(depth))
        self.classifier = nn.Linear(width, shape.classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute each hidden layer's activations, B x width."""
        activations = [x.flatten(1)]
        for layer in self.layers:
            activations.append(F.relu(layer(activations[-1])))
        return activations[1:]

    def tap(self, index: int, stage: Tensor) -> TapOutput:
        """Give the activations twice, the second time as B x width x 1 x 1."""
        return TapOutput(stage, stage[:, :, None, None])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where size or channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(norm, outputs, side)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, outputs, side)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), _norm(norm, outputs, side)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map B x inputs x s x s to B x outputs x side x side."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(StagedNetwork):
    """A residual network as narrow as wanted (He et al., CVPR 2016), with a 3x3 stem that keeps the size.

    Stages of basic blocks double the channels and halve the side; average pooling, classifier.
    """

    def __init__(self, width: int, blocks: list[int], norm: str, shape: Shape) -> None:
        # How often a map of at least 2 pixels must remain: before the last halving, or after it for instance
        # normalisation, which gives its bias for any map of one pixel.
        smallest = 2 ** (len(blocks) - 1 if norm == "instance" else max(len(blocks) - 2, 0)) + 1
        if shape.side < smallest:
            raise ModelError(
                f"{len(blocks)} stages with norm {norm} need a side of at least {smallest} pixels, "
                f"this one is {shape.side}",
                hint=f"Set input_size: {smallest} or more, or give fewer blocks (one number per stage).",
            )
        sides = [-(-shape.side // 2**i) for i in range(len(blocks))]  # with stride 2 and 'same' padding
        widths = [width << i for i in range(len(blocks))]
        stages = (TapInfo(f"stage{i + 1}", "map", widths[i], sides[i]) for i in range(len(blocks)))
        super().__init__((TapInfo("stem", "map", width, shape.side), *stages), shape)
        self.conv = nn.Conv2d(shape.channels, width, 3, padding=1, bias=False)
        self.norm = _norm(norm, width, shape.side)
        self.layers, inputs = nn.ModuleList(), width
        for i, count in enumerate(blocks):
            parts = [
                BasicBlock(widths[i] if j else inputs, widths[i], 2 if i and not j else 1, norm, sides[i])
                for j in range(count)
            ]
            self.layers.append(nn.Sequential(*parts))
            inputs = widths[i]
        self.classifier = nn.Linear(inputs, shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the maps of the stem and of every stage."""
        stem = F.relu(self.norm(self.conv(x)))
        return [stem, *_one_after_another(self.layers, stem)]

    def embed(self, stage: Tensor) -> Tensor:
        """Average the last map over space."""
        return stage.mean((2, 3))


def _one_after_another(parts: nn.ModuleList, x: Tensor) -> list[Tensor]:
    outputs = [x]
    for part in parts:
        outputs.append(part(outputs[-1]))
    return outputs[1:]


def _norm(name: str, channels: int, side: int) -> nn.Module:
    """Make a normalisation of a map B x channels x side x side, with a learnable affine map.

    `instance` is group normalisation with one group per channel (Gidaris and Komodakis, CVPR 2018, as used throughout
    dataset condensation): the same numbers as `InstanceNorm2d`, and a cheaper double backward.
    """
    if name == "instance":
        return nn.GroupNorm(channels, channels)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.LayerNorm([channels, side, side]) if name == "layer" else nn.Identity()


class ConvNetArgs(Strict):
    """`depth` blocks of `width` channels."""

    depth: Positive = 3
    width: Positive = 128
    norm: Norm = "instance"
    pooling: Literal["avg", "max"] = "avg"


class MLPArgs(Strict):
    """`depth` hidden layers of `width` units."""

    depth: Positive = 2
    width: Positive = 128


class ResNetArgs(Strict):
    """Stem and first stage have `width` channels; `blocks` of each stage."""

    width: Positive = 16
    blocks: Annotated[list[Positive], Field(min_length=1)] = [2, 2, 2, 2]
    norm: Norm = "batch"


def _make(kind: Callable[..., Network], args: Mapping[str, Any], shape: Shape) -> Network:
    return kind(**args, shape=shape)


BUILTIN: Mapping[str, Family] = {
    "convnet": Family(partial(_make, ConvNet), ConvNetArgs),
    "mlp": Family(partial(_make, MLP), MLPArgs),
    "resnet": Family(partial(_make, ResNet), ResNetArgs),
}
