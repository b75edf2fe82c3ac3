"""Images compared by what they show: which are in both splits, and how a split is divided in two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Encoded

TRACE = 0.01
"""Share of the test images that may be train images too: large collections have a few, and a score hardly changes."""

_SHOWN = 5


def pixel_keys(images: Tensor) -> NDArray[np.uint64]:
    """Hash the pixels of images.

    Args:
        images: uint8 N x channels x side x side, on the CPU.

    Returns:
        uint64 N; equal for equal images.
    """
    return _keys(image.data for image in images.numpy())


def file_keys(images: Iterable[Encoded]) -> NDArray[np.uint64]:
    """Hash images as a source holds them, one uint64 each: the bytes of files, or the pixels of open images."""
    return _keys(map(_stored_bytes, images))


def _keys(contents: Iterable[bytes | memoryview]) -> NDArray[np.uint64]:
    keys = (int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) for content in contents)
    return np.fromiter(keys, dtype=np.uint64)


def _stored_bytes(encoded: Encoded) -> bytes:
    if isinstance(encoded, Image.Image):
        return encoded.tobytes()
    if isinstance(encoded, str):
        try:
            with open(encoded, "rb") as file:
                return file.read()
        except OSError:
            return b""  # the decoder names it
    return encoded or b""


def held_out_rows(
    keys: NDArray[np.uint64], labels: NDArray[np.int64], class_names: Sequence[str], fraction: float
) -> NDArray[np.bool_]:
    """Draw the part of a split that is scored on, a share of every class.

    The hash of an image's file decides: nothing is drawn at random, the order and names of files do not matter, neither
    does the size that images are resized to, and equal files are on the same side.

    Args:
        keys: uint64 N, of `file_keys`.
        labels: int64 N, in 0..C-1.
        class_names: C names.
        fraction: Share of every class, in (0, 1).

    Returns:
        True where a row is scored on: `held_out_count` images of each class, fewer where equal files do not come apart.

    Raises:
        SourceError: A class has not two images that differ.
    """
    test = np.zeros(len(keys), dtype=np.bool_)
    whole = []
    for c, name in enumerate(class_names):
        rows = np.flatnonzero(labels == c)
        distinct, sizes = np.unique(keys[rows], return_counts=True)
        if len(distinct) < 2:
            whole.append(name)
            continue
        left, taken = held_out_count(len(rows), fraction), np.zeros(len(distinct), dtype=np.bool_)
        for place, size in enumerate(sizes):
            if size <= left:
                taken[place] = True
                left -= int(size)
        if not taken.any():
            taken[sizes.argmin()] = True
        test[rows] = taken[np.searchsorted(distinct, keys[rows])]
    if whole:
        raise undividable(whole)
    return test


def undividable(names: Sequence[str]) -> SourceError:
    """Say that classes are too small for a part of their own to be scored on."""
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return SourceError(
        f"source.test_fraction: {len(names)} classes have no two different images, one to condense and one to score "
        f"on: {shown}",
        hint="Add images to them, remove them, or name a split with  test_split: <name>  in place of test_fraction.",
    )


def held_out_count(images: int, fraction: float) -> int:
    """Count the images that `held_out_rows` takes of a class: one at least, and never all."""
    return min(images - 1, max(1, round(fraction * images)))


def repeated_rows(train: NDArray[np.uint64], test: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the test images that are train images too.

    Args:
        train: uint64 N, of `pixel_keys`.
        test: uint64 M, likewise.

    Returns:
        int64 R x 2: row in test and a row in train that is the same image.
    """
    rows = np.flatnonzero(np.isin(test, train, kind="sort"))  # numpy's other way overflows at 64 bits
    order = np.argsort(train, kind="stable")
    return np.stack([rows, order[np.searchsorted(train, test[rows], sorter=order)]], axis=1)
