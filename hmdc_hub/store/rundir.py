"""Run directories: where everything of one run is, how far it came, who works in it; listing and removing them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import (
    FormatError,
    HmdcError,
    NewerFormatError,
    NotFoundError,
    RunError,
    RunExistsError,
    UsageError,
)
from hmdc_hub.schema import ArtifactInfo, Scores
from hmdc_hub.store.files import TEMPORARY, json_text, read_info, read_scores, sha256_file
from hmdc_hub.temporary import lock

_Of = TypeVar("_Of")
_Read = TypeVar("_Read")

RunState = Literal["empty", "unfinished", "condensed", "scored", "finished"]

# Locks of this process by directory: file descriptor and how many blocks hold it. flock would refuse a second
# descriptor of the same process, and one command condenses, evaluates and packages in turn.
_held: dict[Path, tuple[int, int]] = {}


class _Named:
    """A path below a run directory, as an attribute of `RunDir`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDir:
    """The directory of one run; the attributes are the paths in it, whether or not they exist yet.

    Attributes:
        path: The directory, such as `runs/cifar10_ipc10`.
        recipe: The resolved recipe.
        condensed: The condensed set, exact floats in stored form.
        parquet: The decoded images in 8 bits: what evaluation trains on and the Hub serves.
        info: Provenance; written last, so its presence says that condensing is complete.
        checkpoints: Folder of checkpoints.
        log: The log, one JSON object per line.
        scores: The scores.
        cells: Finished trainings of an evaluation, one JSON object per line.
        confusion: Confusion matrices of an evaluation, int64 C x C by `<training set>/<model>`: row true, column
            predicted.
        report: Folder with the evaluation's report: a page, pictures, tables.
        evaluations: Folder of evaluations by other protocols than the recipe's, each a directory with its own scores.
        trackers: Folder of what trackers keep here (`hmdc_hub.trackers`).
        preview: Contact sheet of the condensed images.
        package: Folder with exactly what the Hub repository will hold.
        lock_file: The file that `lock` locks.
    """

    path: Path
    recipe: ClassVar = _Named("recipe.yaml")
    condensed: ClassVar = _Named("condensed.safetensors")
    parquet: ClassVar = _Named("train.parquet")
    info: ClassVar = _Named("info.json")
    checkpoints: ClassVar = _Named("checkpoints")
    log: ClassVar = _Named("log.jsonl")
    scores: ClassVar = _Named("scores.json")
    cells: ClassVar = _Named("cells.jsonl")
    confusion: ClassVar = _Named("confusion.safetensors")
    report: ClassVar = _Named("report")
    evaluations: ClassVar = _Named("evaluations")
    trackers: ClassVar = _Named("trackers")
    preview: ClassVar = _Named("preview.png")
    package: ClassVar = _Named("package")
    lock_file: ClassVar = _Named(".lock")

    @property
    def initialisation(self) -> Path:
        """The synthetic images before the first image step, in the format of `condensed`."""
        former = self.path / "start.safetensors"  # as the first program called it
        return former if former.is_file() else self.path / "initialisation.safetensors"

    @property
    def finished(self) -> bool:
        """Whether condensing is complete: info.json is there and both data files have the hashes it names.

        A newer program's run is not to be taken for an unfinished one: it is a NewerFormatError.
        """
        return self._condensed_info(verify=True) is not None

    def state(self, *, verify: bool = True) -> RunState:
        """Say how far the run came; a file of a newer format version is a NewerFormatError.

        `empty`: no recipe in it; `unfinished`: condensing is not complete; `condensed`: no scores of these images;
        `scored`: no package of these images and scores; `finished`: all there. `verify=False` hashes no data files and
        trusts that they are what info.json was written for.
        """
        if not self.recipe.is_file():
            return "empty"
        info = self._condensed_info(verify=verify)
        if info is None:
            return "unfinished"
        scores = _readable(self.scores, read_scores)
        if scores is None or scores.parquet_sha256 != info.parquet_sha256:
            return "condensed"
        # The scores name the parquet's hash, so a package that holds them holds the images too.
        wanted = _readable(self, RunDir.public_scores)
        packaged = any(found.read_bytes() == wanted for found in self.package.glob("*/scores.json"))
        return "finished" if packaged else "scored"

    def _condensed_info(self, *, verify: bool) -> ArtifactInfo | None:
        info = _readable(self.info, read_info)
        if info is None or not self.condensed.is_file() or not self.parquet.is_file():
            return None
        due = (info.tensors_sha256, info.parquet_sha256)
        return info if not verify or (sha256_file(self.condensed), sha256_file(self.parquet)) == due else None

    def public_scores(self) -> bytes:
        """Return scores.json as a package has it: the same bytes unless it names paths of this machine."""
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
        if os.name == "nt":  # there are no such locks: nothing keeps two processes out of one directory
            return descriptor
        if not lock(descriptor):
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunExistsError(
                f"Another process (id {owner}) works in {self.path}.",
                hint="Wait until it ends, or stop it; what it has done so far is kept.",
            )
        with suppress(OSError):  # a full disk: the lock holds without saying whose it is
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        shutil.rmtree(leftover, ignore_errors=True)
        with suppress(OSError):
            leftover.unlink(missing_ok=True)


