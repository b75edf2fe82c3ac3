"""Files that strangers could make: small on the disk, and large in the memory of whoever believes them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmdc_hub.store.parquet import _schema


def png(width: int, height: int, *, color: int = 2, bits: int = 8, data: bytes | None = None) -> bytes:
    """Make a PNG.

    Args:
        width, height: What its header says.
        color: 0 grey, 2 RGB, 3 palette, 6 RGBA.
        bits: Per channel.
        data: Its rows, deflated; None: those that the header asks for, all zeros.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    rows = zeros(height * (1 + (width * channels * bits + 7) // 8)) if data is None else data
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(6))] if color == 3 else []
    chunks += [(b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunk(image: bytes, name: bytes, content: bytes) -> bytes:
    """Put a chunk behind the header of a PNG."""
    return image[:33] + chunk(name, content) + image[33:]


def zeros(count: int) -> bytes:
    """Deflate zeros, a megabyte at a time."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [packer.compress(block[: min(len(block), count - start)]) for start in range(0, count, len(block))]
    return b"".join(parts) + packer.flush()


def parquet(
    path: Path, cells: Sequence[bytes | None], labels: Iterable[int], names: Sequence[str], **options: Any
) -> None:
    """Write cells as they are into what looks like a train.parquet; options as `pq.write_table`."""
    schema = _schema(names)
    struct_of = pa.StructArray.from_arrays(
        [pa.array(cells, pa.binary()), pa.nulls(len(cells), pa.string())], ["bytes", "path"]
    )
    table = pa.table({"image": struct_of, "label": pa.array(labels, pa.int64())}, schema=schema)
    pq.write_table(table, path, **options)


def repeated(path: Path, cell: bytes, rows: int, names: Sequence[str]) -> None:
    """Write one cell as all rows, through a dictionary; what is in memory here is the rows too."""
    parquet(path, [cell] * rows, [0] * rows, names, row_group_size=rows)


def nested(path: Path, depth: int) -> None:
    """Write a parquet file without rows whose schema is so many levels deep; it is all footer."""
    schema = b"".join(b"\x35\x00\x18\x01a\x15\x02\x00" for _ in range(depth)) + b"\x15\x04\x25\x00\x18\x01b\x00"
    footer = b"\x15\x02\x19\xfc" + varint(depth + 1) + schema + b"\x16\x00\x19\x0c\x00"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")


def varint(number: int) -> bytes:
    """Write a number as Thrift does."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def safetensors(path: Path, header: bytes, data: bytes = b"") -> None:
    """Write a safetensors file with any header."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
