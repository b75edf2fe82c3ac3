"""The evaluation of a set: every architecture on every training set with every seed, into scores.json; its cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import __version__, metrics
from hmdc_hub.errors import FormatError, Interrupted, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.evaluator.baselines import EvaluatedSet, TrainingSet, full_set, hold_out, training_sets
from hmdc_hub.evaluator.result_log import BaselineCache, CellName, FinishedTraining, ResultLog, differing
from hmdc_hub.evaluator.soft_labels import SoftLabelEvaluation
from hmdc_hub.evaluator.train import FORM, TrainingResult, steps_of
from hmdc_hub.evaluator.trainer import TrainingJob, one_thread, run_jobs, training_tensors, worker_count
from hmdc_hub.events import Callback, Note, StopFlag, Training
from hmdc_hub.execution import timed
from hmdc_hub.models import PoolModel, build_for, forward_flops
from hmdc_hub.processes import POLL_SECONDS, Launched, Work, usable_cores
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import TRAINING_SETS, Cell, EvaluateSpec, Recipe, Scores, canonical_json
from hmdc_hub.sources import Source
from hmdc_hub.store.files import cache_folder, read_confusion, read_scores, write_confusion, write_json_atomic
from hmdc_hub.store.rundir import RunDir
from hmdc_hub.text import count

PROBE = 16  # images that a probe trains on; costs grow linearly from there

# For guessing which trainings are long, and whether all are short.
STEP_SECONDS = 0.001  # least time of a training step
FLOPS_PER_SECOND = 1e10  # of one core, roughly
# Guessed seconds of training below which worker processes, which take seconds to import torch, are not started. A guess
# is a quarter (ConvNeXt) to nine times (a ConvNet) of what it takes.
WORTH_PROCESSES = 20.0


def evaluate(
    subject: EvaluatedSet, protocol: EvaluateSpec, source: Source, directory: RunDir, work: Work
) -> Scores | None:
    """Score a set by a protocol into a directory; trainings that an earlier call finished are not repeated.

    Several processes, on any machines that see the directory, can each do a share of the trainings (`work.share`). The
    first of those that torchrun started waits for the others and puts the scores together; a share by hand leaves that
    to a call without one. Whoever does not put them together gets None, unless they are there already.

    On a CPU this starts worker processes, whose number changes the time, not the result; trainings of a module of this
    Python session run in this one. FormatError if the set does not fit the source, UsageError if the protocol asks for
    what one of them does not have.
    """
    protocol, share = protocol.settled(), work.share
    hashes = {
        "protocol_hash": protocol.protocol_hash(),
        "condense_hash": subject.condense_hash,
        "parquet_sha256": subject.sha256,
        "fingerprint": source.info.fingerprint,
    }
    known = _known_scores(hashes, directory, work.callback)
    if known is not None:
        return known
    evaluation = _Evaluation(subject, protocol, source, directory, work, hashes)
    if share is not None:
        check_alike(share, evaluation.environment, work.stop)
    evaluation.train()
    if work.assists:
        return None
    if share is not None:
        evaluation.wait()
    confusions, scores = evaluation.scores()
    if protocol.soft_labels.teacher != "none":
        scores = scores.model_copy(update={"soft_labels": evaluation.soft_labels().scores(scores.cells)})
    write_confusion(directory.confusion, confusions)
    write_json_atomic(directory.scores, scores)
    return scores


def check_alike(share: Launched, environment: Mapping[str, str], stop: StopFlag) -> None:
    """Make sure that all processes of torchrun train in environments of one kind; does nothing without torchrun.

    The first would wait for ever for trainings that another one did on another device: there UsageError says which one.
    """
    if share.store is None:
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(*share.store, is_master=False, wait_for_workers=False)
    keys = [f"hmdc-hub/{share.attempt}/{index}" for index in range(share.count)]
    store.set(keys[share.index], json.dumps(dict(environment)))
    if not share.leads:
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
    """The trainings of one evaluation, as far as they are done; `hashes` say what they are about."""

    def __init__(
        self,
        subject: EvaluatedSet,
        protocol: EvaluateSpec,
        source: Source,
        directory: RunDir,
        work: Work,
        hashes: Mapping[str, str | None],
    ) -> None:
        self.subject, self.protocol, self.work, self.hashes = subject, protocol, work, hashes
        device, share = device_name(work.device), work.share
        # A training that another device, library or program did has no place among those that this one does.
        self.environment = {
            "device": device,
            "program": FORM,
            "versions": canonical_json(versions({spec.source for spec in protocol.models})),
        }
        self.source = source if protocol.holdout is None else hold_out(source, protocol.holdout, protocol.seed)
        log = directory.cells
        if share is not None and work.assists:  # a file that this process alone writes
            log = directory.path / f"cells-{share.index + 1}of{share.count}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        images = len(self.source.test_labels)
        self.log = ResultLog(log, self.hashes, self.environment, images)
        with one_thread(work.device):
            self.sets = training_sets(protocol, self.source, subject, work.device)
        folder = cache_folder("trainings") if work.cache is None else work.cache
        self.cache = BaselineCache(folder, protocol, source.info.fingerprint, images, device)
        self.too_long: float | None = None  # how many times the rest the full set would take, if it is left out
        self.seconds = self._guess_seconds()
        # The longest first, so that no worker is left with a long one at the end; every process has this order.
        self.jobs = sorted(self.seconds, key=lambda job: -self.seconds[job])

    def train(self) -> None:
        """Do those of this process's trainings that nobody has done yet."""
        log, work, share = self.log, self.work, self.work.share
        jobs = self.jobs if share is None else self.jobs[share.index :: share.count]  # dealt out in turn
        if log.dropped:
            lines = count(log.dropped, "line is", "lines are")
            work.callback(Note(f"{lines} damaged or without a checksum in {log.path}: done again"))
        if log.finished:
            work.callback(Note(f"{len(log.finished)} of {len(self.jobs)} trainings were done before"))
        known = 0
        for job in jobs if work.reuse else ():
            if self._name(job) not in log.finished and self.sets[job.training_set].name in metrics.REAL:
                model = self.protocol.models[job.model].name
                found = self.cache.find(self.sets[job.training_set], model, job.seed)
                if found is not None:
                    log.add(found)
                    known += 1
        if known:
            work.callback(Note(f"{known} trainings on real images are known from an earlier evaluation"))
        ahead = {job: self.seconds[job] for job in jobs if self._name(job) not in log.finished}
        if ahead and self.too_long:
            times = f"{self.too_long:.1f} times as long as the rest of the evaluation"
            work.callback(Note(f"not trained on the full set, which would take {times} (docs/evaluating.md)"))
        again = {log.elsewhere[name] for job in ahead if (name := self._name(job)) in log.elsewhere}
        if again:
            work.callback(Note(f"trainings of {'; '.join(sorted(again))} are not mixed with these, and done again"))
        if work.workers is None and sum(ahead.values()) < WORTH_PROCESSES:
            work = replace(work, workers=1)
        tensors, parallel = training_tensors(self.source, self.sets), worker_count(work, len(ahead))
        guessed = taken = 0.0
        try:
            for job, result in run_jobs(self.protocol, tensors, list(ahead), work):
                cell = self._keep(job, result)
                guessed, taken = guessed + ahead.pop(job), taken + result.seconds
                left = sum(ahead.values()) * taken / guessed / parallel
                done, total = len(log.finished), len(self.jobs)
                work.callback(Training(done, total, cell.model, cell.training_set, cell.accuracy, left))
        except Interrupted as error:
            raise Interrupted(
                f"stopped after {len(log.finished)} of {len(self.jobs)} trainings; they are kept",
                signal_number=error.signal_number,
                hint="The same call goes on with the others.",
            ) from error

    def soft_labels(self) -> SoftLabelEvaluation:
        """Give the trainings on soft labels, which the process that puts scores together does alone."""
        return SoftLabelEvaluation(
            self.protocol, self.source, self.sets, self.seconds, self.log, self.cache, self.work, WORTH_PROCESSES
        )

    def _guess_seconds(self) -> dict[TrainingJob, float]:
        """List every training with a rough guess of its time on one core; the full set joins where it is affordable.

        The guess and not the clock decides that, so that the same recipe has the same table on every machine.
        """
        flops = [forward_flops(build_for(spec, self.source)) for spec in self.protocol.models]
        guess = {
            TrainingJob(model, index, seed): seconds
            for index, made in enumerate(self.sets)
            for model, seconds in enumerate(_guessed(self.protocol, flops, len(made.labels), made.name))
            for seed in range(self.protocol.seeds)
        }
        if metrics.adds_full(self.protocol):
            made, rest = full_set(self.source), sum(guess.values())
            more = _guessed(self.protocol, flops, len(made.labels), made.name)
            if sum(more) <= rest or self._knows(made):
                guess |= {TrainingJob(model, len(self.sets), 0): seconds for model, seconds in enumerate(more)}
                self.sets.append(made)
            else:
                self.too_long = sum(more) / rest
        return guess

    def _knows(self, made: TrainingSet) -> bool:
        """Tell whether an earlier evaluation trained every model on a set; processes that share work look nowhere."""
        if self.work.share is not None or not self.work.reuse:
            return False
        return all(self.cache.find(made, spec.name, 0) is not None for spec in self.protocol.models)

    def wait(self) -> None:
        """Wait until other processes have finished theirs; whoever started them all ends this one if one dies."""

        def unfinished() -> bool:
            return any(self._name(job) not in self.log.finished for job in self.jobs)

        self.log.look()
        if unfinished():
            self.work.callback(Note("waiting for the trainings of the other processes"))
        while unfinished():
            self.work.stop.raise_if_set("stopped while other processes were training", hint="The same call goes on.")
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
        cells, subject = [training.cell for training in trainings], self.subject
        models = [spec.name for spec in self.protocol.models]
        names = list(dict.fromkeys(training_set.name for training_set in self.sets))
        scores = Scores(
            hmdc_hub_version=__version__,
            versions=versions({spec.source for spec in self.protocol.models}),
            device=device_name(self.work.device),
            name=subject.name,
            family_hash=subject.family_hash,
            condense_seed=subject.seed,
            protocol=self.protocol,
            condensed_by=list(subject.condensed_by),
            test_count=len(labels),
            class_names=self.source.info.class_names,
            budgets={made.name: made.budget for made in self.sets},
            cells=cells,
            per_class={n: {m: metrics.class_accuracy(confusions[n, m]) for m in models} for n in names},
            **self.hashes,  # type: ignore[arg-type]
            **metrics.summarise(cells, names, models, subject.condensed_by),
        )
        return confusions, scores

    def _name(self, job: TrainingJob) -> CellName:
        training_set = self.sets[job.training_set]
        return self.protocol.models[job.model].name, training_set.name, training_set.draw, job.seed

    def _keep(self, job: TrainingJob, result: TrainingResult) -> Cell:
        model, name, draw, seed = self._name(job)
        cell = Cell(
            model=model, training_set=name, draw=draw, seed=seed,
            accuracy=result.accuracy, ece=result.ece, best=result.best,
        )  # fmt: skip
        training = FinishedTraining(cell, result.predicted)
        self.log.add(training)
        if name in metrics.REAL:
            self.cache.keep(self.sets[job.training_set], training)
        return cell


