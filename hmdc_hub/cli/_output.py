"""Who hears what: data goes to stdout, talk to stderr, `--json` makes the data one JSON document, errors end it.

Tables are columns of text: rich needs 0.1 s of CPU for one, more than `hmdc-hub --help` needs in all (0.06 s).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import click

from hmdc_hub.errors import HmdcError, Interrupted, UsageError
from hmdc_hub.pipeline.progress import columns as columns
from hmdc_hub.pipeline.progress import write
from hmdc_hub.text import shortened

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Run

MOST = 2000  # characters of a message's line that are shown; a name or value that somebody gave may have millions
BUG = "This is a bug in hmdc-hub. Please report it with the lines above and what `hmdc-hub env` prints."


def emit(as_json: bool, document: Callable[[], Any], text: Callable[[], str], then: str = "") -> None:
    """Write the result of a command on stdout: as one JSON document, or as text, with what to do next on stderr."""
    data(json.dumps(document(), indent=2, ensure_ascii=False, allow_nan=False) if as_json else text())
    if then and not as_json:
        hint(then)


def data(text: str) -> None:
    """Write the result of a command on stdout, ending in one newline."""
    write(sys.stdout, text if text.endswith("\n") else text + "\n")


def talk(text: str) -> None:
    """Say something to the person at the terminal, on stderr."""
    write(sys.stderr, text + "\n")


def hint(text: str) -> None:
    """Say what to do next, on stderr."""
    talk(f"{emphasised('next:', sys.stderr)} {text}")


def emphasised(text: str, stream: TextIO, colour: str | None = None) -> str:
    """Make text bold, and coloured if a colour is named, on a terminal without NO_COLOR (https://no-color.org)."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, fg=colour, bold=True) if wanted else text


def run_document(run: Run) -> dict[str, Any]:
    """Write what a run came to as plain data for `--json`."""
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
        talk("".join(traceback.format_exception(error)) + BUG)
        return 1
    status, text = found
    rest = text.removeprefix("error: ")
    start = "" if rest == text else emphasised("error:", sys.stderr, "red") + " "
    talk(start + "\n".join(shortened(line, MOST) for line in rest.splitlines()))
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