def _readable(of: _Of, read: Callable[[_Of], _Read]) -> _Read | None:
    """Read something of ours; None if it is missing or damaged, while a newer version still raises."""
    try:
        return read(of)
    except NewerFormatError:
        raise
    except (NotFoundError, FormatError):
        return None


@dataclass(frozen=True)
class RunEntry:
    """One line of `runs ls`.

    Attributes:
        run: The run directory.
        state: How far it came; `unfinished` if that cannot be read.
        info: Provenance; None before condensing is complete.
        scores: None before evaluation.
        problem: Why the run cannot be read; empty if it can.
    """

    run: RunDir
    state: RunState
    info: ArtifactInfo | None
    scores: Scores | None
    problem: str = ""


def list_runs(root: Path) -> list[RunEntry]:
    """List the run directories directly below a folder such as `runs`, by name; data files are not hashed."""
    return [_entry(RunDir(path)) for path in sorted(root.iterdir()) if is_run(path)] if root.is_dir() else []


def _entry(run: RunDir) -> RunEntry:
    try:
        state = run.state(verify=False)
        info = read_info(run.info) if state not in ("empty", "unfinished") else None
        scores = read_scores(run.scores) if state in ("scored", "finished") else None
        return RunEntry(run, state, info, scores)
    except HmdcError as error:
        return RunEntry(run, "unfinished", None, None, error.message)


def is_run(path: Path) -> bool:
    """Whether a path is a directory that a run was started in: a recipe, and a lock file or results beside it."""
    results = (".lock", "info.json", "checkpoints", "log.jsonl")
    return (path / "recipe.yaml").is_file() and any((path / name).exists() for name in results)


def _is_ours(name: str) -> bool:
    own = {entry.name for entry in vars(RunDir).values() if isinstance(entry, _Named)}
    more = ("initialisation.safetensors", "start.safetensors", "cells-*of*.jsonl", f".*{TEMPORARY}")
    return name in own or any(fnmatch(name, pattern) for pattern in more)


def remove(run: RunDir) -> None:
    """Delete a run directory with everything in it.

    Raises:
        NotFoundError: There is no such directory.
        UsageError: It is not a run directory, or holds files that are not ours; nothing was deleted.
        RunExistsError: A process works in it.
        RunError: The file system refused.
    """
    if run.path.is_symlink() or not run.path.is_dir():
        raise NotFoundError(f"There is no run directory {run.path}.", hint="`hmdc-hub runs ls` lists the runs.")
    if not is_run(run.path):
        raise UsageError(f"{run.path} is not a run directory; nothing was deleted.")
    strangers = sorted(entry.name for entry in run.path.iterdir() if not _is_ours(entry.name))
    if strangers:
        raise UsageError(
            f"{run.path} holds files that hmdc-hub did not write: {', '.join(strangers[:5])}; nothing was deleted.",
            hint="Move them elsewhere, then try again.",
        )
    with run.lock():
        try:
            shutil.rmtree(run.path)
        except OSError as error:
            raise RunError(f"Cannot delete {run.path}: {error.strerror or error}.") from error
