"""Ctrl-C and SIGTERM: the first asks for a stop at a safe place, the second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hmdc_hub.errors import Interrupted
from hmdc_hub.events import StopFlag

ASKED = "stopping at the next safe place; once more to stop at once"


@contextmanager
def stop_on_signals(flag: StopFlag, say: Callable[[str], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM set the flag while the block runs; the handlers of before come back afterwards.

    Args:
        flag: What the work looks at between its steps.
        say: Told once, when the first signal arrives.

    Raises:
        KeyboardInterrupt: At the second signal, if that is SIGINT.
        Interrupted: At the second signal, if that is SIGTERM.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.signal_number:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise Interrupted("stopped at once", signal_number=number)
        flag.signal_number = number
        say(ASKED)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
