"""Worker processes that do the parts of image steps on a CPU.

Threads share one interpreter, which lets one of them at a time start an operation: with small networks four threads do
hardly the work of two. Processes do not wait for one another. They have networks of their own, so ours can be trained
for the next step while these are matched; whoever has nothing else to do helps with the parts of a minibatch.

They take seconds to start, so a run begins with threads and goes on with a crew once that is `ready`; what comes out is
the same.
"""

from __future__ import annotations

import itertools
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from hmdc_hub.condense.team import Later, Values, one_thread
from hmdc_hub.condense.worker import Said, Traceback, as_arrays, as_tensors, serve
from hmdc_hub.errors import Interrupted, RunError
from hmdc_hub.events import StopFlag
from hmdc_hub.processes import (
    POLL_SECONDS,
    interrupts_held_back,
    wait_for_the_server,
    worker_context,
)
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source
from hmdc_hub.temporary import TemporaryFolder

_Result = TypeVar("_Result")

LONG_ENOUGH = 10.0
"""Seconds that threads have to notice that they are not needed any more; they do not keep the process from ending."""

CLOSING = "the condenser ended before its workers were there"
DIED = "A worker process of the condenser died, most often because memory ran out."
DIED_HINT = (
    "--resume goes on from the last checkpoint; --workers 1 needs the least memory, -o condense.memory=low less."
)


class AbandonedError(Exception):
    """The crew was sent home while somebody waited for it."""


@dataclass(order=True)
class _Order:
    """Something to do, those that others wait for first; without values: go home."""

    priority: int
    number: int
    task: str = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    values: Values | None = field(compare=False)
    plain: bool = field(compare=False, default=False)
    future: Future[Any] = field(compare=False, default_factory=Future)


