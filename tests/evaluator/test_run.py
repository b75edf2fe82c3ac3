from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from hmdc_hub.errors import FormatError, Interrupted, NewerFormatError, OutOfMemoryError, RunError
from hmdc_hub.evaluator import EvaluatedSet, evaluate, of_run
from hmdc_hub.evaluator import run as run_module
from hmdc_hub.evaluator.baselines import training_sets
from hmdc_hub.evaluator.trainer import Trainer, TrainingJob, training_tensors
from hmdc_hub.events import Event, Note, StopFlag, Training
from hmdc_hub.metrics import check_trainings
from hmdc_hub.models import register_module
from hmdc_hub.processes import Work
from hmdc_hub.schema import Recipe, Scores
from hmdc_hub.store.files import read_scores, sha256_file
from hmdc_hub.store.parquet import read_parquet, write_parquet
from hmdc_hub.store.rundir import RunDir
from tests.evaluator.toys import CONVNET, MLP, recipe, run, source

CPU = torch.device("cpu")
CELLS = 2 * 2 * (1 + 2 + 2 + 1 + 1)


def scored(of: Recipe, where: RunDir, **keys: Any) -> Scores:
    scores = evaluate(of_run(of, where), of.evaluate, source(), where, Work(CPU, **keys))
    assert scores is not None
    return scores


Started = Callable[[], list[BaseProcess]]


