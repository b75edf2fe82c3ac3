"""Turn stored labels into class indices, and refuse rows that no class can be given to."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Part, Reader, locate
from hmdc_hub.sources.splits import TEST_NAMES

_SHOWN = 5


def read_labels(
    reader: Reader, train: tuple[Part, ...], test: tuple[Part, ...], column: str
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Read the labels of both splits as class indices.

    Args:
        reader: The dataset.
        train: Rows that are condensed.
        test: Rows that are scored on.
        column: The label column.

    Returns:
        Names of the C classes: a ClassLabel's own, in its order, else the sorted values of the train split. Class
        indices of both splits, int64 in 0..C-1, in the order of the rows.

    Raises:
        SourceError: A label is missing or no class, a class has no image to condense, or there is one class only.
    """
    raw_train, raw_test = _raw(reader, train, column), _raw(reader, test, column)
    names = reader.class_names(train[0].split, column)
    for part in (*train, *test):
        if reader.class_names(part.split, column) != names:
            raise SourceError(
                f"column {column!r} names other classes in split {part.split!r} than in {train[0].split!r}",
                hint="Give both splits the same ClassLabel feature, with Dataset.cast_column.",
            )
    if raw_test and all(value is None or value == -1 for value in raw_test):
        raise _unlabelled(reader, train, test, column)
    _check_types(reader, raw_train, train, column)
    _check_types(reader, raw_test, test, column)
    if names is None:
        values = sorted(set(raw_train))  # type: ignore[type-var]  # all whole numbers or all text, just checked
        names = [str(value) for value in values]
        _check_spelling(names)
        known = {value: index for index, value in enumerate(values)}
        rule = "no image of the train split has it, so no class can be learned for it"
    else:
        known = {index: index for index in range(len(names))}
        rule = f"the {len(names)} classes are numbered 0 to {len(names) - 1}"
    indices = tuple(
        _indices(reader, raw, known, parts, column, rule) for raw, parts in ((raw_train, train), (raw_test, test))
    )
    _check_classes(names, indices[0], train)
    return names, indices[0], indices[1]


def train_counts(names: Sequence[str], labels: NDArray[np.int64]) -> list[int]:
    """Count the images of every class."""
    return [int(count) for count in np.bincount(labels, minlength=len(names))]


def _raw(reader: Reader, parts: tuple[Part, ...], column: str) -> list[object]:
    return [value for part in parts for value in reader.labels(part, column)]


def _check_types(reader: Reader, values: list[object], parts: tuple[Part, ...], column: str) -> None:
    if not values:
        return  # `describe` looks at datasets without a split to score on, too
    kind = type(values[0])
    for index, value in enumerate(values):
        if value is None:
            raise _bad(reader, parts, index, column, "the label is empty (null)")
        if not isinstance(value, int | str):
            raise _bad(reader, parts, index, column, f"the label is {value!r}; labels must be whole numbers or text")
        if isinstance(value, int) and value < 0:
            raise _bad(reader, parts, index, column, f"the label is {value}, which usually marks a row without one")
        if type(value) is not kind:
            raise _bad(reader, parts, index, column, f"the label is {value!r}; others are of the type {kind.__name__}")


def _indices(
    reader: Reader, values: list[object], known: dict[object, int], parts: tuple[Part, ...], column: str, rule: str
) -> NDArray[np.int64]:
    indices = [known.get(value, -1) for value in values]
    if -1 in indices:
        index = indices.index(-1)
        alike = _alike(str(values[index]), [str(value) for value in known])
        raise _bad(reader, parts, index, column, f"the label is {values[index]!r}; {rule}{alike}")
    return np.asarray(indices, dtype=np.int64)


def _check_classes(names: list[str], labels: NDArray[np.int64], train: tuple[Part, ...]) -> None:
    if len(names) < 2:
        raise SourceError(
            f"the source has one class, {names[0]!r}; there is nothing to tell apart",
            hint="Choose a label column with two classes or more.",
        )
    empty = [name for name, count in zip(names, train_counts(names, labels), strict=True) if count == 0]
    if empty:
        shown = ", ".join(repr(name) for name in empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        splits = "+".join(dict.fromkeys(part.split for part in train))
        raise SourceError(
            f"{len(empty)} of {len(names)} classes have no image in the rows of split {splits!r} that are condensed: "
            f"{shown}",
            hint="Every class needs one image at least. A slice of rows sorted by class loses classes: shuffle the "
            "dataset first; or drop the unused names from the ClassLabel.",
        )


def _alike(name: str, names: Sequence[str]) -> str:
    """Say which class a name that is none may mean."""
    for other in names:
        if other != name and _plain(other) == _plain(name):
            return f"; a class looks the same but has other characters ({_characters(other, name)})"
    close = difflib.get_close_matches(name, names, n=1)
    return f" (there is {close[0]!r})" if close else ""


def _check_spelling(names: Sequence[str]) -> None:
    """Refuse two classes whose names look the same."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_plain(name), name)
        if other != name:
            raise SourceError(
                f"two classes are called {name!r}: the names look the same but have other characters "
                f"({_characters(other, name)})",
                hint="Give the class one name: rename the folder, or correct the label, of the one that is wrong.",
            )


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _characters(one: str, other: str) -> str:
    """Show where two names that look the same differ: in the way that letters with marks are written."""
    forms = ["composed, NFC" if name == _plain(name) else "decomposed, NFD" for name in (one, other)]
    return f"{ascii(one)}, {forms[0]}, and {ascii(other)}, {forms[1]}"


def _unlabelled(reader: Reader, train: tuple[Part, ...], test: tuple[Part, ...], column: str) -> SourceError:
    """Say that a split to score on has no labels, and which one has."""
    split = test[0].split
    for name in TEST_NAMES:
        if name in reader.splits and name not in {part.split for part in (*train, *test)} and reader.rows(name):
            values = reader.labels(Part(name, 0, reader.rows(name)), column)
            if not any(value is None or value == -1 for value in values):
                hint = f"The split {name} has: score on it with  test_split: {name}"
                break
    else:
        hint = "Keep a part of the train split for it:  test_fraction: 0.2"
    return SourceError(
        f"split {split!r} has no labels: all {sum(map(len, test))} are empty or -1; without them nothing can be scored",
        hint=hint,
    )


def _bad(reader: Reader, parts: tuple[Part, ...], index: int, column: str, what: str) -> SourceError:
    split, row = locate(parts, index)
    return SourceError(
        f"{reader.where(split, column, row)}: {what}",
        hint="Correct or remove the row, or choose another column with  label_column: <name>",
    )
