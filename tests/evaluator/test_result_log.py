"""Finished trainings on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmdc_hub.errors import FormatError
from hmdc_hub.evaluator import evaluate, of_run
from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.result_log import BaselineCache, FinishedTraining, ResultLog
from hmdc_hub.events import Event, Note, Training
from hmdc_hub.processes import Work
from hmdc_hub.schema import Cell, Scores
from tests.evaluator.toys import recipe, run, source

CPU = torch.device("cpu")
CELL = Cell(model="mlp", training_set="full", draw=0, seed=1, accuracy=0.5, ece=0.25)
ENTRY = FinishedTraining(CELL, np.array([0, 2, 65535], dtype=np.uint16))


def test_an_entry_survives_json() -> None:
    again = FinishedTraining.read(json.loads(json.dumps(ENTRY.plain())), 3)
    assert again.cell == CELL and again.predicted.tolist() == [0, 2, 65535]


@pytest.mark.parametrize(
    "damage",
    [
        {"predicted": "no base64!"},
        {"predicted": "aGVsbG8="},
        {"cell": {"model": "mlp"}},
        {"cell": None},
        {"predicted": None},
    ],
)
def test_a_damaged_entry_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="finished training cannot be read"):
        FinishedTraining.read(ENTRY.plain() | damage, 3)


@pytest.mark.parametrize("images", [2, 4])
def test_answers_for_another_number_of_images_are_refused(images: int) -> None:
    with pytest.raises(FormatError, match=f"for {images} images"):
        FinishedTraining.read(ENTRY.plain(), images)


def log(path: Path, of: str, device: str = "cpu") -> ResultLog:
    return ResultLog(path, {"hash": of}, {"device": device, "program": "1"}, 3)


def test_a_log_gives_back_what_is_about_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first, other = log(path, "a"), log(path, "b")
    first.add(ENTRY)
    other.add(FinishedTraining(CELL.model_copy(update={"accuracy": 0.75}), ENTRY.predicted))
    with path.open("a") as file:
        file.write('{"hash": "a", "cell"')
    assert [e.cell.accuracy for e in log(path, "a").finished.values()] == [0.5]
    assert [e.cell.accuracy for e in log(path, "b").finished.values()] == [0.75]
    assert len(path.read_text().splitlines()) == 2
    assert list(log(path, "a").finished) == [ENTRY.name]
    assert log(path, "a").elsewhere == {}


def test_a_line_that_was_changed_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    log(path, "a").add(ENTRY)
    line = path.read_text()
    old = json.loads(line)
    del old["checksum"]
    for text in (
        line.replace("0.5", "0.7"),
        line.replace("0.25", "0.24"),
        line[:-9] + "f" + line[-8:],
        json.dumps(old),
    ):
        assert text.strip() != line.strip()
        path.write_text(text.strip() + "\n" + line)
        found = log(path, "a")
        assert found.dropped == 1 and path.read_text() == line
        assert [entry.cell for entry in found.finished.values()] == [CELL]
        (tmp_path / "cells-2of2.jsonl").write_text(text)
        path.write_text("")
        assert log(path, "a").finished == {}
        (tmp_path / "cells-2of2.jsonl").unlink()


def test_what_another_device_did_is_known_and_not_used(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    log(path, "a", "H100").add(ENTRY)
    found = log(path, "a")
    assert found.finished == {} and found.elsewhere == {ENTRY.name: "device H100"}
    assert list(log(path, "a", "H100").finished) == [ENTRY.name]


SET = TrainingSet("random", 1, torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), 4)


def cache(folder: Path, *, fingerprint: str = "f", device: str = "cpu", **keys: Any) -> BaselineCache:
    return BaselineCache(folder, recipe(**keys).evaluate, fingerprint, 3, device)


def test_a_training_is_found_by_whatever_would_train_alike(tmp_path: Path) -> None:
    cache(tmp_path).keep(SET, ENTRY)
    other = cache(tmp_path, seeds=7, baselines=["k-means"], full_epochs=3, epochs=9, steps=3)
    found = other.find(replace(SET, name="k-means", draw=0), "mlp", 1)
    assert found is not None and (found.predicted == ENTRY.predicted).all()
    assert found.cell == CELL.model_copy(update={"training_set": "k-means", "draw": 0})
    assert cache(tmp_path).find(SET, "mlp", 0) is None and cache(tmp_path).find(SET, "conv", 1) is None


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "g"}, {"device": "H100"}, {"epochs": 4}, {"steps": 4}, {"seed": 1}, {"holdout": 0.5}, {"lr": 0.5}],
)
def test_another_training_is_not(tmp_path: Path, change: dict[str, Any]) -> None:
    cache(tmp_path).keep(SET, ENTRY)
    assert cache(tmp_path, **change).find(SET, "mlp", 1) is None


def test_another_library_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path).keep(SET, ENTRY)
    monkeypatch.setattr("hmdc_hub.evaluator.result_log.versions", lambda sources: {"torch": "99"})
    assert cache(tmp_path).find(SET, "mlp", 1) is None


@pytest.mark.parametrize(
    "change", [{"images": SET.images + 1}, {"labels": SET.labels.flip(0)}, {"name": "full"}], ids=str
)
def test_other_images_are_other_trainings(tmp_path: Path, change: dict[str, Any]) -> None:
    cache(tmp_path).keep(SET, ENTRY)
    assert cache(tmp_path).find(replace(SET, **change), "mlp", 1) is None


def test_a_damaged_or_unwritable_store_is_no_error(tmp_path: Path) -> None:
    cache(tmp_path / "store").keep(SET, ENTRY)
    (file,) = (tmp_path / "store").iterdir()
    for text in ("{", "[]", file.read_text().replace("0.5", "0.7")):
        file.write_text(text)
        assert cache(tmp_path / "store").find(SET, "mlp", 1) is None
    (tmp_path / "file").write_text("")
    cache(tmp_path / "file").keep(SET, ENTRY)


@pytest.mark.slow
def test_real_images_are_trained_on_once(tmp_path: Path) -> None:
    of, told = recipe(baselines=["initialisation", "random", "full"], full_epochs=2), list[list[Event]]()

    def scored(name: str, **keys: Any) -> Scores:
        events: list[Event] = []
        told.append(events)
        where = run(tmp_path / name, of)
        work = Work(CPU, callback=events.append, **keys)
        scores = evaluate(of_run(of, where), of.evaluate, source(), where, work)
        assert scores is not None
        return scores

    first, second, third = scored("a"), scored("b"), scored("c", reuse=False)
    trained = [[event.training_set for event in events if isinstance(event, Training)] for events in told]
    assert [len(names) for names in trained] == [20, 8, 20] and set(trained[1]) == {"condensed", "initialisation"}
    assert Note("12 trainings on real images are known from an earlier evaluation") in told[1]
    for name in ("random", "full"):
        assert first.table[name] == second.table[name] == third.table[name]
    assert first.budgets["full"].images == 45
