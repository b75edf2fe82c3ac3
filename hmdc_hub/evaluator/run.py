"""The evaluation of a set: every architecture on every training set with every seed, into scores.json.

Several processes, on one machine or many, can share its trainings through its directory (`Shard`).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from hmdc_hub import __version__, metrics
from hmdc_hub.errors import FormatError, Interrupted, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.evaluator.baselines import hold_out, training_sets
from hmdc_hub.evaluator.cost import guess_seconds
from hmdc_hub.evaluator.evaluated_set import EvaluatedSet
from hmdc_hub.evaluator.result_log import BaselineCache, CellName, FinishedTraining, ResultLog, differing
from hmdc_hub.evaluator.train import FORM, TrainingResult
from hmdc_hub.evaluator.trainer import TrainingJob, one_thread, run_jobs, training_tensors, worker_count
from hmdc_hub.events import Callback, Note, StopFlag, Training, silent
from hmdc_hub.processes import POLL_SECONDS, launched
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import Cell, EvaluateSpec, Scores, canonical_json
from hmdc_hub.sources import Source
from hmdc_hub.store.files import cache_folder, read_confusion, read_scores, write_confusion, write_json_atomic
from hmdc_hub.store.rundir import RunDir

WORTH_PROCESSES = 8.0
"""Seconds of training below which worker processes, which wait for torch to be imported, gain nothing."""

SURELY_WORTH = 20.0
"""Guessed seconds from which they gain something, however wrong the guess is."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of the trainings.

    Attributes:
        index: Which one, from 0.
        count: How many there are.
        local: Number of this process on its machine, from 0: its GPU.
        waits: Whether this process waits for the others and puts the scores together.
        store: Host and port where the processes of torchrun can tell each other something.
    """

    index: int
    count: int
    local: int = 0
    waits: bool = False
    store: tuple[str, int] | None = None

    def __str__(self) -> str:
        """Write it as `--share` takes it."""
        return f"{self.index + 1}/{self.count}"

    def of(self, jobs: Sequence[_T]) -> list[_T]:
        """Take this share of a list that all processes have alike: longest jobs first, dealt out in turn."""
        return list(jobs[self.index :: self.count])

    @property
    def log_name(self) -> str:
        """Name of the file of finished trainings that this process alone writes."""
        return f"cells-{self.index + 1}of{self.count}.jsonl"


def parse_shard(text: str) -> Shard:
    """Read `2/4`, the second of four shares.

    Raises:
        UsageError: It is not of that form.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageError(f"--share {text} must be K/N with K from 1 to N, such as 2/4.")
    return Shard(int(match[1]) - 1, int(match[2]))


