"""What every worker process of ours needs: it starts, is interrupted and ends with the process that works with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Listener, wait
from multiprocessing.context import BaseContext
from typing import Any

from hmdc_hub.events import StopFlag
from hmdc_hub.temporary import TemporaryFolder

POLL_SECONDS = 0.2
"""How long one waits for other processes before looking whether a stop was asked for."""


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes in here: no Ctrl-C reaches them, and they do not import the script of this one.

    What they do is in this package. So a script need not keep what it does behind `if __name__ == "__main__":`, and
    never runs twice.
    """
    main = vars(sys.modules["__main__"])
    script: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None  # what multiprocessing imports in a new process is named by these two
    try:
        with _interrupts_held_back():
            yield
    finally:
        main.update(script)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold back Ctrl-C, also while a worker imports torch.

    A process inherits the signals that are blocked where it starts; in this one a Ctrl-C arrives when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows; there `begin_worker` is early enough to be of use
        yield
        return
    multiprocessing.get_context("spawn").Lock()  # a first one starts multiprocessing's tracker, which unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_context(preload: Sequence[str] = ()) -> BaseContext:
    """Say how workers start: forked from a server that imports libraries once for all of them and computes nothing.

    A fork of this process, with torch's threads at work, may hang; a process that imports all for itself takes five
    seconds. Apple's libraries allow no fork once they are loaded.

    Args:
        preload: Modules that the server imports beside those of ours and of the models that are loaded here.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    _folder_of_sockets()
    context = multiprocessing.get_context("forkserver")
    loaded = [name for name in sys.modules if name.startswith(("hmdc_hub.", "timm.models.", "transformers.models."))]
    wanted = [name for name in loaded if not name.startswith("transformers") or ".modeling_" in name]
    context.set_forkserver_preload([*preload, *wanted])  # of no effect on a server that runs
    return context


@cache
def _folder_of_sockets() -> TemporaryFolder:
    """Have multiprocessing make its folder of sockets in one of ours, which does not stay if this process is killed."""
    folder, before = TemporaryFolder(), tempfile.tempdir
    # The path of a socket has at most 107 bytes on Linux.
    if len(os.fsencode(folder.path)) + len("/pymp-12345678/listener-12345678") <= 107:
        tempfile.tempdir = str(folder.path)
        try:
            Listener(family="AF_UNIX").close()  # the folder is made for the first socket
        finally:
            tempfile.tempdir = before
    return folder


def start_server(context: BaseContext, stop: StopFlag, message: str) -> None:
    """Start the server of forks and wait until it has imported everything; does nothing where workers are spawned.

    Args:
        context: As `worker_context` gives it.
        stop: Looked at all the time.
        message: Of the stop.

    Raises:
        EOFError, ConnectionError: The server ended.
        Interrupted: `stop` was set.
    """
    if context.get_start_method() != "forkserver":
        return
    first, ended = context.Process(target=_nothing), list[BaseException]()  # type: ignore[attr-defined]

    def start() -> None:
        try:
            with starting_workers():  # of this thread, from which the server inherits
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
        wait([parent.sentinel])
        os._exit(1)
