"""Run directories: where everything of one run is, how far it came, who works in it; listing, removing; the log."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args

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
from hmdc_hub.events import Callback, ImageStep, Note
from hmdc_hub.schema import ArtifactInfo, Scores
from hmdc_hub.store.files import TEMPORARY, json_text, read_info, read_scores, sha256_file, write_bytes_atomic
from hmdc_hub.temporary import lock
from hmdc_hub.text import count

_Of = TypeVar("_Of")
_Read = TypeVar("_Read")

RunState = Literal["empty", "unfinished", "condensed", "scored", "finished"]

# Locks of this process by directory: file descriptor and how many blocks hold it. flock would refuse a second
# descriptor of the same process, and one command condenses, evaluates and packages in turn.
_held: dict[Path, tuple[int, int]] = {}


class _Named:
    """A path below a run directory, as an attribute of `RunDir`; `shared`: the sizes of a run have one together."""

    def __init__(self, name: str, *, shared: bool = False) -> None:
        self.name, self.shared = name, shared

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return (run.whole if self.shared else run).path / self.name


@dataclass(frozen=True)
class RunDir:
    """The directory of one run; the attributes are the paths in it, whether or not they exist yet.

    A run of several sizes has a directory for each inside it, which is a run directory of its own (`sizes`, `whole`).
    """

    path: Path
    recipe: ClassVar = _Named("recipe.yaml")  # resolved
    condensed: ClassVar = _Named("condensed.safetensors")  # exact floats in stored form
    parquet: ClassVar = _Named("train.parquet")  # decoded, in 8 bits: what evaluation trains on and the Hub serves
    info: ClassVar = _Named("info.json")  # provenance; written last: it says that condensing is complete
    checkpoints: ClassVar = _Named("checkpoints")
    log: ClassVar = _Named("log.jsonl")
    scores: ClassVar = _Named("scores.json")
    cells: ClassVar = _Named("cells.jsonl")  # finished trainings of an evaluation
    confusion: ClassVar = _Named("confusion.safetensors")  # int64 C x C by `<training set>/<model>`: row true
    report: ClassVar = _Named("report")
    evaluations: ClassVar = _Named("evaluations")  # a directory for each protocol other than the recipe's
    trackers: ClassVar = _Named("trackers")
    preview: ClassVar = _Named("preview.png")
    package: ClassVar = _Named("package", shared=True)  # exactly what the Hub repository will hold
    lock_file: ClassVar = _Named(".lock", shared=True)

    @property
    def initialisation(self) -> Path:
        """The synthetic images before the first image step, in the format of `condensed`."""
        former = self.path / "start.safetensors"  # as the first program called it
        return former if former.is_file() else self.path / "initialisation.safetensors"

    def of_size(self, ipc: int) -> RunDir:
        """Give the run directory of one of several sizes, inside this one: all that such a run has alone but its steps.

        Checkpoints and log, which are of all sizes, stay in this one.
        """
        return RunDir(self.path / f"ipc{ipc}")

    @property
    def sizes(self) -> list[RunDir]:
        """Where each of its sets is: here, or inside it if its recipe lists several sizes, in that order."""
        recipe = None if self.info.is_file() else _readable(self.recipe, read_recipe_file)
        if recipe is None or isinstance(recipe.condense.ipc, int):
            return [self]
        return [self.of_size(size) for size in recipe.condense.sizes]

    @property
    def whole(self) -> RunDir:
        """The run of several sizes that this is one of; itself if it is none."""
        above = RunDir(self.path.parent)
        return above if re.fullmatch(r"ipc[1-9]\d*", self.path.name) and self in above.sizes else self

    @property
    def name(self) -> str:
        """What a person calls it: the name of the directory, of a size `digits/ipc10`."""
        whole = self.whole
        return self.path.name if whole == self else f"{whole.path.resolve().name}/{self.path.name}"

    def sets(self) -> dict[str, RunDir]:
        """Give `sizes` by the configuration that each fills; a FormatError if the recipe cannot be read."""
        return dict(
            zip((one.publish.config for one in read_recipe_file(self.recipe).of_sizes()), self.sizes, strict=True)
        )

    @property
    def finished(self) -> bool:
        """Whether condensing is complete: info.json is there and both data files have the hashes it names.

        A newer program's run is not to be taken for an unfinished one: it is a NewerFormatError.
        """
        return all(size._condensed_info(verify=True) is not None for size in self.sizes)

    def state(self, *, verify: bool = True) -> RunState:
        """Say how far the run came; a file of a newer format version is a NewerFormatError.

        `empty`: no recipe in it; `unfinished`: condensing is not complete; `condensed`: no scores of these images;
        `scored`: no package of these images and scores; `finished`: all there. `verify=False` hashes no data files and
        trusts that they are what info.json was written for. Several sizes are as far as the last of them.
        """
        if not self.recipe.is_file():
            return "empty"
        return min((size._state(verify) for size in self.sizes), key=get_args(RunState).index)

    def _state(self, verify: bool) -> RunState:
        info = self._condensed_info(verify=verify)
        if info is None or not self.recipe.is_file():
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

    def owner(self) -> str:
        """Give the id of the process that works in this directory, `unknown` if it does not say, empty if none does."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY)
        except OSError:
            return ""
        try:
            return "" if os.name == "nt" or lock(descriptor) else _owner(descriptor)
        finally:
            os.close(descriptor)

    def last_step(self) -> tuple[int, int]:
        """Give the last image step in the log, and of how many; 0 of 0 if there is none."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_END))
                lines = log.readlines()
        except OSError:
            return 0, 0
        for line in reversed(lines):
            if done := _step(line):
                total = json.loads(line).get("total")
                return done, total if type(total) is int else 0
        return 0, 0

    def written(self) -> float:
        """Give the time when the scores, else the images, else the log or the recipe were written, as Unix time."""
        for paths in zip(*((one.scores, one.info, one.log, one.recipe) for one in (self, *self.sizes)), strict=True):
            times: list[float] = [path.stat().st_mtime for path in paths if path.is_file()]
            if times:
                return max(times)
        return 0.0

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
        """Keep other processes out of this run directory while the block runs; RunExistsError if one is in it.

        The lock belongs to the process: the kernel frees it however the process ends, so nothing is left to clean up
        after a kill. A block may lock again inside. Leftovers of interrupted writes are removed. A size of several has
        the lock of all.
        """
        whole = self.whole
        key = whole.path.resolve()
        descriptor, count = _held.get(key, (-1, 0))
        if count == 0:
            try:
                whole.path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise RunError(
                    f"Cannot use {whole.path} as a run directory: {error.strerror or error}.",
                    hint="Once that is mended, run the same command again; --run-dir takes another directory.",
                ) from error
            if os.name != "nt":  # there are no such locks: nothing keeps two processes out of one directory
                if not lock(descriptor):
                    owner = _owner(descriptor)
                    os.close(descriptor)
                    raise RunExistsError(
                        f"Another process (id {owner}) works in {whole.path}.",
                        hint="Wait until it ends, or stop it; what it has done so far is kept.",
                    )
                with suppress(OSError):  # a full disk: the lock holds without saying whose it is
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            folders = dict.fromkeys((whole.path, whole.checkpoints, *(size.path for size in whole.sizes)))
            for leftover in [path for folder in folders for path in folder.glob(f".*{TEMPORARY}")]:
                shutil.rmtree(leftover, ignore_errors=True)
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
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


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"


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
    """One line of `runs ls`."""

    run: RunDir
    state: RunState  # `unfinished` if that cannot be read
    info: ArtifactInfo | None  # None before condensing is complete, and of several sizes
    scores: Scores | None  # None before evaluation, and of several sizes
    problem: str = ""  # why the run cannot be read

    @property
    def name(self) -> str:
        """What the run is called; a size of several `digits/ipc10`."""
        return self.run.name


def list_runs(root: Path) -> list[RunEntry]:
    """List the run directories directly below a folder such as `runs`, by name; data files are not hashed.

    A run of several sizes has an entry for each, one in all until they are condensed.
    """
    found = [RunDir(path) for path in sorted(root.iterdir()) if is_run(path)] if root.is_dir() else []
    entries = list[RunEntry]()
    for run in found:
        entry = run_entry(run)
        several = run.sizes != [run] and entry.state not in ("empty", "unfinished")
        entries += [run_entry(size) for size in run.sizes] if several else [entry]
    return entries


def run_entry(run: RunDir) -> RunEntry:
    """Read the line of one run; data files are not hashed."""
    try:
        state, one = run.state(verify=False), run.sizes == [run]
        info = read_info(run.info) if one and state not in ("empty", "unfinished") else None
        scores = read_scores(run.scores) if one and state in ("scored", "finished") else None
        return RunEntry(run, state, info, scores)
    except HmdcError as error:
        return RunEntry(run, "unfinished", None, None, error.message)


def is_run(path: Path) -> bool:
    """Whether a path is a directory that a run was started in: a recipe, and a lock file or results beside it."""
    results = (".lock", "info.json", "checkpoints", "log.jsonl")
    return (path / "recipe.yaml").is_file() and any((path / name).exists() for name in results)


def remove(run: RunDir) -> None:
    """Delete a run directory with everything in it, unless it is none or holds files that are not ours (UsageError)."""
    if run.path.is_symlink() or not run.path.is_dir():
        raise NotFoundError(f"There is no run directory {run.path}.", hint="`hmdc-hub runs ls` lists the runs.")
    if not is_run(run.path):
        raise UsageError(f"{run.path} is not a run directory; nothing was deleted.")
    if run.whole != run:
        raise UsageError(
            f"{run.path} is one size of the run {run.whole.path}; nothing was deleted.",
            hint="Remove the run with all of its sizes.",
        )
    own = [entry.name for entry in vars(RunDir).values() if isinstance(entry, _Named)]
    own += ["initialisation.safetensors", "start.safetensors", "cells-*of*.jsonl", f".*{TEMPORARY}"]
    inside = {size.path.name for size in run.sizes if size != run}
    folders = [run.path, *(run.path / name for name in inside if (run.path / name).is_dir())]
    names = sorted(entry.relative_to(run.path).as_posix() for folder in folders for entry in folder.iterdir())
    own_paths = [*own, *inside, *(f"{name}/{pattern}" for name in inside for pattern in own)]
    strangers = [name for name in names if not any(fnmatch(name, pattern) for pattern in own_paths)]
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


# The log: log.jsonl, one line for every image step, and the events that are made of the same

LOG_END = 1 << 16  # bytes of it that hold its last line
RECENT = 50  # steps that the remaining time is told from


class Journal:
    """The log of a run, log.jsonl; the callback is told about every step. A rank that only works writes none."""

    def __init__(self, path: Path, callback: Callback, *, writes: bool = True) -> None:
        self.path, self.callback, self.writes = path, callback, writes
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._lines: list[str] = []

    def add(self, step: ImageStep, seconds: float) -> None:
        """Note an image step that took so long, and tell the callback."""
        self._recent.append(seconds)
        event = replace(
            step,
            images_per_second=step.images / max(seconds, 1e-9),
            seconds_left=(step.total - step.done) * sum(self._recent) / len(self._recent),
        )
        # Numbers are rounded to what a reader of the log can use.
        fields = {name: value for name, value in vars(event).items() if name != "images"}
        for key in ("losses", "shares", "accuracies"):
            fields[key] = {name: float(f"{value:.6g}") for name, value in fields[key].items()}
        fields |= {key: round(fields[key], 1) for key in ("images_per_second", "seconds_left")}
        self._lines.append(json.dumps(fields | {"clamped": float(f"{event.clamped:.6g}")}) + "\n")
        self.callback(event)

    def flush(self) -> None:
        """Write what was noted since the last time."""
        if self.writes and self._lines:
            with self.path.open("a", encoding="utf-8") as log:
                log.writelines(self._lines)
        self._lines.clear()

    def truncate(self, done: int) -> None:
        """Drop lines of steps that a resume makes again, and whatever is no line of ours: a log stops no run."""
        if not self.writes or not os.path.lexists(self.path):
            return
        try:
            if not self.path.is_file():
                raise OSError("it is no file")
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            self.path.rename(aside)
            self.callback(Note(f"log.jsonl cannot be read ({error.strerror or error}): it is now {aside.name}"))
            return
        steps = [_step(line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step <= done]
        if damaged := steps.count(None):
            self.callback(Note(f"{count(damaged, 'damaged line')} of log.jsonl dropped"))
        if kept != lines:
            write_bytes_atomic(self.path, b"".join(kept))


def _step(line: bytes) -> int | None:
    """Read which image step a line is about; None for what is no line of ours, or not a whole one."""
    try:
        fields = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    step = fields.get("done") if isinstance(fields, dict) else None
    return step if type(step) is int and step > 0 else None
