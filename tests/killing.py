"""Kills work, or fills its disk, at any of the file operations that it makes below a folder; Linux alone."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

Fault = Literal["none", "kill", "full"]
KILLED = 137
_ALLOCATES = ("open", "mkdir", "fsync", "pwrite", "sendfile")
_AUDITED = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir"}


class Ended(NamedTuple):
    """How forked work ended: its exit status, the file operations it made or tried, and what it said."""

    status: int
    operations: list[str]
    said: str


def forked(work: Callable[[], int], folder: Path, fault: Fault = "none", at: int = 0) -> Ended:
    """Do work in a fork of this process, with a fault at one of its file operations.

    Args:
        work: Returns an exit status; what it raises is said as a traceback, status 1.
        folder: Operations on it and on what is beside or below it count: files opened for writing, made, renamed,
            removed, written through descriptors.
        fault: `kill` ends the process before the operation, or in the middle of copied data; `full`: from this
            operation on, whatever needs space is refused.
        at: Which operation, from 1.
    """
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: this one starts none
        child = os.fork()
    if child == 0:
        os.close(out)
        _Faults(folder, fault, at, into).install()
        os.dup2(into, 1)
        os.dup2(into, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(into)
    with os.fdopen(out, errors="replace") as reader:
        text = reader.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = text.splitlines()
    marks = [line.removeprefix("\0") for line in lines if line.startswith("\0")]
    return Ended(status, marks, "\n".join(line for line in lines if not line.startswith("\0")))


class _Faults:
    def __init__(self, folder: Path, fault: Fault, at: int, report: int) -> None:
        self.root, self.fault, self.at, self.report = os.path.abspath(folder), fault, at, report
        self.done, self.full, self.inside = 0, False, False

    def install(self) -> None:
        sys.addaudithook(self.audit)
        for name in ("fsync", "pwrite", "sendfile"):
            setattr(os, name, self.wrapped(name, getattr(os, name)))

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.operation("open", os.fsdecode(path))
        elif event in _AUDITED and isinstance(args[0], str | bytes | os.PathLike):
            self.operation(_AUDITED[event], os.fsdecode(args[0]))

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            half = (lambda: real(descriptor, *rest[:-1], max(1, rest[-1] // 2))) if name == "sendfile" else None
            self.operation(name, path, half)
            return real(descriptor, *rest)

        return call

    def operation(self, name: str, path: str, half: Callable[[], object] | None = None) -> None:
        path = os.path.abspath(path)
        if self.inside or not path.startswith(self.root):
            return
        self.inside = True  # what is done in here is not the work's
        self.done += 1
        os.write(self.report, f"\n\0{name} {os.path.relpath(path, os.path.dirname(self.root))}\n".encode())
        hit = self.done == self.at
        self.full = self.full or (hit and self.fault == "full")
        if hit and self.fault == "kill":
            if half is not None:
                half()
            os._exit(KILLED)
        self.inside = False
        if self.full and name in _ALLOCATES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
