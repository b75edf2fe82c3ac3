"""The evaluation of a run: every architecture on every training set with every seed, into scores.json."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import torch

from hmdc_hub.errors import FormatError, Interrupted
from hmdc_hub.evaluate.baselines import TrainingSet, training_sets
from hmdc_hub.evaluate.measures import CONDENSED, gain, table
from hmdc_hub.evaluate.workers import Job, bench_tensors, run_jobs
from hmdc_hub.events import Listener, StopFlag, Training, silent
from hmdc_hub.models import build_model, forward_flops
from hmdc_hub.schema import Cell, Recipe, Scores
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_scores, sha256_file, write_json_atomic


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
        workers: Processes on a CPU; None for one per usable core. It changes the time, not the result.
        listener: Told about every finished training.
        stop: Looked at between trainings.

    Raises:
        Interrupted: `stop` was set.
        RunError: A worker process died.
    """
    sha = sha256_file(run.parquet)
    known = _known_scores(recipe, run, sha)
    if known is not None:
        return known
    ledger = _Ledger(recipe, source, run, sha)
    sets = training_sets(recipe, source, run)
    jobs = _jobs(recipe, source, sets)
    missing = [job for job in jobs if _name(recipe, sets, job) not in ledger.cells]
    began, before = time.monotonic(), len(jobs) - len(missing)
    try:
        for job, accuracy in run_jobs(
            recipe, bench_tensors(source, sets), missing, device=device, workers=workers, stop=stop or StopFlag()
        ):
            model, name, draw, seed = _name(recipe, sets, job)
            ledger.add(Cell(model=model, training_set=name, draw=draw, seed=seed, accuracy=accuracy))
            done = len(ledger.cells)
            rate = (time.monotonic() - began) / (done - before)
            listener(Training(done, len(jobs), model, name, accuracy, rate * (len(jobs) - done)))
    except Interrupted as error:
        raise Interrupted(
            f"stopped after {len(ledger.cells)} of {len(jobs)} trainings; they are kept",
            signal_number=error.signal_number,
            hint=error.hint,
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


def _jobs(recipe: Recipe, source: Source, sets: Sequence[TrainingSet]) -> list[Job]:
    """List every training, the longest first, so that no worker is left with a long one at the end."""
    bank = source.train
    cost = [
        forward_flops(
            build_model(
                spec, num_classes=bank.num_classes, source_size=bank.side, channels=bank.channels, mean=source.mean,
                std=source.std,
            )
        )
        for spec in recipe.evaluate.models
    ]  # fmt: skip
    jobs = [
        Job(model, training_set, seed)
        for model in range(len(cost))
        for training_set in range(len(sets))
        for seed in range(recipe.evaluate.seeds)
    ]
    return sorted(jobs, key=lambda job: -cost[job.model] * len(sets[job.training_set].labels))


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.training_set, job.model, job.seed))


def _known_scores(recipe: Recipe, run: RunDir, sha: str) -> Scores | None:
    if not run.scores.is_file():
        return None
    try:
        scores = read_scores(run.scores)
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
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if self._take(line)]
        if kept != lines:  # trainings of another protocol, or a line that a kill cut in two
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def add(self, cell: Cell) -> None:
        """Remember a training, on disk before anything else happens."""
        self.cells[cell.model, cell.training_set, cell.draw, cell.seed] = cell
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.stamp | {"cell": cell.model_dump()}) + "\n")

    def _take(self, line: str) -> bool:
        try:
            entry = json.loads(line)
            cell = Cell.model_validate(entry.pop("cell"))
        except (ValueError, KeyError, AttributeError):
            return False
        if entry != self.stamp:
            return False
        self.cells[cell.model, cell.training_set, cell.draw, cell.seed] = cell
        return True
