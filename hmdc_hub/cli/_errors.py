"""From an error's type to an exit status and a sentence: one ordered map, and nothing else decides.

Only our own types and click's are in it. Whatever is not is a bug of ours, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from hmdc_hub.cli._output import emphasised, talk
from hmdc_hub.errors import HmdcError, Interrupted, UsageError
from hmdc_hub.text import shortened

MOST = 2000
"""Characters of a message's line that are shown; a name or value that somebody gave may have millions."""


class Shown(NamedTuple):
    """How an error ends the program: exit status, what the line on stderr begins with, and the rest of it."""

    status: int
    word: str
    text: str


def _usage_of(error: click.UsageError) -> Shown:
    text = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return Shown(2, "", text)
    if error.ctx is not None:
        text += f"\nsee: {error.ctx.command_path} --help"
    return Shown(2, "error:", text)


FAILURES: tuple[tuple[type[BaseException], Callable[[Any], Shown]], ...] = (
    (Interrupted, lambda error: Shown(128 + error.signal_number, "", str(error))),
    (UsageError, lambda error: Shown(2, "error:", str(error))),
    (HmdcError, lambda error: Shown(1, "error:", str(error))),
    (click.UsageError, _usage_of),
    (click.ClickException, lambda error: Shown(error.exit_code, "error:", error.format_message())),
    (click.Abort, lambda error: Shown(130, "", "stopped at once")),
    (KeyboardInterrupt, lambda error: Shown(130, "", "stopped at once")),
)
"""Subclasses stand before their bases: the first line that fits is taken."""

BUG = "This is a bug in hmdc-hub. Please report it with the lines above and what `hmdc-hub env` prints."


def present(error: BaseException) -> int:
    """Tell the person on stderr what went wrong and return the exit status.

    That is 2 for what the user wrote, 1 for failures while running and for bugs, 130 or 143 for a stop asked for.
    """
    found = shown(error)
    if found is None:
        talk("".join(traceback.format_exception(error)) + BUG)
        return 1
    start = emphasised(found.word, sys.stderr, "red") + " " if found.word else ""
    talk(start + "\n".join(shortened(line, MOST) for line in found.text.splitlines()))
    return found.status


def shown(error: BaseException) -> Shown | None:
    """Say how an error ends the program; None for a bug of ours."""
    return next((show(error) for kind, show in FAILURES if isinstance(error, kind)), None)
