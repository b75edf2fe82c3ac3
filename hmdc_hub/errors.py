"""Every exception of hmdc-hub.

Each carries its facts as fields and a message in three parts: what was found (with the value), the rule it breaks,
and what to do next. `hmdc_hub.cli._output` turns a type into an exit status; nothing else does. A bug of ours is none
of these types and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hmdc_hub.text import count, shortened


class HmdcError(Exception):
    """Base of all errors that hmdc-hub raises on purpose.

    Args:
        message: What was found and the rule it breaks, as one or two sentences with the value in them.
        hint: The next command or edit, as one sentence; empty if the message says it already.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(HmdcError, ValueError):
    """What the user wrote or named is wrong: exit status 2, nothing was written."""


class RunError(HmdcError, RuntimeError):
    """Something failed while running: exit status 1."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a YAML file or override."""

    key: str  # dotted path, such as `condense.ipc`; empty for the file as a whole
    line: int | None  # from 1, in the file; None if the value came from `-o` or a default
    value: str  # what was written, shortened, as text
    rule: str  # what is allowed, as a clause such as "must be a whole number of at least 1"
    example: str = ""  # a line that would be right, such as `ipc: 10`; empty if there is none

    def __str__(self) -> str:
        what = " = ".join(shortened(part) for part in (self.key, self.value) if part)
        parts = (f"line {self.line}" if self.line is not None else "", what, shortened(self.rule, 2000))
        return ": ".join(part for part in parts if part)


SHOWN = 10  # problems that a message lists; more than anybody reads


class RecipeError(UsageError):
    """A recipe, a pool entry or an override breaks the schema; holds every problem found, not the first one.

    The message lists `SHOWN` of them, each part of them shortened.

    Args:
        where: The file or override the problems are in, as the user named it.
        problems: All of them, in the order of their lines.
    """

    def __init__(self, where: str, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.where = where
        self.problems = tuple(problems)
        lines = [f"{shortened(where)}: {count(len(self.problems), 'problem')}"]
        for p in self.problems[:SHOWN]:
            lines.append(f"  {p}")
            if p.example:
                lines.append(f"      for example  {shortened(p.example)}")
        if len(self.problems) > SHOWN:
            lines.append(f"  and {len(self.problems) - SHOWN:,} more")
        super().__init__("\n".join(lines), hint=hint)


class FormerNameWarning(FutureWarning):
    """A recipe or an override has a key or a value by the name it had in an earlier version; it was read."""


class NotFoundError(UsageError, LookupError):
    """A recipe, pool entry, run, file or dataset of that name does not exist."""


class SourceError(UsageError):
    """A source dataset cannot be used as the recipe says: a missing column, a corrupt image, a class without images."""


class ModelError(UsageError):
    """A pool entry names a model that cannot be built or does not fit the recipe."""


class DeviceError(UsageError):
    """The device that was asked for is not there."""


class RunExistsError(UsageError, FileExistsError):
    """The run directory holds a run of another recipe, or an unfinished one, and no flag says what to do with it."""


class FormatError(RunError):
    """A file of ours is damaged, or was written by a newer format version than this program reads."""


class NewerFormatError(FormatError):
    """A file of ours was written by a newer format version: not damage, and never to be overwritten as such."""


class NetworkError(RunError, ConnectionError):
    """The Hub or a download failed; what was there before is unchanged."""


class AccessError(RunError, PermissionError):
    """The Hub does not let this account or token do what was asked; nothing was changed by it."""


class DivergedError(RunError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the last good checkpoint was kept."""


class OutOfMemoryError(RunError, MemoryError):
    """The device has too little memory for this recipe."""


class PeerLostError(RunError):
    """Another process of the same run ended; what happened to it, it said itself."""


class Interrupted(HmdcError):  # noqa: N818  (not a failure: the user asked for it)
    """Ctrl-C or SIGTERM arrived and the work was stopped at a safe place.

    Args:
        signal_number: 2 for Ctrl-C (exit status 130), 15 for SIGTERM (143).
    """

    def __init__(self, message: str, *, signal_number: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.signal_number = signal_number
