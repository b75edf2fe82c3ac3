"""What a parquet file holds is known before anything of it is unpacked; no file makes that fail otherwise."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.store.parquet import BYTES_OF_VALUE, FOOTER, measure
from tests import bombs

ANY = 2**40


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_measured_is_what_is_there(tmp_path: Path, compression: str, version: str) -> None:
    path, cells = tmp_path / "a.parquet", [bytes([n]) * 500 for n in range(200)]
    options = {"compression": compression, "data_page_version": version, "row_group_size": 70, "data_page_size": 5000}
    bombs.parquet(path, cells, range(200), ["a"], **options)
    found, footer = measure(path, rows=200, unpacked=ANY), pq.read_metadata(path)
    columns = [footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)]
    known = sum(column.total_uncompressed_size for column in columns)  # with headers, and without dictionaries' values
    assert found.rows == 200 and not found.nested
    assert 200 * 500 < found.unpacked < known + 2 * BYTES_OF_VALUE * 3 * 200
    assert measure(path, rows=200, unpacked=found.unpacked) == found
    with pytest.raises(FormatError, match=r"unpack to more than"):
        measure(path, rows=200, unpacked=found.unpacked - 1)
    with pytest.raises(FormatError, match="200 rows, and may have 199"):
        measure(path, rows=199, unpacked=ANY)


def test_equal_values_count_though_they_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": pa.array([7] * 100_000)}), path)
    assert path.stat().st_size < 3000
    assert measure(path, rows=10**6, unpacked=ANY).unpacked > 800_000


def test_lists_are_noticed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [[1, 2], [3]]}), tmp_path / "a.parquet")
    assert measure(tmp_path / "a.parquet", rows=2, unpacked=ANY).nested


def test_a_schema_without_end_is_not_followed(tmp_path: Path) -> None:
    bombs.nested(tmp_path / "a.parquet", 20)
    assert measure(tmp_path / "a.parquet", rows=0, unpacked=ANY).rows == 0
    bombs.nested(tmp_path / "a.parquet", 100_000)
    with pytest.raises(FormatError, match="nested"):
        measure(tmp_path / "a.parquet", rows=0, unpacked=ANY)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"PAR1", "no parquet file"),
        (b"PAR1" + b"\x19" * 100 + struct.pack("<I", 100) + b"PAR1", "nested|cut short"),
        (b"PAR1" + struct.pack("<I", 2**31) + b"PAR1", "no parquet file"),
        (b"PAR1" + bytes(FOOTER + 1) + struct.pack("<I", FOOTER + 1) + b"PAR1", "its footer has 4,194,305 bytes"),
    ],
)
def test_what_is_no_footer(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(FormatError, match=words):
        measure(tmp_path / "a.parquet", rows=0, unpacked=ANY)
    with pytest.raises(NotFoundError):
        measure(tmp_path / "b.parquet", rows=0, unpacked=ANY)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 40))
def test_any_damage_is_a_format_error(edits: list[tuple[int, int]], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        bombs.parquet(path, [b"abc", b"de", None], [0, 0, 0], ["a"])
        data = bytearray(path.read_bytes())
        for place, value in edits:
            data[-1 - place % len(data)] = value
        path.write_bytes(bytes(data[: len(data) - cut]) + (data[-8:] if cut else b""))
        with suppress(FormatError):
            measure(path, rows=3, unpacked=ANY)
