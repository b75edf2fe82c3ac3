"""`hmdc-hub runs`: list, show and remove run directories. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, ROOT, run_folder
from hmdc_hub.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.store.rundir import RunEntry


@click.group(short_help="List, show and remove runs.")
def runs() -> None:
    """List, show and remove runs: the directories that `hmdc-hub condense` works in."""


@runs.command("ls", short_help="List runs with their state and score.")
@ROOT
@JSON
def list_(root: Path, as_json: bool) -> None:
    """List the runs below a folder with their state and score."""
    from hmdc_hub.store.rundir import list_runs

    entries = list_runs(root)
    if as_json:
        output.document([summary(entry) for entry in entries])
        return
    if not entries:
        output.talk(f"no runs in {root}")
        output.hint("hmdc-hub recipes ls, hmdc-hub condense NAME")
        return
    header = ["NAME", "STATE", "SOURCE", "IPC", "SCORE", "OVER RANDOM", "TIME"]
    output.data(output.columns(header, [_row(entry) for entry in entries]))
    for entry in entries:
        if entry.problem:
            output.talk(f"{entry.run.path}: {entry.problem}")
    output.hint("hmdc-hub runs show NAME")


@runs.command("show", short_help="Print what a run is and came to.")
@click.argument("name")
@ROOT
@JSON
def show(name: str, root: Path, as_json: bool) -> None:
    """Print what run NAME (or the run in that directory) is and came to."""
    entry = _entry(name, root)
    if as_json:
        output.document(summary(entry))
        return
    if entry.info is None:
        output.data(f"run        {entry.run.path}\nstate      {entry.state}" + (entry.problem and f"\n{entry.problem}"))
        return
    from hmdc_hub.pipeline.api import Run

    output.data(f"state      {entry.state}\n{Run(entry.run.path).summary()}")


@runs.command("rm", short_help="Remove runs.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@ROOT
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(names: tuple[str, ...], root: Path, yes: bool) -> None:
    """Remove runs with all their files; only directories that hold nothing but a run."""
    from hmdc_hub.store import rundir

    found = [rundir.RunDir(run_folder(name, root)) for name in names]
    if not yes:
        question = f"remove {', '.join(str(run.path) for run in found)}?"
        try:
            wanted = click.confirm(question, err=True)
        except click.Abort as error:
            raise UsageError(
                "there is nobody to ask here; nothing was removed", hint="--yes removes without asking."
            ) from error
        if not wanted:
            output.talk("nothing was removed")
            return
    for run in found:
        rundir.remove(run)
        output.talk(f"removed {run.path}")


def summary(entry: RunEntry) -> dict[str, Any]:
    """Write one run as plain data for `--json`; what is not known yet is null."""
    info, scores = entry.info, entry.scores
    table = None if scores is None else scores.model_dump(mode="json")
    return {
        "name": entry.run.path.name,
        "path": str(entry.run.path),
        "state": entry.state,
        "problem": entry.problem or None,
        "recipe": info and info.recipe_name,
        "source": info and info.source.id,
        "ipc": info and info.ipc,
        "condense_hash": info and info.condense_hash,
        "protocol_hash": scores and scores.protocol_hash,
        "table": table and table["table"],
        "gain": table and table["gain"],
        "seconds": info and info.seconds,
    }


def _row(entry: RunEntry) -> list[str]:
    info, scores, name = entry.info, entry.scores, entry.run.path.name
    if info is None:
        return [name, "unreadable" if entry.problem else entry.state, "", "", "", "", ""]
    score = "" if scores is None else f"{100 * scores.table['condensed']['mean'].mean:.1f}"
    gain = "" if scores is None or "random" not in scores.gain else f"{100 * scores.gain['random']['mean'].mean:+.1f}"
    return [name, entry.state, info.source.id, str(info.ipc), score, gain, output.duration(info.seconds)]


def _entry(name: str, root: Path) -> RunEntry:
    from hmdc_hub.store.rundir import RunDir, list_runs

    run = RunDir(run_folder(name, root))
    place = run.path.absolute() if run.path.name else run.path.resolve()
    for entry in list_runs(place.parent):
        if entry.run.path.name == place.name:
            return replace(entry, run=run)
    raise NotFoundError(f"{run.path} is not a run directory", hint=f"`hmdc-hub runs ls --root {root}` lists them.")
