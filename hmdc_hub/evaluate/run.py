"""The evaluation of a set: every architecture on every training set with every seed, into scores.json."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from hmdc_hub.errors import FormatError, Interrupted, NewerFormatError, NotFoundError
from hmdc_hub.evaluate.baselines import training_sets
from hmdc_hub.evaluate.bench import Job, Result, bench_tensors, one_thread
from hmdc_hub.evaluate.holdout import hold_out
from hmdc_hub.evaluate.ledger import CellName, Entry, Ledger, Paid
from hmdc_hub.evaluate.plan import guess_seconds
from hmdc_hub.evaluate.share import Share, meet
from hmdc_hub.evaluate.subject import Subject
from hmdc_hub.evaluate.summary import Confused, confusions, scores_of
from hmdc_hub.evaluate.train import FORM
from hmdc_hub.evaluate.workers import processes, run_jobs
from hmdc_hub.events import Listener, Note, StopFlag, Training, silent
from hmdc_hub.measures import REAL
from hmdc_hub.processes import POLL_SECONDS, refuse_within_a_start
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import Cell, EvaluateSpec, Scores, canonical_json
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_scores, write_json_atomic
from hmdc_hub.store.confusion import read_confusion, write_confusion
from hmdc_hub.store.files import cache_folder


def evaluate(
    subject: Subject,
    protocol: EvaluateSpec,
    source: Source,
    where: RunDir,
    *,
    device: torch.device,
    workers: int | None = None,
    listener: Listener = silent,
    stop: StopFlag | None = None,
    cache: Path | None = None,
    reuse: bool = True,
    share: Share | None = None,
) -> Scores:
    """Score a condensed set by a protocol; trainings that an earlier call finished are not repeated.

    On a CPU this starts worker processes: a script that calls it must keep its own start behind `if __name__ ==
    "__main__":`.

    Args:
        subject: Such as `of_run` reads.
        protocol: Resolved.
        source: Where real images and the test split come from.
        where: Directory that gets cells.jsonl, confusion.safetensors and scores.json.
        device: Where trainings run.
        workers: Processes on a CPU; 0 or 1: this one alone; None: one per usable core, or this one if that is about
            as quick as starting others. It changes the time, not the result.
        listener: Told about every finished training.
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
    refuse_within_a_start()
    protocol = protocol.settled()
    known = _known_scores(_stamp(subject, protocol, source), where, listener)
    if known is not None:
        return known
    work = _Evaluation(subject, protocol, source, where.path, where.cells, device, listener, stop or StopFlag(), cache)
    if share is not None:
        meet(share, work.where_and_what, work.stop)
    work.train(work.jobs if share is None else share.of(work.jobs), workers, reuse=reuse)
    if share is not None:
        work.wait()
    confused, scores = work.result()
    write_confusion(where.confusion, confused)
    write_json_atomic(where.scores, scores)
    return scores


def assist(
    subject: Subject,
    protocol: EvaluateSpec,
    source: Source,
    where: RunDir,
    share: Share,
    *,
    device: torch.device,
    workers: int | None = None,
    listener: Listener = silent,
    stop: StopFlag | None = None,
    cache: Path | None = None,
) -> None:
    """Do a share of an evaluation's trainings, which a call of `evaluate` in the same directory puts together.

    Arguments and errors as for `evaluate`; the two may run at the same time, on any machines that see the directory.
    """
    refuse_within_a_start()
    protocol = protocol.settled()
    if _known_scores(_stamp(subject, protocol, source), where, listener) is None:
        path = where.path / share.ledger
        work = _Evaluation(subject, protocol, source, where.path, path, device, listener, stop or StopFlag(), cache)
        meet(share, work.where_and_what, work.stop)
        work.train(share.of(work.jobs), workers)


