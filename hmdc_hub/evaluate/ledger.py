"""Finished trainings on disk: of one evaluation, to go on where it was; on real images, to be paid once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.errors import FormatError, RunError
from hmdc_hub.evaluate.baselines import TrainingSet
from hmdc_hub.evaluate.train import FORM, steps_of
from hmdc_hub.measures import FULL
from hmdc_hub.provenance import versions
from hmdc_hub.schema import Cell, EvaluateSpec, is_intact, sealed, sha256_of, unsealed
from hmdc_hub.schema.model import plain_models
from hmdc_hub.store import write_text_atomic

CellName = tuple[str, str, int, int]
"""Model, training set, draw and seed."""

Predictions = NDArray[np.uint16]


def name_of(cell: Cell) -> CellName:
    """Name a training within its evaluation."""
    return cell.model, cell.training_set, cell.draw, cell.seed


@dataclass(frozen=True, eq=False)
class Entry:
    """A finished training: its numbers, and the class it saw in every image that was scored on (uint16 N)."""

    cell: Cell
    predicted: Predictions

    def plain(self) -> dict[str, Any]:
        """Write it as plain data."""
        packed = base64.b64encode(zlib.compress(self.predicted.astype("<u2").tobytes(), 9)).decode()
        return {"cell": self.cell.model_dump(), "predicted": packed}

    @classmethod
    def read(cls, plain: Mapping[str, Any], images: int) -> Entry:
        """Read it from plain data; FormatError unless it is whole and about so many images."""
        try:
            cell = Cell.model_validate(plain["cell"])
            data = zlib.decompressobj().decompress(base64.b64decode(plain["predicted"]), 2 * images + 1)
        except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
            raise FormatError(f"a finished training cannot be read: {error}") from error
        if len(data) != 2 * images:
            raise FormatError(f"a finished training has {len(data)} bytes of answers for {images} images")
        return cls(cell, np.frombuffer(data, "<u2").astype(np.uint16))


class Ledger:
    """cells.jsonl: finished trainings, one line each; and what other processes write into `cells-*.jsonl` beside it.

    Args:
        path: The file that this process writes.
        stamp: What a training depends on beside its name; lines with another stamp are kept and not used.
        place: Device, program and versions, on which it depends too.
        images: Images that are scored on.

    Attributes:
        entries: Finished trainings by name.
        elsewhere: What is only finished in another place, by name: that place.
        dropped: Lines that were there and are damaged or have no checksum, as older programs wrote them; those
            trainings are done again.
    """

    def __init__(self, path: Path, stamp: Mapping[str, Any], place: Mapping[str, str], images: int) -> None:
        self.path, self.stamp, self.place, self.images = path, dict(stamp), dict(place), images
        self.entries: dict[CellName, Entry] = {}
        self.elsewhere: dict[CellName, str] = {}
        text = _text(path)
        lines = text.splitlines()
        kept = [line for line in lines if self._take(line)]
        self.dropped = len(lines) - len(kept)
        if (clean := "".join(line + "\n" for line in kept)) != text:  # such as a line that a kill cut in two
            write_text_atomic(path, clean)
        self.look()

    def look(self) -> None:
        """Take over what other processes have finished since; a line half written is left for the next look."""
        for path in ledgers(self.path.parent):
            if path != self.path:
                for line in _text(path).splitlines():
                    self._take(line)

    def add(self, entry: Entry) -> None:
        """Remember a training, in the file before anything else happens."""
        self.entries[name_of(entry.cell)] = entry
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sealed(self.stamp | self.place | entry.plain())) + "\n")

    def _take(self, line: str) -> bool:
        """Take over the training in a line; False if the line is damaged or has no checksum."""
        try:
            plain = _intact(line)
            parts = {key: plain.pop(key) for key in ("cell", "predicted")}
            place = {key: plain.pop(key, None) for key in self.place}
            if plain == self.stamp:  # the others are of another protocol, which may come back
                entry = Entry.read(parts, self.images)
                if place == self.place:
                    self.entries[name_of(entry.cell)] = entry
                else:
                    self.elsewhere[name_of(entry.cell)] = differing(place, self.place)
        except (KeyError, FormatError):
            return False
        return True


def _intact(text: str) -> dict[str, Any]:
    """Read plain data with a checksum; FormatError if they have none or another."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a finished training cannot be read: {error}") from error
    if not isinstance(plain, dict) or not is_intact(plain):
        raise FormatError("a finished training was changed or damaged since it was written, or has no checksum")
    return unsealed(plain)


def differing(place: Mapping[str, str | None], here: Mapping[str, str]) -> str:
    """Say what of another place is not as here: `device NVIDIA A100`."""
    return ", ".join(f"{key} {value}" for key, value in place.items() if value != here[key])


def ledgers(folder: Path) -> list[Path]:
    """List the files of finished trainings in a directory."""
    return sorted(folder.glob("cells*.jsonl"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


class Paid:
    """Trainings on real images, kept for every later evaluation that would do exactly the same.

    Real images, the full set above all, depend on the source and the budget alone: whoever scores ten condensed sets of
    one source pays for what they are compared with once.

    Args:
        folder: Where; made when the first one is kept.
        protocol: Says how.
        fingerprint: Of the source.
        images: Images that are scored on.
        device: Name of the device: another one rounds differently.
    """

    def __init__(self, folder: Path, protocol: EvaluateSpec, fingerprint: str, images: int, device: str) -> None:
        self.folder, self.images, self.protocol = folder, images, protocol
        plain = protocol.model_dump(mode="json")
        names = [spec.name for spec in protocol.models]
        self.models = dict(zip(names, plain_models(plain.pop("models")), strict=True))
        for key in ("seeds", "random_draws", "against", "epochs", "steps", "full_epochs"):
            del plain[key]  # they say which trainings there are, and the number of steps is in each one's key
        self.common = {"protocol": plain, "fingerprint": fingerprint, "device": device, "program": FORM}
        self.digests: dict[tuple[str, int], str] = {}

    def find(self, made: TrainingSet, model: str, seed: int) -> Entry | None:
        """Look a training up; one that cannot be read counts as absent."""
        try:
            found = Entry.read(_intact(self._path(made, model, seed).read_text(encoding="utf-8")), self.images)
        except (OSError, ValueError, FormatError):
            return None
        # The same images may have had another name: one of several draws, or the only choice of a small class.
        return replace(found, cell=found.cell.model_copy(update={"training_set": made.name, "draw": made.draw}))

    def keep(self, made: TrainingSet, entry: Entry) -> None:
        """Keep a training; a folder that cannot be written is no reason to lose it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._path(made, entry.cell.model, entry.cell.seed)
            write_text_atomic(path, json.dumps(sealed(entry.plain())) + "\n")
        except (OSError, RunError):
            pass

    def _path(self, made: TrainingSet, model: str, seed: int) -> Path:
        spec, key = self.models[model], (made.name, made.draw)
        if key not in self.digests:
            parts = (made.images.contiguous().numpy().data, made.labels.numpy().astype("<i8").data)
            self.digests[key] = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        whole = self.common | {
            "images": self.digests[key],
            "steps": steps_of(self.protocol, len(made.labels), full=made.name == FULL),
            "model": spec,
            "seed": seed,
            "versions": versions([spec["source"]]),
        }
        return self.folder / f"{sha256_of(whole)}.json"
