"""Safetensors files in parts: the library's bytes, one part in memory at a time, whole or not at all."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from hmdc_hub.errors import RunError
from hmdc_hub.store.condensed import Parts, content_digest, in_order, write_tensors

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8]


def cut(tensor: torch.Tensor, size: int) -> Parts:
    return Parts(tensor.dtype, tuple(tensor.shape), torch.split(tensor, size))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5),
    st.integers(1, 3),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_what_is_written_in_parts_the_library_reads(
    kinds: list[tuple[torch.dtype, list[int]]], size: int, header: str
) -> None:
    tensors = {f"t{n}": (torch.rand(shape) * 9).to(dtype) for n, (dtype, shape) in enumerate(kinds)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write_tensors(path, {k: cut(t, size) if t.dim() else Parts.of(t) for k, t in tensors.items()}, lambda _: header)
        found = load_file(path)
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"hmdc": header}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_the_bytes_are_the_librarys(tmp_path: Path) -> None:
    tensors = {
        "images": torch.rand(6, 3, 4, 4),
        "labels": torch.arange(6),
        "a": torch.rand(5),
        "b": torch.rand(1).half(),
    }
    header = '{"names":["\u00e9","a \\"b\\"\\u0001\\\\","\u2028\x7f/"]}'
    write_tensors(tmp_path / "a", {name: cut(tensor, 2) for name, tensor in tensors.items()}, lambda _: header)
    assert (tmp_path / "a").read_bytes() == save(tensors, metadata={"hmdc": header})


def test_one_part_is_there_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def parts() -> Iterator[torch.Tensor]:
        nonlocal most
        for _ in range(50):
            part = torch.zeros(1, 1000)
            alive.append(weakref.ref(part))
            # No gc.collect(): nobody should have to collect what was written, and among all of torch it takes seconds.
            most = max(most, sum(one() is not None for one in alive))
            yield part
            del part

    write_tensors(tmp_path / "a", {"x": Parts(torch.float32, (50, 1000), parts())}, str)
    assert len(alive) == 50 and most <= 2
    assert load_file(tmp_path / "a")["x"].shape == (50, 1000)


def test_the_digest_is_of_the_contents_but_the_header(tmp_path: Path) -> None:
    def write(name: str, tensors: dict[str, torch.Tensor], prefix: str = "") -> str:
        parts = {key: Parts.of(tensor) for key, tensor in tensors.items()}
        told: list[str] = []

        def header(digest: str) -> str:
            told.append(digest)
            return prefix + digest

        write_tensors(tmp_path / name, parts, header)
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata() == {"hmdc": prefix + content_digest(tmp_path / name)}
        assert told[-1] == content_digest(tmp_path / name)
        return told[-1]

    first = write("a", {"x": torch.arange(6)})
    assert write("b", {"x": torch.arange(6)}, "other ") == first
    others = [
        write("c", {"x": torch.arange(6).view(2, 3)}),
        write("d", {"y": torch.arange(6)}),
        write("e", {"x": torch.arange(6).flip(0)}),
        write("f", {"x": torch.arange(6).double()}),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 4, b"\xff" * 16, b"\x02" + b"\x00" * 7 + b"[]", b"\x08" + b"\x00" * 20]
)
def test_no_digest_of_what_is_no_such_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError):
        content_digest(tmp_path / "a")


def test_every_changed_byte_shows(tmp_path: Path) -> None:
    """Of the numbers and of the table: the file is then another or none."""
    path = tmp_path / "a"
    write_tensors(path, {"x": Parts.of(torch.rand(3)), "n": Parts.of(torch.arange(2))}, lambda digest: digest)
    whole, digest = path.read_bytes(), content_digest(path)
    table = whole.index(b'"n":')
    for place in range(table, len(whole)):
        data = bytearray(whole)
        if data[place] == ord(" "):
            continue  # fills up the table
        data[place] ^= 1
        path.write_bytes(data)
        with suppress(ValueError):
            assert content_digest(path) != digest, place


@pytest.mark.parametrize("before", [False, True])
def test_a_part_that_fails_leaves_what_was_there(tmp_path: Path, before: bool) -> None:
    def parts() -> Iterator[torch.Tensor]:
        yield torch.zeros(1)
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    if before:
        path.write_bytes(b"old")
    with pytest.raises(RunError, match="No space is left"):
        write_tensors(path, {"x": Parts(torch.float32, (2,), parts())}, str)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([("a", b"old")] if before else [])


@pytest.mark.parametrize("rows", [1, 3])
def test_parts_that_are_not_what_was_said_are_our_bug(tmp_path: Path, rows: int) -> None:
    with pytest.raises(AssertionError, match="x: "):
        write_tensors(tmp_path / "a", {"x": Parts(torch.float32, (2,), [torch.zeros(rows)])}, str)
    assert not list(tmp_path.iterdir())


def test_wide_numbers_come_first_so_all_are_aligned() -> None:
    tensors = {"a": torch.zeros(1).half(), "c": torch.zeros(1), "b": torch.zeros(1), "d": torch.arange(1)}
    assert in_order({name: Parts.of(tensor) for name, tensor in tensors.items()}) == ["d", "b", "c", "a"]
