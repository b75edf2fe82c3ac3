"""Several run directories: what `runs ls` lists and `runs rm` removes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from hmdc_hub.errors import HmdcError, NotFoundError, RunError, UsageError
from hmdc_hub.schema import ArtifactInfo, Scores
from hmdc_hub.store.files import TEMPORARY, read_info, read_scores
from hmdc_hub.store.rundir import RunDir, RunState

_OURS = {
    "recipe.yaml",
    "condensed.safetensors",
    "start.safetensors",
    "train.parquet",
    "info.json",
    "checkpoints",
    "log.jsonl",
    "scores.json",
    "cells.jsonl",
    "confusion.safetensors",
    "evaluations",
    "report",
    "preview.png",
    "package",
    ".lock",
}


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
    """List the run directories directly below a folder, by name; data files are not hashed.

    Args:
        root: The folder, such as `runs`; one that does not exist holds no runs.
    """
    if not root.is_dir():
        return []
    runs = [RunDir(path) for path in sorted(root.iterdir()) if is_run(path)]
    return [_entry(run) for run in runs]


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
    if not (path / "recipe.yaml").is_file():
        return False
    return any((path / name).exists() for name in (".lock", "info.json", "checkpoints", "log.jsonl"))


def _is_ours(name: str) -> bool:
    if name.startswith("."):
        return name in _OURS or name.endswith(TEMPORARY)
    return name in _OURS or fnmatch(name, "cells-*of*.jsonl")


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
