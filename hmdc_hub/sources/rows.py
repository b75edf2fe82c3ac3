"""Which rows are condensed and which are scored on, and the class of each: splits, slices, labels, equal images."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources.reader import Encoded, Reader, SplitSlice, locate
from hmdc_hub.sources.source import ClassSortedImages
from hmdc_hub.text import close, some

TEST_NAMES = ("test", "validation", "valid", "val")

_SLICE = re.compile(r"(?P<name>[^\[\]+]+?)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_CHUNK = 256

Parts = tuple[SplitSlice, ...]


def parse_split(reader: Reader, text: str, key: str) -> Parts:
    """Resolve a split as written in a recipe to slices with a row at least.

    `text` is `train`, a slice (`train[:80%]`, `train[100:200]`, `train[-10%:]`) or a sum (`train+validation`), with the
    meaning and rounding that `datasets` gives them; `key` is the recipe's, for errors.
    """
    slices = []
    for piece in map(str.strip, text.split("+")):
        match = _SLICE.fullmatch(piece)
        if match is None:
            raise SourceError(
                f"source.{key}: {text!r} is neither the name of a split nor a slice of one",
                hint=f"Write for example  {key}: train  or  {key}: train[:80%]",
            )
        name, ends = match["name"], [match["start"], match["stop"]]
        if all(ends) and len({end.endswith("%") for end in ends}) == 2:
            raise SourceError(
                f"source.{key}: {piece!r} mixes rows and percent",
                hint=f"Give both ends in one unit, for example  {key}: {name}[10%:20%]",
            )
        if name not in reader.splits:
            raise SourceError(
                f"source.{key}: {reader.facts.id} has no split {name!r}; its splits are {', '.join(reader.splits)}",
                hint=f"Write for example  {key}: {(close(name, reader.splits) or reader.splits)[0]}",
            )
        bounds = [0, rows := reader[name].rows]
        for place, end in enumerate(ends):
            if end is None:
                continue
            number, most = int(end.rstrip("%")), 100 if end.endswith("%") else rows
            if abs(number) > most:
                raise SourceError(
                    f"source.{key}: {piece!r} reaches beyond "
                    f"{'100%' if end.endswith('%') else f'the {rows} rows'} of the split",
                    hint="Write a smaller number, or leave it out to mean the end.",
                )
            bound = round(number * rows / 100) if end.endswith("%") else number
            bounds[place] = bound + rows if bound < 0 else bound
        slices.append(SplitSlice(name, bounds[0], max(bounds)))
    if not sum(map(len, slices)):
        raise SourceError(
            f"source.{key}: {text!r} of {reader.facts.id} has no rows; a split needs one image at least",
            hint=f"Name another split ({', '.join(reader.splits)}) or a larger slice.",
        )
    return tuple(part for part in slices if len(part))


def find_splits(reader: Reader, train: str | None, test: str | None) -> tuple[str, str | None]:
    """Choose the splits that are None: train, and test, else validation, valid or val, unless it is condensed.

    Both are text for `parse_split`; a test split that was not found stays None.
    """
    if train is None and "train" not in reader.splits:
        raise SourceError(
            f"{reader.facts.id} has no split named 'train'; its splits are {', '.join(reader.splits)}",
            hint=f"Say which one to condense, for example  train_split: {reader.splits[0]}",
        )
    train = "train" if train is None else train
    taken = {piece.split("[")[0].strip() for piece in train.split("+")}
    found = next((name for name in TEST_NAMES if name in reader.splits and name not in taken), None)
    return train, found if test is None else test


def check_apart(train: Parts, test: Parts, train_text: str, test_text: str) -> None:
    """Refuse to score on rows that are condensed."""
    pairs = [(one, other) for one in train for other in test if one.split == other.split]
    shared = sum(max(0, min(one.stop, other.stop) - max(one.start, other.start)) for one, other in pairs)
    if shared:
        raise SourceError(
            f"train_split {train_text!r} and test_split {test_text!r} share {shared} rows; a score on images that were "
            "condensed says nothing",
            hint="Choose splits that are apart, or leave test_split out and say  test_fraction: 0.2",
        )


# Labels


def read_labels(
    reader: Reader, train: Parts, test: Parts, column: str, *, every: bool = True
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Read the labels of both splits as class indices, int64 in 0..C-1, in the order of the rows.

    The names of the C classes come first: a ClassLabel's own, in its order, else the sorted values of the train split.
    `every` class has to have an image to condense then, and there have to be two.
    """
    names = reader[train[0].split].class_names.get(column)
    for part in (*train, *test):
        if reader[part.split].class_names.get(column) != names:
            raise SourceError(
                f"column {column!r} names other classes in split {part.split!r} than in {train[0].split!r}",
                hint="Give both splits the same ClassLabel feature, with Dataset.cast_column.",
            )
    values: list[list[object]] = [
        [value for part in parts for value in reader[part.split].read(column, part.start, part.stop)]
        for parts in (train, test)
    ]
    if values[1] and all(value is None or value == -1 for value in values[1]):
        used = {part.split for part in (*train, *test)}
        others = [name for name in TEST_NAMES if name in reader.splits and name not in used]
        raise SourceError(
            f"split {test[0].split!r} has no labels: all {len(values[1])} are empty or -1; without them nothing can be "
            "scored",
            hint="Keep a part of the train split for it:  test_fraction: 0.2"
            + (f" ; or if the split {others[0]} has labels, score on it:  test_split: {others[0]}" if others else ""),
        )

    def bad(parts: Parts, index: int, value: object, rule: str) -> SourceError:
        split, row = locate(parts, index)
        shown = "empty (None)" if value is None else repr(value)
        return SourceError(
            f"{reader.where(split, column, row)}: the label is {shown}; {rule}",
            hint="Correct or remove the row, or choose another column with  label_column: <name>",
        )

    rule = "labels are text or whole numbers from 0"
    if names is not None:
        rule = f"the {len(names)} classes are numbered 0 to {len(names) - 1}"
    for parts, found in zip((train, test), values, strict=True):
        for index, value in enumerate(found):
            if not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
                raise bad(parts, index, value, f"{rule}; -1 usually marks a row without one")
            if type(value) is not type(found[0]):
                raise bad(parts, index, value, f"others are of the type {type(found[0]).__name__}")
    if names is None:
        classes = sorted(set(values[0]))  # type: ignore[type-var]  # all whole numbers or all text, just checked
        names, known = [str(value) for value in classes], {value: index for index, value in enumerate(classes)}
        rule = "no image of the train split has it, so no class can be learned for it"
        _check_spelling(dict.fromkeys([*names, *map(str, values[1])]))
    else:
        known = {index: index for index in range(len(names))}
    labels = []
    for parts, found in zip((train, test), values, strict=True):
        indices = np.asarray([known.get(value, -1) for value in found], dtype=np.int64)
        if (indices < 0).any():
            index = int((indices < 0).argmax())
            alike = [f" (there is {name!r})" for name in close(str(found[index]), map(str, known), most=1)]
            raise bad(parts, index, found[index], rule + "".join(alike))
        labels.append(indices)
    if every:
        _check_classes(names, labels[0], train)
    return names, labels[0], labels[1]


