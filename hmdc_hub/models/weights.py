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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hmdc_hub.errors import FormatError, ModelError, NetworkError, NotFoundError
from hmdc_hub.models.family import Family, Network
from hmdc_hub.models.feature_layers import LibraryNetwork
from hmdc_hub.schema import LOCAL, ModelSpec, is_hub_id, is_local_path
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.hub import Client, MissingFileError

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

FITTING = "Make id and args those of the network that the weights were trained in."


class Place(NamedTuple):
    """Where the files are that a pool entry's `id` or `weights` mean: here, or in a repository of the Hub."""

    name: str
    path: Path | None  # a folder or file here, there or not; None: on the Hub
    revision: str | None

    @classmethod
    def of(cls, spec: ModelSpec, key: Literal["id", "weights"]) -> Place:
        """Read a key; ModelError if it can be neither, or is a published recipe's stand-in for somebody's file."""
        name = getattr(spec, key)
        if name.startswith(LOCAL):
            hint = "Ask them for it, and put its path here."
            raise ModelError(f"{key}: {name} stands for a file of whoever published this recipe", hint=hint)
        if is_local_path(name):
            try:
                return cls(name, Path(name).expanduser(), spec.revision)
            except (RuntimeError, ValueError) as error:  # no such user
                raise ModelError(f"{name!r} cannot be a path: {error}") from error
        if not is_hub_id(name):
            rule, hint = "neither a Hub id nor a path", "For example google/vit-base-patch16-224."
            if key == "weights":
                rule = "neither none, a Hub id (owner/name) nor a path (./x.safetensors)"
                hint = "torchvision's models also take names such as IMAGENET1K_V1." * (spec.source == "torchvision")
            raise ModelError(f"{key}: {name!r} is {rule}", hint=hint)
        return cls(name, None, spec.revision)

    def get(self, file: str) -> Path | None:
        """Give a file of the folder or repository; None if it has none of that name."""
        if self.path is not None:
            return path if os.path.isfile(path := self.path / file) else None
        try:  # the client compares sizes; tensors are compared with the network
            return Client().file(self.name, file, lambda path: True, revision=self.revision, kind="model")
        except MissingFileError:
            return None

    def weights(self) -> list[Path]:
        """List its safetensors, whole or in parts."""
        name = self.name
        if self.path is not None and not os.path.isdir(self.path):
            if not os.path.isfile(self.path):
                raise ModelError(f"weights: there is no file {name}", hint="Paths begin in the current folder.")
            if not name.lower().endswith(".safetensors"):
                raise ModelError(
                    f"weights: {name} is no .safetensors file, and others may run code when they are read",
                    hint="safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes one.",
                )
            return [self.path]
        if (single := self.get(SINGLE)) is not None:
            return [single]
        if (index := self.get(INDEX)) is not None:
            parts: list[Any] = []
            with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            wrong = [p for p in parts if not isinstance(p, str) or not re.fullmatch(r"[\w.-]+\.safetensors", p)]
            if wrong or not parts:
                raise ModelError(f"{INDEX} of {name} is damaged: it names {wrong[:1] or 'no file'}")
            found = {part: self.get(part) for part in parts}
            if absent := [part for part, path in found.items() if path is None]:
                raise ModelError(f"{name} lacks {absent[0]}, which its {INDEX} names")
            return [path for path in found.values() if path is not None]
        if self.path is not None:
            raise ModelError(f"{name} holds no {SINGLE}", hint="save_pretrained of a library writes such a folder.")
        raise ModelError(
            f"{name} has no {SINGLE} at revision {self.revision or 'main'}, and weights in pickle files are not "
            "loaded: reading them may run code",
            hint="Many repositories have one in a pull request: set revision to its commit.",
        )


def settle(spec: ModelSpec) -> ModelSpec:
    """Fill the revision of a pool entry: the commit that a branch or tag means now, or a local file's fingerprint.

    ModelError also if HF_HUB_OFFLINE is set and the revision is no commit; otherwise the errors of `Client.info`.
    """
    names = (spec.weights, spec.id) if spec.source in ("transformers", "timm") else (spec.weights,)
    repo = next((name for name in names if is_hub_id(name) and not is_local_path(name)), None)
    if repo is not None and not re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""):
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"Pool entry {spec.name}: HF_HUB_OFFLINE is set, and offline {repo} can only be read from the cache at "
                f"a full commit, not {spec.revision or 'main'!r}.",
                hint="Unset HF_HUB_OFFLINE, or copy  revision: <40 hex digits>  from an earlier run's recipe.yaml.",
            )
        return spec.model_copy(update={"revision": str(Client().info(repo, spec.revision, "model").sha)})
    if repo is None and spec.local_names() and spec.revision is None:
        try:
            return spec.model_copy(update={"revision": _fingerprint(spec)})
        except ModelError as error:
            raise ModelError(f"Pool entry {spec.name}: {error.message}.", hint=error.hint) from error
    return spec