@dataclass(frozen=True)
class EvaluationCost:
    """What evaluating will do and take."""

    trainings: int  # architectures x training sets with their draws x seeds
    seconds: float | None  # estimated, over all workers; None until all architectures are measured
    per_model: dict[str, float]  # estimated, of a training on the (largest) condensed set, by measured architecture


def planned(
    recipe: Recipe, source: Source, device: torch.device, workers: int | None = None
) -> Iterator[EvaluationCost]:
    """Estimate the time of an evaluation: first what can be counted, then one architecture after another.

    Each is trained for a few steps; nothing is written. The values of the source's pixels are of no matter, and nothing
    is put on the device before the first estimate was taken.
    """
    protocol, train = recipe.evaluate.settled(), source.train
    images = list[tuple[int, int]]()
    for ipc in sorted(recipe.condense.sizes, reverse=True):
        images += _planned_images(recipe, source, ipc, known=bool(images))
    found = EvaluationCost(len(protocol.models) * sum(times for _, times in images), None, {})
    yield found
    total, parallel = 0.0, 1 if device.type != "cpu" else min(workers or usable_cores(), usable_cores())
    pixels = source.normalise(train.images[: min(PROBE, len(train.images))]).to(device)
    for spec in protocol.models:
        per_image = _step_seconds(build_for(spec, source).to(device), pixels) / len(pixels)
        tested = len(source.test_labels) * per_image / 3
        total += sum(times * (seen * per_image + tested) for seen, times in images)
        if protocol.soft_labels.teacher in ("same", spec.name):
            total += steps_of(protocol, len(train.images), full=True) * protocol.batch * per_image
        per_model = found.per_model | {spec.name: images[0][0] * per_image + tested}
        seconds = total / parallel if len(per_model) == len(protocol.models) else None
        found = replace(found, per_model=per_model, seconds=seconds)
        yield found


