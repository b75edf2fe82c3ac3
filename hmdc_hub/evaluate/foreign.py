"""Read condensed sets that other programs made: parquet files, image folders, datasets of the Hub, safetensors."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.evaluate.foreign_images import read_images
from hmdc_hub.evaluate.foreign_tensors import SUFFIX, Contents, read_tensors, refuse_pickle
from hmdc_hub.evaluate.subject import Subject
from hmdc_hub.schema import canonical_json
from hmdc_hub.sources import Source

_SHOWN = 4


def read_set(
    target: str,
    source: Source,
    *,
    config: str | None = None,
    revision: str | None = None,
    normalised: bool = False,
    fit: Literal["crop", "stretch"] = "crop",
    background: Literal["white", "black"] = "white",
) -> Subject:
    """Read a condensed set of any program, its labels as those of the source.

    Args:
        target: A safetensors file (see `read_tensors`), or what can be a source: a parquet file, a folder of parquet
            files or of one folder of images per class, a dataset on the Hub, `builtin:digits`. Of these the train
            split, or the only one, is read, and images become of the source's side and channels as its own did.
        source: What the set was condensed from, on the CPU.
        config: Configuration of a folder or dataset.
        revision: Branch, tag or commit of a dataset on the Hub.
        normalised: The floats of a safetensors file are source-normalised.
        fit: As `source.fit` of the recipe, for images that are not square.
        background: As `source.background`, for images with transparent pixels.

    Returns:
        The set in the order of the file; classes may have different numbers of images, or none. `exact` are the floats
        of a safetensors file.

    Raises:
        UsageError: It is not there, is no set of images with labels, or does not fit the source.
        FormatError: It is a file of ours and damaged.
        NetworkError: It must be downloaded and that failed.
    """
    path = Path(target).expanduser()
    refuse_pickle(path)
    if path.suffix == SUFFIX and not path.is_dir():
        if not path.is_file():
            raise NotFoundError(f"There is no file {path}.", hint="Paths are relative to the current folder.")
        for option, value in (("config", config), ("revision", revision)):
            if value is not None:
                raise UsageError(f"--{option} does not apply to a file.", hint="Leave it out.")
        found = read_tensors(path, source, normalised=normalised)
    elif path.is_file() and path.suffix != ".parquet":
        raise UsageError(
            f"{path} is a {path.suffix or 'file without a suffix'}; of files, .parquet and .safetensors can be read.",
            hint="Convert it, or give the folder that it is in.",
        )
    elif normalised:
        raise UsageError(
            f"--normalised does not apply: {target} holds images, and only floats can be normalised.",
            hint="Leave it out.",
        )
    else:
        found = read_images(target, path, source, config, revision, fit, background)
    return _subject(target, path, found, source)


def _subject(target: str, path: Path, found: Contents, source: Source) -> Subject:
    known = source.info.class_names
    labels = _as_classes(target, found, known)
    counts = torch.bincount(labels, minlength=len(known)).tolist()
    missing = [name for name, count in zip(known, counts, strict=True) if count == 0]
    notes = found.notes
    if missing:
        notes += (f"no image of {len(missing)} of {len(known)} classes: {_some(missing)}",)
    name = path.resolve().name if path.is_dir() else path.stem if path.is_file() else re.split("[/:]", target)[-1]
    return Subject(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "set",
        images=found.images,
        labels=labels,
        stored=tuple(count // found.factor**2 for count in counts),
        sha256=found.sha256 or _hash(found.images, labels),
        factor=found.factor,
        exact=found.exact,
        condense_hash=found.condense_hash,
        notes=notes,
    )


def _as_classes(target: str, found: Contents, known: Sequence[str]) -> Tensor:
    """Turn the labels of a set into class indices of the source."""
    if found.names is not None:
        indices = torch.tensor(_match(target, found.names, known))
        return indices[found.labels]
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or high >= len(known):
        raise _out_of_range(target, low, high, known)
    return found.labels


def _match(target: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Find the class of the source that each name stands for."""
    # Names such as 0, 1, ... are numbers, unless the source's are too and mean something else than the place.
    numbered = [str(index) for index in range(len(known))] == list(known) or not any(map(str.isdecimal, known))
    if numbered and all(map(str.isdecimal, names)):
        indices = [int(name) for name in names]
        if max(indices) >= len(known):
            raise _out_of_range(target, min(indices), max(indices), known)
    else:
        exact = {name: index for index, name in enumerate(known)}
        times = Counter(map(_folded, known))
        folded = {_folded(name): index for index, name in enumerate(known) if times[_folded(name)] == 1}
        indices = [exact.get(name, folded.get(_folded(name), -1)) for name in names]
    unknown = [name for name, index in zip(names, indices, strict=True) if index < 0]
    if unknown:
        raise UsageError(
            f"{len(unknown)} of the {len(names)} classes of {target} are none of the source's: {_some(unknown)}; the "
            f"source has {len(known)}: {_some(known)}.",
            hint="Name them as the source does (case, spaces and _ do not matter)"
            + (", or number them from 0 in its order." if numbered else "."),
        )
    if twice := [names[place] for place, index in enumerate(indices) if indices.count(index) > 1]:
        raise UsageError(
            f"Several classes of {target} are one of the source's: {_some(twice)}.",
            hint="Give every class one name.",
        )
    return indices


def _folded(name: str) -> str:
    return re.sub(r"[_\s]+", "", name).casefold()


def _out_of_range(target: str, low: int, high: int, known: Sequence[str]) -> UsageError:
    return UsageError(
        f"The labels of {target} reach from {low} to {high}, but the source has {len(known)} classes, numbered 0 to "
        f"{len(known) - 1}.",
        hint=f"Number them in the source's order, from 0: {_some(known)}.",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _hash(images: Tensor, labels: Tensor) -> str:
    """Hash pixels and class indices with SHA-256 (hex): what has no file of its own has no other bytes."""
    digest = hashlib.sha256(canonical_json({"images": list(images.shape)}).encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.numpy().astype("<i8").data)
    return digest.hexdigest()
