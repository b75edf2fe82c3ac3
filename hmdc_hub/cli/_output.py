"""Who hears what: data goes to stdout, talk to stderr, `--json` makes the data one JSON document, errors end it.

Tables are columns of text: rich needs 0.1 s of CPU for one, more than `hmdc-hub --help` needs in all (0.06 s).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

from hmdc_hub.errors import HmdcError, Interrupted, UsageError
from hmdc_hub.pipeline import progress
from hmdc_hub.pipeline.progress import width, wrapped, write
from hmdc_hub.text import shortened

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Evaluation, Run

MOST = 2000  # characters of a message's line that are shown; a name or value that somebody gave may have millions
# Of scores.json, for `--json`.
SHOWN = {
    "name", "condense_hash", "protocol_hash", "protocol", "test_count", "budgets", "table", "gain", "gap", "ranking",
}  # fmt: skip
BUG = "This is a bug in hmdc-hub. Please report it with the lines above and what `hmdc-hub env` prints."


def emit(as_json: bool, document: Callable[[], Any], text: Callable[[], str], then: str = "") -> None:
    """Write the result of a command on stdout: as one JSON document, or as text, with what to do next on stderr."""
    if as_json:
        data(json.dumps(document(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        data(wrapped(text(), width(sys.stdout)))
    if then and not as_json:
        hint(then)


def data(text: str) -> None:
    """Write the result of a command on stdout, ending in one newline."""
    write(sys.stdout, text if text.endswith("\n") else text + "\n")


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out under a header, for stdout: as wide as they need, but no wider than a terminal."""
    return progress.columns(header, rows, width(sys.stdout))


def room() -> int:
    """Count the columns of stdout that prose and numbers take: 80, on a narrower terminal as many as it has."""
    return min(width(sys.stdout) or 80, 80)


def fits(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether rows side by side fit the terminal."""
    columns = width(sys.stdout)
    return not columns or max(map(len, progress.columns(header, rows).splitlines())) <= columns


def talk(text: str, label: str = "", colour: str | None = None) -> None:
    """Say something to the person at the terminal, on stderr, after a label that stands out."""
    text = wrapped(f"{label} {text}" if label else text, width(sys.stderr))
    write(sys.stderr, emphasised(label, sys.stderr, colour) + text.removeprefix(label) + "\n")


def hint(text: str) -> None:
    """Say what to do next, on stderr."""
    talk(text, "next:")


def emphasised(text: str, stream: TextIO, colour: str | None = None) -> str:
    """Make text bold, and coloured if a colour is named, on a terminal without NO_COLOR (https://no-color.org)."""
    wanted = text and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, fg=colour, bold=True) if wanted else text


def evaluation_document(found: Evaluation) -> dict[str, Any]:
    """Write scores by another protocol than a run's own, or of another program's set, as plain data for `--json`."""
    if found.sizes != [found]:
        return {"directory": str(found.path), "sizes": [evaluation_document(one) for one in found.sizes]}
    return {"directory": str(found.path), **found.scores.model_dump(mode="json", include=SHOWN)}


def run_document(run: Run) -> dict[str, Any]:
    """Write what a run came to as plain data for `--json`; of several sizes each in a list."""
    if run.several:
        return {
            "run": str(run.path),
            "condense_hash": run.recipe.condense_hash(),
            "protocol_hash": run.recipe.protocol_hash(),
            "sizes": [run_document(size) for size in run.sizes],
            "package": run.package_folder and str(run.package_folder),
            "seconds": run.seconds,
        }
    info, scores = run.info, run.scores
    return {
        "run": str(run.path),
        "condense_hash": info.condense_hash,
        "protocol_hash": info.protocol_hash,
        "scores": None if scores is None else scores.model_dump(mode="json", include={"table", "gain"}),
        "package": run.package_folder and str(run.package_folder),
        "seconds": {**run.seconds, "condense": info.seconds},
    }


def present(error: BaseException) -> int:
    """Tell the person on stderr what went wrong and return the exit status.

    That is 2 for what the user wrote, 1 for failures while running and for bugs, 130 or 143 for a stop asked for.
    """
    found = shown(error)
    if found is None:
        write(sys.stderr, "".join(traceback.format_exception(error)) + BUG + "\n")
        return 1
    status, text = found
    rest = text.removeprefix("error: ")
    label = "" if rest == text else "error:"
    talk("\n".join(shortened(line, MOST) for line in rest.splitlines()), label, "red")
    return status


def shown(error: BaseException) -> tuple[int, str] | None:
    """Say with which status and text an error ends the program; None for a bug of ours, which keeps its traceback."""
    match error:
        case Interrupted():
            return 128 + error.signal_number, str(error)
        case HmdcError():
            return 2 if isinstance(error, UsageError) else 1, f"error: {error}"
        case click.exceptions.NoArgsIsHelpError():
            return 2, error.format_message()
        case click.UsageError():
            see = "" if error.ctx is None else f"\nsee: {error.ctx.command_path} --help"
            return 2, f"error: {error.format_message()}{see}"
        case click.ClickException():
            return error.exit_code, f"error: {error.format_message()}"
        case click.Abort() | KeyboardInterrupt():
            return 130, "stopped at once"
        case OSError(errno=errno.ENAMETOOLONG):  # ours are short
            name = shortened(str(error.filename))
            return 2, f"error: {name} is longer than the file system allows for a name\nGive a shorter one."
    return None