def shard_of_torchrun(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Read what torchrun tells each process; None outside of it. The first process waits for the others."""
    found = launched(environment)
    if found is None:
        return None
    return Shard(found.index, found.count, found.local, waits=found.index == 0, store=found.store)


def check_alike(share: Shard, environment: Mapping[str, str], stop: StopFlag) -> None:
    """Make sure that all processes of torchrun train in environments of one kind; does nothing without torchrun.

    The first would wait for ever for trainings that another one did on another device.

    Args:
        share: Which process this is.
        environment: Device, program and versions of this one.
        stop: Looked at while the first process waits for the others.

    Raises:
        UsageError: In the first process: another one is in another environment.
        Interrupted: `stop` was set.
    """
    if share.store is None:
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(*share.store, is_master=False, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"hmdc-hub/{attempt}/{index}" for index in range(share.count)]
    store.set(keys[share.index], json.dumps(dict(environment)))
    if not share.waits:
        return
    while not store.check(keys):
        stop.raise_if_set("stopped while other processes were starting")
        time.sleep(POLL_SECONDS)
    for index, key in enumerate(keys):
        other = json.loads(store.get(key))
        if other != environment:
            raise UsageError(
                f"Process {index} of {share.count} would train with {differing(other, environment)}, this one with "
                f"{differing(environment, other)}: such trainings cannot stand in one table.",
                hint="Start torchrun on devices and environments of one kind.",
            )


def evaluate(
    evaluated: EvaluatedSet,
    protocol: EvaluateSpec,
    source: Source,
    directory: RunDir,
    *,
    device: torch.device,
    workers: int | None = None,
    callback: Callback = silent,
    stop: StopFlag | None = None,
    cache: Path | None = None,
    reuse: bool = True,
    share: Shard | None = None,
) -> Scores:
    """Score a condensed set by a protocol; trainings that an earlier call finished are not repeated.

    On a CPU this starts worker processes; trainings of a module of this Python session run in this one.

    Args:
        evaluated: Such as `of_run` reads.
        protocol: Resolved.
        source: Where real images and the test split come from.
        directory: Gets cells.jsonl, confusion.safetensors and scores.json.
        device: Where trainings run.
        workers: Processes on a CPU; 0 or 1: this one alone; None: one per usable core, or this one if that is about
            as quick as starting others. It changes the time, not the result.
        callback: Told about every finished training.
        stop: Looked at between trainings, and in this process after every epoch.
        cache: Folder of trainings on real images, which are done once for all sets; None: the user's.
        reuse: Take trainings from there; otherwise all are done, and kept there.
        share: The part of the trainings that is done here; those of others, which `assist`, are waited for.

    Raises:
        FormatError: The set does not fit the source, or scores.json is of a newer format version.
        UsageError: The protocol asks for what the set or the source does not have.
        Interrupted: `stop` was set.
        OutOfMemoryError: The device ran out of memory.
        RunError: A worker process died.
    """
    protocol = protocol.settled()
    known = _known_scores(_hashes(evaluated, protocol, source), directory, callback)
    if known is not None:
        return known
    work = _Evaluation(evaluated, protocol, source, directory.cells, device, callback, stop or StopFlag(), cache)
    if share is not None:
        check_alike(share, work.environment, work.stop)
    work.train(work.jobs if share is None else share.of(work.jobs), workers, reuse=reuse)
    if share is not None:
        work.wait()
    confusions, scores = work.scores()
    write_confusion(directory.confusion, confusions)
    write_json_atomic(directory.scores, scores)
    return scores


def assist(
    evaluated: EvaluatedSet,
    protocol: EvaluateSpec,
    source: Source,
    directory: RunDir,
    share: Shard,
    *,
    device: torch.device,
    workers: int | None = None,
    callback: Callback = silent,
    stop: StopFlag | None = None,
    cache: Path | None = None,
) -> None:
    """Do a share of an evaluation's trainings, which a call of `evaluate` in the same directory puts together.

    Arguments and errors as for `evaluate`; the two may run at the same time, on any machines that see the directory.
    """
    protocol = protocol.settled()
    if _known_scores(_hashes(evaluated, protocol, source), directory, callback) is None:
        log = directory.path / share.log_name
        work = _Evaluation(evaluated, protocol, source, log, device, callback, stop or StopFlag(), cache)
        check_alike(share, work.environment, work.stop)
        work.train(share.of(work.jobs), workers)


def _hashes(evaluated: EvaluatedSet, protocol: EvaluateSpec, source: Source) -> dict[str, str | None]:
    """Return what scores are about, as scores.json names it."""
    return {
        "protocol_hash": protocol.protocol_hash(),
        "condense_hash": evaluated.condense_hash,
        "parquet_sha256": evaluated.sha256,
        "fingerprint": source.info.fingerprint,
    }


def _known_scores(hashes: Mapping[str, str | None], directory: RunDir, callback: Callback) -> Scores | None:
    if not directory.scores.is_file():
        return None
    try:
        scores = read_scores(directory.scores)
        read_confusion(directory.confusion)
    except NewerFormatError:
        raise  # not ours to overwrite
    except (FormatError, NotFoundError) as error:
        callback(Note(f"{error.message} Scores are made again."))
        return None
    return scores if all(getattr(scores, key) == value for key, value in hashes.items()) else None


class _Evaluation:
    """The trainings of one evaluation, as far as they are done; `log` is the file that this process writes."""

    def __init__(
        self,
        evaluated: EvaluatedSet,
        protocol: EvaluateSpec,
        source: Source,
        log: Path,
        device: torch.device,
        callback: Callback,
        stop: StopFlag,
        cache: Path | None,
    ) -> None:
        self.evaluated, self.protocol, self.device, self.callback, self.stop = (
            evaluated, protocol, device, callback, stop,
        )  # fmt: skip
        # A training that another device, library or program did has no place among those that this one does.
        self.environment = {
            "device": device_name(device),
            "program": FORM,
            "versions": canonical_json(versions({spec.source for spec in protocol.models})),
        }
        self.hashes = _hashes(evaluated, protocol, source)
        self.source = source if protocol.holdout is None else hold_out(source, protocol.holdout, protocol.seed)
        log.parent.mkdir(parents=True, exist_ok=True)
        images = len(self.source.test_labels)
        self.log = ResultLog(log, self.hashes, self.environment, images)
        with one_thread(device):
            self.sets = training_sets(protocol, self.source, evaluated, device)
        self.seconds = guess_seconds(protocol, self.source, self.sets)
        # The longest first, so that no worker is left with a long one at the end; every process has this order.
        self.jobs = sorted(self.seconds, key=lambda job: -self.seconds[job])
        folder = cache_folder("trainings") if cache is None else cache
        self.cache = BaselineCache(folder, protocol, source.info.fingerprint, images, device_name(device))

    def train(self, jobs: Sequence[TrainingJob], workers: int | None, *, reuse: bool = True) -> None:
        """Do those of some trainings that nobody has done yet."""
        log = self.log
        if log.dropped:
            lines = "1 line is" if log.dropped == 1 else f"{log.dropped} lines are"
            self.callback(Note(f"{lines} damaged or without a checksum in {log.path}: done again"))
        if log.finished:
            self.callback(Note(f"{len(log.finished)} of {len(self.jobs)} trainings were done before"))
        if reuse:
            self._take_cached(jobs)
        missing = [job for job in jobs if self._name(job) not in log.finished]
        again = {log.elsewhere[name] for job in missing if (name := self._name(job)) in log.elsewhere}
        if again:
            self.callback(Note(f"trainings of {'; '.join(sorted(again))} are not mixed with these, and done again"))
        try:
            for job, result, left in self._results(missing, workers):
                cell = self._add(job, result)
                done, total = len(log.finished), len(self.jobs)
                self.callback(Training(done, total, cell.model, cell.training_set, cell.accuracy, left))
        except Interrupted as error:
            raise Interrupted(
                f"stopped after {len(log.finished)} of {len(self.jobs)} trainings; they are kept",
                signal_number=error.signal_number,
                hint="The same call goes on with the others.",
            ) from error

    def wait(self) -> None:
        """Wait until other processes have finished theirs; whoever started them all ends this one if one dies."""
        self.log.look()
        if self._unfinished():
            self.callback(Note("waiting for the trainings of the other processes"))
        while self._unfinished():
            self.stop.raise_if_set("stopped while other processes were training", hint="The same call goes on.")
            time.sleep(POLL_SECONDS)
            self.log.look()

    def scores(self) -> tuple[dict[tuple[str, str], metrics.Labels], Scores]:
        """Put confusion matrices (by training set and model, over all trainings) and scores together."""
        order = sorted(self.jobs, key=lambda job: (job.training_set, job.model, job.seed))
        trainings = [self.log.finished[self._name(job)] for job in order]
        labels, classes = self.source.test_labels.numpy(), self.source.train.num_classes
        confusions: dict[tuple[str, str], metrics.Labels] = {}
        for training in trainings:
            key = training.cell.training_set, training.cell.model
            confusion = metrics.confusion(labels, training.predicted, classes)
            confusions[key] = confusions.get(key, np.int64(0)) + confusion
        cells, evaluated = [training.cell for training in trainings], self.evaluated
        models = [spec.name for spec in self.protocol.models]
        names = list(dict.fromkeys(training_set.name for training_set in self.sets))
        scores = Scores(
            hmdc_hub_version=__version__,
            versions=versions({spec.source for spec in self.protocol.models}),
            device=device_name(self.device),
            name=evaluated.name,
            family_hash=evaluated.family_hash,
            condense_seed=evaluated.seed,
            protocol=self.protocol,
            condensed_by=list(evaluated.condensed_by),
            test_count=len(labels),
            class_names=self.source.info.class_names,
            budgets={made.name: made.budget for made in self.sets},
            cells=cells,
            per_class={n: {m: metrics.class_accuracy(confusions[n, m]) for m in models} for n in names},
            **self.hashes,  # type: ignore[arg-type]
            **metrics.summarise(cells, names, models, evaluated.condensed_by)._asdict(),
        )
        return confusions, scores

    def _results(
        self, missing: Sequence[TrainingJob], workers: int | None
    ) -> Iterator[tuple[TrainingJob, TrainingResult, float]]:
        """Give each training's result as it is done, with the seconds that are left."""
        tensors = training_tensors(self.source, self.sets)
        run = partial(run_jobs, self.protocol, tensors, device=self.device, stop=self.stop)
        ahead, guessed, taken = {job: self.seconds[job] for job in missing}, 0.0, 0.0
        small = workers is None and self.device.type == "cpu" and sum(ahead.values()) < SURELY_WORTH
        # What may be too small for processes begins here, with the shortest, and goes on there if it is not.
        for here in (True, False) if small else (False,):
            count = 1 if here else workers
            parallel = worker_count(self.device, count, len(ahead))
            for job, result in run(list(reversed(ahead)) if here else list(ahead), workers=count):
                guessed, taken = guessed + ahead.pop(job), taken + result.seconds
                left = sum(ahead.values()) * taken / guessed
                yield job, result, left / parallel
                if here and left > WORTH_PROCESSES:
                    break

    def _unfinished(self) -> bool:
        return any(self._name(job) not in self.log.finished for job in self.jobs)

    def _name(self, job: TrainingJob) -> CellName:
        training_set = self.sets[job.training_set]
        return self.protocol.models[job.model].name, training_set.name, training_set.draw, job.seed

    def _add(self, job: TrainingJob, result: TrainingResult) -> Cell:
        model, name, draw, seed = self._name(job)
        cell = Cell(
            model=model,
            training_set=name,
            draw=draw,
            seed=seed,
            accuracy=result.accuracy,
            ece=result.ece,
            best=result.best,
        )
        training = FinishedTraining(cell, result.predicted)
        self.log.add(training)
        if name in metrics.REAL:
            self.cache.keep(self.sets[job.training_set], training)
        return cell

    def _take_cached(self, jobs: Sequence[TrainingJob]) -> None:
        """Take trainings on real images that an earlier evaluation has done."""
        count = 0
        for job in jobs:
            model, name, _, seed = self._name(job)
            if name in metrics.REAL and self._name(job) not in self.log.finished:
                found = self.cache.find(self.sets[job.training_set], model, seed)
                if found is not None:
                    self.log.add(found)
                    count += 1
        if count:
            self.callback(Note(f"{count} trainings on real images are known from an earlier evaluation"))
