"""Checkpoints: one self-checking safetensors file each, written whole or not at all, the two newest kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hmdc_hub.events import Listener, Note
from hmdc_hub.schema import FORMAT_VERSION, canonical_json
from hmdc_hub.store import write_bytes_atomic

KEPT = 2
"""Checkpoints in a run directory; the second is there for the day the first is damaged."""


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        outer: Outer iterations finished.
        inner: Image steps done in the next one; 0 at a network reset, where images and momentum are all there is.
        seconds: Wall time spent so far, over all resumes.
    """

    outer: int
    inner: int
    seconds: float


def save(folder: Path, tensors: Mapping[str, Tensor], position: Position, condense_hash: str) -> Path:
    """Write a checkpoint and remove all but the newest two."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "format_version": FORMAT_VERSION,
        "condense_hash": condense_hash,
        "position": asdict(position),
        "digest": _digest(plain),
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{position.outer:06d}-{position.inner:06d}.safetensors"
    write_bytes_atomic(path, safetensors.torch.save(plain, metadata={"hmdc": canonical_json(header)}))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_newest(folder: Path, condense_hash: str, listener: Listener) -> tuple[dict[str, Tensor], Position] | None:
    """Read the newest undamaged checkpoint of this recipe, or None if there is none.

    A damaged file is reported through `listener` and the one before it is taken.
    """
    for path in _newest_first(folder):
        try:
            tensors, header = _read(path)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            listener(Note(f"checkpoint {path.name} is damaged ({error}); taking the one before it"))
            continue
        if header["condense_hash"] == condense_hash:
            return tensors, Position(**header["position"])
    return None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hmdc"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {header['format_version']}, this program reads {FORMAT_VERSION}")
    if header["digest"] != _digest(tensors):
        raise ValueError("its contents do not match its digest")
    return tensors, header


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("??????-??????.safetensors"), reverse=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
