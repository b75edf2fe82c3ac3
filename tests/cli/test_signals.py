"""Ctrl-C and SIGTERM, sent for real."""

from __future__ import annotations

import os
import signal

import pytest

from hmdc_hub.cli.signals import ASKED, stop_on_signals
from hmdc_hub.errors import Interrupted
from hmdc_hub.events import StopFlag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: signal.Signals) -> None:
    flag, said = StopFlag(), list[str]()
    with stop_on_signals(flag, said.append):
        os.kill(os.getpid(), number)
        assert flag.signal_number == number and said == [ASKED]
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
    first: signal.Signals, second: signal.Signals, error: type[BaseException]
) -> None:
    said: list[str] = []
    with pytest.raises(error), stop_on_signals(StopFlag(), said.append):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
    assert said == [ASKED]


def test_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(StopFlag(), lambda text: None):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
