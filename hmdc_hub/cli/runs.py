"""`hmdc-hub runs`: list, show and remove run directories. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, ROOT, YES
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.text import duration

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
    if not entries and not as_json:
        output.talk(f"no runs in {root}")
        output.hint("hmdc-hub recipes ls, hmdc-hub condense NAME")
        return
    output.emit(as_json, lambda: [summary(entry) for entry in entries], lambda: _table(entries))
    if not as_json:
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
    from hmdc_hub.pipeline.target import find_run
    from hmdc_hub.store.rundir import RunDir, list_runs

    run = RunDir(find_run(name, root))
    place = run.path.absolute() if run.path.name else run.path.resolve()
    found = next((entry for entry in list_runs(place.parent) if entry.run.path.name == place.name), None)
    if found is None:
        raise NotFoundError(f"{run.path} is not a run directory", hint=f"`hmdc-hub runs ls --root {root}` lists them.")
    entry = replace(found, run=run)

    def text() -> str:
        if entry.info is None:
            return f"run        {run.path}\nstate      {entry.state}" + (entry.problem and f"\n{entry.problem}")
        from hmdc_hub.pipeline.api import Run

        return f"state      {entry.state}\n{Run(run.path).summary()}"

    output.emit(as_json, lambda: summary(entry), text)


@runs.command("rm", short_help="Remove runs.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@ROOT
@YES
def remove(names: tuple[str, ...], root: Path, yes: bool) -> None:
    """Remove runs with all their files; only directories that hold nothing but a run."""
    from hmdc_hub.pipeline.target import find_run
    from hmdc_hub.store import rundir

    found = [rundir.RunDir(find_run(name, root)) for name in names]
    if not yes:
        try:
            wanted = click.confirm(f"remove {', '.join(str(run.path) for run in found)}?", err=True)
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
    plain = {} if scores is None else scores.model_dump(mode="json", include={"protocol_hash", "table", "gain"})
    return {
        "name": entry.run.path.name,
        "path": str(entry.run.path),
        "state": entry.state,
        "problem": entry.problem or None,
        "recipe": info and info.recipe_name,
        "source": info and info.source.id,
        "ipc": info and info.ipc,
        "condense_hash": info and info.condense_hash,
        **{key: plain.get(key) for key in ("protocol_hash", "table", "gain")},
        "seconds": info and info.seconds,
    }


def _table(entries: list[RunEntry]) -> str:
    rows = []
    for entry in entries:
        info, scores, name = entry.info, entry.scores, entry.run.path.name
        if info is None:
            rows.append([name, "unreadable" if entry.problem else entry.state, "", "", "", "", ""])
            continue
        score = gain = ""
        if scores is not None:
            score = f"{100 * scores.table['condensed']['mean'].mean:.1f}"
            gain = f"{100 * scores.gain['random']['mean'].mean:+.1f}" if "random" in scores.gain else ""
        rows.append([name, entry.state, info.source.id, str(info.ipc), score, gain, duration(info.seconds)])
    return output.columns(["NAME", "STATE", "SOURCE", "IPC", "SCORE", "OVER RANDOM", "TIME"], rows)
