"""Safetensors files written a part at a time, so that what they hold need never be in memory as a whole.

The library writes tensors that are all there. Its format is a length, a table in JSON and the numbers
(https://huggingface.co/docs/safetensors, "Format"); it reads what is written here, and writes the same bytes where no
two types of numbers are equally wide.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmdc_hub.store.files import atomic

MAX_HEADER = 16 * 1024 * 1024
"""Most bytes of the table of a file; class names are in it, and the library reads up to a hundred million."""

METADATA_KEY = "hmdc"
"""The one metadata key of our files: the library writes several in random order."""

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """A tensor that comes in parts, which are rows of it, one after another.

    Attributes:
        dtype: Of the whole.
        shape: Of the whole.
        parts: On any device; gone through once.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Iterable[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Parts:
        """Take a tensor that is there in one part."""
        return cls(tensor.dtype, tuple(tensor.shape), [tensor])


def in_order(tensors: Mapping[str, Parts]) -> list[str]:
    """Return the names in the order of the file: wide numbers first, so that all are aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_tensors(path: Path, tensors: Mapping[str, Parts], header: Callable[[str], str]) -> None:
    """Write a safetensors file in one step; the same arguments give the same bytes in every process.

    Args:
        path: The file.
        tensors: By name.
        header: Makes the text under `METADATA_KEY` from the file's `content_digest`, one as long as another.

    Raises:
        RunError: The file system failed.
    """
    names = in_order(tensors)
    table = _table({name: tensors[name] for name in names})
    with atomic(path) as temporary, temporary.open("wb") as file:
        # The digest is known at the end and stands at the beginning.
        head = _head(table, header("0" * 64))
        file.write(head)
        digest = hashlib.sha256(_compact(table))
        for name in names:
            before = file.tell()
            for part in tensors[name].parts:
                assert part.dtype == tensors[name].dtype, f"{name}: {part.dtype}, not {tensors[name].dtype}"
                data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(data)
                file.write(data)
            begin, end = table[name]["data_offsets"]
            assert file.tell() - before == end - begin, f"{name}: {file.tell() - before} bytes, not {end - begin}"
        final = _head(table, header(digest.hexdigest()))
        assert len(final) == len(head)
        file.seek(0)
        file.write(final)


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose table is larger than any honest one, before a library reads it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its table has {length:,} bytes; at most {MAX_HEADER:,} are read")


def content_digest(path: Path) -> str:
    """Compute the SHA-256 (hex) of a file's table and numbers, a little at a time; its metadata are left out.

    Raises:
        OSError, ValueError: It cannot be read, or is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its table is longer than the file")
        table = json.loads(file.read(length))
        if not isinstance(table, dict):
            raise ValueError("its table is no JSON object")
        found = hashlib.sha256(_compact({name: entry for name, entry in table.items() if name != "__metadata__"}))
        return hashlib.file_digest(file, lambda: found).hexdigest()


def _table(tensors: Mapping[str, Parts]) -> dict[str, dict[str, Any]]:
    table, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + prod(tensor.shape) * tensor.dtype.itemsize
        table[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return table


def _head(table: Mapping[str, Any], header: str) -> bytes:
    text = _compact({"__metadata__": {METADATA_KEY: header}} | dict(table))
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
