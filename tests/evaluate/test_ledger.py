"""Finished trainings on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmdc_hub.errors import FormatError
from hmdc_hub.evaluate import evaluate, of_run
from hmdc_hub.evaluate.ledger import Entry, FullSets, Ledger, name_of
from hmdc_hub.events import Event, Note, Training
from hmdc_hub.schema import Cell
from hmdc_hub.store import read_scores
from tests.evaluate.toys import recipe, run, source

CPU = torch.device("cpu")
CELL = Cell(model="mlp", training_set="full", draw=0, seed=1, accuracy=0.5, ece=0.25)
ENTRY = Entry(CELL, np.array([0, 2, 65535], dtype=np.uint16))


def test_an_entry_survives_json() -> None:
    again = Entry.read(json.loads(json.dumps(ENTRY.plain())), 3)
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
        Entry.read(ENTRY.plain() | damage, 3)


@pytest.mark.parametrize("images", [2, 4])
def test_answers_for_another_number_of_images_are_refused(images: int) -> None:
    with pytest.raises(FormatError, match=f"for {images} images"):
        Entry.read(ENTRY.plain(), images)


def test_a_ledger_gives_back_what_its_stamp_wrote(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first, other = Ledger(path, {"hash": "a"}, 3), Ledger(path, {"hash": "b"}, 3)
    first.add(ENTRY)
    other.add(Entry(CELL.model_copy(update={"accuracy": 0.75}), ENTRY.predicted))
    with path.open("a") as file:
        file.write('{"hash": "a", "cell"')
    assert [e.cell.accuracy for e in Ledger(path, {"hash": "a"}, 3).entries.values()] == [0.5]
    assert [e.cell.accuracy for e in Ledger(path, {"hash": "b"}, 3).entries.values()] == [0.75]
    assert len(path.read_text().splitlines()) == 2
    assert list(Ledger(path, {"hash": "a"}, 3).entries) == [name_of(CELL)]


def full(folder: Path, *, fingerprint: str = "f", device: str = "cpu", **keys: Any) -> FullSets:
    return FullSets(folder, recipe(**keys).evaluate, fingerprint, 3, device)


def test_a_full_set_is_found_by_whatever_would_train_alike(tmp_path: Path) -> None:
    full(tmp_path).keep(ENTRY)
    found = full(tmp_path, epochs=9, steps=4, seeds=7, against=["full"]).find("mlp", 1)
    assert found is not None and found.cell == CELL
    assert full(tmp_path).find("mlp", 0) is None and full(tmp_path).find("conv", 1) is None


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "g"}, {"device": "H100"}, {"full_epochs": 3}, {"batch": 8}, {"seed": 1}, {"holdout": 0.5}],
)
def test_another_training_of_a_full_set_is_not(tmp_path: Path, change: dict[str, Any]) -> None:
    full(tmp_path).keep(ENTRY)
    assert full(tmp_path, **change).find("mlp", 1) is None


def test_a_damaged_or_unwritable_store_is_no_error(tmp_path: Path) -> None:
    full(tmp_path / "store").keep(ENTRY)
    (file,) = (tmp_path / "store").iterdir()
    file.write_text("{")
    assert full(tmp_path / "store").find("mlp", 1) is None
    (tmp_path / "file").write_text("")
    full(tmp_path / "file").keep(ENTRY)


def test_the_full_set_is_paid_once(tmp_path: Path) -> None:
    events: list[Event] = []
    of = recipe(against=["full"], full_epochs=2)
    first = evaluate(
        of_run(of, run(tmp_path / "a", of)), of.evaluate, source(), run(tmp_path / "b", of), device=CPU,
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert first.budgets["full"].images == 45
    longer = recipe(against=["full"], full_epochs=2, epochs=4)
    where = run(tmp_path / "c", longer)
    second = evaluate(
        of_run(longer, where), longer.evaluate, source(), where, device=CPU, cache=tmp_path / "cache",
        listener=events.append,
    )  # fmt: skip
    assert Note("4 trainings on the full set are known from an earlier evaluation") in events
    trained = {event.training_set for event in events if isinstance(event, Training)}
    assert trained == {"condensed"}
    assert second.table["full"] == first.table["full"]
    assert read_scores(where.scores) == second
