"""Runs trainings: in this process on a GPU, in worker processes of one thread each on a CPU.

Small networks gain nothing from several threads, and a training with one thread gives the same bits wherever it runs:
the number of workers decides how long it takes, never what comes out.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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
from hmdc_hub.evaluator.train import Images, Setting, TrainingResult, train_and_score
from hmdc_hub.events import Callback, StopFlag, silent
from hmdc_hub.metrics import FULL
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.processes import (
    POLL_SECONDS,
    Work,
    begin_worker,
    start_server,
    starting_workers,
    usable_cores,
    worker_context,
)
from hmdc_hub.schema import EvaluateSpec
from hmdc_hub.sources import Source
from hmdc_hub.temporary import TemporaryFolder
from hmdc_hub.text import first_line

BETWEEN = "stopped between two trainings"


@dataclass(frozen=True)
class TrainingJob:
    """One training: indices into the protocol's models and the list of training sets, and the seed."""

    model: int
    training_set: int
    seed: int


class Trainer:
    """Everything a training needs but its job: data on the device, and each model built once.

    `tensors` are those of `training_tensors`.
    """

    def __init__(
        self,
        protocol: EvaluateSpec,
        tensors: dict[str, Tensor],
        device: torch.device,
        stop: StopFlag | None = None,
        callback: Callback = silent,
    ) -> None:
        self.device, self.tensors = device, tensors
        test = Images(tensors["test.images"], tensors["test.labels"]).to(device)
        mean, std = (tensors[name].view(-1, 1, 1).to(device) for name in ("mean", "std"))
        self.setting = Setting(protocol, test, mean, std, stop or StopFlag(), device, callback)
        self.models: dict[int, list[PoolModel]] = {}  # as many of each as have trained at once
        self.at_once: dict[int, int] = {}  # how many of a model memory has room for, where that was found out

    def run(self, job: TrainingJob) -> TrainingResult:
        """Train a fresh network."""
        return self._train([job])[0]

    def run_seeds(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Train jobs that differ in their seeds alone, as many at once as memory has room for; results in order."""
        model, left = jobs[0].model, [*jobs]
        while left:
            few, results = left[: self.at_once.get(model)], list[TrainingResult]()
            try:
                results = self._train(few)
            except torch.OutOfMemoryError:
                if len(few) == 1:
                    raise
            if not results:  # out here nothing holds the memory of the failed attempt
                self.at_once[model] = len(few) // 2
                self.models.clear()
                torch.cuda.empty_cache()
            yield from results
            left = left[len(results) :]

    def _train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        first, began = jobs[0], time.monotonic()
        of_set = (self.tensors.get(f"{first.training_set}.{name}") for name in ("images", "labels", "targets"))
        train = Images(*of_set).to(self.device)  # type: ignore[arg-type]
        models, full = self._models(first.model, len(jobs)), int(self.tensors["full"]) == first.training_set
        with one_thread(self.device):
            results = train_and_score(models, train, [job.seed for job in jobs], self.setting, full=full)
        seconds = (time.monotonic() - began) / len(jobs)
        return [replace(result, seconds=seconds) for result in results]

    def _models(self, index: int, number: int) -> list[PoolModel]:
        made = self.models.setdefault(index, [])
        while len(made) < number:
            channels, side = self.setting.test.pixels.shape[1:3]
            model = build_model(
                self.setting.protocol.models[index],
                num_classes=int(self.tensors["classes"]),
                source_size=side,
                channels=channels,
                mean=self.tensors["mean"],
                std=self.tensors["std"],
            ).to(self.device)
            if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
                # A ResNet's step takes two thirds of the time; a ConvNet with instance norm is slower that way.
                model = model.to(memory_format=torch.channels_last)
            made.append(model)
        return made[:number]


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


def worker_count(work: Work, jobs: int) -> int:
    """Count the processes that so many jobs are shared among, at least 1; 1 is this process itself."""
    if work.device.type != "cpu":
        return 1
    return max(1, min(usable_cores() if work.workers is None else work.workers, jobs))


def run_jobs(
    protocol: EvaluateSpec, tensors: dict[str, Tensor], jobs: Sequence[TrainingJob], work: Work
) -> Iterator[tuple[TrainingJob, TrainingResult]]:
    """Give each job with its result as it is done, in any order.

    On anything but a CPU jobs run in this process, one after another; so do those of models of this Python session.
    `tensors` are those of `training_tensors`; `jobs` come longest first, for a short end. Interrupted if `work.stop`
    was set: running trainings are given up.
    """
    alone = worker_count(work, len(jobs)) == 1
    here = [job for job in jobs if alone or protocol.models[job.model].source == "python"]
    if here:
        yield from _run_here(protocol, tensors, here, work)
    if others := [job for job in jobs if job not in here]:
        work.stop.raise_if_set(BETWEEN)  # starting processes takes seconds, in which nobody listens
        yield from _run_in_workers(protocol, tensors, others, worker_count(work, len(others)), work.stop)


def _run_here(
    protocol: EvaluateSpec, tensors: dict[str, Tensor], jobs: Sequence[TrainingJob], work: Work
) -> Iterator[tuple[TrainingJob, TrainingResult]]:
    trainer = Trainer(protocol, tensors, work.device, work.stop, work.callback)
    groups = dict[tuple[int, ...], list[TrainingJob]]()
    for job in jobs:
        # The seeds of a model on a training set go together, but on a CPU.
        seed = (job.seed,) if work.device.type == "cpu" else ()
        groups.setdefault((job.model, job.training_set, *seed), []).append(job)
    try:
        for group in groups.values():
            work.stop.raise_if_set(BETWEEN)
            yield from zip(group, trainer.run_seeds(group), strict=True)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{work.device} has too little memory for this evaluation: {first_line(error)}",
            hint="Lower evaluate.batch (-o evaluate.batch=64) or leave out the largest model.",
        ) from error


def _run_in_workers(
    protocol: EvaluateSpec, tensors: dict[str, Tensor], jobs: Sequence[TrainingJob], count: int, stop: StopFlag
) -> Iterator[tuple[TrainingJob, TrainingResult]]:
    hint = "--workers 1 (in Python: workers=1) needs the least memory."
    kept = f"Run the same command again: finished trainings are kept. {hint}"
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
                    hint = kept
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


_trainer: Trainer | None = None  # of a worker process; made once by `_start_worker`


def _start_worker(protocol_json: str, data: str) -> None:
    global _trainer
    begin_worker()
    torch.set_num_threads(1)
    _trainer = Trainer(EvaluateSpec.model_validate_json(protocol_json), load_file(Path(data)), torch.device("cpu"))


def _work(job: TrainingJob) -> TrainingResult:
    assert _trainer is not None
    return _trainer.run(job)
