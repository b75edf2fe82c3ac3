"""Which rows are condensed and which are scored on, and the class of each: splits, slices of them, labels."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Reader, SplitSlice, locate

TEST_NAMES = ("test", "validation", "valid", "val")

_SLICE = re.compile(r"(?P<name>[^\[\]+]+?)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_SHOWN = 5


def parse_split(reader: Reader, text: str, key: str) -> tuple[SplitSlice, ...]:
    """Resolve a split as written in a recipe to slices with a row at least.

    `text` is `train`, a slice (`train[:80%]`, `train[100:200]`, `train[-10%:]`) or a sum (`train+validation`), with the
    meaning and rounding that `datasets` gives them; `key` is the recipe's, for errors.

    Raises:
        SourceError: No such split, no such rows, none at all, or it cannot be read.
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
            close = difflib.get_close_matches(name, reader.splits, n=1)
            raise SourceError(
                f"source.{key}: {reader.facts.id} has no split {name!r}; its splits are {', '.join(reader.splits)}",
                hint=f"Write for example  {key}: {close[0] if close else reader.splits[0]}",
            )
        bounds = [0, rows := reader.rows(name)]
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

    Returns:
        Both as text for `parse_split`; None for a test split that was not found.

    Raises:
        SourceError: There is no split named train.
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


def no_test_split(reader: Reader) -> SourceError:
    """Say that a dataset has no split to score on, and what to write."""
    return SourceError(
        f"{reader.facts.id} has no split to score on: none of {', '.join(TEST_NAMES)} is left beside the one that is "
        f"condensed (its splits: {', '.join(reader.splits)})",
        hint="Keep a fifth of every class for it with  test_fraction: 0.2  or name a split with  test_split: <name>",
    )


def check_apart(train: tuple[SplitSlice, ...], test: tuple[SplitSlice, ...], train_text: str, test_text: str) -> None:
    """Refuse to score on rows that are condensed."""
    pairs = [(one, other) for one in train for other in test if one.split == other.split]
    shared = sum(max(0, min(one.stop, other.stop) - max(one.start, other.start)) for one, other in pairs)
    if shared:
        raise SourceError(
            f"train_split {train_text!r} and test_split {test_text!r} share {shared} rows; a score on images that were "
            "condensed says nothing",
            hint="Choose splits that are apart, or leave test_split out and say  test_fraction: 0.2",
        )


