"""What every worker process of ours needs: it starts, is interrupted and ends with the process that works with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import BaseContext

from hmdc_hub.errors import RunError
from hmdc_hub.events import StopFlag
from hmdc_hub.temporary import TemporaryFolder

POLL_SECONDS = 0.2
"""How long one waits for other processes before looking whether a stop was asked for."""


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Start worker processes in here: Ctrl-C then never reaches them, not even while they import torch.

    A process inherits the signals that are blocked where it starts; in this one a Ctrl-C arrives when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows; there `begin_worker` is early enough to be of use
        yield
        return
    resource_tracker.ensure_running()  # started by the first worker otherwise, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def refuse_within_a_start() -> None:
    """Raise RunError in a worker process that is only about to start.

    It imports the user's script first; a script that does its work on import would do it in every worker.
    """
    # What multiprocessing itself asks before it starts a process.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RunError(
            "A script started its work again in each of its own worker processes.",
            hint='Keep what the script does behind `if __name__ == "__main__":`, or pass workers=1.',
        )


def worker_context() -> BaseContext:
    """Say how workers start: forked from a server that imports libraries once for all of them and computes nothing.

    A fork of this process, with torch's threads at work, may hang; a process that imports all for itself takes five
    seconds. Apple's libraries allow no fork once they are loaded.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    _folder_of_sockets()
    context = multiprocessing.get_context("forkserver")
    loaded = [name for name in sys.modules if name.startswith(("hmdc_hub.", "timm.models.", "transformers.models."))]
    wanted = [name for name in loaded if not name.startswith("transformers") or ".modeling_" in name]
    context.set_forkserver_preload(["torch._dynamo", *wanted])  # of no effect on a server that runs
    return context


_SOCKET = len("/pymp-12345678/listener-12345678")
_LONGEST_SOCKET = 107
"""Bytes of a socket's path on Linux."""


@cache
def _folder_of_sockets() -> TemporaryFolder:
    """Have multiprocessing make its folder of sockets in one of ours, which does not stay if this process is killed."""
    folder, before = TemporaryFolder(), tempfile.tempdir
    if len(os.fsencode(folder.path)) + _SOCKET <= _LONGEST_SOCKET:
        tempfile.tempdir = str(folder.path)
        try:
            util.get_temp_dir()  # it makes one, once
        finally:
            tempfile.tempdir = before
    return folder


def wait_for_the_server(context: BaseContext, stop: StopFlag, message: str) -> None:
    """Start the server of forks and wait until it has imported everything; a stop is heard meanwhile.

    Args:
        context: As `worker_context` gives it, not of the kind that spawns.
        stop: Looked at all the time.
        message: Of the stop.

    Raises:
        EOFError, ConnectionError: The server ended.
        Interrupted: `stop` was set.
    """
    with interrupts_held_back():
        forkserver.ensure_running()
    first, ended = context.Process(target=_nothing), list[BaseException]()  # type: ignore[attr-defined]

    def start() -> None:
        try:
            first.start()  # returns when the server answers
        except (EOFError, ConnectionError) as error:
            ended.append(error)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    while starting.is_alive():
        starting.join(POLL_SECONDS)
        stop.raise_if_set(message)
    if ended:
        raise ended[0]
    first.join()


def _nothing() -> None:
    """Do nothing, in a process whose start says that others can start."""


@dataclass(frozen=True)
class Launched:
    """What torchrun tells each of the processes that it starts.

    Attributes:
        index: Which one, from 0; `count` how many there are.
        local: Number on its machine, from 0: its GPU.
        store: Host and port where the processes can tell each other something, if torchrun hosts that.
        attempt: How often torchrun started them anew.
    """

    index: int
    count: int
    local: int
    store: tuple[str, int] | None
    attempt: int


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Read what torchrun tells this process; None outside of it, and where it is the only one."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    index, count, local = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"])) if hosted else None
    attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return Launched(index, count, local, store, attempt) if count > 1 else None


def usable_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin_worker() -> None:
    """Call first in a worker: it ignores Ctrl-C, which reaches the whole group, and ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
