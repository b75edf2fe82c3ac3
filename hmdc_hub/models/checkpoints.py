"""Files of checkpoints, on the Hub and here: which there are, where they are, and which state of them it is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from hmdc_hub.errors import FormatError, ModelError, NotFoundError
from hmdc_hub.schema import ModelSpec, is_local_path
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.hub_errors import reading

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def path_of(name: str) -> Path:
    """Turn a text of a pool entry into a path; raises ModelError if it can be none."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError) as error:  # no such user
        raise ModelError(f"{name!r} cannot be a path: {error}") from error


def is_file(path: Path) -> bool:
    """Tell whether a file is there; a path that cannot be one is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        return False


def local_files(name: str) -> list[Path]:
    """Find the safetensors of a file or folder here; raises ModelError if there are none."""
    path = path_of(name)
    if os.path.isdir(path):
        single, index = path / SINGLE, path / INDEX
        if is_file(single):
            return [single]
        if is_file(index):
            return [path / part for part in _parts(index.read_bytes(), name)]
        raise ModelError(f"{name} holds no {SINGLE}", hint="save_pretrained of a library writes such a folder.")
    if not is_file(path):
        raise ModelError(f"weights: there is no file {name}", hint="Paths begin in the current folder.")
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"weights: {name} is no .safetensors file, and others may run code when they are read",
            hint="safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes one.",
        )
    return [path]


def hub_files(spec: ModelSpec) -> list[Path]:
    """Download the safetensors of a repository, whole or in parts; raises ModelError if it has none."""
    single = download(spec, spec.weights, SINGLE)
    if single is not None:
        return [single]
    index = download(spec, spec.weights, INDEX)
    if index is None:
        raise ModelError(
            f"{spec.weights} has no {SINGLE} at revision {spec.revision or 'main'}, and weights in pickle files are "
            "not loaded: reading them may run code",
            hint="Many repositories have one in a pull request: set revision to its commit.",
        )
    files = [(part, download(spec, spec.weights, part)) for part in _parts(index.read_bytes(), spec.weights)]
    absent = [part for part, path in files if path is None]
    if absent:
        raise ModelError(f"{spec.weights} lacks {absent[0]}, which its {INDEX} names")
    return [path for _, path in files if path is not None]


def _parts(index: bytes, name: str) -> list[str]:
    try:
        parts = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{INDEX} of {name} is damaged") from error
    wrong = [part for part in parts if not isinstance(part, str) or not re.fullmatch(r"[\w.-]+\.safetensors", part)]
    if wrong or not parts:
        raise ModelError(f"{INDEX} of {name} is damaged: it names {wrong[:1] or 'no file'}")
    return parts


def download(spec: ModelSpec, repo: str, file: str) -> Path | None:
    """Download one file; None if the repository has none of that name."""
    import huggingface_hub
    from huggingface_hub import errors as hub

    import hmdc_hub

    with reading(repo, spec.revision, kind="model"):
        try:
            path = huggingface_hub.hf_hub_download(
                repo,
                file,
                revision=spec.revision,
                library_name="hmdc-hub",
                library_version=hmdc_hub.__version__,
            )
        except hub.LocalEntryNotFoundError:
            raise  # the cache has none; whether the Hub has is not known
        except hub.EntryNotFoundError:
            return None
    return Path(path)


def commit_of(spec: ModelSpec, repo: str) -> str:
    """Ask the Hub which commit an entry's revision is now; raises ModelError while offline."""
    import huggingface_hub

    import hmdc_hub

    if offline():
        raise ModelError(
            f"Pool entry {spec.name}: HF_HUB_OFFLINE is set, and offline {repo} can only be read from the cache at a "
            f"full commit, not {spec.revision or 'main'!r}.",
            hint="Unset HF_HUB_OFFLINE, or copy  revision: <40 hex digits>  from an earlier run's recipe.yaml.",
        )
    api = huggingface_hub.HfApi(library_name="hmdc-hub", library_version=hmdc_hub.__version__)
    with reading(repo, spec.revision, kind="model"):
        return str(api.model_info(repo, revision=spec.revision, timeout=30).sha)


def offline() -> bool:
    """Tell whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fingerprint(spec: ModelSpec) -> str:
    """Say which local files these are, by the beginning of the SHA-256 of each."""
    files = [path_of(spec.id) / CONFIG] if is_local_path(spec.id) else []
    files += local_files(spec.weights) if is_local_path(spec.weights) else []
    try:
        return "-".join(sha256_file(file)[:16] for file in files)
    except (NotFoundError, FormatError) as error:
        raise ModelError(error.message.rstrip("."), hint="Paths begin in the current folder.") from error


def is_hub_id(name: str) -> bool:
    """Tell whether weights or an id name a repository of the Hub."""
    return not is_local_path(name) and _HUB_ID.fullmatch(name) is not None