class _Evaluation:
    """The trainings of one evaluation, as far as they are done.

    Args:
        folder: Where files of finished trainings lie.
        path: The one of them that this process writes.
        subject, protocol, source, device, listener, stop, cache: As for `evaluate`.
    """

    def __init__(
        self,
        subject: Subject,
        protocol: EvaluateSpec,
        source: Source,
        folder: Path,
        path: Path,
        device: torch.device,
        listener: Listener,
        stop: StopFlag,
        cache: Path | None,
    ) -> None:
        self.subject, self.protocol, self.device = subject, protocol, device
        self.listener, self.stop, self.fingerprint = listener, stop, source.info.fingerprint
        # A training that another device, library or program did has no place among those that this one does.
        self.where_and_what = {
            "device": device_name(device),
            "program": FORM,
            "versions": canonical_json(versions({spec.source for spec in protocol.models})),
        }
        self.source = source if protocol.holdout is None else hold_out(source, protocol.holdout, protocol.seed)
        folder.mkdir(parents=True, exist_ok=True)
        images = len(self.source.test_labels)
        self.ledger = Ledger(path, _stamp(subject, protocol, source), self.where_and_what, images)
        with one_thread(device):
            self.sets = training_sets(protocol, self.source, subject, device)
        self.seconds = guess_seconds(protocol, self.source, self.sets)
        # The longest first, so that no worker is left with a long one at the end; every process has this order.
        self.jobs = sorted(self.seconds, key=lambda job: -self.seconds[job])
        store = cache_folder("trainings") if cache is None else cache
        self.paid = Paid(store, protocol, self.fingerprint, images, device_name(device))

    def train(self, jobs: Sequence[Job], workers: int | None, *, reuse: bool = True) -> None:
        """Do those of some trainings that nobody has done yet."""
        if self.ledger.dropped:
            lines = "1 line is" if self.ledger.dropped == 1 else f"{self.ledger.dropped} lines are"
            self.listener(Note(f"{lines} damaged or without a checksum in {self.ledger.path}: done again"))
        if self.ledger.entries:
            self.listener(Note(f"{len(self.ledger.entries)} of {len(self.jobs)} trainings were done before"))
        if reuse:
            self._take_paid(jobs)
        missing = [job for job in jobs if self._name(job) not in self.ledger.entries]
        again = {self.ledger.elsewhere[name] for job in missing if (name := self._name(job)) in self.ledger.elsewhere}
        if again:
            self.listener(Note(f"trainings of {'; '.join(sorted(again))} are not mixed with these, and done again"))
        try:
            for job, result, left in self._results(missing, workers):
                cell = self._add(job, result)
                done, total = len(self.ledger.entries), len(self.jobs)
                self.listener(Training(done, total, cell.model, cell.training_set, cell.accuracy, left))
        except Interrupted as error:
            raise Interrupted(
                f"stopped after {len(self.ledger.entries)} of {len(self.jobs)} trainings; they are kept",
                signal_number=error.signal_number,
                hint="The same call goes on with the others.",
            ) from error

    def _results(self, missing: Sequence[Job], workers: int | None) -> Iterator[tuple[Job, Result, float]]:
        """Give each training's result as it is done, with the seconds that are left."""
        run = partial(
            run_jobs, self.protocol, bench_tensors(self.source, self.sets), device=self.device, stop=self.stop
        )
        ahead, guessed, taken = {job: self.seconds[job] for job in missing}, 0.0, 0.0
        small = workers is None and self.device.type == "cpu" and sum(ahead.values()) < SURELY_WORTH
        # What may be too small for processes begins here, with the shortest, and goes on there if it is not.
        for here in (True, False) if small else (False,):
            count = 1 if here else workers
            parallel = processes(self.device, count, len(ahead))
            for job, result in run(list(reversed(ahead)) if here else list(ahead), workers=count):
                guessed, taken = guessed + ahead.pop(job), taken + result.seconds
                left = sum(ahead.values()) * taken / guessed
                yield job, result, left / parallel
                if here and left > WORTH_PROCESSES:
                    break

    def wait(self) -> None:
        """Wait until other processes have finished theirs; whoever started them all ends this one if one dies."""
        self.ledger.look()
        if self._open():
            self.listener(Note("waiting for the trainings of the other processes"))
        while self._open():
            self.stop.raise_if_set("stopped while other processes were training", hint="The same call goes on.")
            time.sleep(POLL_SECONDS)
            self.ledger.look()

    def result(self) -> tuple[Confused, Scores]:
        """Put confusion matrices and scores together; every training is done."""
        order = sorted(self.jobs, key=lambda job: (job.training_set, job.model, job.seed))
        entries = [self.ledger.entries[self._name(job)] for job in order]
        confused = confusions(entries, self.source)
        cells = [entry.cell for entry in entries]
        scores = scores_of(
            self.subject, self.protocol, self.source, self.sets, cells, confused, self.device, self.fingerprint
        )
        return confused, scores

    def _open(self) -> bool:
        return any(self._name(job) not in self.ledger.entries for job in self.jobs)

    def _name(self, job: Job) -> CellName:
        training_set = self.sets[job.training_set]
        return self.protocol.models[job.model].name, training_set.name, training_set.draw, job.seed

    def _add(self, job: Job, result: Result) -> Cell:
        (model, name, draw, seed), outcome = self._name(job), result.outcome
        cell = Cell(
            model=model,
            training_set=name,
            draw=draw,
            seed=seed,
            accuracy=outcome.accuracy,
            ece=outcome.ece,
            best=outcome.best,
        )
        entry = Entry(cell, outcome.predicted)
        self.ledger.add(entry)
        if name in REAL:
            self.paid.keep(self.sets[job.training_set], entry)
        return cell

    def _take_paid(self, jobs: Sequence[Job]) -> None:
        """Take trainings on real images that an earlier evaluation has paid for."""
        count = 0
        for job in jobs:
            (model, name, _, seed), made = self._name(job), self.sets[job.training_set]
            found = self.paid.find(made, model, seed) if name in REAL else None
            if found is not None and self._name(job) not in self.ledger.entries:
                self.ledger.add(found)
                count += 1
        if count:
            self.listener(Note(f"{count} trainings on real images are known from an earlier evaluation"))


def _stamp(subject: Subject, protocol: EvaluateSpec, source: Source) -> dict[str, str | None]:
    return {
        "protocol_hash": protocol.protocol_hash(),
        "condense_hash": subject.condense_hash,
        "parquet_sha256": subject.sha256,
        "fingerprint": source.info.fingerprint,
    }


WORTH_PROCESSES = 8.0
"""Seconds of training below which worker processes, which wait for torch to be imported, gain nothing."""

SURELY_WORTH = 20.0
"""Guessed seconds from which they gain something, however wrong the guess is."""


def _known_scores(stamp: Mapping[str, str | None], where: RunDir, listener: Listener) -> Scores | None:
    if not where.scores.is_file():
        return None
    try:
        scores = read_scores(where.scores)
        read_confusion(where.confusion)
    except NewerFormatError:
        raise  # not ours to overwrite
    except (FormatError, NotFoundError) as error:
        listener(Note(f"{error.message} Scores are made again."))
        return None
    return scores if all(getattr(scores, key) == value for key, value in stamp.items()) else None