class Crew:
    """Worker processes of one thread each; a `Team` once it is `ready`.

    Args:
        count: How many.
        recipe: What they build their networks from.
        source: Its images are written to a temporary file that the workers map.

    Attributes:
        at_once: See `Members`; may be set until the first work is given.
        failed: Why they could not be started, if so.
        peak_bytes: Most memory of the workers, summed, once they were sent home.
    """

    apart = True

    def __init__(self, count: int, recipe: Recipe, source: Source) -> None:
        self.count, self.failed, self.peak_bytes = count, "", 0
        self.at_once: int | None = None
        self._orders: queue.PriorityQueue[_Order] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._closing = threading.Event()
        self._workers: list[BaseProcess] = []
        self._serving: list[threading.Thread] = []
        self._stop = StopFlag()
        self._beside: threading.Thread | None = None
        self._started = threading.Event()
        self._starting = threading.Thread(target=self._start, args=(recipe, source), daemon=True)
        self._starting.start()

    @property
    def ready(self) -> bool:
        """Whether everybody can begin."""
        return self._started.is_set()

    def map(
        self, work: Callable[..., _Result], items: Iterable[tuple[Any, ...]], values: Values, *, plain: bool = False
    ) -> Iterator[_Result]:
        """See `Team`."""
        orders = [self._order(1, work, item, values, plain) for item in items]
        for order in orders:
            yield order.future.result()

    def parts(self, work: Callable[..., _Result], items: Sequence[tuple[Any, ...]], values: Values) -> list[_Result]:
        """See `Team`. The calling thread does those that no worker has begun."""
        orders = [self._order(0, work, item, values, False) for item in items[1:]]
        done: list[_Result] = []
        for item, order in zip(items, [None, *orders], strict=False):  # a rank may have no part at all
            if self._closing.is_set():
                raise AbandonedError
            done.append(work(*item) if order is None or order.future.cancel() else order.future.result())
        return done

    def aside(self, work: Callable[[], _Result]) -> Later[_Result]:
        """See `Team`; in a thread of its own."""
        future: Future[_Result] = Future()

        def do() -> None:
            one_thread()
            try:
                future.set_result(work())
            except BaseException as error:  # raised where somebody asks for the result
                future.set_exception(error)

        self._beside = threading.Thread(target=do, name="condense-aside", daemon=True)
        self._beside.start()
        return future

    def close(self, *, at_once: bool = False) -> None:
        """Send everybody home.

        Args:
            at_once: Give up what is going on; otherwise nobody may be at anything.
        """
        self._closing.set()
        self._stop.signal_number = signal.SIGTERM
        self._starting.join()
        if at_once:
            for worker in self._workers:
                worker.kill()
        for _ in self._serving:
            self._orders.put(_Order(-1, next(self._numbers), "", (), None))
        for thread in self._serving:
            thread.join(timeout=LONG_ENOUGH)
        while not self._orders.empty():
            self._orders.get().future.cancel()  # somebody may wait for it
        if self._beside is not None:
            self._beside.join(timeout=LONG_ENOUGH)
        for worker in self._workers:
            worker.join()

    def _order(
        self, priority: int, work: Callable[..., Any], item: tuple[Any, ...], values: Values, plain: bool
    ) -> _Order:
        order = _Order(priority, next(self._numbers), work.__name__, item, values, plain)
        self._orders.put(order)
        return order

    def _start(self, recipe: Recipe, source: Source) -> None:
        """Start everybody; runs beside the first steps of a run, which is why nothing here is raised."""
        try:
            with TemporaryFolder() as folder:
                bank = folder / "images"
                source.train.images.numpy().tofile(bank)
                facts = (recipe.model_dump_json(), source.info.model_dump_json(), source.train.offsets)
                ends = self._processes((*facts, str(bank)))
                for end in ends:
                    while not end.poll(POLL_SECONDS):
                        self._stop.raise_if_set(CLOSING)
                    end.recv()  # it has mapped the file, and built its networks
        except (OSError, EOFError, Interrupted) as error:
            self.failed = f"{type(error).__name__}: {error}"
            for worker in self._workers:
                worker.kill()
            return
        self._serving = [threading.Thread(target=self._serve, args=(end,), daemon=True) for end in ends]
        for thread in self._serving:
            thread.start()
        self._started.set()

    def _processes(self, facts: tuple[Any, ...]) -> list[Connection]:
        context, ends = worker_context(), []
        if context.get_start_method() == "forkserver":
            wait_for_the_server(context, self._stop, CLOSING)
        with interrupts_held_back():
            for _ in range(self.count):
                ours, theirs = context.Pipe()
                worker = context.Process(target=serve, args=(theirs, *facts), daemon=True)  # type: ignore[attr-defined]
                worker.start()
                theirs.close()
                self._workers.append(worker)
                ends.append(ours)
        return ends

    def _serve(self, end: Connection) -> None:
        """Give one worker its orders, one after another."""
        holds: Values | None = None
        while True:
            order = self._orders.get()
            if order.values is None:
                with suppress(AbandonedError):
                    self.peak_bytes += self._ask(end, ("peak",))
                end.close()
                return
            if not order.future.set_running_or_notify_cancel():
                continue
            try:
                if order.values is not holds:
                    holds = None  # until the worker has taken them: it must not work with others
                    self._ask(end, ("values", self.at_once, order.values.outer, order.values.tensors))
                    holds = order.values
                order.future.set_result(self._ask(end, (order.task, order.arguments, order.plain)))
            except Exception as error:  # whatever it is, it is raised where somebody waits for it
                order.future.set_exception(error)

    def _ask(self, end: Connection, question: tuple[Any, ...]) -> Any:
        try:
            end.send(as_arrays(question))
            answer = as_tensors(end.recv())
        except (EOFError, OSError) as error:
            raise AbandonedError if self._closing.is_set() else RunError(DIED, hint=DIED_HINT) from error
        if isinstance(answer, Said):
            raise RunError(answer.message, hint=answer.hint)
        if isinstance(answer, Traceback):
            raise RuntimeError(answer.text)
        return answer