def _check_classes(names: list[str], labels: NDArray[np.int64], train: Parts) -> None:
    if len(names) < 2:
        raise SourceError(
            f"the source has one class, {names[0]!r}; there is nothing to tell apart",
            hint="Choose a label column with two classes or more.",
        )
    counts = np.bincount(labels, minlength=len(names))
    if empty := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        raise SourceError(
            f"{len(empty)} of {len(names)} classes have no image in the rows of split "
            f"{'+'.join(dict.fromkeys(part.split for part in train))!r} that are condensed: {some(empty)}",
            hint="Every class needs one image at least. A slice of rows sorted by class loses classes: shuffle the "
            "dataset first; or drop the unused names from the ClassLabel.",
        )


def _check_spelling(names: Iterable[str]) -> None:
    """Refuse classes whose names look the same: other systems write accents apart from their letters."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise SourceError(
                f"two classes are called {name!r}: the names look the same but have other characters ({ascii(other)}, "
                f"and {ascii(name)})",
                hint="Give the class one name: rename the folder, or correct the label, of the one that is wrong.",
            )


# Equal images


def pixel_keys(images: Tensor) -> NDArray[np.uint64]:
    """Hash the pixels of images, uint8 N x channels x side x side on the CPU: uint64 N, equal for equal images."""
    return file_keys(image.tobytes() for image in images.numpy())


def file_keys(images: Iterable[Encoded]) -> NDArray[np.uint64]:
    """Hash images as a source holds them, one uint64 each: the bytes of files, or the pixels of open images."""
    keys = (int.from_bytes(hashlib.blake2b(_stored_bytes(image), digest_size=8).digest()) for image in images)
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
    keys: NDArray[np.uint64],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    fraction: float,
    *,
    key: str = "test_fraction",
) -> NDArray[np.bool_]:
    """Draw the part of a split that is scored on, a share of every class.

    The hash of an image's file decides: nothing is drawn at random, the order and names of files do not matter, neither
    does the size that images are resized to, and equal files are on the same side.

    `keys` are uint64 N, of `file_keys`, `labels` int64 N, in 0..C-1, and the fraction in (0, 1). True comes where a row
    is scored on: `held_out_count` images of each class, fewer where equal files do not come apart. Every class needs
    two images that differ.
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
        raise undividable(whole, key)
    return test


