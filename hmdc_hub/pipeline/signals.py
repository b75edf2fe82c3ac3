"""Ctrl-C and SIGTERM: the first asks for a stop at a safe place, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hmdc_hub.errors import Interrupted
from hmdc_hub.events import StopFlag

ASKED = "stopping at the next safe place; once more to stop at once"


@contextmanager
def stop_on_signals(flag: StopFlag | None = None) -> Iterator[StopFlag]:
    """Give a flag that SIGINT and SIGTERM set while the block runs; the handlers of before come back afterwards.

    A caller with a flag of its own decides itself what stops it, and outside the main thread no signal arrives.

    Raises:
        KeyboardInterrupt: At the second signal, if that is SIGINT.
        Interrupted: At the second signal, if that is SIGTERM.
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
