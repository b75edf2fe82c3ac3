"""train.parquet: the decoded images as 8-bit PNG, readable by `datasets` without anything else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.store.files import atomic

ROWS_PER_GROUP = 1000
# The Hub's viewer refuses row groups above 286 MiB; a PNG is hardly ever larger than its pixels.
BYTES_PER_GROUP = 128 * 1024 * 1024


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


def png_bytes(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode one image, uint8 H x W x (1 or 3), as a PNG with fixed settings and no metadata."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def read_parquet(path: Path, first: int | None = None) -> tuple[Tensor, Tensor]:
    """Read a train.parquet.

    Args:
        path: The file.
        first: How many images to read, from the beginning; None: all.

    Returns:
        images uint8 M x ch x H x W, labels int64 M.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged or does not hold images of one size with labels.
    """
    images, labels = list[Tensor](), list[Tensor]()
    for pixels, numbers in read_parquet_parts(path, first):
        if images and pixels.shape[1:] != images[0].shape[1:]:
            raise FormatError(f"{path} is damaged: its images are not all of one size.")
        images.append(pixels)
        labels.append(numbers)
    if not images:
        raise FormatError(f"{path} is damaged: it has no images.")
    return torch.cat(images), torch.cat(labels)


def read_parquet_parts(path: Path, first: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Read a train.parquet as `read_parquet` does, a row group at a time, each when it is asked for."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        done = 0
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                if first is not None and done >= first:
                    break
                rows = file.read_row_group(group, columns=["image", "label"])
                rows = rows if first is None else rows[: first - done]
                if not len(rows):
                    continue
                done += len(rows)
                images = np.stack([_pixels(cell["bytes"]) for cell in rows.column("image").to_pylist()])
                labels = torch.tensor(rows.column("label").to_pylist(), dtype=torch.int64)
                yield torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def _pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # The format says PNG; a parquet from elsewhere shall not reach Pillow's other decoders.
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


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
