"""Everything a training needs but its job, where it is needed: data on the device, each model built once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hmdc_hub.evaluate.baselines import TrainingSet
from hmdc_hub.evaluate.stacked import train_and_score_stacked
from hmdc_hub.evaluate.train import Images, Normalisation, Outcome, train_and_score
from hmdc_hub.events import StopFlag
from hmdc_hub.measures import FULL
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.schema import EvaluateSpec
from hmdc_hub.sources import Source

PROBE_STEPS = 5


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
        self.faster_as_one: dict[tuple[int, int], bool] = {}

    def run(self, job: Job, stop: StopFlag | None = None) -> Result:
        """Train a fresh network; `stop` is looked at after every epoch."""
        began = time.monotonic()
        return Result(self._alone(job, self.protocol, self.test, stop), time.monotonic() - began)

    def run_together(self, jobs: Sequence[Job], stop: StopFlag | None = None) -> Iterator[Result]:
        """Train the seeds of one model on one training set: as one where that is measured faster here.

        Args:
            jobs: Differ in their seeds alone.
            stop: Looked at after every epoch.

        Yields:
            Their results in order, each as soon as it is there.
        """
        if len(jobs) > 1 and not self.protocol.best_every and self._stack(jobs):
            began = time.monotonic()
            try:
                outcomes = self._stacked(jobs, self.protocol, self.test, stop)
            except torch.OutOfMemoryError:
                self.faster_as_one[jobs[0].model, jobs[0].training_set] = False
            else:
                seconds = (time.monotonic() - began) / len(jobs)
                yield from (Result(outcome, seconds) for outcome in outcomes)
                return
        for job in jobs:
            yield self.run(job, stop)

    def _stack(self, jobs: Sequence[Job]) -> bool:
        """Tell whether the seeds train faster as one, from a few steps of both; found out once."""
        key = jobs[0].model, jobs[0].training_set
        if key not in self.faster_as_one:
            few = Images(self.test.pixels[:1], self.test.labels[:1])
            try:
                # What is no step, such as a reset, is the same at both lengths; the first, of one step, is warm-up.
                one, many = (
                    [
                        _elapsed(partial(work, self.protocol.model_copy(update={"steps": n}), few))
                        for n in (1, PROBE_STEPS, 3 * PROBE_STEPS)
                    ][1:]
                    for work in (partial(self._alone, jobs[0]), partial(self._stacked, jobs))
                )
                self.faster_as_one[key] = many[1] - many[0] < len(jobs) * (one[1] - one[0])
            except torch.OutOfMemoryError:
                self.faster_as_one[key] = False
        return self.faster_as_one[key]

    def _alone(self, job: Job, protocol: EvaluateSpec, test: Images, stop: StopFlag | None = None) -> Outcome:
        train, full = self._training_set(job)
        full = full and protocol is self.protocol  # a probe makes the steps it says
        with one_thread(self.device):
            model = self._model(job.model)
            return train_and_score(model, train, test, self.normalise, protocol, job.seed, full=full, stop=stop)

    def _stacked(
        self, jobs: Sequence[Job], protocol: EvaluateSpec, test: Images, stop: StopFlag | None = None
    ) -> list[Outcome]:
        train, full = self._training_set(jobs[0])
        full, seeds = full and protocol is self.protocol, [job.seed for job in jobs]
        model = self._model(jobs[0].model)
        return train_and_score_stacked(model, train, test, self.normalise, protocol, seeds, full=full, stop=stop)

    def _training_set(self, job: Job) -> tuple[Images, bool]:
        names = (f"{job.training_set}.images", f"{job.training_set}.labels")
        train = Images(*(self.tensors[name] for name in names)).to(self.device)
        return train, int(self.tensors["full"]) == job.training_set

    def _model(self, place: int) -> PoolModel:
        if place not in self.models:
            channels, side = self.test.pixels.shape[1:3]
            model = build_model(
                self.protocol.models[place],
                num_classes=int(self.tensors["classes"]),
                source_size=side,
                channels=channels,
                mean=self.tensors["mean"],
                std=self.tensors["std"],
            ).to(self.device)
            if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
                # A ResNet's step takes two thirds of the time; a ConvNet with instance norm is slower that way.
                model = model.to(memory_format=torch.channels_last)
            self.models[place] = model
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


def _elapsed(work: Callable[[], object]) -> float:
    """Time work whose result is on the CPU in the end."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
