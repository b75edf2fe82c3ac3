from __future__ import annotations

from collections.abc import Mapping

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Reader, SourceFacts, Split, SplitSlice, locate
from hmdc_hub.sources.rows import check_apart, find_splits, parse_split


def reader(splits: Mapping[str, int]) -> Reader:
    made = {name: Split(rows, {}, lambda column, start, stop: []) for name, rows in splits.items()}
    return Reader(SourceFacts("my/set", "hub"), made)


READER = reader({"train": 100, "test": 20, "extra": 0})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train", [("train", 0, 100)]),
        ("train[:80%]", [("train", 0, 80)]),
        ("train[80%:]", [("train", 80, 100)]),
        ("train[-10%:]", [("train", 90, 100)]),
        ("train[5:7]", [("train", 5, 7)]),
        ("train[:]", [("train", 0, 100)]),
        ("train[:10]+test[-5:]", [("train", 0, 10), ("test", 15, 20)]),
        ("train + test", [("train", 0, 100), ("test", 0, 20)]),
        ("train[:0]+test", [("test", 0, 20)]),
    ],
)
def test_splits_and_slices(text: str, parts: list[tuple[str, int, int]]) -> None:
    assert parse_split(READER, text, "train_split") == tuple(SplitSlice(*part) for part in parts)


bounds = st.none() | st.integers(-100, 100)


@settings(deadline=None)
@given(bounds, bounds, st.booleans(), st.integers(100, 1000))
def test_slices_are_those_of_datasets(start: int | None, stop: int | None, percent: bool, rows: int) -> None:
    unit = "%" if percent else ""
    text = f"train[{'' if start is None else f'{start}{unit}'}:{'' if stop is None else f'{stop}{unit}'}]"
    try:
        expected = datasets.ReadInstruction.from_spec(text).to_absolute({"train": rows})[0]
    except (AssertionError, ValueError):
        return
    try:
        parts = parse_split(reader({"train": rows}), text, "train_split")
    except SourceError:
        assert expected.to <= expected.from_
        return
    assert [(part.start, part.stop) for part in parts] == [(expected.from_, expected.to)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian", r"no split 'trian'; its splits are train, test, extra"),
        ("train[:101]", "beyond the 100 rows"),
        ("train[:101%]", "beyond 100%"),
        ("train[10:20%]", "mixes rows and percent"),
        ("train[a:b]", "neither the name of a split nor a slice"),
        ("train[3]", "neither the name of a split nor a slice"),
        ("", "neither the name of a split nor a slice"),
        ("train+", "neither the name of a split nor a slice"),
        ("extra", "'extra' of my/set has no rows"),
        ("train[30:20]", "has no rows"),
    ],
)
def test_refused_splits(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        parse_split(READER, text, "test_split")
    assert "source.test_split" in caught.value.message
    assert caught.value.hint


def test_a_typing_error_is_guessed() -> None:
    with pytest.raises(SourceError) as caught:
        parse_split(READER, "tets", "test_split")
    assert "test_split: test" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "train", "test", "found"),
    [
        ("train test validation", None, None, ("train", "test")),
        ("train validation", None, None, ("train", "validation")),
        ("valid train", None, None, ("train", "valid")),
        ("train val", None, None, ("train", "val")),
        ("train", None, None, ("train", None)),
        ("train test", "test", None, ("test", None)),
        ("train test validation", "test[:50%]", None, ("test[:50%]", "validation")),
        ("train test validation", "train+test", None, ("train+test", "validation")),
        ("a b", "a", "b", ("a", "b")),
    ],
)
def test_detected_splits(names: str, train: str | None, test: str | None, found: tuple[str, str | None]) -> None:
    assert find_splits(reader(dict.fromkeys(names.split(), 10)), train, test) == found


def test_no_train_split_lists_what_there_is() -> None:
    with pytest.raises(SourceError, match="no split named 'train'; its splits are full, small") as caught:
        find_splits(reader({"full": 3, "small": 1}), None, None)
    assert "train_split: full" in caught.value.hint


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [("train[:80%]", "train[80%:]", 0), ("train", "test", 0), ("train", "train[80%:]", 20), ("train+test", "test", 20)],
)
def test_scoring_on_condensed_rows_is_refused(train: str, test: str, shared: int) -> None:
    parts = parse_split(READER, train, "train_split"), parse_split(READER, test, "test_split")
    if not shared:
        return check_apart(*parts, train, test)
    with pytest.raises(SourceError, match=f"share {shared} rows"):
        check_apart(*parts, train, test)


def test_rows_are_named_by_their_place_in_the_split() -> None:
    parts = (SplitSlice("train", 5, 7), SplitSlice("extra", 2, 4))
    assert [locate(parts, k) for k in range(4)] == [("train", 5), ("train", 6), ("extra", 2), ("extra", 3)]
