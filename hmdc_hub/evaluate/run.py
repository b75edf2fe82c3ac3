"""The evaluation of a run: every architecture on every training set with every seed, into scores.json."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from hmdc_hub.errors import FormatError, Interrupted, NewerFormatError
from hmdc_hub.evaluate.baselines import TrainingSet, training_sets
from hmdc_hub.evaluate.workers import Job, bench_tensors, one_thread, processes, run_jobs
from hmdc_hub.events import Listener, Note, StopFlag, Training, silent
from hmdc_hub.measures import CONDENSED, gain, table
from hmdc_hub.models import build_for, forward_flops
from hmdc_hub.schema import Cell, Recipe, Scores
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_scores, sha256_file, write_json_atomic, write_text_atomic


def evaluate(
    recipe: Recipe,
    source: Source,
    run: RunDir,
    *,
    device: torch.device,
    workers: int | None = None,
    listener: Listener = silent,
    stop: StopFlag | None = None,
) -> Scores:
    """Score a condensed run by its recipe's protocol; trainings that an earlier call finished are not repeated.

    On a CPU this starts worker processes by `spawn`: a script that calls it must keep its own start behind
    `if __name__ == "__main__":`.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: Holds train.parquet and start.safetensors; gets cells.jsonl and scores.json.
        device: Where trainings run.
        workers: Processes on a CPU; 0 or 1: this one alone; None: one per usable core, or this one if that is about
            as quick as starting others. It changes the time, not the result.
        listener: Told about every finished training.
        stop: Looked at between trainings, and in this process after every epoch.

    Raises:
        NotFoundError: train.parquet or start.safetensors is not there.
        FormatError: One of them is damaged, or scores.json is of a newer format version.
        Interrupted: `stop` was set.
        OutOfMemoryError: The device ran out of memory.
        RunError: A worker process died.
    """
    sha = sha256_file(run.parquet)
    known = _known_scores(recipe, run, sha)
    if known is not None:
        return known
    ledger = _Ledger(recipe, source, run, sha)
    with one_thread(device):
        sets = training_sets(recipe, source, run, device)
    seconds = _seconds(recipe, source, sets)
    jobs = sorted(seconds, key=lambda job: -seconds[job])  # so that no worker is left with a long one at the end
    missing = [job for job in jobs if _name(recipe, sets, job) not in ledger.cells]
    if ledger.cells:
        listener(Note(f"{len(ledger.cells)} of {len(jobs)} trainings were done before"))
    if workers is None and sum(seconds[job] for job in missing) < WORTH_PROCESSES:
        workers = 1
    ahead, guessed, taken = set(missing), 0.0, 0.0
    try:
        for job, result in run_jobs(
            recipe, bench_tensors(source, sets), missing, device=device, workers=workers, stop=stop or StopFlag()
        ):
            model, name, draw, seed = _name(recipe, sets, job)
            ledger.add(Cell(model=model, training_set=name, draw=draw, seed=seed, accuracy=result.accuracy))
            ahead.remove(job)
            guessed, taken = guessed + seconds[job], taken + result.seconds
            left = sum(seconds[job] for job in ahead) * taken / guessed / processes(device, workers, len(missing))
            listener(Training(len(ledger.cells), len(jobs), model, name, result.accuracy, left))
    except Interrupted as error:
        raise Interrupted(
            f"stopped after {len(ledger.cells)} of {len(jobs)} trainings; they are kept",
            signal_number=error.signal_number,
            hint="The same call goes on with the others.",
        ) from error
    cells = [ledger.cells[_name(recipe, sets, job)] for job in _in_order(jobs)]
    scores = _scores(recipe, source, sets, cells, sha)
    write_json_atomic(run.scores, scores.model_dump(mode="json"))
    return scores


def _scores(recipe: Recipe, source: Source, sets: Sequence[TrainingSet], cells: list[Cell], sha: str) -> Scores:
    models = [spec.name for spec in recipe.evaluate.models]
    names = list(dict.fromkeys(training_set.name for training_set in sets))
    return Scores(
        condense_hash=recipe.condense_hash(),
        protocol_hash=recipe.protocol_hash(),
        protocol=recipe.evaluate,
        parquet_sha256=sha,
        condensed_by=[spec.name for spec in recipe.pool],
        test_count=len(source.test_labels),
        budgets={training_set.name: len(training_set.labels) for training_set in sets},
        cells=cells,
        table=table(cells, names, models),
        gain=gain(cells, [name for name in names if name != CONDENSED], models),
    )


_CellName = tuple[str, str, int, int]


def _name(recipe: Recipe, sets: Sequence[TrainingSet], job: Job) -> _CellName:
    training_set = sets[job.training_set]
    return recipe.evaluate.models[job.model].name, training_set.name, training_set.draw, job.seed


STEP_SECONDS = 0.001
"""Least time of a training step; with the next, for guessing which trainings are long, and whether all are short."""

FLOPS_PER_SECOND = 1e10
"""Of one core, roughly."""

WORTH_PROCESSES = 5.0
"""Seconds of training below which worker processes, which import torch first, gain nothing."""


def _seconds(recipe: Recipe, source: Source, sets: Sequence[TrainingSet]) -> dict[Job, float]:
    """List every training with a rough guess of its time on one core."""
    protocol = recipe.evaluate
    flops = [forward_flops(build_for(spec, source)) for spec in protocol.models]
    guess = {}
    for place, training_set in enumerate(sets):
        images = len(training_set.labels)
        steps = -(-images // protocol.batch)
        for model, forward in enumerate(flops):
            epoch = steps * STEP_SECONDS + 3 * images * forward / FLOPS_PER_SECOND  # backward costs twice as much
            for seed in range(protocol.seeds):
                guess[Job(model, place, seed)] = protocol.epochs * epoch
    return guess


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.training_set, job.model, job.seed))


def _known_scores(recipe: Recipe, run: RunDir, sha: str) -> Scores | None:
    if not run.scores.is_file():
        return None
    try:
        scores = read_scores(run.scores)
    except NewerFormatError:
        raise  # not ours to overwrite
    except FormatError:
        return None  # damaged: made again
    same = scores.protocol_hash == recipe.protocol_hash() and scores.parquet_sha256 == sha
    return scores if same and scores.condense_hash == recipe.condense_hash() else None


class _Ledger:
    """cells.jsonl: finished trainings, one line each, so that an interrupted evaluation goes on where it was."""

    def __init__(self, recipe: Recipe, source: Source, run: RunDir, sha: str) -> None:
        self.path = run.cells
        self.stamp = {
            "protocol_hash": recipe.protocol_hash(),
            "condense_hash": recipe.condense_hash(),
            "parquet_sha256": sha,
            "fingerprint": source.info.fingerprint,
        }
        self.cells: dict[_CellName, Cell] = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        kept = "".join(line + "\n" for line in text.splitlines() if self._take(line))
        if kept != text:  # a kill cut a line in two
            write_text_atomic(self.path, kept)

    def add(self, cell: Cell) -> None:
        """Remember a training, in the file before anything else happens."""
        self.cells[cell.model, cell.training_set, cell.draw, cell.seed] = cell
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.stamp | {"cell": cell.model_dump()}) + "\n")

    def _take(self, line: str) -> bool:
        """Take over the training in a line; False if the line is damaged."""
        try:
            entry = json.loads(line)
            cell = Cell.model_validate(entry.pop("cell"))
        except (ValueError, KeyError, AttributeError):
            return False
        if entry == self.stamp:  # the others are of another protocol, which may come back
            self.cells[cell.model, cell.training_set, cell.draw, cell.seed] = cell
        return True
