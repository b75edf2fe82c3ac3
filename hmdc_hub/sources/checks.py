"""Images compared by what they show: which are in both splits, how a split is divided in two, which show nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources.pixels import Background, open_image, to_pixels
from hmdc_hub.sources.reader import Encoded
from hmdc_hub.sources.rows import some_names
from hmdc_hub.sources.source import ClassSortedImages

TRACE = 0.01
"""Share of the test images that may be train images too: large collections have a few, and a score hardly changes."""

_CHUNK, _SAMPLE = 256, 64


def pixel_keys(images: Tensor) -> NDArray[np.uint64]:
    """Hash the pixels of images, uint8 N x channels x side x side on the CPU: uint64 N, equal for equal images."""
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
    return SourceError(
        f"source.test_fraction: {len(names)} classes have no two different images, one to condense and one to score "
        f"on: {some_names(names)}",
        hint="Add images to them, remove them, or name a split with  test_split: <name>  in place of test_fraction.",
    )


def held_out_count(images: int, fraction: float) -> int:
    """Count the images that `held_out_rows` takes of a class: one at least, and never all."""
    return min(images - 1, max(1, round(fraction * images)))


def repeated_rows(train: NDArray[np.uint64], test: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the test images that are train images too, by their `pixel_keys`.

    Returns:
        int64 R x 2: row in test and a row in train that is the same image.
    """
    rows = np.flatnonzero(np.isin(test, train, kind="sort"))  # numpy's other way overflows at 64 bits
    order = np.argsort(train, kind="stable")
    return np.stack([rows, order[np.searchsorted(train, test[rows], sorter=order)]], axis=1)


def check_varied(
    train: ClassSortedImages, names: Sequence[str], spec: SourceSpec, image: Callable[[int], Encoded]
) -> None:
    """Refuse images to condense that are all equal, or all equal in a class of two or more.

    `image` gives image k of them as it was before it was decoded by `spec`.

    Raises:
        SourceError: They are; says whether another background would show them.
    """
    images = train.images.numpy()
    if len(images) > 1 and all_equal(images):
        what, rows = f"all {len(images)} images of the source", range(len(images))
    elif flat := equal_classes(images, train.offsets):
        rows = range(train.offsets[flat[0]], train.offsets[flat[0] + 1])
        others = f" (and likewise in {len(flat) - 1} more)" if len(flat) > 1 else ""
        what = f"all {len(rows)} images of class {names[flat[0]]!r}{others}"
    else:
        return
    what += " are blank, of one colour" if is_blank(images[rows[0]]) else " are equal"
    other: Background = "black" if spec.background == "white" else "white"
    sample = [open_image(image(row)) for row in rows[:: -(-len(rows) // _SAMPLE)]]
    options: dict[str, Any] = {"size": spec.size, "channels": spec.channels, "fit": spec.fit}
    if not all_equal(np.stack([to_pixels(one, background=other, **options) for one in sample])):
        raise SourceError(
            f"{what}: what they show lies on transparent ground and vanishes on {spec.background}",
            hint=f"Lay them over the other colour:  source.background: {other}",
        )
    raise SourceError(
        f"{what}, at {spec.size} x {spec.size} pixels; there is nothing in them to learn from",
        hint="Look at these files, and whether the image column is the right one; put others in their place, or leave "
        "the class out.",
    )


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether an image, uint8 channels x side x side, has one colour."""
    return bool((pixels == pixels[:, :1, :1]).all())


def all_equal(images: NDArray[np.uint8]) -> bool:
    """Tell whether N images, uint8 N x channels x side x side, are all equal; stops at the first that is not."""
    return all(bool((images[k : k + _CHUNK] == images[0]).all()) for k in range(0, len(images), _CHUNK))


def equal_classes(images: NDArray[np.uint8], offsets: Sequence[int]) -> list[int]:
    """List the classes of two images or more, rows `offsets[c]` to `offsets[c + 1]`, that are all equal."""
    spans = enumerate(pairwise(offsets))
    return [c for c, (start, stop) in spans if stop - start > 1 and all_equal(images[start:stop])]
