"""What every worker process of ours needs: it starts, is interrupted and ends with the process that works with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from hmdc_hub.errors import RunError


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


def begin_worker() -> None:
    """Call first in a worker: it ignores Ctrl-C, which reaches the whole group, and ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
