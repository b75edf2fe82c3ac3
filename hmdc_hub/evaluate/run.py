"""The evaluation of a set: every architecture on every training set with every seed, into scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from hmdc_hub import __version__, measures
from hmdc_hub.errors import FormatError, Interrupted, NewerFormatError
from hmdc_hub.evaluate.baselines import TrainingSet, training_sets
from hmdc_hub.evaluate.holdout import hold_out
from hmdc_hub.evaluate.ledger import CellName, Entry, FullSets, Ledger
from hmdc_hub.evaluate.subject import Subject
from hmdc_hub.evaluate.train import steps_of
from hmdc_hub.evaluate.workers import Job, Result, bench_tensors, one_thread, processes, run_jobs
from hmdc_hub.events import Listener, Note, StopFlag, Training, silent
from hmdc_hub.measures import FULL, Labels
from hmdc_hub.models import build_for, forward_flops
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import Cell, EvaluateSpec, Scores
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_scores, write_bytes_atomic, write_json_atomic
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
) -> Scores:
    """Score a condensed set by a protocol; trainings that an earlier call finished are not repeated.

    On a CPU this starts worker processes by `spawn`: a script that calls it must keep its own start behind
    `if __name__ == "__main__":`.

    Args:
        subject: The set, such as `of_run` reads.
        protocol: Resolved.
        source: Where real images and the test split come from.
        where: Directory that gets cells.jsonl, confusion.safetensors and scores.json.
        device: Where trainings run.
        workers: Processes on a CPU; 0 or 1: this one alone; None: one per usable core, or this one if that is about
            as quick as starting others. It changes the time, not the result.
        listener: Told about every finished training.
        stop: Looked at between trainings, and in this process after every epoch.
        cache: Folder of trainings on full sets; None: the user's.

    Raises:
        FormatError: The set does not fit the source, or scores.json is of a newer format version.
        UsageError: The protocol asks for what the set or the source does not have.
        Interrupted: `stop` was set.
        OutOfMemoryError: The device ran out of memory.
        RunError: A worker process died.
    """
    stamp = _stamp(subject, protocol, source)
    known = _known_scores(stamp, where)
    if known is not None:
        return known
    fingerprint = source.info.fingerprint
    if protocol.holdout is not None:
        source = hold_out(source, protocol.holdout, protocol.seed)
    ledger = Ledger(where.cells, stamp, len(source.test_labels))
    with one_thread(device):
        sets = training_sets(protocol, source, subject, device)
    seconds = _seconds(protocol, source, sets)
    jobs = sorted(seconds, key=lambda job: -seconds[job])  # so that no worker is left with a long one at the end
    if ledger.entries:
        listener(Note(f"{len(ledger.entries)} of {len(jobs)} trainings were done before"))
    folder = cache_folder("full-sets") if cache is None else cache
    paid = FullSets(folder, protocol, fingerprint, len(source.test_labels), device_name(device))
    _take_paid(jobs, protocol, sets, ledger, paid, listener)
    missing = [job for job in jobs if _name(protocol, sets, job) not in ledger.entries]
    if workers is None and sum(seconds[job] for job in missing) < WORTH_PROCESSES:
        workers = 1
    ahead, guessed, taken = set(missing), 0.0, 0.0
    try:
        for job, result in run_jobs(
            protocol, bench_tensors(source, sets), missing, device=device, workers=workers, stop=stop or StopFlag()
        ):
            entry = _entry(_name(protocol, sets, job), result)
            ledger.add(entry)
            if entry.cell.training_set == FULL:
                paid.keep(entry)
            ahead.remove(job)
            guessed, taken = guessed + seconds[job], taken + result.seconds
            left = sum(seconds[job] for job in ahead) * taken / guessed / processes(device, workers, len(missing))
            cell = entry.cell
            listener(Training(len(ledger.entries), len(jobs), cell.model, cell.training_set, cell.accuracy, left))
    except Interrupted as error:
        raise Interrupted(
            f"stopped after {len(ledger.entries)} of {len(jobs)} trainings; they are kept",
            signal_number=error.signal_number,
            hint="The same call goes on with the others.",
        ) from error
    entries = [ledger.entries[_name(protocol, sets, job)] for job in _in_order(jobs)]
    confused = _confused(entries, source)
    write_bytes_atomic(where.confusion, save({f"{name}/{model}": m for (name, model), m in confused.items()}))
    scores = _scores(subject, protocol, source, sets, [entry.cell for entry in entries], confused, device, fingerprint)
    write_json_atomic(where.scores, scores.model_dump(mode="json"))
    return scores


def _stamp(subject: Subject, protocol: EvaluateSpec, source: Source) -> dict[str, str | None]:
    return {
        "protocol_hash": protocol.protocol_hash(),
        "condense_hash": subject.condense_hash,
        "parquet_sha256": subject.sha256,
        "fingerprint": source.info.fingerprint,
    }


def _take_paid(
    jobs: Sequence[Job],
    protocol: EvaluateSpec,
    sets: Sequence[TrainingSet],
    ledger: Ledger,
    paid: FullSets,
    listener: Listener,
) -> None:
    """Take trainings on the full set that an earlier evaluation has paid for."""
    count = 0
    for job in jobs:
        model, name, draw, seed = _name(protocol, sets, job)
        if name == FULL and (model, name, draw, seed) not in ledger.entries:
            found = paid.find(model, seed)
            if found is not None:
                ledger.add(found)
                count += 1
    if count:
        listener(Note(f"{count} trainings on the full set are known from an earlier evaluation"))


def _entry(name: CellName, result: Result) -> Entry:
    model, training_set, draw, seed = name
    outcome = result.outcome
    cell = Cell(
        model=model,
        training_set=training_set,
        draw=draw,
        seed=seed,
        accuracy=outcome.accuracy,
        ece=outcome.ece,
        best=outcome.best,
    )
    return Entry(cell, outcome.predicted)


Confused = Mapping[tuple[str, str], Labels]
"""Confusion matrix of each training set and model, over all its trainings."""


def _confused(entries: Sequence[Entry], source: Source) -> Confused:
    labels, classes = source.test_labels.numpy(), source.train.num_classes
    found: dict[tuple[str, str], Labels] = {}
    for entry in entries:
        key = entry.cell.training_set, entry.cell.model
        found[key] = found.get(key, np.int64(0)) + measures.confusion(labels, entry.predicted, classes)
    return found


def _scores(
    subject: Subject,
    protocol: EvaluateSpec,
    source: Source,
    sets: Sequence[TrainingSet],
    cells: list[Cell],
    confused: Confused,
    device: torch.device,
    fingerprint: str,
) -> Scores:
    models = [spec.name for spec in protocol.models]
    names = list(dict.fromkeys(training_set.name for training_set in sets))
    per_class = {n: {m: measures.class_accuracy(confused[n, m]) for m in models} for n in names}
    return Scores(
        hmdc_hub_version=__version__,
        versions=versions({spec.source for spec in protocol.models}),
        device=device_name(device),
        name=subject.name,
        condense_hash=subject.condense_hash,
        family_hash=subject.family_hash,
        condense_seed=subject.seed,
        protocol_hash=protocol.protocol_hash(),
        protocol=protocol,
        fingerprint=fingerprint,
        parquet_sha256=subject.sha256,
        condensed_by=list(subject.condensed_by),
        test_count=len(source.test_labels),
        class_names=source.info.class_names,
        budgets={made.name: made.budget for made in sets},
        cells=cells,
        per_class=per_class,
        **measures.summarise(cells, names, models, subject.condensed_by)._asdict(),
    )


def _name(protocol: EvaluateSpec, sets: Sequence[TrainingSet], job: Job) -> CellName:
    training_set = sets[job.training_set]
    return protocol.models[job.model].name, training_set.name, training_set.draw, job.seed


STEP_SECONDS = 0.001
"""Least time of a training step; with the next, for guessing which trainings are long, and whether all are short."""

FLOPS_PER_SECOND = 1e10
"""Of one core, roughly."""

WORTH_PROCESSES = 5.0
"""Seconds of training below which worker processes, which import torch first, gain nothing."""


def _seconds(protocol: EvaluateSpec, source: Source, sets: Sequence[TrainingSet]) -> dict[Job, float]:
    """List every training with a rough guess of its time on one core."""
    flops = [forward_flops(build_for(spec, source)) for spec in protocol.models]
    guess = {}
    for place, training_set in enumerate(sets):
        images = len(training_set.labels)
        steps = steps_of(protocol, images, full=training_set.name == FULL)
        for model, forward in enumerate(flops):
            # Backward costs twice as much as forward.
            step = STEP_SECONDS + 3 * min(protocol.batch, images) * forward / FLOPS_PER_SECOND
            for seed in range(protocol.seeds):
                guess[Job(model, place, seed)] = steps * step
    return guess


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.training_set, job.model, job.seed))


def _known_scores(stamp: Mapping[str, str | None], where: RunDir) -> Scores | None:
    if not where.scores.is_file():
        return None
    try:
        scores = read_scores(where.scores)
    except NewerFormatError:
        raise  # not ours to overwrite
    except FormatError:
        return None  # damaged: made again
    return scores if all(getattr(scores, key) == value for key, value in stamp.items()) else None