@pytest.fixture
def started() -> Started:
    """Ask for the processes that this test has started and that live; those of others may still be ending."""
    before = active_children()
    return lambda: [child for child in active_children() if child not in before]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was evaluated at one go, in this process."""
    where = run(tmp_path_factory.mktemp("reference") / "run", recipe())
    scored(recipe(), where, workers=0)
    return where


def stopping(flag: StopFlag, after: int) -> Any:
    def listen(event: Event) -> None:
        if isinstance(event, Training) and event.done == after:
            flag.signal_number = 2

    return listen


def no_training(*_: object, **__: object) -> None:
    raise AssertionError("nothing is left to train")


@pytest.mark.slow
def test_scores_hold_every_training_and_its_setting(reference: RunDir) -> None:
    of, scores = recipe(), read_scores(reference.scores)
    names = [(c.training_set, c.draw, c.model, c.seed) for c in scores.cells]
    sets = [("condensed", 0), ("random", 0), ("random", 1), ("random-encoded", 0), ("random-encoded", 1)]
    sets += [("initialisation", 0), ("k-means", 0)]
    assert names == [(s, d, m, n) for s, d in sets for m in ("mlp", "conv") for n in (0, 1)]
    assert (scores.condense_hash, scores.protocol_hash) == (of.condense_hash(), of.protocol_hash())
    assert scores.parquet_sha256 == sha256_file(reference.parquet)
    assert scores.protocol == of.evaluate
    assert scores.condensed_by == ["conv", "mlp"]
    assert scores.test_count == 30
    budgets = {name: (budget.stored, budget.images, budget.bytes) for name, budget in scores.budgets.items()}
    few, many = (6, 6, 6 * 64), (6, 24, 6 * 64)
    assert budgets == {"condensed": many, "random": few, "random-encoded": many, "initialisation": many, "k-means": few}
    assert list(scores.table["random"]) == ["mlp", "conv", "mean"]
    assert scores.table["random"]["mean"].n == 2
    assert list(scores.gain) == ["random", "random-encoded", "initialisation", "k-means"]
    difference = scores.table["condensed"]["mean"].mean - scores.table["initialisation"]["mean"].mean
    assert scores.gain["initialisation"]["mean"].mean == pytest.approx(difference)


@pytest.mark.slow
def test_a_cell_is_its_training(reference: RunDir) -> None:
    of, real = recipe(), source()
    sets = training_sets(of.evaluate, real, of_run(of, reference), CPU)
    trainer = Trainer(of.evaluate, training_tensors(real, sets), CPU)
    accuracy = trainer.run(TrainingJob(model=1, training_set=4, seed=1)).accuracy
    cell = next(
        c
        for c in read_scores(reference.scores).cells
        if (c.model, c.training_set, c.draw, c.seed) == ("conv", "random-encoded", 1, 1)
    )
    assert cell.accuracy == accuracy


def test_what_is_scored_is_not_trained_again(reference: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "run_jobs", no_training)
    before = reference.scores.read_bytes()
    assert scored(recipe(), reference) == read_scores(reference.scores)
    assert reference.scores.read_bytes() == before


def test_the_full_set_stands_beside_the_others_where_it_is_affordable(tmp_path: Path) -> None:
    said = list[Event]()
    of = recipe(seeds=3, full_epochs=1, models=[MLP, CONVNET | {"name": "other"}], baselines=["random"])
    where = run(tmp_path / "run", of)
    scores = scored(of, where, workers=0, callback=said.append)
    check_trainings(scores)
    full = [(cell.model, cell.seed) for cell in scores.cells if cell.training_set == "full"]
    assert full == [("mlp", 0), ("other", 0)] and scores.budgets["full"].images == 45
    assert scores.table["full"]["mean"].n == 1 and scores.gain["full"]["mean"].n == 1
    assert scores.protocol == of.evaluate and not any("full set" in str(event) for event in said)
    with pytest.raises(FormatError, match="are not the 20 of its protocol"):
        check_trainings(scores.model_copy(update={"cells": scores.cells[:-1]}))
    dear = recipe(seeds=3, full_epochs=1000, models=[MLP], baselines=["random"])
    scores = scored(dear, run(tmp_path / "dear", dear), workers=0, callback=said.append)
    assert "full" not in scores.table
    assert any("not trained on the full set" in event.text for event in said if isinstance(event, Note))
    never = recipe(seeds=3, full="never", models=[MLP], baselines=["random"])
    assert dear.evaluate.model_copy(update={"full_epochs": 100}).protocol_hash() != never.protocol_hash()
    assert "full" not in scored(never, run(tmp_path / "never", never), workers=0).table


@pytest.mark.slow
def test_progress_is_told(tmp_path: Path) -> None:
    of, events = recipe(), list[Event]()
    scores = scored(of, run(tmp_path / "run", of), callback=events.append)
    trainings = [event for event in events if isinstance(event, Training)]
    assert [event.done for event in trainings] == list(range(1, CELLS + 1))
    assert {event.total for event in trainings} == {CELLS}
    assert trainings[-1].seconds_left == 0
    assert min(event.seconds_left for event in trainings[:-1]) > 0
    assert sorted(event.accuracy for event in trainings) == sorted(cell.accuracy for cell in scores.cells)


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_to_the_same_bytes(tmp_path: Path, reference: RunDir) -> None:
    where, flag, events = run(tmp_path / "run", recipe()), StopFlag(), list[Event]()
    with pytest.raises(Interrupted, match=f"stopped after 5 of {CELLS} trainings; they are kept") as caught:
        scored(recipe(), where, callback=stopping(flag, 5), stop=flag)
    assert caught.value.signal_number == 2
    assert not where.scores.exists()
    with where.cells.open("a", encoding="utf-8") as file:
        file.write('{"protocol_hash": "')  # a kill in the middle of a line
    scored(recipe(), where, callback=events.append)
    assert Note(f"5 of {CELLS} trainings were done before") in events
    assert sum(isinstance(event, Training) for event in events) == CELLS - 5
    assert where.scores.read_bytes() == reference.scores.read_bytes()
    lines = where.cells.read_text().splitlines()
    assert len(lines) == len({json.dumps(json.loads(line)["cell"]) for line in lines}) == CELLS


def test_trainings_that_were_damaged_are_done_again(tmp_path: Path, reference: RunDir) -> None:
    where, events = run(tmp_path / "run", recipe()), list[Event]()
    lines = reference.cells.read_text().splitlines(keepends=True)
    places = [line.index('"accuracy": 0.') + 14 for line in lines[:2]]
    changed = [
        line[:at] + str((int(line[at]) + 1) % 10) + line[at + 1 :] for line, at in zip(lines, places, strict=False)
    ]
    where.cells.write_text("".join(changed + lines[2:]))
    scored(recipe(), where, callback=events.append)
    assert Note(f"2 lines are damaged or without a checksum in {where.cells}: done again") in events
    assert sum(isinstance(event, Training) for event in events) == 2
    assert where.scores.read_bytes() == reference.scores.read_bytes()


@pytest.mark.slow
def test_trainings_of_another_protocol_are_kept_but_not_used(tmp_path: Path) -> None:
    where, events = run(tmp_path / "run", recipe()), list[Event]()
    first = scored(recipe(), where)
    second = scored(recipe(epochs=4), where, callback=events.append)
    assert sum(isinstance(event, Training) for event in events) == CELLS
    assert second.protocol_hash != first.protocol_hash
    events.clear()
    assert scored(recipe(), where, callback=events.append) == first
    assert not any(isinstance(event, Training) for event in events)


@pytest.mark.slow
def test_other_images_are_scored_anew(tmp_path: Path) -> None:
    where, events = run(tmp_path / "run", recipe(baselines=["initialisation"])), list[Event]()
    first = scored(recipe(baselines=["initialisation"]), where)
    images, labels = read_parquet(where.parquet)
    write_parquet(where.parquet, 255 - images, labels, source().info.class_names)
    second = scored(recipe(baselines=["initialisation"]), where, callback=events.append)
    assert sum(isinstance(event, Training) for event in events) == 8
    assert second.parquet_sha256 != first.parquet_sha256


@pytest.mark.slow
def test_damaged_scores_are_made_again_from_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = run(tmp_path / "run", recipe())
    scored(recipe(), where)
    before = where.scores.read_bytes()
    where.scores.write_bytes(before[:100])
    scored(recipe(), where)
    assert where.scores.read_bytes() == before


def test_scores_of_a_newer_program_are_not_overwritten(tmp_path: Path) -> None:
    where = run(tmp_path / "run", recipe())
    where.scores.write_text('{"format_version": 99}')
    with pytest.raises(NewerFormatError):
        scored(recipe(), where)
    assert where.scores.read_text() == '{"format_version": 99}'


@pytest.mark.slow
def test_a_small_evaluation_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmdc_hub.evaluator.trainer.ProcessPoolExecutor", no_training)
    scored(recipe(), run(tmp_path / "run", recipe()))


@pytest.mark.slow
def test_what_is_not_small_runs_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: RunDir, started: Started
) -> None:
    monkeypatch.setattr(run_module, "WORTH_PROCESSES", 0.0)
    where, workers = run(tmp_path / "run", recipe()), list[int]()

    def look(event: Event) -> None:
        if isinstance(event, Training):
            workers.append(len(started()))

    scored(recipe(), where, callback=look)
    assert min(workers) >= 1 and len(workers) == CELLS
    assert where.scores.read_bytes() == reference.scores.read_bytes()


@pytest.mark.slow
def test_threads_change_nothing_and_are_put_back(tmp_path: Path, reference: RunDir) -> None:
    where, before = run(tmp_path / "run", recipe()), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        scored(recipe(), where, workers=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert where.scores.read_bytes() == reference.scores.read_bytes()


def test_too_little_memory_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.train_and_score", full)
    with pytest.raises(OutOfMemoryError, match=r"too little memory for this evaluation: CUDA out of memory\n"):
        scored(recipe(), run(tmp_path / "run", recipe()))


@pytest.mark.slow
def test_a_dead_worker_ends_the_evaluation_and_what_it_left_is_used(tmp_path: Path, started: Started) -> None:
    # The longest, on the full set, begins first, and takes seconds; the others are done one after another beside it.
    of = recipe(models=[MLP], baselines=["full", "random"], full_epochs=400, seeds=1)
    where, whole, events = run(tmp_path / "run", of), run(tmp_path / "whole", of), list[Event]()

    def kill_one(event: Event) -> None:
        if isinstance(event, Training) and event.done == 1:
            started()[0].kill()

    with pytest.raises(RunError, match="worker process of the evaluation died") as caught:
        scored(of, where, workers=2, callback=kill_one, cache=tmp_path / "trainings")
    assert "finished trainings are kept" in caught.value.hint
    assert not started()
    done = len(where.cells.read_text().splitlines())
    assert 1 <= done < 4
    # Some trainings ran in workers, the others run here.
    scored(of, where, workers=0, callback=events.append)
    assert Note(f"{done} of 4 trainings were done before") in events
    scored(of, whole, workers=0)
    assert where.scores.read_bytes() == whole.scores.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_server_of_forks_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    flag = StopFlag()

    class Dying(ProcessPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            flag.signal_number = 15 if stopped else 0
            raise EOFError

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.ProcessPoolExecutor", Dying)
    with pytest.raises(Interrupted if stopped else RunError) as caught:
        scored(recipe(), run(tmp_path / "run", recipe()), workers=2, stop=flag)
    assert stopped or "A worker process of the evaluation died" in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked from a server on Linux alone")
@pytest.mark.parametrize("dies", [True, False])
def test_a_server_of_forks_that_dies_or_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    flag, never = StopFlag(), threading.Event()

    def start(process: object) -> None:
        if dies:
            raise EOFError
        flag.signal_number = 2
        never.wait(60)

    monkeypatch.setattr(get_context("forkserver").Process, "start", start)
    try:
        with pytest.raises(RunError if dies else Interrupted) as caught:
            scored(recipe(), run(tmp_path / "run", recipe()), workers=2, stop=flag)
    finally:
        never.set()
    assert ("A worker process of the evaluation died" in str(caught.value)) == dies


def test_a_full_temporary_folder_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.save_file", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        scored(recipe(), run(tmp_path / "run", recipe()), workers=2)
    assert "TMPDIR" in caught.value.hint and "--workers 1" in caught.value.hint


def test_no_training_begins_with_the_classifier_of_another() -> None:
    plain = [{**model, "reset": "body"} for model in (MLP, CONVNET)]
    of, real = recipe(models=plain, baselines=[]), source()
    assert of.protocol_hash() == recipe(baselines=[]).protocol_hash()
    evaluated = EvaluatedSet("theirs", real.train.images[:4], torch.tensor([0, 0, 1, 1]), (2, 2, 0), "0" * 64, 1)
    protocol = of.evaluate.settled()
    trainer = Trainer(protocol, training_tensors(real, training_sets(protocol, real, evaluated, CPU)), CPU)
    once, _, again = (trainer.run(TrainingJob(0, 0, seed)).ece for seed in (0, 1, 0))
    assert once == again


def test_a_stop_before_the_workers_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmdc_hub.evaluator.trainer.ProcessPoolExecutor", no_training)
    with pytest.raises(Interrupted, match="stopped after 0 of"):
        scored(recipe(), run(tmp_path / "run", recipe()), workers=2, stop=StopFlag(15))


@pytest.mark.slow
def test_a_stop_ends_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started) -> None:
    of, flag = recipe(epochs=10**6), StopFlag()

    def stopped(*arguments: Any, **keys: Any) -> Any:
        assert started()
        flag.signal_number = 15
        return wait(*arguments, **keys)

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.wait", stopped)
    with pytest.raises(Interrupted, match="stopped after 0 of") as caught:
        scored(of, run(tmp_path / "run", of), workers=2, stop=flag)
    assert caught.value.signal_number == 15
    assert not started()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "value"),
    [("device_name", lambda device: "H100"), ("versions", lambda sources: {"torch": "99"}), ("FORM", "9.9")],
)
def test_trainings_of_another_device_library_or_program_are_not_mixed_with_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: object
) -> None:
    of, flag, events = recipe(), StopFlag(), list[Event]()
    where = run(tmp_path / "run", of)
    with pytest.raises(Interrupted):
        scored(of, where, callback=stopping(flag, 5), stop=flag, workers=1)
    monkeypatch.setattr(f"hmdc_hub.evaluator.run.{what}", value)
    scored(of, where, callback=events.append, workers=1, reuse=False)
    assert sum(isinstance(event, Training) for event in events) == CELLS


def test_another_source_is_scored_anew(tmp_path: Path) -> None:
    of, events = recipe(baselines=[]), list[Event]()
    where = run(tmp_path / "run", of)
    first = scored(of, where)
    other = source((20, 20, 6))
    second = evaluate(of_run(of, where), of.evaluate, other, where, Work(CPU, callback=events.append))
    assert second is not None and second.fingerprint != first.fingerprint
    assert sum(isinstance(event, Training) for event in events) == 4


class Mine(torch.nn.Module):
    """A network of a Python session; it counts the images that go through it in this process."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.block1 = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AvgPool2d(2))
        self.block2 = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AvgPool2d(2))
        self.classifier = torch.nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Mine.seen += len(images)
        logits: torch.Tensor = self.classifier(self.block2(self.block1(images)).flatten(1))
        return logits


def test_modules_of_this_session_are_trained_in_this_process(tmp_path: Path) -> None:
    mine = register_module(Mine, name="mine").model_dump()
    of, cache = recipe(models=[mine, MLP], baselines=["random"], random_draws=1), tmp_path / "trainings"
    where, events = run(tmp_path / "run", recipe()), list[Event]()
    evaluated = of_run(recipe(), where)
    Mine.seen = 0
    scores = evaluate(evaluated, of.evaluate, source(), where, Work(CPU, workers=2, cache=cache))
    assert scores is not None
    # Two training sets, two seeds; both sets fit into few batches, and 30 images are scored on.
    assert Mine.seen >= 2 * 3 * (24 + 6) + 4 * 30
    assert [len([c for c in scores.cells if c.model == name]) for name in ("mine", "mlp")] == [4, 4]
    assert len(list(cache.iterdir())) == 2  # of the mlp alone: what a module computes is not in its id
    again = run(tmp_path / "again", recipe())
    work = Work(CPU, workers=1, cache=cache, callback=events.append)
    second = evaluate(evaluated, of.evaluate, source(), again, work)
    assert second is not None and second.cells == scores.cells
    assert sum(isinstance(event, Training) for event in events) == 6
