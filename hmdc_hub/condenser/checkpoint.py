"""Checkpoints: one self-checking safetensors file each, written whole or not at all, the two newest kept.

They are written and read a part at a time: the images of a large set are never in memory as a whole.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.errors import DivergedError, FormatError, UsageError
from hmdc_hub.events import Callback, Note
from hmdc_hub.schema import canonical_json
from hmdc_hub.store.condensed import Parts, content_digest, in_order, write_tensors

KEPT = 2  # checkpoints in a run directory; the second is there for the day the first is damaged
VERSION = 3  # of their format, which is no other file's
# What reading a damaged file raises.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError)


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    outer: int  # outer iterations finished
    inner: int  # image steps done in the next one; 0 at a network reset, where images and momentum are all there is
    seconds: float  # wall time spent so far, over all resumes

    def file(self, folder: Path) -> Path:
        """Name the checkpoint that is written here."""
        return folder / f"{self.outer:06d}-{self.inner:06d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to go on from, whose tensors stay in the file until they are asked for."""

    path: Path
    position: Position

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Read the tensors whose names begin so, by the rest of the name."""
        with safetensors.safe_open(self.path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  (no mapping)
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Read these rows of a tensor."""
        with safetensors.safe_open(self.path, framework="pt") as file:
            whole = file.get_slice(name)
            found = torch.empty(len(rows), *whole.get_shape()[1:], dtype=whole[0:0].dtype)
            for place, row in enumerate(rows):
                found[place] = whole[row]
        return found


def save(folder: Path, tensors: Mapping[str, Parts], position: Position, condense_hash: str, ranks: Ranks) -> None:
    """Write a checkpoint and remove all but the newest two; the first rank does it, all call this at the same time.

    What is not finite is a DivergedError, and a file system that fails a RunError: what was there before is unchanged.
    """
    if ranks.index != 0:
        for name in in_order(tensors):
            deque(tensors[name].parts, maxlen=0)
        return

    def header(digest: str) -> str:
        facts = {"format_version": VERSION, "condense_hash": condense_hash, "position": asdict(position)}
        return canonical_json(facts | {"digest": digest})

    def finite(parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Let through what can be gone on from."""
        for part in parts:
            if not bool(torch.isfinite(part).all()):
                raise DivergedError(
                    f"the state after {position.outer} outer iterations and {position.inner} image steps is not "
                    "finite, so it was not saved",
                    hint="Lower pool.*.lr.condense in the recipe; the last good checkpoint was kept.",
                )
            yield part

    path, kept = position.file(folder), 0
    write_tensors(path, {name: replace(each, parts=finite(each.parts)) for name, each in tensors.items()}, header)
    for other in _newest_first(folder):
        # What is newer than this could not be used, or this would not have been done again.
        kept += other.name <= path.name
        if other.name > path.name or kept > KEPT:
            other.unlink()


def newest(folder: Path, condense_hash: str, ranks: Ranks, callback: Callback) -> Checkpoint | None:
    """Find the newest undamaged checkpoint of this recipe, or None if there is none.

    One that cannot be used is reported through `callback` and the one before it is taken. The first rank reads them
    through, the others look only whether theirs is the same: a UsageError if it is not. A FormatError: the newest was
    written by another version of this program.
    """
    told = torch.zeros(6, dtype=torch.float64)
    if ranks.index == 0:
        found = _newest(folder, condense_hash, callback)
        place = [0.0] * 5 if found is None else [1.0, *astuple(found), _mark(found.file(folder))]
        told = torch.tensor([*place, float(len(_newest_first(folder)))], dtype=torch.float64)
    there, outer, inner, seconds, mark, files = ranks.together(told).tolist()
    position = Position(int(outer), int(inner), seconds)
    same = _mark(position.file(folder)) == mark if there else len(_newest_first(folder)) == files
    if ranks.any(not same):
        raise UsageError(
            f"{folder.parent} does not hold the same checkpoints for all {ranks.count} ranks.",
            hint="Put the run directory where all machines see it: --run-dir.",
        )
    return Checkpoint(position.file(folder), position) if there else None


def _newest(folder: Path, condense_hash: str, callback: Callback) -> Position | None:
    for path in _newest_first(folder):
        try:
            facts = _facts(path)
            if facts["digest"] != content_digest(path):
                raise ValueError("its contents do not match its digest")
            outer, inner, seconds = (facts["position"][key] for key in ("outer", "inner", "seconds"))
            position = Position(int(outer), int(inner), float(seconds))
            if position.file(folder) != path:
                raise ValueError("its name is not what it was written at")
        except UNUSABLE as error:
            callback(Note(f"checkpoint {path.name} cannot be used ({error}); taking the one before it"))
            continue
        if facts["condense_hash"] == condense_hash:
            return position
    return None


def _mark(path: Path) -> float:
    """Give the beginning of a checkpoint's digest as a number that ranks can tell one another; -1 for no checkpoint."""
    try:
        return float(int(_facts(path)["digest"][:12], 16))
    except UNUSABLE:
        return -1.0


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("??????-??????.safetensors"), reverse=True)


def _facts(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["hmdc"])
    if facts["format_version"] != VERSION:
        raise FormatError(
            f"{path} was written by another version of hmdc-hub: checkpoint format {facts['format_version']}, "
            f"this one's is {VERSION}.",
            hint="Go on with the version that wrote it, or start again with --force.",
        )
    return facts
