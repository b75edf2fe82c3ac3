"""How processes work together: what each is told, how signals stop it, how workers start and end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Listener, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hmdc_hub.errors import Interrupted, UsageError
from hmdc_hub.events import Callback, StopFlag, silent
from hmdc_hub.temporary import claim, remove_abandoned

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 0.2  # how long one waits for other processes before looking whether a stop was asked for
ASKED = "stopping at the next safe place; once more to stop at once"


@dataclass(frozen=True)
class Launched:
    """One of several processes that share work: what torchrun tells it, or `--share K/N`."""

    index: int  # from 0
    count: int
    local: int = 0  # number on its machine, from 0: its GPU
    store: tuple[str, int] | None = None  # host and port where they can tell each other something, if torchrun does
    attempt: int = 0  # how often torchrun started them anew
    by_hand: bool = False  # with --share, which any number of commands may name at any time

    @property
    def leads(self) -> bool:
        """Whether this process waits for the others and puts together what they did."""
        return self.index == 0 and not self.by_hand

    def __str__(self) -> str:
        """Write it as `--share` takes it."""
        return f"{self.index + 1}/{self.count}"


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Read what torchrun tells this process; None outside of it, and where it is the only one."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    index, count, local = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"])) if hosted else None
    attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return Launched(index, count, local, store, attempt) if count > 1 else None


def parse_share(text: str) -> Launched:
    """Read `2/4`, the second of four shares; UsageError if it is not of that form."""
    match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageError(f"--share {text} must be K/N with K from 1 to N, such as 2/4.")
    return Launched(int(match[1]) - 1, int(match[2]), by_hand=True)


@dataclass(frozen=True)
class Work:
    """How long work is done, whatever it is: where, with whom, who hears of it, what stops it."""

    device: torch.device
    # Processes of an evaluation on a CPU; 0 or 1: this one alone; None: one per core, if that pays.
    workers: int | None = None
    callback: Callback = silent
    stop: StopFlag = field(default_factory=StopFlag)  # looked at between steps and trainings
    reuse: bool = True  # take trainings that earlier evaluations did; False: do all, and keep them there
    share: Launched | None = None  # the part of the trainings that is done here
    cache: Path | None = None  # folder of trainings on real images, which are done once for all sets; None: the user's

    @property
    def assists(self) -> bool:
        """Whether another process puts together what is done here."""
        return self.share is not None and not self.share.leads


@contextmanager
def stop_on_signals(flag: StopFlag | None = None) -> Iterator[StopFlag]:
    """Give a flag that SIGINT and SIGTERM set while the block runs; the handlers of before come back afterwards.

    The second signal stops at once: SIGINT by KeyboardInterrupt, SIGTERM by Interrupted. A caller with a flag of its
    own decides itself what stops it, and outside the main thread no signal arrives.
    """
    if flag is not None or threading.current_thread() is not threading.main_thread():
        yield flag or StopFlag()
        return
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.signal_number:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise Interrupted("stopped at once", signal_number=number)
        flag.signal_number = number
        with suppress(OSError):  # not through the stream, which may be in the middle of a write
            os.write(2, f"\n{ASKED}\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes in here: no Ctrl-C reaches them, and they do not import the script of this one.

    What they do is in this package. So a script need not keep what it does behind `if __name__ == "__main__":`, and
    never runs twice. A process inherits the signals that are blocked where it starts, so that none comes through while
    a worker imports torch either; in this process a Ctrl-C arrives when the block ends.
    """
    main, before = vars(sys.modules["__main__"]), None
    script: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None  # what multiprocessing imports in a new process is named by these two
    try:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows, where `begin_worker` is early enough to be of use
            # The first lock starts multiprocessing's tracker, which unblocks signals.
            multiprocessing.get_context("spawn").Lock()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        main.update(script)


def worker_context(preload: Sequence[str] = ()) -> BaseContext:
    """Say how workers start: forked from a server that imports libraries once for all of them and computes nothing.

    A fork of this process, with torch's threads at work, may hang; a process that imports all for itself takes five
    seconds. Apple's libraries allow no fork once they are loaded, and where TMPDIR is too long a path for sockets there
    is no server. It imports `preload` beside those modules of ours and of the models that are loaded here.
    """
    if sys.platform != "linux" or not _claim_folder_of_sockets():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    loaded = [name for name in sys.modules if name.startswith(("hmdc_hub.", "timm.models.", "transformers.models."))]
    wanted = [name for name in loaded if not name.startswith("transformers") or ".modeling_" in name]
    context.set_forkserver_preload([*preload, *wanted])  # of no effect on a server that runs
    return context


@cache
def _claim_folder_of_sockets() -> bool:
    """Have multiprocessing make its folder of sockets, which will then not stay if this process is killed.

    False where its path is too long for one.
    """
    remove_abandoned()
    try:
        with Listener(family="AF_UNIX") as first:
            claim(Path(first.address).parent)
    except OSError:
        return False
    return True


def start_server(context: BaseContext, stop: StopFlag, message: str) -> None:
    """Start the server of forks and wait until it has imported everything; does nothing where workers are spawned.

    EOFError or ConnectionError if the server ended; Interrupted, with this message, if `stop` was set meanwhile.
    """
    if context.get_start_method() != "forkserver":
        return
    # A process that does nothing: its start says that others can start.
    first, ended = context.Process(target=os.getpid), list[BaseException]()  # type: ignore[attr-defined]

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


def usable_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin_worker() -> None:
    """Call first in a worker: it ignores Ctrl-C, which reaches the whole group, and ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
