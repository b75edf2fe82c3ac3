"""train.parquet: the decoded images as 8-bit PNG, readable by `datasets` without anything else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.store.files import atomic
from hmdc_hub.store.footer import measure

ROWS_PER_GROUP = 1000
# The Hub's viewer refuses row groups above 286 MiB; a PNG is hardly ever larger than its pixels.
BYTES_PER_GROUP = 128 * 1024 * 1024

PNG_OVERHEAD = 1024
"""Most bytes of a PNG beside its pixels."""
ROW_OVERHEAD = 128
"""What a row may count for beside the bytes of its values, see `measure`."""
MARGIN = 1024 * 1024

Pixels = NDArray[np.uint8]


def to_uint8(images: Tensor) -> Tensor:
    """Round float pixels in [0, 1] to uint8 in 0..255, the same shape, on the same device."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def write_parquet(path: Path, images: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    """Write decoded images and labels; the same arguments give the same bytes (with the same Pillow and pyarrow).

    The file says itself that `image` is an image and `label` a class label with these names, under the metadata key
    that `datasets` reads.

    Args:
        path: The file, usually `train.parquet`; replaced in one step.
        images: uint8 M x ch x H x W, ch 1 (grey) or 3 (RGB).
        labels: int64 M, each in 0..len(class_names)-1.
        class_names: One name per class.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
        RunError: The file system failed.
    """
    write_parquet_parts(path, [(images, labels)], class_names)


def write_parquet_parts(path: Path, parts: Iterable[tuple[Tensor, Tensor]], class_names: Sequence[str]) -> int:
    """Write what `write_parquet` writes, without having all of it at a time.

    Args:
        path: The file, usually `train.parquet`; replaced in one step.
        parts: Images and labels, one part after another; how they are cut makes no difference to the file.
        class_names: One name per class.

    Returns:
        Images written.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
        RunError: The file system failed.
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
        _check(images, labels, classes)
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


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise FormatError(f"Images are {images.dtype} {tuple(images.shape)}, not uint8 M x (1 or 3) x H x W.")
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise FormatError(f"Labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({len(images)},).")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise FormatError(f"Labels reach from {labels.min()} to {labels.max()}, but there are {classes} names.")


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
        NotFoundError: There is no such file.
        FormatError: It is damaged or does not hold images of one size with labels.
    """
    shape = shape or _own_shape(path)
    count = shape[0] if first is None else min(first, shape[0])
    images, labels = np.empty((count, *shape[1:]), dtype=np.uint8), np.empty(count, dtype=np.int64)
    for place, (image, label) in enumerate(islice(iter_parquet(path, shape), count)):
        images[place], labels[place] = image.transpose(2, 0, 1), label
    return torch.from_numpy(images), torch.from_numpy(labels)


def iter_parquet(path: Path, shape: tuple[int, int, int, int]) -> Iterator[tuple[Pixels, int]]:
    """Read a train.parquet image by image: uint8 H x W x ch, with its label.

    Args:
        path: The file.
        shape: M, ch, H, W: what it must hold.

    Raises:
        NotFoundError, FormatError: As `read_parquet`.
    """
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
    """Read a parquet file of ours row by row, none of it before its footer says that it can be what it must be.

    Args:
        path: The file.
        columns: Those that are read.
        count: Rows that it must have.
        largest: Bytes that a row may have.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged, or holds more.
    """
    # The columns, and for each of them a length and what a value counts for.
    found = measure(path, rows=count, unpacked=MARGIN + count * (largest + ROW_OVERHEAD))
    if found.rows != count or found.nested:
        what = "has lists in its columns" if found.nested else f"has {found.rows:,} rows, not {count:,}"
        raise FormatError(f"{path} is damaged: it {what}.")
    try:
        with pq.ParquetFile(path) as file:
            # One at a time: what a thousand rows share in the file, such as one image, each row has in memory.
            for batch in file.iter_batches(batch_size=1, columns=list(columns)):
                count -= len(batch)
                yield from batch.select(columns).to_pylist()
        if count:
            raise ValueError(f"{count} of its rows are missing")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def iter_sizes(path: Path) -> Iterator[int]:
    """Give the bytes in memory of every row of a parquet file, all columns together, one row in memory at a time.

    Raises:
        FormatError: It is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from (batch.nbytes for batch in file.iter_batches(batch_size=1))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def _own_shape(path: Path) -> tuple[int, int, int, int]:
    """Say what a file of one's own holds by its footer and its first image."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        with pq.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                raise ValueError("it has no rows")
            first = next(file.iter_batches(batch_size=1, columns=["image"])).column("image")[0].as_py()
            with Image.open(io.BytesIO(first["bytes"]), formats=["PNG"]) as image:
                return file.metadata.num_rows, len(image.getbands()), image.height, image.width
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


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
    """Read the class names from the footer of a train.parquet alone.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged or names no classes.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        metadata = pq.read_schema(path).metadata or {}
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path} names no classes: {error}.") from error
    return [str(name) for name in names]
