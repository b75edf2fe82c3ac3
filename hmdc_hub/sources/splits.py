"""Which rows are condensed and which are scored on: names of splits, slices of them, sums of slices."""

from __future__ import annotations

import difflib
import re

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Part, Reader

TEST_NAMES = ("test", "validation", "valid", "val")
_PART = re.compile(r"(?P<name>[^\[\]+]+?)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse_split(reader: Reader, text: str, key: str) -> tuple[Part, ...]:
    """Resolve a split as written in a recipe to rows.

    Args:
        reader: The dataset.
        text: `train`, a slice (`train[:80%]`, `train[100:200]`, `train[-10%:]`) or a sum (`train+validation`), with the
            meaning and rounding that `datasets` gives them.
        key: Key of the recipe it stands under, for errors.

    Returns:
        Parts with a row at least.

    Raises:
        SourceError: No such split, no such rows, none at all, or it cannot be read.
    """
    parts = []
    for piece in text.split("+"):
        match = _PART.fullmatch(piece.strip())
        if match is None:
            raise SourceError(
                f"source.{key}: {text!r} is neither the name of a split nor a slice of one",
                hint=f"Write for example  {key}: train  or  {key}: train[:80%]",
            )
        name = match["name"]
        if match["start"] and match["stop"] and ("%" in match["start"]) != ("%" in match["stop"]):
            raise SourceError(
                f"source.{key}: {piece.strip()!r} mixes rows and percent",
                hint=f"Give both ends in one unit, for example  {key}: {name}[10%:20%]",
            )
        if name not in reader.splits:
            raise _unknown_split(reader, name, key)
        rows = reader.rows(name)
        start = _boundary(match["start"], rows, 0, piece, key)
        stop = _boundary(match["stop"], rows, rows, piece, key)
        parts.append(Part(name, start, max(start, stop)))
    if not sum(len(part) for part in parts):
        raise SourceError(
            f"source.{key}: {text!r} of {reader.facts.id} has no rows; a split needs one image at least",
            hint=f"Name another split ({', '.join(reader.splits)}) or a larger slice.",
        )
    return tuple(part for part in parts if len(part))


def find_splits(reader: Reader, train: str | None, test: str | None) -> tuple[str, str | None]:
    """Choose the splits that are None.

    Args:
        reader: The dataset.
        train: Split to condense; None: the one named train.
        test: Split to score on; None: test, else validation, valid or val, never the one that is condensed.

    Returns:
        Both as text for `parse_split`; None for a test split that was not found.

    Raises:
        SourceError: There is no split named train.
    """
    if train is None:
        if "train" not in reader.splits:
            raise SourceError(
                f"{reader.facts.id} has no split named 'train'; its splits are {', '.join(reader.splits)}",
                hint=f"Say which one to condense, for example  train_split: {reader.splits[0]}",
            )
        train = "train"
    if test is None:
        taken = {piece.split("[")[0].strip() for piece in train.split("+")}
        test = next((name for name in TEST_NAMES if name in reader.splits and name not in taken), None)
    return train, test


def no_test_split(reader: Reader) -> SourceError:
    """Say that a dataset has no split to score on, and what to write."""
    return SourceError(
        f"{reader.facts.id} has no split to score on: none of {', '.join(TEST_NAMES)} is left beside the one that is "
        f"condensed (its splits: {', '.join(reader.splits)})",
        hint="Keep a fifth of every class for it with  test_fraction: 0.2  or name a split with  test_split: <name>",
    )


def check_apart(train: tuple[Part, ...], test: tuple[Part, ...], train_text: str, test_text: str) -> None:
    """Refuse to score on rows that are condensed.

    Raises:
        SourceError: A row is in both.
    """
    shared = 0
    for one in train:
        for other in test:
            if one.split == other.split:
                shared += max(0, min(one.stop, other.stop) - max(one.start, other.start))
    if shared:
        raise SourceError(
            f"train_split {train_text!r} and test_split {test_text!r} share {shared} rows; a score on images that were "
            "condensed says nothing",
            hint="Choose splits that are apart, or leave test_split out and say  test_fraction: 0.2",
        )


def _boundary(text: str | None, rows: int, default: int, piece: str, key: str) -> int:
    if text is None:
        return default
    percent = text.endswith("%")
    number = int(text.rstrip("%"))
    limit = 100 if percent else rows
    if abs(number) > limit:
        raise SourceError(
            f"source.{key}: {piece.strip()!r} reaches beyond {'100%' if percent else f'the {rows} rows'} of the split",
            hint="Write a smaller number, or leave it out to mean the end.",
        )
    boundary = round(number * rows / 100) if percent else number
    return boundary + rows if boundary < 0 else boundary


def _unknown_split(reader: Reader, name: str, key: str) -> SourceError:
    close = difflib.get_close_matches(name, reader.splits, n=1)
    example = close[0] if close else reader.splits[0]
    return SourceError(
        f"source.{key}: {reader.facts.id} has no split {name!r}; its splits are {', '.join(reader.splits)}",
        hint=f"Write for example  {key}: {example}",
    )
