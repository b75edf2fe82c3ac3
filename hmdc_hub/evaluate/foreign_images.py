"""Images with labels as files hold them: through the readers of source datasets, worded for who scores a set."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import FormatError, NetworkError, SourceError, UsageError
from hmdc_hub.evaluate.foreign_tensors import SUFFIX, Contents, most_images, refuse_many, refuse_pickle
from hmdc_hub.sources import Source, left_out_notes, open_reader
from hmdc_hub.sources.convert import fill
from hmdc_hub.sources.levels import Levels
from hmdc_hub.sources.reader import Encoded, Part, Reader
from hmdc_hub.store import sha256_file
from hmdc_hub.store.footer import measure
from hmdc_hub.store.parquet import iter_sizes

MOST_PIXELS = 2**24
"""Of an image of a set: 4096 x 4096."""

UNPACKED, TIMES_UNPACKED = 64 * 1024 * 1024, 20
"""Most bytes that a parquet file holds unpacked, and how many times its size beside them."""

_ORIENTATION = 0x0112  # of EXIF

_WORDS = (
    (r"^source\.\w+: ", ""),
    (r" cannot be read: Instruction .* corresponds to no data!", " has no rows"),
    (r"or copy  revision: .*", "or name a full commit with --revision."),
    (r"full commit as revision\b", "full commit as --revision"),
    (r"\b(config|revision): (?=\S)", r"--\1 "),
    (r"\bLeave (config|revision) out", r"Leave --\1 out"),
    (r"\bid: (?=\S)", ""),
)
"""From keys of a recipe, which those who score a file have not written, to options."""


def read_images(
    target: str,
    path: Path,
    source: Source,
    config: str | None,
    revision: str | None,
    fit: Literal["crop", "stretch"],
    background: Literal["white", "black"],
) -> Contents:
    """Read the train split, or the only one, of what can be a source; arguments and errors as `read_set`.

    Args:
        target: As the user wrote it.
        path: The same as a path, which need not exist.
        source: Says what side and channels images become of.
        config: Configuration.
        revision: Of a dataset on the Hub.
        fit: For images that are not square.
        background: For images with transparent pixels.
    """
    try:
        _refuse_bombs(path, source)
        reader = _open(target, path, config, revision)
        part = _only_part(target, reader)
        refuse_many(target, len(part), source)
        image, label = _columns(reader, part.split)
        names, labels = _labels(target, reader, part, label)
        images, resized, notes = _pixels(target, reader, part, image, source, fit, background)
    except SourceError as error:
        raise UsageError(_reworded(error.message), hint=_reworded(error.hint)) from error
    except NetworkError as error:
        raise NetworkError(_reworded(error.message), hint=_reworded(error.hint)) from error
    if (image, label) != ("image", "label"):
        notes = (f"columns {image} and {label}", *notes)
    # Pixels that were made here are more than the file says: they depend on `fit`.
    digest = sha256_file(path) if path.is_file() and not resized else None
    return Contents(images, labels, names, digest, notes=notes)


def _refuse_bombs(path: Path, source: Source) -> None:
    """Refuse parquet files that hold more than their size allows, before `datasets` unpacks them onto the disk.

    Files of images hardly become smaller by packing, so that ten or twenty times their size is more than any set has.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet")) if path.is_dir() else []
    for file in files:
        allowed = UNPACKED + TIMES_UNPACKED * file.stat().st_size
        try:
            measure(file, rows=most_images(source), unpacked=allowed)
            if any(held > allowed for held in accumulate(iter_sizes(file))):
                raise FormatError(
                    f"{file} is not read: its {file.stat().st_size:,} bytes become more than {allowed:,}, by rows that "
                    "hold the same."
                )
        except FormatError as error:
            raise UsageError(
                error.message,
                hint="A set of images is written with fewer rows, each image once, and compression='none' in "
                "pyarrow.parquet.write_table.",
            ) from error


def _open(target: str, path: Path, config: str | None, revision: str | None) -> Reader:
    try:
        return open_reader(target, revision, config)
    except SourceError:
        for file in sorted(path.iterdir()) if path.is_dir() else ():
            if file.suffix == SUFFIX:
                raise UsageError(f"{path} is a folder that holds no images.", hint=f"Name the file: {file}") from None
            refuse_pickle(file)
        raise