def _planned_images(recipe: Recipe, source: Source, ipc: int, *, known: bool) -> list[tuple[int, int]]:
    """List for the training sets of one size how many images a training sees, and how many trainings a model has.

    The condensed set comes first. `known`: a larger size has trained on the full set.
    """
    protocol, train = recipe.evaluate.settled(), source.train
    synthetic = train.num_classes * ipc
    sizes = {"decoded": synthetic * recipe.condense.factor**2, "chosen": synthetic, "all": len(train.images)}
    soft = protocol.soft_labels.teacher != "none"
    names = [name for name, _ in protocol.training_sets() if not (known and name == metrics.FULL)]
    seeds = dict.fromkeys(names, protocol.seeds)
    if metrics.adds_full(protocol) and not known:
        flops = [forward_flops(build_for(spec, source)) for spec in protocol.models]
        guess = {of: sum(_guessed(protocol, flops, sizes[TRAINING_SETS[of].size], of)) for of in (*names, metrics.FULL)}
        if guess[metrics.FULL] <= protocol.seeds * sum(guess[name] for name in names):
            names.append(metrics.FULL)
            seeds[metrics.FULL] = 1
    images = []
    for name in names:
        size = sizes[TRAINING_SETS[name].size]
        seen = steps_of(protocol, size, full=name == metrics.FULL) * min(protocol.batch, size)
        times = seeds[name] * (3 if soft and name in metrics.SOFT_SETS else 1)  # on hard labels, and twice on soft ones
        images.append((seen, times))
    return images


def _guessed(protocol: EvaluateSpec, flops: Sequence[float], images: int, name: str) -> list[float]:
    """Guess seconds of a training of every model, by its operations in a forward pass, on so many images of a set."""
    steps = steps_of(protocol, images, full=name == metrics.FULL)
    # Backward costs twice as much as forward.
    of_batch = 3 * min(protocol.batch, images) / FLOPS_PER_SECOND
    return [steps * (STEP_SECONDS + of_batch * forward) for forward in flops]


def _step_seconds(model: PoolModel, images: Tensor) -> float:
    """Time a training step: the fastest of three after a first one, with one thread on a CPU as the workers have."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    model.train()

    def step() -> None:
        F.cross_entropy(model.logits(model.prepare(images)), labels).backward()  # type: ignore[no-untyped-call]

    with one_thread(images.device):
        step()
        return timed(step, images.device)
