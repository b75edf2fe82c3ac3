"""Pretrained weights: safetensors of the Hub or from here, or what torchvision names; never a stranger's pickle.

A Hub id is read at one commit. Everything is checked against the network before it is used: a name that is missing or a
shape that differs is an error, but for classifiers, which are always new, and position embeddings, which are resized.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hmdc_hub.errors import ModelError, NetworkError
from hmdc_hub.models.checkpoints import (
    CONFIG,
    commit_of,
    download,
    fingerprint,
    hub_files,
    is_file,
    is_hub_id,
    local_files,
    offline,
    path_of,
)
from hmdc_hub.models.family import Family, Network
from hmdc_hub.models.fitting import fitting
from hmdc_hub.schema import LOCAL, ModelSpec, is_local_path
from hmdc_hub.store.files import sha256_file

_COMMIT = re.compile(r"[0-9a-f]{40}")


def settle(spec: ModelSpec) -> ModelSpec:
    """Fill the revision of a pool entry: the commit that a branch or tag means now, or a local file's fingerprint.

    Raises:
        ModelError: A local file is not there, or HF_HUB_OFFLINE is set and the revision is no commit.
        NotFoundError: There is no such repository or revision, or this account does not see it.
        NetworkError: The Hub cannot be reached.
    """
    names = (spec.weights, spec.id) if spec.source in ("transformers", "timm") else (spec.weights,)
    repo = next((name for name in names if is_hub_id(name)), None)
    if repo is not None:
        if spec.revision is not None and _COMMIT.fullmatch(spec.revision):
            return spec
        return spec.model_copy(update={"revision": commit_of(spec, repo)})
    if spec.local_names() and spec.revision is None:
        try:
            return spec.model_copy(update={"revision": fingerprint(spec)})
        except ModelError as error:
            raise ModelError(f"Pool entry {spec.name}: {error.message}.", hint=error.hint) from error
    return spec


def pretrained(spec: ModelSpec, family: Family, net: Network) -> dict[str, Tensor]:
    """Read the weights that a pool entry names.

    Args:
        spec: The pool entry.
        family: Of its network; knows the names of its library.
        net: The network they are for.

    Returns:
        Every parameter and buffer of the network but its classifiers', by name; empty for `weights: none`.

    Raises:
        ModelError: They are not there, damaged, not safetensors, or of another network.
        NetworkError: The Hub cannot be reached, or the cache does not hold them while offline.
    """
    if spec.weights == "none":
        return {}
    state = _named(spec) if spec.source == "torchvision" and re.fullmatch(r"\w+", spec.weights) else _tensors(spec)
    try:
        values = family.load(net, state)
    except ModelError:
        raise
    except Exception as error:  # a library's own renaming, given a checkpoint that it was not made for
        raise ModelError(
            f"weights {spec.weights} cannot be read into this network: {type(error).__name__}: {error}",
            hint="Make id and args those of the network that the weights were trained in.",
        ) from error
    return fitting(spec.weights, net, values)


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """Read the config.json of the repository or folder that a pool entry has as its id.

    Raises:
        ModelError: There is none, or it is damaged.
        NetworkError: The Hub cannot be reached, or the cache does not hold it while offline.
    """
    _refuse_placeholder("id", spec.id)
    if is_local_path(spec.id):
        _refuse_change(spec)
        path: Path | None = path_of(spec.id) / CONFIG
    elif not is_hub_id(spec.id):
        raise ModelError(
            f"id: {spec.id!r} is neither a Hub id nor a path", hint="For example google/vit-base-patch16-224."
        )
    else:
        path = download(spec, spec.id, CONFIG)
    if path is None or not is_file(path):
        raise ModelError(
            f"{spec.id} has no {CONFIG}", hint="Name the architecture under id and its settings under args."
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{CONFIG} of {spec.id} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{CONFIG} of {spec.id} is damaged: it is no mapping")
    return config


def _named(spec: ModelSpec) -> dict[str, Tensor]:
    """Fetch weights that torchvision names: compared with the hash in their address, read as tensors only."""
    from hmdc_hub.models.vision import named_weights

    known = named_weights(spec.id)
    if spec.weights not in known:
        raise ModelError(
            f"torchvision has no weights {spec.weights!r} for {spec.id}",
            hint=f"It has {', '.join(known) or 'none'}; weights: none trains from scratch.",
        )
    weights = known[spec.weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if offline() and not file.is_file():
        raise NetworkError(
            f"Pool entry {spec.name}: HF_HUB_OFFLINE is set, and {file.name} is not in torch's cache.",
            hint="Unset HF_HUB_OFFLINE, run the same command again, and it is there from then on.",
        )
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if file.is_file() and expected is not None and not sha256_file(file).startswith(expected.group(1)):
        raise ModelError(f"{file} is not the file that its name says", hint="Remove it; it is downloaded again.")
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise NetworkError(
            f"Pool entry {spec.name}: {weights.url} cannot be downloaded: {error}.", hint="Run the same command again."
        ) from error
    except RuntimeError as error:
        raise ModelError(f"{file.name} is damaged: {error}", hint=f"Remove {file.name} from torch's cache.") from error
    return state


def _tensors(spec: ModelSpec) -> dict[str, Tensor]:
    _refuse_placeholder("weights", spec.weights)
    if is_local_path(spec.weights):
        _refuse_change(spec)
        files = local_files(spec.weights)
    elif is_hub_id(spec.weights):
        if "/" in spec.id and is_hub_id(spec.id) and spec.id != spec.weights:
            raise ModelError(
                f"id {spec.id} and weights {spec.weights} are two repositories, and revision can be of one only",
                hint="Name the architecture under id, or the same repository twice.",
            )
        files = hub_files(spec)
    else:
        raise ModelError(
            f"weights: {spec.weights!r} is neither none, a Hub id (owner/name) nor a path (./x.safetensors)",
            hint="torchvision's models also take names such as IMAGENET1K_V1." if spec.source == "torchvision" else "",
        )
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{spec.weights}: {file.name} is damaged: {error}") from error
    return _unwrapped(state) if spec.source != "transformers" else state


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what training loops put before every name: wrappers for several devices, for compiling, and modules."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if state and all(name.startswith(prefix) for name in state):
            return _unwrapped({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _refuse_change(spec: ModelSpec) -> None:
    if spec.revision is not None and fingerprint(spec) != spec.revision:
        raise ModelError(
            f"{' and '.join(dict.fromkeys(spec.local_names().values()))}: no longer what revision {spec.revision} says",
            hint="Put the old files back; or take the new ones: no revision, and --force or another --run-dir.",
        )


def _refuse_placeholder(key: str, name: str) -> None:
    if name.startswith(LOCAL):
        raise ModelError(
            f"{key}: {name} stands for a file of whoever published this recipe",
            hint="Ask them for it, and put its path here.",
        )
