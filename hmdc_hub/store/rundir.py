"""Run directories: where everything of one run is, how far it came, and who works in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, RunError, RunExistsError
from hmdc_hub.schema import ArtifactInfo, Scores
from hmdc_hub.store.files import TEMPORARY, json_text, read_info, read_scores, sha256_file

try:
    import fcntl
except ImportError:  # Windows has no flock: there, nothing keeps two processes out of one directory
    fcntl = None  # type: ignore[assignment]

_Record = TypeVar("_Record", ArtifactInfo, Scores)

RunState = Literal["empty", "unfinished", "condensed", "scored", "finished"]

# Locks of this process by directory: file descriptor and how many blocks hold it. flock would refuse a second
# descriptor of the same process, and one command condenses, evaluates and packages in turn.
_held: dict[Path, tuple[int, int]] = {}


@dataclass(frozen=True)
class RunDir:
    """The directory of one run; the attributes are the paths in it, whether or not they exist yet.

    Attributes:
        path: The directory, such as `runs/cifar10_ipc10`.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def condensed(self) -> Path:
        """The condensed set, exact floats in stored form."""
        return self.path / "condensed.safetensors"

    @property
    def start(self) -> Path:
        """The stored images before the first image step, in the format of `condensed`."""
        return self.path / "start.safetensors"

    @property
    def parquet(self) -> Path:
        """The decoded images in 8 bits: what evaluation trains on and the Hub serves."""
        return self.path / "train.parquet"

    @property
    def info(self) -> Path:
        """Provenance; written last, so its presence says that condensing is complete."""
        return self.path / "info.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The log, one JSON object per line."""
        return self.path / "log.jsonl"

    @property
    def scores(self) -> Path:
        """The scores."""
        return self.path / "scores.json"

    @property
    def cells(self) -> Path:
        """Finished trainings of an evaluation, one JSON object per line."""
        return self.path / "cells.jsonl"

    @property
    def confusion(self) -> Path:
        """Confusion matrices of an evaluation, int64 C x C by `<training set>/<model>`: row true, column predicted."""
        return self.path / "confusion.safetensors"

    @property
    def report(self) -> Path:
        """Folder with the evaluation's report: a page, pictures, tables."""
        return self.path / "report"

    @property
    def evaluations(self) -> Path:
        """Folder of evaluations by other protocols than the recipe's, each a directory with scores of its own."""
        return self.path / "evaluations"

    @property
    def preview(self) -> Path:
        """Contact sheet of the condensed images."""
        return self.path / "preview.png"

    @property
    def package(self) -> Path:
        """Folder with exactly what the Hub repository will hold."""
        return self.path / "package"

    @property
    def lock_file(self) -> Path:
        """The file that `lock` locks."""
        return self.path / ".lock"

    @property
    def finished(self) -> bool:
        """Whether condensing is complete: info.json is there and both data files have the hashes it names.

        Raises:
            NewerFormatError: info.json is of a newer format version: a newer program's run is not to be taken for an
                unfinished one.
        """
        return self._condensed_info(verify=True) is not None

    def state(self, *, verify: bool = True) -> RunState:
        """Say how far the run came.

        `empty`: no recipe in it; `unfinished`: condensing is not complete; `condensed`: no scores of these images;
        `scored`: no package of these images and scores; `finished`: all there.

        Args:
            verify: Hash the data files; False trusts that they are what info.json was written for.

        Raises:
            NewerFormatError: A file is of a newer format version.
        """
        if not self.recipe.is_file():
            return "empty"
        info = self._condensed_info(verify=verify)
        if info is None:
            return "unfinished"
        scores = _readable(self.scores, read_scores)
        if scores is None or scores.parquet_sha256 != info.parquet_sha256:
            return "condensed"
        return "finished" if self._packaged() else "scored"

    def _condensed_info(self, *, verify: bool) -> ArtifactInfo | None:
        info = _readable(self.info, read_info)
        if info is None or not self.condensed.is_file() or not self.parquet.is_file():
            return None
        if verify and (
            sha256_file(self.condensed) != info.tensors_sha256 or sha256_file(self.parquet) != info.parquet_sha256
        ):
            return None
        return info

    def _packaged(self) -> bool:
        """Whether the package holds the present scores (they name the parquet's hash, so the images too)."""
        try:
            wanted = self.public_scores()
        except NewerFormatError:
            raise
        except (NotFoundError, FormatError):
            return False
        return any(found.read_bytes() == wanted for found in self.package.glob("*/scores.json"))

    def public_scores(self) -> bytes:
        """Return scores.json as a package has it: the same bytes unless it names paths of this machine.

        Raises:
            FormatError: A file is damaged.
        """
        scores, source = read_scores(self.scores), read_info(self.info).source
        changes: dict[str, object] = {"protocol": scores.protocol.without_paths()}
        if source.kind == "local":
            recipe = read_recipe_file(self.recipe)
            if scores.family_hash == recipe.family_hash():  # an older program's: of a recipe with a path in it
                changes["family_hash"] = recipe.without_paths(source).family_hash()
        public = scores.model_copy(update=changes)
        return self.scores.read_bytes() if public == scores else json_text(public).encode()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this run directory while the block runs.

        The lock belongs to the process: the kernel frees it however the process ends, so nothing is left to clean up
        after a kill. A block may lock again inside. Leftovers of interrupted writes are removed.

        Raises:
            RunExistsError: Another process works in the directory.
            RunError: The directory cannot be made or written.
        """
        key = self.path.resolve()
        descriptor, count = _held.get(key, (-1, 0))
        if count == 0:
            descriptor = self._acquire()
            for folder in (self.path, self.checkpoints):
                _remove_leftovers(folder)
        _held[key] = (descriptor, count + 1)
        try:
            yield
        finally:
            descriptor, count = _held[key]
            if count > 1:
                _held[key] = (descriptor, count - 1)
            else:
                del _held[key]
                os.close(descriptor)

    def _acquire(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(
                f"Cannot use {self.path} as a run directory: {error.strerror or error}.",
                hint="Once that is mended, run the same command again; --run-dir takes another directory.",
            ) from error
        if fcntl is None:
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunExistsError(
                f"Another process (id {owner}) works in {self.path}.",
                hint="Wait until it ends, or stop it; what it has done so far is kept.",
            ) from error
        except OSError:
            return descriptor  # some network file systems have no locks; refusing to run there would be worse
        with suppress(OSError):  # a full disk: the lock holds without saying whose it is
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


def _readable(path: Path, read: Callable[[Path], _Record]) -> _Record | None:
    """Read a file of ours; None if it is missing or damaged, while a newer version still raises."""
    try:
        return read(path)
    except NewerFormatError:
        raise
    except (NotFoundError, FormatError):
        return None
