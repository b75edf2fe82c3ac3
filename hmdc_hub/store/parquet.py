"""train.parquet: the decoded images as 8-bit PNG, readable by `datasets` without anything else.

A parquet file of kilobytes can say that it has millions of rows, or hold a page that unpacks to gigabytes, and
libraries believe it. So the sizes that a reader allocates by, which are those in the headers of the pages, are added up
before anything is unpacked (`measure`). Footer and headers are Thrift in its compact protocol
(https://parquet.apache.org/docs/file-format/).
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import FormatError, HmdcError, NotFoundError
from hmdc_hub.store.files import atomic

ROWS_PER_GROUP = 1000
# The Hub's viewer refuses row groups above 286 MiB; a PNG is hardly ever larger than its pixels.
BYTES_PER_GROUP = 128 * 1024 * 1024

PNG_OVERHEAD = 1024  # most bytes of a PNG beside its pixels
ROW_OVERHEAD, MARGIN = 128, 1024 * 1024  # what a row and a file may count for beside the values' bytes, see `measure`
# Most bytes of a footer: so many, and as many more for every row. Row groups have statistics of some kilobytes.
FOOTER, FOOTER_OF_ROW = 4 * 1024 * 1024, 64
PAGE_HEADER = 1024 * 1024  # most bytes of the header of a page
MAX_DEPTH = 32  # most levels in a footer, and in a schema: readers recurse
BYTES_OF_VALUE = 8  # of a value beside its page: a run of millions that are equal takes no room in a page

Pixels = NDArray[np.uint8]


def to_uint8(images: Tensor) -> Tensor:
    """Round float pixels in [0, 1] to uint8 in 0..255, the same shape, on the same device."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def write_parquet(path: Path, images: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    """Write decoded images and labels in one part, as `write_parquet_parts` does."""
    write_parquet_parts(path, [(images, labels)], class_names)


def write_parquet_parts(path: Path, parts: Iterable[tuple[Tensor, Tensor]], class_names: Sequence[str]) -> int:
    """Write decoded images and labels without having all of them at a time.

    The same arguments give the same bytes (with the same Pillow and pyarrow). The file says itself that `image` is an
    image and `label` a class label with these names, under the metadata key that `datasets` reads.

    Args:
        path: The file, usually `train.parquet`; replaced in one step.
        parts: Images uint8 m x ch x H x W, ch 1 (grey) or 3 (RGB), and labels int64 m, each in
            0..len(class_names)-1, one part after another; how they are cut makes no difference to the file.
        class_names: One name per class.

    Returns:
        Images written.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
    """
    schema, written = _schema(class_names), 0
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema, write_page_index=True) as writer:
        for group in _groups(parts, len(class_names), schema):
            writer.write_table(group, row_group_size=len(group))
            written += len(group)
    return written


def _groups(parts: Iterable[tuple[Tensor, Tensor]], classes: int, schema: Any) -> Iterator[Any]:
    """Cut parts anew into row groups."""
    cells, numbers, size, rows = list[dict[str, Any]](), list[int](), None, 0
    for images, labels in parts:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise FormatError(f"Images are {images.dtype} {tuple(images.shape)}, not uint8 M x (1 or 3) x H x W.")
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise FormatError(f"Labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({len(images)},).")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise FormatError(f"Labels reach from {labels.min()} to {labels.max()}, but there are {classes} names.")
        if size is None:
            size = images.shape[1:]
            rows = max(1, min(ROWS_PER_GROUP, BYTES_PER_GROUP // max(1, prod(size))))
        if images.shape[1:] != size:
            raise FormatError(f"Images of {tuple(images.shape[1:])} stand after images of {tuple(size)}.")
        for image, label in zip(images.cpu().permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist(), strict=True):
            cells.append({"bytes": png_bytes(image), "path": None})
            numbers.append(label)
            if len(cells) == rows:
                group = pa.table({"image": cells, "label": numbers}, schema=schema)
                cells, numbers = [], []  # before it is written: the pictures are in memory once
                yield group
    if cells:
        yield pa.table({"image": cells, "label": numbers}, schema=schema)


def _schema(class_names: Sequence[str]) -> Any:
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema([("image", image), ("label", pa.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def png_bytes(pixels: Pixels) -> bytes:
    """Encode one image, uint8 H x W x (1 or 3), as a PNG with fixed settings and no metadata."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def read_parquet(
    path: Path, first: int | None = None, *, shape: tuple[int, int, int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Read a train.parquet.

    Args:
        path: The file.
        first: How many images to read, from the beginning; None: all.
        shape: M, ch, H, W that info.json says (`training_shape`): another file is refused before an image of it is
            decoded. None: the file is one's own, and its first image says.

    Returns:
        images uint8 M x ch x H x W, labels int64 M.

    Raises:
        FormatError: It is damaged or does not hold images of one size with labels.
    """
    shape = shape or _own_shape(path)
    count = shape[0] if first is None else min(first, shape[0])
    images, labels = np.empty((count, *shape[1:]), dtype=np.uint8), np.empty(count, dtype=np.int64)
    for place, (image, label) in enumerate(islice(iter_parquet(path, shape), count)):
        images[place], labels[place] = image.transpose(2, 0, 1), label
    return torch.from_numpy(images), torch.from_numpy(labels)


def iter_parquet(path: Path, shape: tuple[int, int, int, int]) -> Iterator[tuple[Pixels, int]]:
    """Read a train.parquet, which must hold M, ch, H, W, image by image: uint8 H x W x ch, with its label."""
    count, channels, height, width = shape
    pixels = height * (channels * width + 1)  # a PNG has one byte more in every row
    # Deflate leaves what it cannot compress as it is, with five bytes for every 16 KiB or so.
    largest = pixels + pixels // 100 + PNG_OVERHEAD
    for place, row in enumerate(iter_rows(path, ("image", "label"), count, largest)):
        try:
            image, label = _pixels(row["image"]["bytes"], (height, width, channels)), row["label"]
            if not isinstance(label, int):
                raise ValueError(f"its label is {label!r}")
        except (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError) as error:
            raise FormatError(f"{path} is damaged: image {place} (counted from 0): {error}.") from error
        yield image, label


def iter_rows(path: Path, columns: Sequence[str], count: int, largest: int) -> Iterator[dict[str, Any]]:
    """Read columns of a parquet file of ours row by row, none before its footer says that it can be what it must be.

    A FormatError if it is damaged, does not have `count` rows, or one may have more than `largest` bytes.
    """
    # The columns, and for each of them a length and what a value counts for.
    found = measure(path, rows=count, unpacked=MARGIN + count * (largest + ROW_OVERHEAD))
    if found.rows != count or found.nested:
        what = "has lists in its columns" if found.nested else f"has {found.rows:,} rows, not {count:,}"
        raise FormatError(f"{path} is damaged: it {what}.")
    with _damage(path):
        with pq.ParquetFile(path) as file:
            # One at a time: what a thousand rows share in the file, such as one image, each row has in memory.
            for batch in file.iter_batches(batch_size=1, columns=list(columns)):
                count -= len(batch)
                yield from batch.select(columns).to_pylist()
        if count:
            raise ValueError(f"{count} of its rows are missing")


def iter_sizes(path: Path) -> Iterator[int]:
    """Give the bytes in memory of every row of a parquet file, all columns together, one row in memory at a time."""
    with _damage(path), pq.ParquetFile(path) as file:
        yield from (batch.nbytes for batch in file.iter_batches(batch_size=1))


def _own_shape(path: Path) -> tuple[int, int, int, int]:
    """Say what a file of one's own holds by its footer and its first image."""
    with _damage(path), pq.ParquetFile(path) as file:
        if not file.metadata.num_rows:
            raise ValueError("it has no rows")
        first = next(file.iter_batches(batch_size=1, columns=["image"])).column("image")[0].as_py()
        with Image.open(io.BytesIO(first["bytes"]), formats=["PNG"]) as image:
            return file.metadata.num_rows, len(image.getbands()), image.height, image.width
    raise AssertionError("unreachable")


@contextmanager
def _damage(path: Path, what: str = "damaged") -> Iterator[None]:
    """Say of whatever reading a parquet file raises that the file is damaged, or not there."""
    try:
        yield
    except HmdcError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}.") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"{path} is {what}: {error}.") from error


