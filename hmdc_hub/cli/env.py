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

PACKAGES = (
    "torch", "torchvision", "transformers", "timm", "datasets", "huggingface-hub", "hf-xet", "click", "pydantic",
    "safetensors", "numpy", "pillow", "pyarrow", "scikit-learn",
)  # fmt: skip


@click.command(short_help="Print versions, devices and Hub settings, for bug reports.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def env(as_json: bool) -> None:
    """Print versions, devices and Hub settings, for bug reports.

    Says whether you are logged in to the Hub, never as whom or with which token.
    """
    facts = gather()
    if as_json:
        output.document(facts)
        return
    width = max(map(len, facts))
    output.data("\n".join(f"{name.ljust(width)}  {_text(value)}" for name, value in facts.items()))


def gather() -> dict[str, Any]:
    """Collect the facts; what cannot be found out says so in its place, since a broken install is worth a report."""
    facts: dict[str, Any] = {
        "hmdc-hub": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    return facts | _devices() | _hub()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    try:
        import torch

        from hmdc_hub.pipeline.device import available

        devices = [f"{name} ({torch.cuda.get_device_name(name)})" if "cuda" in name else name for name in available()]
        return {"devices": devices, "cuda": torch.version.cuda, "torch threads": torch.get_num_threads()}
    except Exception as error:  # a torch that does not load, or a driver that does not fit, must not hide the rest
        return {"devices": f"{type(error).__name__}: {error}"}


def _hub() -> dict[str, Any]:
    try:
        from huggingface_hub import constants, get_token
    except Exception as error:  # as above
        return {"hub": f"{type(error).__name__}: {error}"}
    return {
        "hub endpoint": _without_login(constants.ENDPOINT),
        "hub offline": constants.HF_HUB_OFFLINE,
        "hub cache": _without_home(constants.HF_HUB_CACHE),
        "hub login": get_token() is not None,
    }


def _without_home(path: str) -> str:
    # Reports are public: the home folder holds a name.
    home = str(Path.home())
    return "~" + path[len(home) :] if home != "/" and path.startswith(home + os.sep) else path


def _without_login(url: str) -> str:
    # A mirror's address may carry a name and a password.
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _text(value: Any) -> str:
    match value:
        case None:
            return "not there"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(value)
    return str(value).strip().replace("\n", " ")
