"""From an error's type to an exit status and a sentence: one ordered map, and nothing else decides.

Only our own types and click's are in it. Whatever is not is a bug of ours, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hmdc_hub.cli.output import emphasised, talk
from hmdc_hub.errors import HmdcError, Interrupted, RunError, UsageError, shortened

MOST = 2000
"""Characters of a message's line that are shown; a name or value that somebody gave may have millions."""


@dataclass(frozen=True)
class Shown:
    """How an error ends the program.

    Attributes:
        status: Exit status.
        word: What the line on stderr begins with.
        text: The rest of it: what was found, the rule, the next command.
    """

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
    (RunError, lambda error: Shown(1, "error:", str(error))),
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

    Args:
        error: What a command raised.

    Returns:
        2 for what the user wrote, 1 for failures while running and for bugs, 130 or 143 for a stop that was asked for.
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


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG}


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk or a file system refuses into an error of ours; other operating system errors are bugs.

    Args:
        folder: Named where the system does not say which file it was.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, HmdcError) or error.errno not in _DISK:
            raise
        raise RunError(
            f"{error.filename or folder}: {error.strerror}; what the run had written before is unchanged.",
            hint="Once that is mended, the same command with --resume goes on.",
        ) from error
