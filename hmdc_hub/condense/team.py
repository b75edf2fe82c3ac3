"""Doing independent things side by side on a CPU: what is asked of whoever does them, and threads that do.

Small networks gain next to nothing from several threads inside one operation, and on a busy machine the threads'
waiting for one another costs more than the work. So on a CPU every operation of the condenser runs on one thread, and
several classes, or parts of a minibatch, are worked on at a time. What is cut and how it is summed is fixed, so that
neither the number of threads nor that of processes (`crew.Crew`) ever changes the bits, only the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from hmdc_hub.condense.class_gradient import plain_attention

_Result = TypeVar("_Result")
_Covariant = TypeVar("_Covariant", covariant=True)


class Values:
    """Values of the networks and alignments at one moment, for whoever has networks of its own.

    Args:
        outer: Outer iteration, which says who is in the pool.
        take: Gives them; called when they are first needed, at the latest by `tensors`.
    """

    def __init__(self, outer: int, take: Callable[[], Mapping[str, Tensor]]) -> None:
        self.outer, self._take = outer, take

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Copies, by name."""
        return {name: value.clone() for name, value in self._take().items()}


class Later(Protocol[_Covariant]):
    """Work that is going on, or waits for somebody to ask for its result."""

    def result(self) -> _Covariant:
        """Wait for the result, and raise what the work raised."""


class Team(Protocol):
    """Whoever does independent parts of a step side by side.

    Attributes:
        count: How many are done at a time.
        apart: Whether they have networks of their own, so that ours may change meanwhile.
    """

    count: int
    apart: bool

    def map(
        self, work: Callable[..., _Result], items: Iterable[tuple[Any, ...]], values: Values, *, plain: bool = False
    ) -> Iterator[_Result]:
        """Call a method of `Hand` for every item; results in the order of the items.

        Args:
            work: The method.
            items: Its arguments.
            values: Of the networks it works with.
            plain: Whether attention is to be computed plainly, for a second derivative.
        """

    def parts(self, work: Callable[..., _Result], items: Sequence[tuple[Any, ...]], values: Values) -> list[_Result]:
        """Do the same for parts of one thing that others wait for; `values` are those of our networks now."""

    def aside(self, work: Callable[[], _Result]) -> Later[_Result]:
        """Do something beside what `map` does, if that may be; otherwise when its result is asked for."""


class Threads:
    """Threads of this process, which share its networks.

    Args:
        device: On anything but a CPU work is done in the calling thread.
        count: Threads on a CPU; None for as many as torch would use.
    """

    apart = False

    def __init__(self, device: torch.device, count: int | None = None) -> None:
        self.count = (count or torch.get_num_threads()) if device.type == "cpu" else 1
        self._on_cpu = device.type == "cpu"
        self._executor = ThreadPoolExecutor(self.count, "condense", one_thread) if self._on_cpu else None

    def map(
        self, work: Callable[..., _Result], items: Iterable[tuple[Any, ...]], values: Values, *, plain: bool = False
    ) -> Iterator[_Result]:
        """See `Team`; `values` are those that our networks have."""
        if not plain:
            yield from self._side_by_side(work, items)
            return
        with plain_attention():
            yield from self._side_by_side(work, items)

    def parts(self, work: Callable[..., _Result], items: Sequence[tuple[Any, ...]], values: Values) -> list[_Result]:
        """See `Team`."""
        return list(self._side_by_side(work, items))

    def aside(self, work: Callable[[], _Result]) -> Later[_Result]:
        """Do it when its result is asked for: it changes the networks that everything else here reads."""
        return WhenAsked(work)

    def _side_by_side(self, work: Callable[..., _Result], items: Iterable[tuple[Any, ...]]) -> Iterator[_Result]:
        if self._executor is None or self.count == 1:
            return (work(*item) for item in items)
        return self._executor.map(lambda item: work(*item), items)

    @contextmanager
    def one_each(self) -> Iterator[None]:
        """Keep the calling thread to one thread per operation as well, and put the number back afterwards."""
        before = torch.get_num_threads()
        if self._on_cpu:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


class WhenAsked(Generic[_Result]):
    """Work that begins when its result is asked for."""

    def __init__(self, work: Callable[[], _Result]) -> None:
        self._work = work

    def result(self) -> _Result:
        """Do it."""
        return self._work()


def one_thread() -> None:
    """Keep the calling thread to one thread per operation; for a thread or process that has just begun."""
    torch.set_num_threads(1)
