"""Who hears what: data goes to stdout, talk to stderr, and `--json` makes the data one JSON document.

Tables are columns of text: rich needs 0.1 s of CPU for one, more than `hmdc-hub --help` needs in all (0.06 s).
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from hmdc_hub.pipeline.progress import columns as columns
from hmdc_hub.pipeline.progress import write
from hmdc_hub.text import amount as amount
from hmdc_hub.text import duration as duration

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Run


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


def data(text: str) -> None:
    """Write the result of a command on stdout, ending in one newline."""
    write(sys.stdout, text if text.endswith("\n") else text + "\n")


def document(value: Any) -> None:
    """Write the result of a command as one JSON document on stdout."""
    data(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def run_document(run: Run) -> dict[str, Any]:
    """Write what a run came to as plain data for `--json`."""
    info, scores = run.info, run.scores
    plain = None if scores is None else scores.model_dump(mode="json", include={"table", "gain"})
    return {
        "run": str(run.path),
        "condense_hash": info.condense_hash,
        "protocol_hash": info.protocol_hash,
        "scores": plain,
        "package": run.package_folder and str(run.package_folder),
        "seconds": {**run.seconds, "condense": info.seconds},
    }