def read_labels(
    reader: Reader, train: tuple[SplitSlice, ...], test: tuple[SplitSlice, ...], column: str, *, every: bool = True
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Read the labels of both splits as class indices.

    Returns:
        Names of the C classes: a ClassLabel's own, in its order, else the sorted values of the train split. Class
        indices of both splits, int64 in 0..C-1, in the order of the rows.

    Raises:
        SourceError: A label is missing or no class; or, if `every` class has to be there, one has no image to condense,
            or there is one class only.
    """
    names = reader.class_names(train[0].split, column)
    for part in (*train, *test):
        if reader.class_names(part.split, column) != names:
            raise SourceError(
                f"column {column!r} names other classes in split {part.split!r} than in {train[0].split!r}",
                hint="Give both splits the same ClassLabel feature, with Dataset.cast_column.",
            )
    values = [[value for part in parts for value in reader.labels(part, column)] for parts in (train, test)]
    if values[1] and all(value is None or value == -1 for value in values[1]):
        raise _unlabelled(reader, train, test, column)

    rule = "labels are text or whole numbers from 0"
    if names is not None:
        rule = f"the {len(names)} classes are numbered 0 to {len(names) - 1}"

    def bad(parts: tuple[SplitSlice, ...], index: int, value: object, rule: str) -> SourceError:
        split, row = locate(parts, index)
        shown = "empty (None)" if value is None else repr(value)
        return SourceError(
            f"{reader.where(split, column, row)}: the label is {shown}; {rule}",
            hint="Correct or remove the row, or choose another column with  label_column: <name>",
        )

    for parts, some in zip((train, test), values, strict=True):
        for index, value in enumerate(some):
            if not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
                raise bad(parts, index, value, f"{rule}; -1 usually marks a row without one")
            if type(value) is not type(some[0]):
                raise bad(parts, index, value, f"others are of the type {type(some[0]).__name__}")
    if names is None:
        classes = sorted(set(values[0]))  # type: ignore[type-var]  # all whole numbers or all text, just checked
        names, known = [str(value) for value in classes], {value: index for index, value in enumerate(classes)}
        rule = "no image of the train split has it, so no class can be learned for it"
        _check_spelling(names)
    else:
        known = {index: index for index in range(len(names))}
    indices = []
    for parts, some in zip((train, test), values, strict=True):
        found = np.asarray([known.get(value, -1) for value in some], dtype=np.int64)
        if (found < 0).any():
            index = int((found < 0).argmax())
            raise bad(parts, index, some[index], rule + _alike(str(some[index]), list(map(str, known))))
        indices.append(found)
    if every:
        _check_classes(names, indices[0], train)
    return names, indices[0], indices[1]


def class_counts(names: Sequence[str], labels: NDArray[np.int64]) -> list[int]:
    """Count the images of every class."""
    return [int(count) for count in np.bincount(labels, minlength=len(names))]


def _check_classes(names: list[str], labels: NDArray[np.int64], train: tuple[SplitSlice, ...]) -> None:
    if len(names) < 2:
        raise SourceError(
            f"the source has one class, {names[0]!r}; there is nothing to tell apart",
            hint="Choose a label column with two classes or more.",
        )
    if empty := [name for name, count in zip(names, class_counts(names, labels), strict=True) if count == 0]:
        raise SourceError(
            f"{len(empty)} of {len(names)} classes have no image in the rows of split "
            f"{'+'.join(dict.fromkeys(part.split for part in train))!r} that are condensed: {some_names(empty)}",
            hint="Every class needs one image at least. A slice of rows sorted by class loses classes: shuffle the "
            "dataset first; or drop the unused names from the ClassLabel.",
        )


def some_names(names: Sequence[str]) -> str:
    """Quote the first few names."""
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _alike(name: str, names: Sequence[str]) -> str:
    """Say which class a name that is none may mean."""
    for other in names:
        if other != name and _composed(other) == _composed(name):
            return f"; a class looks the same but has other characters ({_characters(other)}, and {_characters(name)})"
    close = difflib.get_close_matches(name, names, n=1)
    return f" (there is {close[0]!r})" if close else ""


def _check_spelling(names: Sequence[str]) -> None:
    """Refuse two classes whose names look the same."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(_composed(name), name)) != name:
            raise SourceError(
                f"two classes are called {name!r}: the names look the same but have other characters "
                f"({_characters(other)}, and {_characters(name)})",
                hint="Give the class one name: rename the folder, or correct the label, of the one that is wrong.",
            )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _characters(name: str) -> str:
    return f"{ascii(name)}, {'composed, NFC' if name == _composed(name) else 'decomposed, NFD'}"


def _unlabelled(
    reader: Reader, train: tuple[SplitSlice, ...], test: tuple[SplitSlice, ...], column: str
) -> SourceError:
    """Say that a split to score on has no labels, and which one has."""
    hint, used = "Keep a part of the train split for it:  test_fraction: 0.2", {part.split for part in (*train, *test)}
    for name in TEST_NAMES:
        if name in reader.splits and name not in used and reader.rows(name):
            values = reader.labels(SplitSlice(name, 0, reader.rows(name)), column)
            if not any(value is None or value == -1 for value in values):
                hint = f"The split {name} has: score on it with  test_split: {name}"
                break
    return SourceError(
        f"split {test[0].split!r} has no labels: all {sum(map(len, test))} are empty or -1; without them nothing can "
        "be scored",
        hint=hint,
    )