def _only_part(target: str, reader: Reader) -> Part:
    if "train" not in reader.splits and len(reader.splits) > 1:
        raise UsageError(
            f"{target} has the splits {', '.join(reader.splits)}; of several, the one named train is scored.",
            hint="Give the file or folder of the one you mean, or name it train.",
        )
    split = "train" if "train" in reader.splits else reader.splits[0]
    rows = reader.rows(split)
    if rows == 0:
        raise UsageError(f"{target} has no images: its split {split} has no rows.")
    return Part(split, 0, rows)


def _columns(reader: Reader, split: str) -> tuple[str, str]:
    try:
        return reader.columns(split, None, None)
    except SourceError as error:
        raise SourceError(
            error.message,
            hint="A set has one column of images and one of classes; Dataset.select_columns and cast_column of "
            "datasets make it so. An image folder has a folder of images per class.",
        ) from error


def _labels(target: str, reader: Reader, part: Part, column: str) -> tuple[list[str], Tensor]:
    """Read labels as numbers of names; whole numbers that stand for nothing are names too."""
    names, values = reader.class_names(part.split, column), reader.labels(part, column)
    limit = len(names) if names else np.inf
    for row, value in enumerate(values):
        if not (isinstance(value, int) and 0 <= value < limit or isinstance(value, str)):
            rule = f"0 to {len(names) - 1}" if names else "text or whole numbers from 0"
            raise UsageError(
                f"{target}: column {column!r}, row {row} (counted from 0): the label is {value!r}; labels are {rule}.",
                hint="Correct or remove the row.",
            )
    if names is not None:
        return names, torch.tensor(values, dtype=torch.int64)
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return [str(value) for value in places], torch.tensor([places[value] for value in values])


def _header(encoded: Encoded) -> tuple[tuple[int, int], str]:
    """Read size, upright, and mode of an image without decoding it; errors as those of Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused here, and at fewer pixels
        image = encoded if isinstance(encoded, Image.Image) else Image.open(_file(encoded))
        # Pillow decodes a PNG to look for an orientation behind its pixels; there is none then for a note of sizes.
        asked = image.format != "PNG" or "exif" in image.info
        turned = asked and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.size[::-1] if turned else image.size), image.mode


def _file(encoded: bytes | str | None) -> str | io.BytesIO:
    return encoded if isinstance(encoded, str) else io.BytesIO(encoded or b"")


def _pixels(
    target: str,
    reader: Reader,
    part: Part,
    column: str,
    source: Source,
    fit: Literal["crop", "stretch"],
    background: Literal["white", "black"],
) -> tuple[Tensor, bool, tuple[str, ...]]:
    """Read images as the source's are, with whether any was resized, and notes of what changed."""
    side, channels = source.train.side, source.train.channels
    sizes: Counter[tuple[int, int]] = Counter()
    colour = 0

    def counted() -> Iterator[Encoded]:
        nonlocal colour
        for row, encoded in enumerate(reader.images(part, column)):
            try:
                size, mode = _header(encoded)
            except Exception:  # whatever a damaged file leads Pillow into; `fill` fails at it too, and says where it is
                yield encoded
                continue
            if size[0] * size[1] > MOST_PIXELS:
                raise UsageError(
                    f"{target}: {reader.where(part.split, column, part.start + row)}: the image is {size[0]} x "
                    f"{size[1]} pixels; those of a set have at most {MOST_PIXELS:,}.",
                    hint=f"Save it smaller: it is scored at {side} x {side}.",
                )
            sizes[size] += 1
            colour += mode not in ("1", "L", "LA", "F") and not mode.startswith("I")
            yield encoded

    out = np.empty((len(part), channels, side, side), dtype=np.uint8)
    levels = Levels(lambda: reader.images(part, column))
    fill(
        out,
        counted(),
        np.arange(len(part)),
        lambda row: reader.where(part.split, column, part.start + row),
        fit,
        background=background,
        levels=levels,
    )
    notes = [*left_out_notes(reader.facts.left_out), *levels.notes]
    others = [size for size, _ in sizes.most_common() if size != (side, side)]
    if others:
        width, height = others[0]
        more = " and other sizes" if len(others) > 1 else ""
        notes.append(f"resized from {width}x{height}{more} to {side}x{side}")
    if channels == 1 and colour:
        notes.append(f"{colour} of {len(part)} images were in colour and became grey")
    return torch.from_numpy(out), bool(others), tuple(notes)


def _reworded(text: str) -> str:
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    return text
