"""How much a parquet file holds, read from its footer and the headers of its pages before anything is unpacked.

A file of kilobytes can say that it has millions of rows, or hold a page that unpacks to gigabytes, and libraries
believe it. The sizes that a reader allocates by are those in the headers of the pages; they are added up here. Footer
and headers are Thrift in its compact protocol (https://parquet.apache.org/docs/file-format/).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmdc_hub.errors import FormatError, NotFoundError

FOOTER = 4 * 1024 * 1024
FOOTER_OF_ROW = 64
"""Most bytes of a footer: so many, and as many more for every row. Row groups have statistics of some kilobytes."""

PAGE_HEADER = 1024 * 1024
"""Most bytes of the header of a page."""

MAX_DEPTH = 32
"""Most levels in a footer, and in a schema: readers recurse."""

BYTES_OF_VALUE = 8
"""What a value counts for beside its page: a run of millions that are equal takes no room in a page."""


@dataclass(frozen=True)
class Measured:
    """What a parquet file holds.

    Attributes:
        rows: Of all row groups.
        unpacked: Bytes of all pages once unpacked, and `BYTES_OF_VALUE` for every value in them.
        nested: Whether a column holds lists.
    """

    rows: int
    unpacked: int
    nested: bool


def measure(path: Path, *, rows: int, unpacked: int) -> Measured:
    """Add up what a parquet file holds, without unpacking or allocating any of it.

    Args:
        path: The file.
        rows: How many it may have.
        unpacked: What it may hold, as `Measured.unpacked`; no page is looked at after that.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is no parquet file, contradicts itself, or holds more.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _measured(data, rows, unpacked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is not read: {error}.") from error


def _measured(data: mmap.mmap, most_rows: int, most: int) -> Measured:
    length = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != b"PAR1" or length > len(data) - 12:
        raise ValueError("it is no parquet file")
    if length > FOOTER + FOOTER_OF_ROW * most_rows:
        raise ValueError(f"its footer has {length:,} bytes")
    footer = _Compact(data, len(data) - 8 - length, length).struct()
    groups, rows = footer.get(4, []), footer[3]
    if not 0 <= rows <= most_rows:
        raise ValueError(f"it has {rows:,} rows, and may have {most_rows:,}")
    if any(group[3] < 0 for group in groups) or sum(group[3] for group in groups) != rows:
        raise ValueError(f"its row groups do not have the {rows} rows that its footer says")
    if _depth(footer[2]) > MAX_DEPTH:
        raise ValueError(f"its columns are nested more than {MAX_DEPTH} levels deep")
    unpacked = 0
    for group in groups:
        for column in group[1] if group[3] else ():  # without rows, columns may have no pages, and no place
            if column.get(1):
                raise ValueError("a column is in another file")
            unpacked = _pages(data, column[3], unpacked, most)
    repeated = 2  # FieldRepetitionType
    return Measured(rows, unpacked, any(element.get(3) == repeated for element in footer[2]))


def _depth(schema: list[dict[int, Any]]) -> int:
    """Count the levels of a schema, which is its elements in depth-first order with their numbers of children."""
    left, deepest = list[int](), 0
    for element in schema:
        while left and left[-1] == 0:
            left.pop()
        if left:
            left[-1] -= 1
        left.append(element.get(5, 0))
        deepest = max(deepest, len(left))
    return deepest


def _pages(data: mmap.mmap, column: dict[int, Any], unpacked: int, most: int) -> int:
    """Add the pages of a column in one row group to what was unpacked before."""
    # A dictionary, where there is one, stands before the values.
    at = min(place for place in (column[9], column.get(11, 0) or column[9]))
    end = at + column[7]
    if not 4 <= at <= end <= len(data):
        raise ValueError("a column lies outside of the file")
    while at < end:
        header = _Compact(data, at, PAGE_HEADER)
        page = header.struct()
        size, packed = page[2], page[3]
        values = next((page[key][1] for key in (5, 8, 7) if key in page), 0)
        if size < 0 or packed < 0 or values < 0:
            raise ValueError("a page has a negative size")
        unpacked += size + BYTES_OF_VALUE * values
        if unpacked > most:
            raise ValueError(f"its {len(data):,} bytes unpack to more than {most:,}, all that it may hold")
        at = header.at + packed
    return unpacked


class _Compact:
    """Reads Thrift's compact protocol: a struct becomes a dict by the numbers of its fields.

    Args:
        data: The file.
        at: Where to begin; afterwards where it ended.
        most: Bytes that are read.
    """

    def __init__(self, data: mmap.mmap, at: int, most: int) -> None:
        self.data, self.at, self.end = data, at, min(len(data), at + most)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct."""
        fields, number = dict[int, Any](), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # a truth value in a list is a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            length = 8 if kind == 7 else self._varint()
            self.at += length
            if self.at > self.end:
                raise ValueError("its footer is cut short")
            return self.data[self.at - length : self.at]
        if depth > MAX_DEPTH:
            raise ValueError(f"its footer is nested more than {MAX_DEPTH} levels deep")
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"its footer has a field of the unknown kind {kind}")

    def _byte(self) -> int:
        if self.at >= self.end:
            raise ValueError("its footer is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
