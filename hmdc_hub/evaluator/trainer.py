"""Runs trainings: in this process on a GPU, in worker processes of one thread each on a CPU.

Small networks gain nothing from several threads, and a training with one thread gives the same bits wherever it runs:
the number of workers decides how long it takes, never what comes out.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hmdc_hub.errors import OutOfMemoryError, RunError
from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.train import Images, Normalisation, TrainingResult, train_and_score, train_and_score_stacked
from hmdc_hub.events import StopFlag
from hmdc_hub.metrics import FULL
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.processes import POLL_SECONDS, begin_worker, start_server, starting_workers, usable_cores, worker_context
from hmdc_hub.schema import EvaluateSpec
from hmdc_hub.sources import Source
from hmdc_hub.temporary import TemporaryFolder

PROBE_STEPS = 5

BETWEEN = "stopped between two trainings"


@dataclass(frozen=True)
class TrainingJob:
    """One training: indices into the protocol's models and the list of training sets, and the seed."""

    model: int
    training_set: int
    seed: int


class Trainer:
    """Everything a training needs but its job: data on the device, and each model built once.

    Args:
        protocol: Says how.
        tensors: As `training_tensors` gathers them.
        device: Where trainings run.
        clock: Gives seconds.

    Attributes:
        stacked: Whether the seeds of a model, on a training set, train faster as one; as far as it was measured.
    """

    def __init__(
        self,
        protocol: EvaluateSpec,
        tensors: dict[str, Tensor],
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.protocol, self.device, self.tensors, self.clock = protocol, device, tensors, clock
        self.test = Images(tensors["test.images"], tensors["test.labels"]).to(device)
        mean, std = tensors["mean"], tensors["std"]
        self.normalise = Normalisation(mean.view(-1, 1, 1).to(device), std.view(-1, 1, 1).to(device))
        self.models: dict[int, PoolModel] = {}
        self.stacked: dict[tuple[int, int], bool] = {}

    def run(self, job: TrainingJob, stop: StopFlag | None = None) -> TrainingResult:
        """Train a fresh network; `stop` is looked at after every epoch."""
        return self._train([job], stacked=False, stop=stop)[0]

    def run_seeds(self, jobs: Sequence[TrainingJob], stop: StopFlag | None = None) -> Iterator[TrainingResult]:
        """Train jobs that differ in their seeds alone: as one where that is measured to be faster here.

        Yields:
            Their results in order, each as soon as it is there.
        """
        if len(jobs) > 1 and not self.protocol.best_every and self._faster_stacked(jobs):
            try:
                results = self._train(jobs, stacked=True, stop=stop)
            except torch.OutOfMemoryError:
                self.stacked[jobs[0].model, jobs[0].training_set] = False
            else:
                yield from results
                return
        for job in jobs:
            yield self.run(job, stop)

    def _faster_stacked(self, jobs: Sequence[TrainingJob]) -> bool:
        """Measure a few steps of both ways; found out once."""
        key = jobs[0].model, jobs[0].training_set

        def seconds_of_steps(some: Sequence[TrainingJob], stacked: bool) -> float:
            # What is no step, such as a reset, is the same at both lengths; the first, of one step, is warm-up.
            _, short, long = (
                len(some) * self._train(some, stacked=stacked, steps=steps)[0].seconds
                for steps in (1, PROBE_STEPS, 3 * PROBE_STEPS)
            )
            return long - short

        if key not in self.stacked:
            try:
                one = seconds_of_steps(jobs[:1], stacked=False)
                self.stacked[key] = seconds_of_steps(jobs, stacked=True) < len(jobs) * one
            except torch.OutOfMemoryError:
                self.stacked[key] = False
        return self.stacked[key]

    def _train(
        self, jobs: Sequence[TrainingJob], *, stacked: bool, steps: int | None = None, stop: StopFlag | None = None
    ) -> list[TrainingResult]:
        """Train one job, or several as one; with `steps` so many, scored on one image, to be timed."""
        first, protocol, test = jobs[0], self.protocol, self.test
        names = (f"{first.training_set}.images", f"{first.training_set}.labels")
        full = int(self.tensors["full"]) == first.training_set
        if steps is not None:
            protocol, full = protocol.model_copy(update={"steps": steps}), False
            test = Images(test.pixels[:1], test.labels[:1])
        began = self.clock()
        train = Images(*(self.tensors[name] for name in names)).to(self.device)
        with one_thread(self.device):
            model = self._model(first.model)
            if stacked:
                seeds = [job.seed for job in jobs]
                results = train_and_score_stacked(
                    model, train, test, self.normalise, protocol, seeds, full=full, stop=stop
                )
            else:
                result = train_and_score(model, train, test, self.normalise, protocol, first.seed, full=full, stop=stop)
                results = [result]
        seconds = (self.clock() - began) / len(jobs)
        return [replace(result, seconds=seconds) for result in results]

    def _model(self, index: int) -> PoolModel:
        if index not in self.models:
            channels, side = self.test.pixels.shape[1:3]
            model = build_model(
                self.protocol.models[index],
                num_classes=int(self.tensors["classes"]),
                source_size=side,
                channels=channels,
                mean=self.tensors["mean"],
                std=self.tensors["std"],
            ).to(self.device)
            if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
                # A ResNet's step takes two thirds of the time; a ConvNet with instance norm is slower that way.
                model = model.to(memory_format=torch.channels_last)
            self.models[index] = model
        return self.models[index]


def training_tensors(source: Source, sets: Sequence[TrainingSet]) -> dict[str, Tensor]:
    """Gather what a `Trainer` reads; `full` is the index of the full set or -1, `<i>.images` are of training set i."""
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


def worker_count(device: torch.device, workers: int | None, jobs: int) -> int:
    """Count the processes that so many jobs are shared among, at least 1; 1 is this process itself."""
    if device.type != "cpu":
        return 1
    return max(1, min(usable_cores() if workers is None else workers, jobs))


def run_jobs(
    protocol: EvaluateSpec,
    tensors: dict[str, Tensor],
    jobs: Sequence[TrainingJob],
    *,
    device: torch.device,
    workers: int | None,
    stop: StopFlag,
) -> Iterator[tuple[TrainingJob, TrainingResult]]:
    """Yield each job with its result as it is done, in any order.

    Args:
        protocol: Says how. Trainings of its models from this Python session run in this process.
        tensors: As `training_tensors` gathers them.
        jobs: Longest first, for a short end.
        device: On anything but a CPU the jobs run in this process, one after another.
        workers: Processes; None for one per usable core. See `worker_count`.
        stop: Looked at all the time.

    Raises:
        Interrupted: `stop` was set; running trainings are given up.
        OutOfMemoryError: The device ran out of memory.
        RunError: A worker process died.
    """
    alone = worker_count(device, workers, len(jobs)) == 1
    here = [job for job in jobs if alone or protocol.models[job.model].source == "python"]
    others = [job for job in jobs if job not in here]
    if here:
        yield from _run_here(protocol, tensors, here, device, stop)
    if others:
        stop.raise_if_set(BETWEEN)  # starting processes takes seconds, in which nobody listens
        yield from _run_in_workers(protocol, tensors, others, worker_count(device, workers, len(others)), stop)


def _run_here(
    protocol: EvaluateSpec,
    tensors: dict[str, Tensor],
    jobs: Sequence[TrainingJob],
    device: torch.device,
    stop: StopFlag,
) -> Iterator[tuple[TrainingJob, TrainingResult]]:
    trainer, groups = Trainer(protocol, tensors, device), dict[tuple[int, ...], list[TrainingJob]]()
    for job in jobs:
        # The seeds of a model on a training set go together, but on a CPU, where that is never faster.
        seed = (job.seed,) if device.type == "cpu" else ()
        groups.setdefault((job.model, job.training_set, *seed), []).append(job)
    try:
        for group in groups.values():
            stop.raise_if_set(BETWEEN)
            yield from zip(group, trainer.run_seeds(group, stop), strict=True)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has too little memory for this evaluation: {str(error).splitlines()[0]}",
            hint="Lower evaluate.batch (-o evaluate.batch=64) or leave out the largest model.",
        ) from error


