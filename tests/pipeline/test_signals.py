"""Ctrl-C and SIGTERM, sent for real."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from hmdc_hub.errors import Interrupted
from hmdc_hub.events import StopFlag
from hmdc_hub.processes import ASKED, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals() as flag:
        os.kill(os.getpid(), number)
        assert flag.signal_number == number and capfd.readouterr().err == f"\n{ASKED}\n"
    with pytest.raises(Interrupted, match="here") as caught:
        flag.raise_if_set("here")
    assert caught.value.signal_number == number


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        (signal.SIGINT, signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, signal.SIGTERM, Interrupted),
    ],
)
def test_the_second_signal_stops_at_once(
    first: signal.Signals, second: signal.Signals, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error), stop_on_signals():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
    assert capfd.readouterr().err == f"\n{ASKED}\n"


def test_a_flag_of_the_callers_own_is_the_only_one() -> None:
    own, before = StopFlag(), signal.getsignal(signal.SIGINT)
    with stop_on_signals(own) as flag:
        assert flag is own and signal.getsignal(signal.SIGINT) == before


def test_another_thread_gets_no_signals() -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(lambda: stop_on_signals().__enter__()).result() == StopFlag()


def test_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
