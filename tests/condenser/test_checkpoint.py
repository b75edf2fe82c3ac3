"""Checkpoints: found, read row by row, never written from what cannot be gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hmdc_hub.condenser import checkpoint
from hmdc_hub.condenser.checkpoint import Position
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.errors import DivergedError, FormatError
from hmdc_hub.events import Event, Note, silent
from hmdc_hub.store.condensed import Parts


class Second(Ranks):
    """A rank that is not the first, whose peer says the same as it does."""

    def __init__(self) -> None:
        self.index, self.count = 1, 2

    def together(self, rows: torch.Tensor) -> torch.Tensor:
        return 2 * rows


def save(folder: Path, outer: int, inner: int = 0, tag: str = "aa") -> dict[str, torch.Tensor]:
    tensors = {"images": torch.rand(5, 2, 3), "real": torch.arange(10).view(5, 2), "pool.a": torch.tensor(3.0)}
    parts = {name: Parts.of(tensor) for name, tensor in tensors.items()}
    checkpoint.save(folder, parts, Position(outer, inner, 1.5), tag, Ranks())
    return tensors


def test_what_is_saved_is_found_and_read_by_rows(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, "aa", Ranks(), silent) is None
    tensors = save(tmp_path, 3, 2)
    found = checkpoint.newest(tmp_path, "aa", Ranks(), silent)
    assert found is not None and found.position == Position(3, 2, 1.5)
    for rows in ([], [0], [4, 1], range(5)):
        for name in ("images", "real"):
            assert torch.equal(found.rows(name, list(rows)), tensors[name][list(rows)])
            assert found.rows(name, list(rows)).dtype == tensors[name].dtype
    assert found.below("pool.").keys() == {"a"} and float(found.below("pool.")["a"]) == 3


def test_two_are_kept_and_those_of_another_recipe_are_left_out(tmp_path: Path) -> None:
    for outer in (1, 2, 10):
        save(tmp_path, outer)
    assert [path.name[:6] for path in sorted(tmp_path.iterdir())] == ["000002", "000010"]
    save(tmp_path, 11, tag="bb")
    found = checkpoint.newest(tmp_path, "aa", Ranks(), silent)
    assert found is not None and found.position.outer == 10
    assert checkpoint.newest(tmp_path, "cc", Ranks(), silent) is None


def test_a_damaged_one_is_told_and_left_out(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    newer, notes = sorted(tmp_path.iterdir())[1], list[Event]()
    data = bytearray(newer.read_bytes())
    data[-3] ^= 16
    newer.write_bytes(data)
    found = checkpoint.newest(tmp_path, "aa", Ranks(), notes.append)
    assert found is not None and found.position.outer == 1
    assert [note.text for note in notes if isinstance(note, Note)] == [
        "checkpoint 000002-000000.safetensors cannot be used (its contents do not match its digest); "
        "taking the one before it"
    ]


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a checkpoint's header alone."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()["hmdc"]
    save_file(load_file(path), path, metadata={"hmdc": change(header)})


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["position"].update(outer=7),
        lambda facts: facts["position"].update(seconds=None),
        lambda facts: facts["position"].update(inner="x"),
        lambda facts: facts["position"].clear(),
        lambda facts: facts.update(position=3),
        lambda facts: facts.pop("digest"),
    ],
)
def test_a_header_that_is_not_right_is_as_good_as_damage(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def changed(header: str) -> str:
        facts = json.loads(header)
        change(facts)
        return json.dumps(facts)

    rewrite(sorted(tmp_path.iterdir())[1], changed)
    notes = list[Event]()
    found = checkpoint.newest(tmp_path, "aa", Ranks(), notes.append)
    assert found is not None and found.position.outer == 1 and len(notes) == 1


@pytest.mark.parametrize("version", [checkpoint.VERSION - 1, checkpoint.VERSION + 1])
def test_one_of_another_version_is_refused_and_kept(tmp_path: Path, version: int) -> None:
    save(tmp_path, 1)
    rewrite(next(tmp_path.iterdir()), lambda header: json.dumps(json.loads(header) | {"format_version": version}))
    with pytest.raises(FormatError, match=f"checkpoint format {version}, this one's is") as caught:
        checkpoint.newest(tmp_path, "aa", Ranks(), silent)
    assert "--force" in caught.value.hint and len(list(tmp_path.iterdir())) == 1


def test_what_could_not_be_used_does_not_crowd_out_what_is_saved_after(tmp_path: Path) -> None:
    save(tmp_path, 8)
    save(tmp_path, 9)
    for path in tmp_path.iterdir():
        path.write_bytes(b"x" * 100)
    save(tmp_path, 1)
    found = checkpoint.newest(tmp_path, "aa", Ranks(), silent)
    assert found is not None and found.position.outer == 1
    assert [path.name for path in tmp_path.iterdir()] == ["000001-000000.safetensors"]


def test_a_deeply_nested_header_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    rewrite(next(tmp_path.iterdir()), lambda header: "[" * 100_000)
    assert checkpoint.newest(tmp_path, "aa", Ranks(), silent) is None


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    save(tmp_path, 1)
    parts = Parts(torch.float32, (2, 1), iter([torch.zeros(1, 1), torch.full((1, 1), float("inf"))]))
    with pytest.raises(DivergedError, match="after 1 outer iterations and 2 image steps is not finite") as caught:
        checkpoint.save(tmp_path, {"images": parts}, Position(1, 2, 0.0), "aa", Ranks())
    assert "lr.condense" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["000001-000000.safetensors"]


def test_ranks_but_the_first_give_their_parts_in_the_files_order_and_write_nothing(tmp_path: Path) -> None:
    given = list[str]()

    def parts(name: str) -> Iterator[torch.Tensor]:
        for _ in range(2):
            given.append(name)
            yield torch.zeros(1)

    tensors = {name: Parts(torch.float32, (2,), parts(name)) for name in ("b", "a")}
    tensors["c"] = Parts(torch.int64, (2,), parts("c"))
    checkpoint.save(tmp_path, tensors, Position(1, 0, 0.0), "aa", Second())
    assert given == ["c", "c", "a", "a", "b", "b"] and not list(tmp_path.iterdir())
