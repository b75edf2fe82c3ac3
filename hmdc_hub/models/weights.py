"""Pretrained weights: safetensors of the Hub or from here, or what torchvision names; never a stranger's pickle.

A Hub id is read at one commit. Everything is checked against the network before it is used: a name that is missing or a
shape that differs is an error, but for classifiers, which are always new, and position embeddings, which are resized.

Of the libraries' own `from_pretrained` the renaming is used (`Family.load`), not the reading: that of transformers 5.24
follows an index out of its folder, takes integers and NaN for weights, starts a missing tensor afresh with a warning,
resizes no position embeddings and reads no single file; that of timm falls back to pickles.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import hmdc_hub
from hmdc_hub.errors import FormatError, ModelError, NetworkError, NotFoundError
from hmdc_hub.models.family import Family, Network
from hmdc_hub.models.library import LibraryNetwork
from hmdc_hub.schema import LOCAL, ModelSpec, is_hub_id, is_local_path
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.hub_errors import reading

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

FITTING = "Make id and args those of the network that the weights were trained in."


def settle(spec: ModelSpec) -> ModelSpec:
    """Fill the revision of a pool entry: the commit that a branch or tag means now, or a local file's fingerprint.

    Raises:
        ModelError: A local file is not there, or HF_HUB_OFFLINE is set and the revision is no commit.
        NotFoundError: There is no such repository or revision, or this account does not see it.
        NetworkError: The Hub cannot be reached.
    """
    names = (spec.weights, spec.id) if spec.source in ("transformers", "timm") else (spec.weights,)
    repo = next((name for name in names if _is_hub_id(name)), None)
    if repo is not None and not re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""):
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"Pool entry {spec.name}: HF_HUB_OFFLINE is set, and offline {repo} can only be read from the cache at "
                f"a full commit, not {spec.revision or 'main'!r}.",
                hint="Unset HF_HUB_OFFLINE, or copy  revision: <40 hex digits>  from an earlier run's recipe.yaml.",
            )
        api = huggingface_hub.HfApi(library_name="hmdc-hub", library_version=hmdc_hub.__version__)
        with reading(repo, spec.revision, kind="model"):
            commit = api.model_info(repo, revision=spec.revision, timeout=30).sha
        return spec.model_copy(update={"revision": str(commit)})
    if repo is None and spec.local_names() and spec.revision is None:
        try:
            return spec.model_copy(update={"revision": _fingerprint(spec)})
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
    named = spec.source == "torchvision" and re.fullmatch(r"\w+", spec.weights)
    state = _named_by_torchvision(spec) if named else _tensors(spec)
    try:
        values = family.load(net, state)
    except ModelError:
        raise
    except Exception as error:  # a library's own renaming, given a checkpoint that it was not made for
        raise ModelError(
            f"weights {spec.weights} cannot be read into this network: {type(error).__name__}: {error}", hint=FITTING
        ) from error
    return _fitting(spec.weights, net, values)


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """Read the config.json of the repository or folder that a pool entry has as its id.

    Raises:
        ModelError: There is none, or it is damaged.
        NetworkError: The Hub cannot be reached, or the cache does not hold it while offline.
    """
    _refuse_what_cannot_be_read(spec, "id")
    if not is_local_path(spec.id) and not _is_hub_id(spec.id):
        hint = "For example google/vit-base-patch16-224."
        raise ModelError(f"id: {spec.id!r} is neither a Hub id nor a path", hint=hint)
    path = _getter(spec, spec.id)(CONFIG)
    if path is None:
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


def _named_by_torchvision(spec: ModelSpec) -> dict[str, Tensor]:
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
    if constants.HF_HUB_OFFLINE and not file.is_file():
        raise NetworkError(
            f"Pool entry {spec.name}: HF_HUB_OFFLINE is set, and {file.name} is not in torch's cache.",
            hint="Unset HF_HUB_OFFLINE, run the same command again, and it is there from then on.",
        )
    expected = re.search(
        r"-([0-9a-f]{8,})\.", file.name
    )  # torch compares it with what it downloads, not with its cache
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
    """Read safetensors, whole or in parts, under the names in them."""
    _refuse_what_cannot_be_read(spec, "weights")
    state: dict[str, Tensor] = {}
    for file in _files(spec):
        try:
            state |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{spec.weights}: {file.name} is damaged: {error}") from error
    # What training loops put before every name: wrappers for several devices, for compiling, and modules.
    wrappers = () if spec.source == "transformers" else ("module.", "_orig_mod.", "model.")
    while prefix := next((p for p in wrappers if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _files(spec: ModelSpec) -> list[Path]:
    name = spec.weights
    if not is_local_path(name) and not _is_hub_id(name):
        raise ModelError(
            f"weights: {name!r} is neither none, a Hub id (owner/name) nor a path (./x.safetensors)",
            hint="torchvision's models also take names such as IMAGENET1K_V1." if spec.source == "torchvision" else "",
        )
    if _is_hub_id(name) and "/" in spec.id and _is_hub_id(spec.id) and spec.id != name:
        raise ModelError(
            f"id {spec.id} and weights {name} are two repositories, and revision can be of one only",
            hint="Name the architecture under id, or the same repository twice.",
        )
    if is_local_path(name) and not os.path.isdir(_path(name)):
        if not os.path.isfile(_path(name)):
            raise ModelError(f"weights: there is no file {name}", hint="Paths begin in the current folder.")
        if not name.lower().endswith(".safetensors"):
            raise ModelError(
                f"weights: {name} is no .safetensors file, and others may run code when they are read",
                hint="safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes one.",
            )
        return [_path(name)]
    get = _getter(spec, name)
    if (single := get(SINGLE)) is not None:
        return [single]
    if (index := get(INDEX)) is not None:
        parts = {part: get(part) for part in _parts(index.read_bytes(), name)}
        absent = [part for part, path in parts.items() if path is None]
        if absent:
            raise ModelError(f"{name} lacks {absent[0]}, which its {INDEX} names")
        return [path for path in parts.values() if path is not None]
    if is_local_path(name):
        raise ModelError(f"{name} holds no {SINGLE}", hint="save_pretrained of a library writes such a folder.")
    raise ModelError(
        f"{name} has no {SINGLE} at revision {spec.revision or 'main'}, and weights in pickle files are not loaded: "
        "reading them may run code",
        hint="Many repositories have one in a pull request: set revision to its commit.",
    )


def _parts(index: bytes, name: str) -> list[str]:
    try:
        parts = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{INDEX} of {name} is damaged") from error
    wrong = [part for part in parts if not isinstance(part, str) or not re.fullmatch(r"[\w.-]+\.safetensors", part)]
    if wrong or not parts:
        raise ModelError(f"{INDEX} of {name} is damaged: it names {wrong[:1] or 'no file'}")
    return parts


def _getter(spec: ModelSpec, name: str) -> Callable[[str], Path | None]:
    """Return what gives a file of a folder here or of a repository by its name; None if it has none of that name."""

    def local(file: str) -> Path | None:
        return path if os.path.isfile(path := _path(name) / file) else None

    def download(file: str) -> Path | None:
        with reading(name, spec.revision, kind="model"):
            try:
                path = huggingface_hub.hf_hub_download(
                    name, file, revision=spec.revision, library_name="hmdc-hub", library_version=hmdc_hub.__version__
                )
            except hub.LocalEntryNotFoundError:
                raise  # the cache has none; whether the Hub has is not known
            except hub.EntryNotFoundError:
                return None
        return Path(path)

    return local if is_local_path(name) else download


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError) as error:  # no such user
        raise ModelError(f"{name!r} cannot be a path: {error}") from error


def _is_hub_id(name: str) -> bool:
    return not is_local_path(name) and is_hub_id(name)


def _fingerprint(spec: ModelSpec) -> str:
    """Say which local files these are, by the beginning of the SHA-256 of each."""
    files = [_path(spec.id) / CONFIG] if is_local_path(spec.id) else []
    files += _files(spec) if is_local_path(spec.weights) else []
    try:
        return "-".join(sha256_file(file)[:16] for file in files)
    except (NotFoundError, FormatError) as error:
        raise ModelError(error.message.rstrip("."), hint="Paths begin in the current folder.") from error


def _refuse_what_cannot_be_read(spec: ModelSpec, key: str) -> None:
    """Refuse a published recipe's stand-in for somebody's file, and files that are no longer what they were."""
    name = str(getattr(spec, key))
    if name.startswith(LOCAL):
        raise ModelError(
            f"{key}: {name} stands for a file of whoever published this recipe",
            hint="Ask them for it, and put its path here.",
        )
    if is_local_path(name) and spec.revision is not None and _fingerprint(spec) != spec.revision:
        raise ModelError(
            f"{' and '.join(dict.fromkeys(spec.local_names().values()))}: no longer what revision {spec.revision} says",
            hint="Put the old files back; or take the new ones: no revision, and --force or another --run-dir.",
        )


def _fitting(name: str, net: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Choose what the network's body needs, in its shapes; position embeddings are resized to its grid.

    Args:
        name: What messages call the weights.
        net: The network.
        values: Tensors by its names; those of its classifiers, and others that it does not have, are left out.

    Raises:
        ModelError: One is missing or has another shape.
    """
    heads = tuple(f"{head}." for head in net.heads)
    wanted = {
        key: value
        for key, value in net.state_dict().items()
        if not key.startswith(heads) and not key.endswith("num_batches_tracked")
    }
    missing = [key.removeprefix("model.") for key in wanted if key not in values]  # as its library calls it
    if missing:
        raise ModelError(f"weights {name} lack {_some(missing)} of the network", hint=FITTING)
    found, wrong, strange = {}, [], []
    for key, value in wanted.items():
        given, said = values[key], key.removeprefix("model.")
        if value.is_floating_point() and not given.is_floating_point():
            strange.append(f"{said} holds {str(given.dtype).removeprefix('torch.')}")
            continue
        if given.shape != value.shape:
            given = _resized(key, given, value, net)
        if given.shape != value.shape:
            wrong.append(f"{said} is {_shape(given)} there and {_shape(value)} here")
            continue
        if value.is_floating_point() and not bool(torch.isfinite(given).all()):
            strange.append(f"{said} holds numbers that are not finite")
        found[key] = given.to(value.dtype)
    if strange:
        raise ModelError(f"weights {name} are no trained network: {_some(strange)}")
    if wrong:
        hint = "Make args and input_size those of the network that the weights were trained in."
        raise ModelError(f"weights {name} are of another shape: {_some(wrong)}", hint=hint)
    return found


def _resized(key: str, given: Tensor, wanted: Tensor, net: Network) -> Tensor:
    """Interpolate position embeddings, 1 x (prefix + grid x grid) x D, to another grid (Dosovitskiy et al., 2021)."""
    positions = re.search(r"pos(ition)?_embed", key) and given.dim() == 3 and given.shape[2] == wanted.shape[2]
    if not positions or given.is_meta or not isinstance(net, LibraryNetwork):
        return given
    layer = net.layers[0]
    for prefix in {layer.prefix, int(layer.class_token), 0}:
        old, new = math.isqrt(max(given.shape[1] - prefix, 0)), layer.grid
        if old**2 + prefix == given.shape[1] and math.prod(new) + prefix == wanted.shape[1]:
            grid = given[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
            return torch.cat([given[:, :prefix].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return given


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _some(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{items[0]} (and {len(items) - 1} more)"