def _fingerprint(spec: ModelSpec) -> str:
    """Say which local files these are, by the beginning of the SHA-256 of each."""
    id_, weights = (Place.of(spec, key) if key in spec.local_names() else None for key in ("id", "weights"))
    files = [id_.path / CONFIG] if id_ and id_.path else []
    files += weights.weights() if weights else []
    try:
        return "-".join(sha256_file(file)[:16] for file in files)
    except (NotFoundError, FormatError) as error:
        raise ModelError(error.message.rstrip("."), hint="Paths begin in the current folder.") from error


def _unchanged(spec: ModelSpec, key: Literal["id", "weights"]) -> Place:
    """Read a key whose files are to be opened; ModelError if they are here and no longer what they were."""
    place = Place.of(spec, key)
    if place.path is not None and spec.revision is not None and _fingerprint(spec) != spec.revision:
        raise ModelError(
            f"{' and '.join(dict.fromkeys(spec.local_names().values()))}: no longer what revision {spec.revision} says",
            hint="Put the old files back; or take the new ones: no revision, and --force or another --run-dir.",
        )
    return place


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """Read the config.json of the repository or folder that a pool entry has as its id."""
    path = _unchanged(spec, "id").get(CONFIG)
    if path is None:
        hint = "Name the architecture under id and its settings under args."
        raise ModelError(f"{spec.id} has no {CONFIG}", hint=hint)
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{CONFIG} of {spec.id} is damaged: {error}") from error
    return config


def pretrained(spec: ModelSpec, family: Family, net: Network) -> dict[str, Tensor]:
    """Read the weights that a pool entry names, for a network of its family.

    They are every parameter and buffer of the network but its classifiers', by name; none for `weights: none`.
    ModelError: they are not there, damaged, not safetensors, or of another network. NetworkError: the Hub cannot be
    reached, or the cache does not hold them while offline.
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


def _named_by_torchvision(spec: ModelSpec) -> dict[str, Tensor]:
    """Fetch weights that torchvision names: compared with the hash in their address, read as tensors only."""
    import torchvision

    # Without DEFAULT: it means others in each version.
    known = {member.name: member for member in torchvision.models.get_model_weights(spec.id)}
    if spec.weights not in known:
        hint = f"It has {', '.join(known) or 'none'}; weights: none trains from scratch."
        raise ModelError(f"torchvision has no weights {spec.weights!r} for {spec.id}", hint=hint)
    weights = known[spec.weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if constants.HF_HUB_OFFLINE and not file.is_file():
        raise NetworkError(
            f"Pool entry {spec.name}: HF_HUB_OFFLINE is set, and {file.name} is not in torch's cache.",
            hint="Unset HF_HUB_OFFLINE, run the same command again, and it is there from then on.",
        )
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)  # torch compares it with a download, not with its cache
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
    """Read safetensors under the names in them."""
    place = _unchanged(spec, "weights")
    if place.path is None and is_hub_id(spec.id) and not is_local_path(spec.id) and spec.id != spec.weights:
        raise ModelError(
            f"id {spec.id} and weights {spec.weights} are two repositories, and revision can be of one only",
            hint="Name the architecture under id, or the same repository twice.",
        )
    state: dict[str, Tensor] = {}
    for file in place.weights():
        try:
            state |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{spec.weights}: {file.name} is damaged: {error}") from error
    # What training loops put before every name: wrappers for several devices, for compiling, and modules.
    wrappers = () if spec.source == "transformers" else ("module.", "_orig_mod.", "model.")
    while prefix := next((p for p in wrappers if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _fitting(name: str, net: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Choose what the network's body needs, in its shapes; position embeddings are resized to its grid.

    Of `values`, by its names, those of its classifiers, and others that it does not have, are left out.
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
            there, here = (" x ".join(map(str, tensor.shape)) or "a number" for tensor in (given, value))
            wrong.append(f"{said} is {there} there and {here} here")
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


def _some(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{items[0]} (and {len(items) - 1} more)"
