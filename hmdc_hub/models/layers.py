"""Layers that the built-in networks share."""

from __future__ import annotations

from torch import nn

NORMS = ("instance", "batch", "layer", "none")
POOLINGS = ("avg", "max")


def norm_layer(name: str, channels: int, side: int) -> nn.Module:
    """Make the normalisation of a map B x channels x side x side, one of NORMS, with a learnable affine map.

    `instance` is group normalisation with one group per channel (Gidaris and Komodakis, CVPR 2018, as used throughout
    dataset condensation): the same numbers as `InstanceNorm2d`, and a cheaper double backward.
    """
    if name == "instance":
        return nn.GroupNorm(channels, channels)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "layer":
        return nn.LayerNorm([channels, side, side])
    return nn.Identity()


def halved(side: int) -> int:
    """Side of a map after a convolution or pooling with stride 2 and 'same' padding."""
    return (side + 1) // 2
