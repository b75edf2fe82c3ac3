"""`hmdc-hub runs`: list, show and remove run directories. Nothing here needs torch."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, ROOT, YES
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.text import ago, duration

if TYPE_CHECKING:
    from hmdc_hub.store.rundir import RunDir, RunEntry


@click.group(short_help="List, show and remove runs.")
def runs() -> None:
    """List, show and remove runs: the directories that `hmdc-hub condense` works in."""


@runs.command("ls", short_help="List runs with their state and score.")
@ROOT
@JSON
def list_(root: Path, as_json: bool) -> None:
    """List the runs below a folder with state, date, score in percent, and its gain over random images in points."""
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
            elif entry.info is None:
                output.talk(f"{entry.run.path}: {_standing(entry.run)}{_go_on(entry.run)}")
        output.hint("hmdc-hub runs show NAME")


@runs.command("show", short_help="Print what a run is and came to.")
@click.argument("name")
@ROOT
@JSON
def show(name: str, root: Path, as_json: bool) -> None:
    """Print what run NAME (or the run or the evaluation in that directory) is and came to."""
    from hmdc_hub.pipeline.target import find_run
    from hmdc_hub.store.rundir import RunDir, is_run, run_entry

    run = RunDir(find_run(name, root))
    if not is_run(run.path):
        if run.scores.is_file():
            from hmdc_hub.pipeline.api import Evaluation

            found = Evaluation(run.path)
            output.emit(as_json, lambda: output.evaluation_document(found), lambda: found.details(output.room()))
            return
        raise NotFoundError(f"{run.path} is not a run directory", hint=f"`hmdc-hub runs ls --root {root}` lists them.")
    entry = run_entry(run)
    several = run.sizes != [run] and entry.state not in ("empty", "unfinished")

    def text() -> str:
        if entry.info is None and not several:
            about = entry.problem or _standing(run)
            return f"run        {run.path}\nstate      {entry.state}\n{about}"
        from hmdc_hub.pipeline.api import Run

        return f"state      {entry.state}, {_date(run)}\n{Run(run.path).details(output.room())}"

    def document() -> dict[str, Any]:
        sizes = [summary(run_entry(size)) for size in run.sizes] if several else []
        return summary(entry) | ({"sizes": sizes} if several else {})

    output.emit(as_json, document, text)
    if entry.info is None and not several and not entry.problem and not as_json:
        output.talk(_go_on(run).strip() or "it goes on")


def _standing(run: RunDir) -> str:
    """Say of an unfinished run how far it is, and since when."""
    (done, total), owner = run.last_step(), run.owner()
    step = f"step {done} of {total}" if total else f"step {done}" if done else "no step yet"
    return f"{step}, {f'process {owner} works on it' if owner else ago(time.time() - run.written())}"


def _go_on(run: RunDir) -> str:
    """Write on a line of its own how to go on with a run, unless a process does already."""
    command = ["hmdc-hub", "condense", str(run.recipe), "--run-dir", str(run.path), "--resume"]
    return "" if run.owner() else f"\ngo on with: {shlex.join(command)}"


def _date(run: RunDir) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written()))


@runs.command("rm", short_help="Remove runs.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@ROOT
@YES
def remove(names: tuple[str, ...], root: Path, yes: bool) -> None:
    """Remove runs with all their files; only directories that hold nothing but a run.

    With --yes a NAME must be whole; otherwise its beginning will do.
    """
    from hmdc_hub.pipeline.target import find_run
    from hmdc_hub.store import rundir

    found = [rundir.RunDir(find_run(name, root, whole=yes)) for name in names]
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
    done, total = (0, 0) if info else entry.run.last_step()
    plain = {} if scores is None else scores.model_dump(mode="json", include={"protocol_hash", "table", "gain"})
    return {
        "name": entry.name,
        "path": str(entry.run.path),
        "state": entry.state,
        "problem": entry.problem or None,
        "written": entry.run.written(),  # Unix time
        "step": None if info else done,
        "steps": total or None,
        "recipe": info and info.recipe_name,
        "source": info and info.source.id,
        "ipc": info and info.ipc,
        "condense_hash": info and info.condense_hash,
        **{key: plain.get(key) for key in ("protocol_hash", "table", "gain")},
        "seconds": info and info.seconds,
    }


def _table(entries: list[RunEntry]) -> str:
    header, rows = ["NAME", "STATE", "DATE", "SOURCE", "IPC", "SCORE", "GAIN", "TIME"], []
    for entry in entries:
        info, scores, name = entry.info, entry.scores, entry.name
        date = _date(entry.run).partition(" ")[0]
        if info is None:
            rows.append([name, "unreadable" if entry.problem else entry.state, date, "", "", "", "", ""])
            continue
        score = gain = ""
        if scores is not None:
            score = f"{100 * scores.table['condensed']['mean'].mean:.1f}"
            gain = f"{100 * scores.gain['random']['mean'].mean:+.1f}" if "random" in scores.gain else ""
        rows.append([name, entry.state, date, info.source.id, str(info.ipc), score, gain, duration(info.seconds)])
    shorter = header[:-1], [row[:-1] for row in rows]  # the time that it took is the first that can be missed
    wide = output.fits(header, rows) or not output.fits(*shorter)
    return output.columns(header, rows) if wide else output.columns(*shorter)
