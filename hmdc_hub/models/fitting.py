"""Whether the tensors of a checkpoint fit a network, name by name and shape by shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Network
from hmdc_hub.models.library import LibraryNetwork


def fitting(name: str, net: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Choose what the network's body needs, in its shapes; position embeddings are resized to its grid.

    Args:
        name: What messages call the weights.
        net: The network.
        values: Tensors by its names; those of its classifiers, and others that it does not have, are left out.

    Raises:
        ModelError: One is missing or has another shape.
    """
    wanted = {
        key: value
        for key, value in net.state_dict().items()
        if not key.startswith(tuple(f"{head}." for head in net.heads)) and not key.endswith("num_batches_tracked")
    }
    missing = [key for key in wanted if key not in values]
    if missing:
        raise ModelError(
            f"weights {name} lack {_some([_said(key) for key in missing])} of the network",
            hint="Make id and args those of the network that the weights were trained in.",
        )
    found, wrong, strange = {}, [], []
    for key, value in wanted.items():
        given = values[key]
        if value.is_floating_point() and not given.is_floating_point():
            strange.append(f"{_said(key)} holds {str(given.dtype).removeprefix('torch.')}")
            continue
        if given.shape != value.shape:
            given = _resized(key, given, value, net)
        if given.shape != value.shape:
            wrong.append(f"{_said(key)} is {_shape(given)} there and {_shape(value)} here")
            continue
        if value.is_floating_point() and not bool(torch.isfinite(given).all()):
            strange.append(f"{_said(key)} holds numbers that are not finite")
        found[key] = given.to(value.dtype)
    if strange:
        raise ModelError(f"weights {name} are no trained network: {_some(strange)}")
    if wrong:
        raise ModelError(
            f"weights {name} are of another shape: {_some(wrong)}",
            hint="Make args and input_size those of the network that the weights were trained in.",
        )
    return found


def _resized(key: str, given: Tensor, wanted: Tensor, net: Network) -> Tensor:
    """Interpolate position embeddings, 1 x (prefix + grid x grid) x D, to another grid (Dosovitskiy et al., 2021)."""
    position = re.search(r"pos(ition)?_embed", key)
    if (
        not position
        or given.is_meta
        or given.dim() != 3
        or not isinstance(net, LibraryNetwork)
        or given.shape[2] != wanted.shape[2]
    ):
        return given
    for prefix in {net.places[0].prefix, int(net.places[0].class_token), 0}:
        old, new = math.isqrt(max(given.shape[1] - prefix, 0)), net.places[0].grid
        if old**2 + prefix == given.shape[1] and math.prod(new) + prefix == wanted.shape[1]:
            grid = given[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
            return torch.cat([given[:, :prefix].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return given


def _said(key: str) -> str:
    """Write a name as the library does, which a checkpoint's reader knows."""
    return key.removeprefix("model.")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _some(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{items[0]} (and {len(items) - 1} more)"
