"""Which run a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.errors import NotFoundError

if TYPE_CHECKING:
    from hmdc_hub.store import RunDir

ROOT = click.option(
    "--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)


def named_run(name: str, root: Path) -> RunDir:
    """Find a run by its name below a folder, or by its path.

    Raises:
        NotFoundError: There is none.
    """
    from hmdc_hub.store import RunDir

    for path in (root / name, Path(name)):
        if path.is_dir():
            return RunDir(path)
    raise NotFoundError(f"there is no run {name!r} in {root}", hint=f"`hmdc-hub runs ls --root {root}` lists them.")


def newest_run(root: Path) -> RunDir:
    """Find the run below a folder that was finished last: condensed, scored and packaged.

    Raises:
        NotFoundError: There is none.
    """
    from hmdc_hub.store import list_runs

    finished = [entry.run for entry in list_runs(root) if entry.state == "finished"]
    if not finished:
        raise NotFoundError(
            f"there is no finished run in {root}",
            hint="`hmdc-hub condense` makes one, `hmdc-hub runs ls` lists what there is; or name the run.",
        )
    return max(finished, key=lambda run: (run.scores.stat().st_mtime, run.path.name))


def require_hub_id(target: str, root: Path) -> None:
    """Refuse a name that is nothing here and can be no dataset on the Hub either, before anything is asked for it.

    Raises:
        NotFoundError: It has no owner: `nope` in place of `someone/nope`.
    """
    if "/" not in target:
        raise NotFoundError(
            f"there is no run {target!r} in {root} and no folder {target!r}; a dataset on the Hub is owner/name",
            hint=f"`hmdc-hub runs ls --root {root}` lists the runs.",
        )
