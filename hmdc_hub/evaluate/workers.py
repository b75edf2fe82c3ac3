"""Runs trainings: in this process on a GPU, in worker processes of one thread each on a CPU.

Small networks gain nothing from several threads, and a training with one thread gives the same bits wherever it runs:
the number of workers decides how long it takes, never what comes out.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hmdc_hub.errors import OutOfMemoryError, RunError
from hmdc_hub.evaluate.baselines import TrainingSet
from hmdc_hub.evaluate.train import Images, Normalisation, Outcome, train_and_score
from hmdc_hub.events import StopFlag
from hmdc_hub.measures import FULL
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.processes import begin_worker, interrupts_held_back
from hmdc_hub.schema import EvaluateSpec
from hmdc_hub.sources import Source

POLL_SECONDS = 0.2

DIED_WORKING = "Run the same command again: finished trainings are kept. --workers 1 needs the least memory."
DIED_AT_START = (
    "--workers 1 needs the least memory. A Python script that evaluates must keep its own start behind "
    '`if __name__ == "__main__":`, or pass workers=1.'
)


@dataclass(frozen=True)
class Job:
    """One training: places in the protocol's models and in the list of training sets, and the seed."""

    model: int
    training_set: int
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of a training, and the seconds that it took."""

    outcome: Outcome
    seconds: float


class Bench:
    """Everything a training needs but its job: data on the device, and each model built once.

    Args:
        protocol: Says how.
        tensors: `test.images`, `test.labels`, `mean`, `std`, `classes`, `full` (place of the full set, or -1), and
            `<i>.images`, `<i>.labels` of training set i.
        device: Where trainings run.
    """

    def __init__(self, protocol: EvaluateSpec, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.protocol, self.device, self.tensors = protocol, device, tensors
        self.test = Images(tensors["test.images"], tensors["test.labels"]).to(device)
        mean, std = tensors["mean"], tensors["std"]
        self.normalise = Normalisation(mean.view(-1, 1, 1).to(device), std.view(-1, 1, 1).to(device))
        self.models: dict[int, PoolModel] = {}

    def run(self, job: Job, stop: StopFlag | None = None) -> Result:
        """Train a fresh network; `stop` is looked at after every epoch."""
        began = time.monotonic()
        train = Images(self.tensors[f"{job.training_set}.images"], self.tensors[f"{job.training_set}.labels"])
        full = int(self.tensors["full"]) == job.training_set
        with one_thread(self.device):
            outcome = train_and_score(
                self._model(job.model),
                train.to(self.device),
                self.test,
                self.normalise,
                self.protocol,
                job.seed,
                full=full,
                stop=stop,
            )
        return Result(outcome, time.monotonic() - began)

    def _model(self, place: int) -> PoolModel:
        if place not in self.models:
            channels, side = self.test.pixels.shape[1:3]
            self.models[place] = build_model(
                self.protocol.models[place],
                num_classes=int(self.tensors["classes"]),
                source_size=side,
                channels=channels,
                mean=self.tensors["mean"],
                std=self.tensors["std"],
            ).to(self.device)
        return self.models[place]


def bench_tensors(source: Source, sets: Sequence[TrainingSet]) -> dict[str, Tensor]:
    """Gather what a `Bench` reads."""
    tensors = {
        "test.images": source.test_images,
        "test.labels": source.test_labels,
        "mean": source.mean,
        "std": source.std,
        "classes": torch.tensor(source.train.num_classes),
        "full": torch.tensor(next((i for i, made in enumerate(sets) if made.name == FULL), -1)),
    }
    for i, training_set in enumerate(sets):
        tensors |= {f"{i}.images": training_set.images, f"{i}.labels": training_set.labels}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


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
    count = processes(device, workers, len(jobs))
    if count == 1:
        bench = Bench(protocol, tensors, device)
        for job in jobs:
            stop.raise_if_set("stopped between two trainings")
            try:
                result = bench.run(job, stop)
            except torch.OutOfMemoryError as error:
                raise OutOfMemoryError(
                    f"{device} has too little memory for this evaluation: {str(error).splitlines()[0]}",
                    hint="Lower evaluate.batch (-o evaluate.batch=64) or leave out the largest model.",
                ) from error
            yield job, result
        return
    with tempfile.TemporaryDirectory(prefix="hmdc-hub-") as folder:
        # A file that workers map into memory: no limits of shared memory, and one copy for all of them.
        data = Path(folder) / "data.safetensors"
        save_file(tensors, data)
        yield from _in_processes(protocol, data, jobs, count, stop)


def processes(device: torch.device, workers: int | None, jobs: int) -> int:
    """Count the processes that so many jobs are shared among, at least 1; 1 is this process itself."""
    if device.type != "cpu":
        return 1
    return max(1, min(usable_cores() if workers is None else workers, jobs))


def usable_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(
    protocol: EvaluateSpec, data: Path, jobs: Sequence[Job], count: int, stop: StopFlag
) -> Iterator[tuple[Job, Result]]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(count, context, _start_worker, (protocol.model_dump_json(), str(data)))
    working = False
    try:
        with interrupts_held_back():
            futures: dict[Future[Result], Job] = {executor.submit(_work, job): job for job in jobs}
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


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute with one thread on a CPU while the block runs: the bits are those that every worker gives."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