def undividable(names: Sequence[str], key: str = "test_fraction") -> SourceError:
    """Say that classes are too small for a part of their own to be scored on, which a key of the source asks for."""
    return SourceError(
        f"source.{key}: {len(names)} classes have no two different images, one to condense and one to score "
        f"on: {some(names)}",
        hint="Add images to them, remove them, or "
        + (
            "name a split with  test_split: <name>  in place of test_fraction."
            if key == "test_fraction"
            else f"leave {key} out."
        ),
    )


def held_out_count(images: int, fraction: float) -> int:
    """Count the images that `held_out_rows` takes of a class: one at least, and never all."""
    return min(images - 1, max(1, round(fraction * images)))


def repeated_rows(train: NDArray[np.uint64], test: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the test images that are train images too, by their `pixel_keys`.

    Returns int64 R x 2: row in test and a row in train that is the same image.
    """
    rows = np.flatnonzero(np.isin(test, train, kind="sort"))  # numpy's other way overflows at 64 bits
    order = np.argsort(train, kind="stable")
    return np.stack([rows, order[np.searchsorted(train, test[rows], sorter=order)]], axis=1)


def check_varied(train: ClassSortedImages, names: Sequence[str], spec: SourceSpec) -> None:
    """Refuse images to condense that are all equal, or all equal in a class of two or more."""
    images = train.images.numpy()
    if len(images) > 1 and _all_equal(images):
        what, first = f"all {len(images)} images of the source", images[0]
    elif flat := equal_classes(images, train.offsets):
        others = f" (and likewise in {len(flat) - 1} more)" if len(flat) > 1 else ""
        what = f"all {train.counts[flat[0]]} images of class {names[flat[0]]!r}{others}"
        first = images[train.offsets[flat[0]]]
    else:
        return
    hint = (
        "Look at these files, and whether the image column is the right one; put others in their place, or leave the "
        "class out."
    )
    if is_blank(first):
        what, other = f"{what} are blank, of one colour", "black" if spec.background == "white" else "white"
        hint += f" Transparent drawings in {spec.background} need  source.background: {other}"
    else:
        what += " are equal"
    raise SourceError(
        f"{what}, at {spec.size} x {spec.size} pixels on {spec.background}; there is nothing in them to learn from",
        hint=hint,
    )


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether an image, uint8 channels x side x side, has one colour."""
    return bool((pixels == pixels[:, :1, :1]).all())


def equal_classes(images: NDArray[np.uint8], offsets: Sequence[int]) -> list[int]:
    """List the classes of two images or more, rows `offsets[c]` to `offsets[c + 1]`, that are all equal."""
    spans = enumerate(pairwise(offsets))
    return [c for c, (start, stop) in spans if stop - start > 1 and _all_equal(images[start:stop])]


def _all_equal(images: NDArray[np.uint8]) -> bool:  # stops at the first that is not
    return all(bool((images[k : k + _CHUNK] == images[0]).all()) for k in range(0, len(images), _CHUNK))
