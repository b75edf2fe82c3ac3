"""Finished trainings on disk: of one evaluation, to go on where it was; on real images, for all later evaluations."""

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
from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.train import FORM, steps_of
from hmdc_hub.metrics import FULL
from hmdc_hub.provenance import versions
from hmdc_hub.schema import Cell, EvaluateSpec, is_intact, plain_models, sealed, sha256_of, unsealed
from hmdc_hub.store.files import write_text_atomic

CellName = tuple[str, str, int, int]  # model, training set, draw and seed: the name of a training in its evaluation


@dataclass(frozen=True, eq=False)
class FinishedTraining:
    """A finished training: its numbers, and the class it saw in every image that was scored on (uint16 N)."""

    cell: Cell
    predicted: NDArray[np.uint16]

    @property
    def name(self) -> CellName:
        """Its name."""
        return self.cell.model, self.cell.training_set, self.cell.draw, self.cell.seed

    def plain(self) -> dict[str, Any]:
        """Write it as plain data."""
        packed = base64.b64encode(zlib.compress(self.predicted.astype("<u2").tobytes(), 9)).decode()
        return {"cell": self.cell.model_dump(), "predicted": packed}

    @classmethod
    def read(cls, plain: Mapping[str, Any], images: int) -> FinishedTraining:
        """Read it from plain data; FormatError unless it is whole and about so many images."""
        try:
            cell = Cell.model_validate(plain["cell"])
            data = zlib.decompressobj().decompress(base64.b64decode(plain["predicted"]), 2 * images + 1)
        except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
            raise FormatError(f"a finished training cannot be read: {error}") from error
        if len(data) != 2 * images:
            raise FormatError(f"a finished training has {len(data)} bytes of answers for {images} images")
        return cls(cell, np.frombuffer(data, "<u2").astype(np.uint16))


class ResultLog:
    """cells.jsonl: finished trainings, one line each; and what other processes write into `cells-*.jsonl` beside it.

    A training depends, beside its name, on the hashes of set, protocol and source, and on the environment: device,
    program, versions. Lines about something else are kept and not used. `path` is the file that this process writes,
    `images` the number of those that are scored on.
    """

    def __init__(self, path: Path, hashes: Mapping[str, Any], environment: Mapping[str, str], images: int) -> None:
        self.path, self.hashes, self.environment, self.images = path, dict(hashes), dict(environment), images
        self.finished: dict[CellName, FinishedTraining] = {}
        self.elsewhere: dict[CellName, str] = {}  # what is only finished in another environment: what differs there
        text = _text(path)
        lines = text.splitlines()
        kept = [line for line in lines if self._take(line)]
        self.dropped = len(lines) - len(kept)  # damaged, or without a checksum as older programs wrote them
        if (clean := "".join(line + "\n" for line in kept)) != text:  # such as a line that a kill cut in two
            write_text_atomic(path, clean)
        self.look()

    def look(self) -> None:
        """Take over what other processes have finished since; a line half written is left for the next look."""
        for path in result_logs(self.path.parent):
            if path != self.path:
                for line in _text(path).splitlines():
                    self._take(line)

    def add(self, training: FinishedTraining) -> None:
        """Remember a training, in the file before anything else happens."""
        self.finished[training.name] = training
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sealed(self.hashes | self.environment | training.plain())) + "\n")

    def _take(self, line: str) -> bool:
        """Take over the training in a line; False if the line is damaged or has no checksum."""
        try:
            plain = _intact(line)
            parts = {key: plain.pop(key) for key in ("cell", "predicted")}
            environment = {key: plain.pop(key, None) for key in self.environment}
            if plain == self.hashes:  # the others are of another protocol, which may come back
                training = FinishedTraining.read(parts, self.images)
                if environment == self.environment:
                    self.finished[training.name] = training
                else:
                    self.elsewhere[training.name] = differing(environment, self.environment)
        except (KeyError, FormatError):
            return False
        return True


def result_logs(folder: Path) -> list[Path]:
    """List the files of finished trainings in a directory."""
    return sorted(folder.glob("cells*.jsonl"))


def differing(environment: Mapping[str, str | None], here: Mapping[str, str]) -> str:
    """Say what of another environment is not as here: `device NVIDIA A100`."""
    return ", ".join(f"{key} {value}" for key, value in environment.items() if value != here[key])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _intact(text: str) -> dict[str, Any]:
    """Read plain data with a checksum; FormatError if they have none or another."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a finished training cannot be read: {error}") from error
    if not isinstance(plain, dict) or not is_intact(plain):
        raise FormatError("a finished training was changed or damaged since it was written, or has no checksum")
    return unsealed(plain)


class BaselineCache:
    """Trainings on real images, kept for every later evaluation that would do exactly the same.

    Real images, the full set above all, depend on the source and the budget alone: whoever scores ten condensed sets
    of one source trains on what they are compared with once. Another device rounds differently. Modules of a Python
    session are left out: their id does not tell what they compute.
    """

    def __init__(self, folder: Path, protocol: EvaluateSpec, fingerprint: str, images: int, device: str) -> None:
        self.folder, self.images, self.protocol = folder, images, protocol
        # Which trainings there are; the number of steps is in the key of each, and those on soft labels are not here.
        about = {"seeds", "random_draws", "baselines", "epochs", "steps", "full", "full_epochs", "soft_labels"}
        about.add("encode")  # which is seen in the images
        plain = protocol.model_dump(mode="json", exclude=about)
        models = zip(protocol.models, plain_models(plain.pop("models")), strict=True)
        self.models = {spec.name: model for spec, model in models if spec.source != "python"}
        self.common = {"protocol": plain, "fingerprint": fingerprint, "device": device, "program": FORM}
        self.digests: dict[tuple[str, int], str] = {}

    def find(self, made: TrainingSet, model: str, seed: int) -> FinishedTraining | None:
        """Look a training up; one that cannot be read counts as absent."""
        if model not in self.models:
            return None
        try:
            text = self._path(made, model, seed).read_text(encoding="utf-8")
            found = FinishedTraining.read(_intact(text), self.images)
        except (OSError, ValueError, FormatError):
            return None
        # The same images may have had another name: one of several draws, or the only choice of a small class.
        return replace(found, cell=found.cell.model_copy(update={"training_set": made.name, "draw": made.draw}))

    def keep(self, made: TrainingSet, training: FinishedTraining) -> None:
        """Keep a training; a folder that cannot be written is no reason to lose it."""
        if training.cell.model not in self.models:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._path(made, training.cell.model, training.cell.seed)
            write_text_atomic(path, json.dumps(sealed(training.plain())) + "\n")
        except (OSError, RunError):
            pass

    def weights(self, made: TrainingSet, model: str, seed: int) -> Path | None:
        """Name the file for what a training has learnt; None for a model that is not kept."""
        return self._path(made, model, seed).with_suffix(".safetensors") if model in self.models else None

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
