"""train.parquet: what is written is read, and nothing but PNG images of one size is."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.store import parquet
from hmdc_hub.store.parquet import read_class_names, read_parquet, to_uint8, write_parquet, write_parquet_parts
from tests import bombs


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(0, 2**31))
def test_what_is_written_is_read(count: int, channels: int, side: int, seed: int) -> None:
    import tempfile

    gen = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, side, side), generator=gen, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count,), generator=gen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        write_parquet(path, images, labels, ["a", "b"])
        found = read_parquet(path)
        first = path.read_bytes()
        write_parquet(path, images, labels, ["a", "b"])
        assert path.read_bytes() == first
        assert read_class_names(path) == ["a", "b"]
    assert torch.equal(found[0], images) and torch.equal(found[1], labels)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 4))
def test_how_parts_are_cut_makes_no_difference(sizes: list[int], rows: int) -> None:
    import tempfile

    count = sum(sizes)
    images, labels = torch.randint(0, 256, (count, 1, 3, 3), dtype=torch.uint8), torch.arange(count) % 2
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(parquet, "ROWS_PER_GROUP", rows):
        whole, cut = Path(folder) / "whole.parquet", Path(folder) / "cut.parquet"
        write_parquet(whole, images, labels, ["a", "b"])
        written = write_parquet_parts(
            cut, zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True), ["a", "b"]
        )
        assert written == count and whole.read_bytes() == cut.read_bytes()
        groups = pq.ParquetFile(cut).metadata
        assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [
            min(rows, count - start) for start in range(0, count, rows)
        ]


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    parts = [(torch.zeros(1, 1, side, side, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)) for side in (2, 3)]
    with pytest.raises(FormatError, match=r"\(1, 3, 3\) stand after images of \(1, 2, 2\)"):
        write_parquet_parts(tmp_path / "a.parquet", parts, ["a"])
    assert not list(tmp_path.iterdir())


def test_an_empty_part_first_changes_no_row_group(tmp_path: Path) -> None:
    images, labels = torch.zeros(12, 1, 3, 3, dtype=torch.uint8), torch.zeros(12, dtype=torch.int64)
    with mock.patch.object(parquet, "BYTES_PER_GROUP", 4 * 9):
        write_parquet_parts(tmp_path / "a.parquet", [(images[:0], labels[:0]), (images, labels)], ["a"])
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 3


def test_the_first_images_alone(tmp_path: Path) -> None:
    images, labels = torch.randint(0, 256, (9, 1, 3, 3), dtype=torch.uint8), torch.arange(9) % 2
    with mock.patch.object(parquet, "ROWS_PER_GROUP", 2):
        write_parquet(tmp_path / "a.parquet", images, labels, ["a", "b"])
    for first in (1, 2, 5, 9, 20):
        with mock.patch.object(parquet, "_pixels", wraps=parquet._pixels) as decoded:
            found = read_parquet(tmp_path / "a.parquet", first)
        assert decoded.call_count == min(9, first)
        assert torch.equal(found[0], images[:first]) and torch.equal(found[1], labels[:first])


def test_datasets_needs_no_card(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), ["a", "\u00e9"]
    )
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == ["a", "\u00e9"] and loaded[1]["image"].size == (4, 4)


def test_rounding_is_to_the_nearest_of_256_values() -> None:
    values = torch.tensor([0.0, 0.5 / 255, 0.51 / 255, 1.49 / 255, 254.51 / 255, 1.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 1, 255, 255]


def picture(kind: str, side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "cells",
    [[picture("TIFF")], [picture("JPEG")], [b"x"], [None], [picture("PNG"), picture("PNG", 5)], []],
    ids=["tiff", "jpeg", "no image", "null", "two sizes", "empty"],
)
def test_what_is_no_png_of_one_size_is_refused(tmp_path: Path, cells: list[Any]) -> None:
    rows = [{"bytes": data, "path": None} for data in cells]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, image), "label": pa.array([0] * len(rows), pa.int64())})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(FormatError, match="damaged"):
        read_parquet(tmp_path / "train.parquet")
    with pytest.raises(FormatError, match="names no classes"):
        read_class_names(tmp_path / "train.parquet")


def test_damage_and_absence(tmp_path: Path) -> None:
    for read in (read_parquet, read_class_names):
        with pytest.raises(NotFoundError):
            read(tmp_path / "x")
        (tmp_path / "y").write_bytes(b"PAR1")
        with pytest.raises(FormatError):
            read(tmp_path / "y")


SHAPE = (6, 3, 4, 4)


def six(path: Path, cell: bytes, **options: Any) -> None:
    bombs.parquet(path, [cell] * 6, [0] * 6, ["a"], **options)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (bombs.png(30_000, 30_000, data=b""), "damaged: image 0"),
        (bombs.png(9_000, 9_000, data=b""), "9000 x 9000 RGB, not 4 x 4 RGB"),
        (bombs.png(4, 4, color=6), "4 x 4 RGBA, not 4 x 4 RGB"),
        (bombs.png(4, 4, color=3), "4 x 4 P, not 4 x 4 RGB"),
        (bombs.png(4, 4, color=0, bits=16), "4 x 4 I;16, not 4 x 4 RGB"),
        (bombs.with_chunk(bombs.png(4, 4), b"zTXt", b"a\0\0" + bombs.zeros(5 << 20)), "image 0"),
        (bombs.with_chunk(bombs.png(4, 4), b"iCCP", b"a\0\0" + bombs.zeros(2 << 20)), "image 0"),
        (bytes(2 << 20), "unpack to more than"),
    ],
    ids=["far too large", "too large", "alpha", "palette", "16 bits", "text", "profile", "zeros"],
)
def test_nothing_is_decoded_but_what_the_shape_says(
    tmp_path: Path, cell: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    six(tmp_path / "a.parquet", cell)
    monkeypatch.setattr(ImageFile.ImageFile, "load", mock.Mock(side_effect=AssertionError("decoded")))
    with pytest.raises(FormatError, match=words):
        read_parquet(tmp_path / "a.parquet", shape=SHAPE)


@pytest.mark.parametrize("rows", [5, 7])
def test_the_number_of_rows_is_known_before_any_is_read(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bombs.repeated(tmp_path / "a.parquet", bombs.png(4, 4), rows, ["a"])
    monkeypatch.setattr(pq, "ParquetFile", mock.Mock(side_effect=AssertionError("opened")))
    with pytest.raises(FormatError, match=f"{rows} rows"):
        read_parquet(tmp_path / "a.parquet", shape=SHAPE)


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip"])
def test_a_page_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    six(tmp_path / "a.parquet", bytes(4 << 20), compression=compression)
    assert (tmp_path / "a.parquet").stat().st_size < 250_000
    monkeypatch.setattr(pq, "ParquetFile", mock.Mock(side_effect=AssertionError("opened")))
    with pytest.raises(FormatError, match="unpack to more than"):
        read_parquet(tmp_path / "a.parquet", shape=SHAPE)


def test_images_that_are_as_large_as_they_can_be_are_read(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    write_parquet(tmp_path / "a.parquet", images, torch.zeros(40, dtype=torch.int64), ["a"])
    assert torch.equal(read_parquet(tmp_path / "a.parquet", shape=(40, 3, 64, 64))[0], images)
    write_parquet(tmp_path / "a.parquet", images[:1, :1, :1, :1], torch.zeros(1, dtype=torch.int64), ["a"])
    assert read_parquet(tmp_path / "a.parquet", shape=(1, 1, 1, 1))[0].shape == (1, 1, 1, 1)


def test_rows_that_are_not_there_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    six(tmp_path / "a.parquet", picture("PNG"))
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: islice(real(*a, **k), 4))
    with pytest.raises(FormatError, match="2 of its rows are missing"):
        read_parquet(tmp_path / "a.parquet", shape=SHAPE)
