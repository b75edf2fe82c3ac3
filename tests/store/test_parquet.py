"""train.parquet: what is written is read, and nothing but PNG images of one size is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.store import read_parquet, to_uint8, write_parquet
from hmdc_hub.store.parquet import read_class_names


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