def _run_in_workers(
    protocol: EvaluateSpec, tensors: dict[str, Tensor], jobs: Sequence[TrainingJob], count: int, stop: StopFlag
) -> Iterator[tuple[TrainingJob, TrainingResult]]:
    hint = "--workers 1 (in Python: workers=1) needs the least memory."
    others, context = set(multiprocessing.active_children()), worker_context([f"{__package__}.preload"])
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
        executor = ProcessPoolExecutor(count, context, _start_worker, (protocol.model_dump_json(), str(data)))
        try:
            futures: dict[Future[TrainingResult], TrainingJob]
            try:
                start_server(context, stop, BETWEEN)
                with starting_workers():
                    futures = {executor.submit(_work, job): job for job in jobs}
            except (EOFError, ConnectionError) as error:  # a signal or the lack of memory ended the server of forks
                raise BrokenProcessPool("the server of forks ended") from error
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], future.result()
                    hint = (
                        "Run the same command again: finished trainings are kept. --workers 1 needs the least memory."
                    )
                stop.raise_if_set(BETWEEN)
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()  # nobody waits for what they are at
            if not isinstance(error, BrokenProcessPool):
                raise
            stop.raise_if_set(BETWEEN)  # a signal to the whole group reached the workers too
            message = "A worker process of the evaluation died, most often because memory ran out."
            raise RunError(message, hint=hint) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


_trainer: Trainer | None = None
"""Of a worker process; made once by `_start_worker`."""


def _start_worker(protocol_json: str, data: str) -> None:
    global _trainer
    begin_worker()
    torch.set_num_threads(1)
    _trainer = Trainer(EvaluateSpec.model_validate_json(protocol_json), load_file(Path(data)), torch.device("cpu"))


def _work(job: TrainingJob) -> TrainingResult:
    if _trainer is None:
        raise RuntimeError("the worker was not started by _start_worker")
    return _trainer.run(job)
