"""What numbers depend on beside the recipe: versions of libraries, and the device."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata

import torch

LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "huggingface-hub", "safetensors", "numpy")


def versions(sources: Iterable[str]) -> dict[str, str]:
    """Map libraries to their versions.

    Args:
        sources: `source` of the models that took part; timm is named if it built one.
    """
    names = [*LIBRARIES, *({"timm"} & set(sources))]
    return {name: metadata.version(name) for name in names} | {"python": sys.version.split()[0]}


def device_name(device: torch.device) -> str:
    """Name the kind of a device: `cpu`, `mps`, or what a GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
