"""condensed.safetensors: the same bytes in every process, and nothing in it that cannot be decoded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, RunError
from hmdc_hub.schema import FORMAT_VERSION, SetHeader
from hmdc_hub.store.condensed import (
    MAX_HEADER,
    read_classes,
    read_condensed,
    read_header,
    training_shape,
    write_classes,
    write_condensed,
)
from hmdc_hub.store.dataset import load
from hmdc_hub.store.files import read_info, sha256_file, write_json_atomic
from tests import bombs
from tests.builders import make_run


def header(classes: int = 2, ipc: int = 2, channels: int = 3, **change: Any) -> SetHeader:
    plain = {
        "name": "x", "ipc": ipc, "factor": 2, "class_names": [f"c{n}" for n in range(classes)],
        "mean": [0.5] * channels, "std": [0.25] * channels, "condense_hash": "ab" * 32,
    }  # fmt: skip
    return SetHeader.model_validate(plain | change)


def tensors(classes: int = 2, ipc: int = 2, channels: int = 3, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return torch.rand(classes * ipc, channels, side, side, generator=gen), torch.arange(classes).repeat_interleave(ipc)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 3]), st.sampled_from([2, 4, 8]))
def test_what_is_written_is_read(classes: int, ipc: int, channels: int, side: int) -> None:
    import tempfile

    images, labels = tensors(classes, ipc, channels, side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.safetensors"
        write_condensed(path, images, labels, header(classes, ipc, channels))
        found = read_condensed(path)
    assert (
        torch.equal(found[0], images) and torch.equal(found[1], labels) and found[2] == header(classes, ipc, channels)
    )


@pytest.mark.slow
def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    write_condensed(tmp_path / "a.safetensors", *tensors(), header())
    code = (
        "from pathlib import Path; from tests.store.test_condensed import *; "
        f"write_condensed(Path({str(tmp_path / 'b.safetensors')!r}), *tensors(), header())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert sha256_file(tmp_path / "a.safetensors") == sha256_file(tmp_path / "b.safetensors")


def test_the_header_is_one_key_of_canonical_json(tmp_path: Path) -> None:
    write_condensed(tmp_path / "a.safetensors", *tensors(), header())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"hmdc"}
    text = metadata["hmdc"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.full((4, 3, 4, 4), 1.5)}, r"\[0, 1\]"),
        ({"images": torch.full((4, 3, 4, 4), float("nan"))}, r"\[0, 1\]"),
        ({"images": torch.zeros(4, 3, 4, 6)}, "squares"),
        ({"images": torch.zeros(4, 2, 4, 4)}, "1 or 3"),
        ({"images": torch.zeros(4, 3, 4, 4, dtype=torch.float64)}, "float32"),
        ({"images": torch.zeros(3, 3, 4, 4)}, "3 images for 2 classes of 2"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"labels": torch.tensor([0, 1, 0, 1])}, "in order"),
        ({"labels": torch.tensor([0.0, 0.0, 1.0, 1.0])}, "int64"),
        ({"header": header(ipc=1)}, "4 images for 2 classes of 1"),
        ({"header": header(factor=3)}, "factor 3"),
        ({"header": header(channels=1)}, "mean and std"),
        ({"header": header(std=[0.0, 1.0, 1.0])}, "mean and std"),
    ],
)
def test_what_no_reader_could_decode_is_not_written(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    images, labels = tensors()
    given_: dict[str, Any] = {"images": images, "labels": labels, "header": header()} | change
    with pytest.raises(FormatError, match=words):
        write_condensed(tmp_path / "a.safetensors", given_["images"], given_["labels"], given_["header"])
    assert not list(tmp_path.iterdir())


def test_class_by_class_is_the_same_file(tmp_path: Path) -> None:
    images, labels = tensors()
    write_condensed(tmp_path / "a.safetensors", images, labels, header())
    write_classes(tmp_path / "b.safetensors", torch.split(images, 2), images.shape[1:], header())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = list(read_classes(tmp_path / "b.safetensors"))
    assert [len(one) for one in found] == [2, 2] and torch.equal(torch.cat(found), images)


def test_one_class_that_no_reader_could_decode_is_enough(tmp_path: Path) -> None:
    images, _ = tensors()
    with pytest.raises(FormatError, match=r"\[0, 1\]"):
        write_classes(tmp_path / "a.safetensors", [images[:2], images[2:] + 1], images.shape[1:], header())
    with pytest.raises(FormatError, match="squares"):
        write_classes(tmp_path / "a.safetensors", [images[:2], images[2:]], (3, 4, 6), header())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 3, 4, 4), "3 images for 2 classes of 2"),
        (torch.zeros(9, 3, 4, 4), "9 images for 2 classes of 2"),
        (torch.zeros(4, 3, 4, 4).half(), "F16"),
        (torch.zeros(4, 3), "float32 N x"),
        (torch.zeros(()), "float32 N x"),
        (torch.full((4, 3, 4, 4), float("nan")), r"\[0, 1\]"),
    ],
)
def test_class_by_class_refuses_what_the_whole_does(tmp_path: Path, images: torch.Tensor, words: str) -> None:
    path, text = tmp_path / "a.safetensors", header().model_dump_json()
    save_file({"images": images, "labels": tensors()[1]}, path, metadata={"hmdc": text})
    for read in (read_condensed, lambda path: list(read_classes(path))):
        with pytest.raises(FormatError, match="damaged"):
            read(path)
    with pytest.raises(FormatError, match=words):
        list(read_classes(path))


@pytest.mark.parametrize(
    "classes",
    [
        [torch.zeros(2, 3, 4, 4)],
        [torch.zeros(2, 3, 4, 4)] * 3,
        [torch.zeros(4, 3, 4, 4).double()],
        [torch.zeros(4, 3, 4, 4).int()],
        [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)],
        [torch.zeros(2, 3, 4, 4), torch.zeros(2)],
        [],
    ],
)
def test_classes_that_do_not_fit_are_not_written(tmp_path: Path, classes: list[torch.Tensor]) -> None:
    with pytest.raises(FormatError, match="damaged"):
        write_classes(tmp_path / "a.safetensors", classes, (3, 4, 4), header())
    assert not list(tmp_path.iterdir())


def test_damage_and_strangers_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(NotFoundError):
        read_condensed(path)
    write_condensed(path, *tensors(), header())
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:20], b"", b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="damaged"):
            read_condensed(path)
    save_file({"images": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match="no condensed set"):
        read_condensed(path)
    newer = header().model_dump() | {"format_version": FORMAT_VERSION + 1, "new": 1}
    save_file({"other": torch.zeros(1)}, path, metadata={"hmdc": json.dumps(newer)})
    with pytest.raises(NewerFormatError):
        read_condensed(path)
    save_file({"images": torch.zeros(4, 3, 4, 4)}, path, metadata={"hmdc": header().model_dump_json()})
    with pytest.raises(FormatError, match="labels"):
        read_condensed(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError):
        write_condensed(tmp_path / "file" / "a.safetensors", *tensors(), header())


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_condensed(path, *tensors(), header())
    good = path.read_bytes()
    assert read_header(path) == (header(), True)
    for place in range(0, len(good), 7):
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        for read in (read_condensed, read_header, lambda path: list(read_classes(path))):
            with pytest.raises(FormatError):
                read(path)


def test_a_set_of_an_older_program_has_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    images, labels = tensors()
    save_file({"images": images, "labels": labels}, path, metadata={"hmdc": header().model_dump_json()})
    assert read_header(path) == (header(), False) and torch.equal(read_condensed(path)[0], images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ipc": 10**9}, "6 synthetic and 24 training images for 3 classes of 1,000,000,000"),
        (
            {"ipc": 10**9, "synthetic_images": 3 * 10**9, "training_images": 12 * 10**9},
            "3,000,000,000 images of 8 x 8 x 3",
        ),
        ({"factor": 8, "training_images": 384}, "3, 2, 2, 6 x 3 x 8 x 8.* 3, 2, 8, 6"),
        ({"factor": 10**6, "training_images": 6 * 10**12}, "6,000,000,000,000 images"),
        ({"source": {"size": 10**6}}, "1000000 x 1000000 x 3"),
        ({"source": {"size": 4, "channels": 12}}, "6 x 3 x 8 x 8.*6 x 12 x 4 x 4"),
        ({"source": {"class_names": ["a"] * 6}, "ipc": 1}, "3, 2, 2.*6, 1, 2"),
    ],
)
def test_numbers_of_info_json_are_those_of_the_tensors(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run = make_run(tmp_path / "run", scored=False)
    info = read_info(run.info)
    assert training_shape(info, run.condensed) == (24, 3, 8, 8)
    source = info.source.model_copy(update=change.get("source", {}))
    wrong = info.model_copy(update=change | {"source": source})
    with pytest.raises(FormatError, match=words):
        training_shape(wrong, run.condensed)
    with pytest.raises(NotFoundError):
        training_shape(info, tmp_path / "none")
    write_json_atomic(run.info, wrong)
    with pytest.raises(FormatError, match=words):
        load(run.path)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"{" + b" " * MAX_HEADER + b"}", "its table has 16,777,218 bytes"),
        (
            b'{"images":{"dtype":"F32","shape":[1000000000,3,1024,1024],"data_offsets":[0,12582912000000000]}}',
            "damaged",
        ),
        (b'{"a":' * 5000 + b"0" + b"}" * 5000, "damaged"),
    ],
)
def test_tables_that_claim_too_much(tmp_path: Path, head: bytes, words: str) -> None:
    bombs.safetensors(tmp_path / "a.safetensors", head)
    with pytest.raises(FormatError, match=words):
        read_condensed(tmp_path / "a.safetensors")


def test_shapes_are_checked_before_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    images, labels = tensors()
    for wrong in (
        {"images": images[:3]},
        {"labels": labels[:3]},
        {"images": images.double()},
        {"labels": labels.int()},
    ):
        save_file({"images": images, "labels": labels} | wrong, path, metadata={"hmdc": header().model_dump_json()})
        with safe_open(path, framework="pt") as file:
            given = mock.Mock(wraps=file, get_tensor=mock.Mock(side_effect=AssertionError("read")))
        opened = mock.MagicMock(__enter__=mock.Mock(return_value=given), __exit__=mock.Mock(return_value=None))
        monkeypatch.setattr("hmdc_hub.store.condensed.safe_open", mock.Mock(return_value=opened))
        with pytest.raises(FormatError, match="damaged"):
            read_condensed(path)
