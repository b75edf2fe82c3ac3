"""Which device a name means."""

from __future__ import annotations

import torch

from hmdc_hub.errors import DeviceError


def available() -> list[str]:
    """Name the devices of this machine, the best one first."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def pick(name: str | torch.device, local: int = 0) -> torch.device:
    """Find the device that a name means; DeviceError, with those that are here, if it is not.

    `auto` is the first GPU that CUDA or ROCm shows, otherwise the CPU; MPS only when asked for, since no score has been
    compared there. `local` is the number of this process among those that work together on this machine: each takes a
    GPU of its own for `auto` and `cuda`.
    """
    name, here, own = str(name), available(), f"cuda:{local}"
    if name == "auto":
        return torch.device(own if here[0].startswith("cuda") else "cpu")
    wanted = own if name == "cuda" else name
    if wanted not in here:
        raise DeviceError(
            f"device {name!r} is not here; this machine has {', '.join(here)}",
            hint="choose one with --device (in Python: device=), or leave it out: auto takes the first GPU, otherwise "
            "the CPU",
        )
    return torch.device(wanted)
