"""Doing independent things side by side on a CPU.

Small networks gain next to nothing from several threads inside one operation, and on a busy machine the threads'
waiting for one another costs more than the work. So on a CPU every operation of the condenser runs on one thread, and
several classes, or parts of a minibatch, are worked on at a time. What is cut and how it is summed is fixed, so that
the number of threads changes the time and never the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

SHARDS = 4
"""Parts of a minibatch; a fixed number, because sums of another cut differ in their last bits."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Threads:
    """Threads for one device.

    Args:
        device: On anything but a CPU work is done in the calling thread.
        count: Threads on a CPU; None for as many as torch would use.
    """

    def __init__(self, device: torch.device, count: int | None = None) -> None:
        self.parallel = device.type == "cpu"
        self.count = count or torch.get_num_threads()
        self._executor = ThreadPoolExecutor(self.count, "condense", _use_one_thread) if self.parallel else None

    def map(self, work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Do something for every item; results in the order of the items."""
        if self._executor is None:
            return [work(item) for item in items]
        return list(self._executor.map(work, items))

    def shards(self, images: Tensor) -> list[slice]:
        """Cut a minibatch into its fixed parts; one part where nothing runs in parallel."""
        parts = min(SHARDS, len(images)) if self.parallel else 1
        bounds = [len(images) * i // parts for i in range(parts + 1)]
        return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]

    @contextmanager
    def one_each(self) -> Iterator[None]:
        """Keep the calling thread to one thread per operation as well, and put the number back afterwards."""
        before = torch.get_num_threads()
        if self.parallel:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    # Holds for this thread alone: OpenMP and MKL keep the number per thread.
    torch.set_num_threads(1)
