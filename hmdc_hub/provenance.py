"""What numbers depend on beside the recipe: versions of libraries, and the device."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "huggingface-hub", "safetensors", "numpy")


def versions(sources: Iterable[str]) -> dict[str, str]:
    """Map libraries to their versions; timm is among them if it is the `source` of a model that took part."""
    names = [*LIBRARIES, *({"timm"} & set(sources))]
    return {name: metadata.version(name) for name in names} | {"python": sys.version.split()[0]}


def device_name(device: torch.device) -> str:
    """Name the kind of a device: `cpu`, `mps`, or what a GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_resident_bytes() -> int:
    """Return the most memory that this process ever had, in bytes."""
    # Linux hands ru_maxrss of the parent on to a process that was started from it; VmHWM begins anew.
    with suppress(OSError):  # not Linux
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
