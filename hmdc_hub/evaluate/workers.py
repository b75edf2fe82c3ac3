"""Runs trainings: in this process on a GPU, in worker processes of one thread each on a CPU.

Small networks gain nothing from several threads, and a training with one thread gives the same bits wherever it runs:
the number of workers decides how long it takes, never what comes out.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hmdc_hub.errors import OutOfMemoryError, RunError
from hmdc_hub.evaluate.bench import Bench, Job, Result
from hmdc_hub.events import StopFlag
from hmdc_hub.processes import (
    POLL_SECONDS,
    begin_worker,
    interrupts_held_back,
    usable_cores,
    wait_for_the_server,
    worker_context,
)
from hmdc_hub.schema import EvaluateSpec
from hmdc_hub.temporary import TemporaryFolder

DIED_WORKING = "Run the same command again: finished trainings are kept. --workers 1 needs the least memory."
DIED_AT_START = (
    "--workers 1 needs the least memory. A Python script that evaluates must keep its own start behind "
    '`if __name__ == "__main__":`, or pass workers=1.'
)


def run_jobs(
    protocol: EvaluateSpec,
    tensors: dict[str, Tensor],
    jobs: Sequence[Job],
    *,
    device: torch.device,
    workers: int | None,
    stop: StopFlag,
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with its result as it is done, in any order.

    Args:
        protocol: Says how.
        tensors: As `bench_tensors` makes them.
        jobs: Longest first, for a short end.
        device: On anything but a CPU the jobs run in this process, one after another.
        workers: Processes; None for one per usable core. See `processes`.
        stop: Looked at all the time.

    Raises:
        Interrupted: `stop` was set; running trainings are given up.
        OutOfMemoryError: The device ran out of memory.
        RunError: A worker process died.
    """
    if not jobs:
        return
    count = processes(device, workers, len(jobs))
    if count == 1:
        bench = Bench(protocol, tensors, device)
        try:
            for group in _groups(jobs, device):
                stop.raise_if_set("stopped between two trainings")
                yield from zip(group, bench.run_together(group, stop), strict=True)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{device} has too little memory for this evaluation: {str(error).splitlines()[0]}",
                hint="Lower evaluate.batch (-o evaluate.batch=64) or leave out the largest model.",
            ) from error
        return
    stop.raise_if_set("stopped between two trainings")  # starting processes takes seconds, in which nobody listens
    with TemporaryFolder() as folder:
        # A file that workers map into memory: no limits of shared memory, and one copy for all of them.
        data = folder / "data.safetensors"
        try:
            save_file(tensors, data)
        except SafetensorError as error:
            raise RunError(
                f"{folder}: cannot write {sum(tensor.nbytes for tensor in tensors.values()):,} bytes: {error}",
                hint="TMPDIR names a folder of temporary files elsewhere; --workers 1 needs none.",
            ) from error
        yield from _in_processes(protocol, data, jobs, count, stop)


def _groups(jobs: Sequence[Job], device: torch.device) -> list[list[Job]]:
    """Put the seeds of one model on one training set together, but on a CPU, where that is never faster."""
    if device.type == "cpu":
        return [[job] for job in jobs]
    groups: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.model, job.training_set), []).append(job)
    return list(groups.values())


def processes(device: torch.device, workers: int | None, jobs: int) -> int:
    """Count the processes that so many jobs are shared among, at least 1; 1 is this process itself."""
    if device.type != "cpu":
        return 1
    return max(1, min(usable_cores() if workers is None else workers, jobs))


def _in_processes(
    protocol: EvaluateSpec, data: Path, jobs: Sequence[Job], count: int, stop: StopFlag
) -> Iterator[tuple[Job, Result]]:
    others, context = set(multiprocessing.active_children()), worker_context()
    executor = ProcessPoolExecutor(count, context, _start_worker, (protocol.model_dump_json(), str(data)))
    working = False
    try:
        futures = _submitted(executor, context, jobs, stop)
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield futures[future], future.result()
                working = True
            stop.raise_if_set("stopped between two trainings")
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # nobody waits for what they are at
        if not isinstance(error, BrokenProcessPool):
            raise
        stop.raise_if_set("stopped between two trainings")  # a signal to the whole group reached the workers too
        raise RunError(
            "A worker process of the evaluation died, most often because memory ran out.",
            hint=DIED_WORKING if working else DIED_AT_START,
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _submitted(
    executor: ProcessPoolExecutor, context: BaseContext, jobs: Sequence[Job], stop: StopFlag
) -> dict[Future[Result], Job]:
    """Start the workers; a server of forks that a signal or the lack of memory ended is a worker that died."""
    try:
        if context.get_start_method() == "forkserver":
            wait_for_the_server(context, stop, "stopped between two trainings")
        with interrupts_held_back():
            return {executor.submit(_work, job): job for job in jobs}
    except (EOFError, ConnectionError) as error:
        raise BrokenProcessPool("the server of forks ended") from error


_bench: Bench | None = None
"""Of a worker process; made once by `_start_worker`."""


def _start_worker(protocol_json: str, data: str) -> None:
    global _bench
    begin_worker()
    torch.set_num_threads(1)
    _bench = Bench(EvaluateSpec.model_validate_json(protocol_json), load_file(data), torch.device("cpu"))


def _work(job: Job) -> Result:
    if _bench is None:
        raise RuntimeError("the worker was not started by _start_worker")
    return _bench.run(job)
