"""`hmdc-hub env`: what a bug report needs to say about the machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from hmdc_hub import __version__
from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON

PACKAGES = (
    "torch", "torchvision", "transformers", "timm", "datasets", "huggingface-hub", "hf-xet", "click", "pydantic",
    "safetensors", "numpy", "pillow", "pyarrow", "scikit-learn",
)  # fmt: skip


@click.command(short_help="Print versions, devices and Hub settings, for bug reports.")
@JSON
def env(as_json: bool) -> None:
    """Print versions, devices and Hub settings, for bug reports.

    Says whether you are logged in to the Hub, never as whom or with which token.
    """
    facts = gather()
    width = max(map(len, facts))
    lines = (f"{name.ljust(width)}  {_text(value)}" for name, value in facts.items())
    output.emit(as_json, lambda: facts, lambda: "\n".join(lines))


def gather() -> dict[str, Any]:
    """Collect the facts; what cannot be found out says so in its place, since a broken install is worth a report."""
    facts: dict[str, Any] = {
        "hmdc-hub": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    try:
        import torch

        from hmdc_hub.pipeline.device import available

        devices = [f"{name} ({torch.cuda.get_device_name(name)})" if "cuda" in name else name for name in available()]
        facts |= {"devices": devices, "cuda": torch.version.cuda, "torch threads": torch.get_num_threads()}
    except Exception as error:  # a torch that does not load, or a driver that does not fit, must not hide the rest
        facts["devices"] = f"{type(error).__name__}: {error}"
    try:
        from huggingface_hub import constants, get_token
    except Exception as error:  # as above
        return facts | {"hub": f"{type(error).__name__}: {error}"}
    # Reports are public: the home folder holds a name, and a mirror's address may carry one with a password.
    scheme, separator, address = constants.ENDPOINT.rpartition("://")
    cache, home = constants.HF_HUB_CACHE, str(Path.home())
    if home != "/" and cache.startswith(home + os.sep):
        cache = "~" + cache.removeprefix(home)
    return facts | {
        "hub endpoint": scheme + separator + address.rpartition("@")[2],
        "hub offline": constants.HF_HUB_OFFLINE,
        "hub cache": cache,
        "hub login": get_token() is not None,
    }


def _text(value: Any) -> str:
    match value:
        case None:
            return "not there"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(value)
    return str(value).strip().replace("\n", " ")