def _pixels(data: bytes, shape: tuple[int, int, int]) -> Pixels:
    """Decode a PNG of height, width and channels; what its header says otherwise is not decoded."""
    # The format says PNG; a parquet from elsewhere shall not reach Pillow's other decoders.
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        height, width, channels = shape
        mode = "L" if channels == 1 else "RGB"
        if image.size != (width, height) or image.mode != mode:
            raise ValueError(f"it is {image.width} x {image.height} {image.mode}, not {width} x {height} {mode}")
        return np.asarray(image, dtype=np.uint8).reshape(shape)


def read_class_names(path: Path) -> list[str]:
    """Read the class names from the footer of a train.parquet alone; a FormatError if it names none."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        metadata = pq.read_schema(path).metadata or {}
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path} names no classes: {error}.") from error
    return [str(name) for name in names]


def rows_and_bytes(path: Path) -> tuple[int, int]:
    """Read the numbers of rows and of their bytes, before compression, from the footer of a parquet file of ours."""
    footer = pq.read_metadata(path)
    return footer.num_rows, sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))


class Measured(NamedTuple):
    """What a parquet file holds: rows, bytes of all pages once unpacked and `BYTES_OF_VALUE` for each value, lists."""

    rows: int
    unpacked: int
    nested: bool


def measure(path: Path, *, rows: int, unpacked: int) -> Measured:
    """Add up what a parquet file holds, without unpacking or allocating any of it.

    It may have so many rows, and hold so much `unpacked`; no page is looked at after that. A FormatError if it holds
    more, contradicts itself, or is no parquet file.
    """
    with (
        _damage(path, "not read"),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        found = _measured(data, rows, unpacked)
    return found


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
    """Reads Thrift's compact protocol, `most` bytes from `at` on: a struct becomes a dict by its fields' numbers."""

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
