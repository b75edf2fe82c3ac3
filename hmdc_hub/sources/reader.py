"""What every kind of source is read as: named splits of rows, each with an image and a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from hmdc_hub.schema import LeftOut
from hmdc_hub.sources.columns import find_image_column, find_label_column

Encoded = bytes | str | Image.Image | None
"""One image as a dataset holds it: the bytes of a file, the path of one, an open image, or nothing."""


@dataclass(frozen=True)
class SourceFacts:
    """Where a dataset comes from; the fields are those of `hmdc_hub.schema.SourceInfo`."""

    id: str
    kind: Literal["builtin", "torchvision", "hub", "local"]
    revision: str | None = None
    config: str | None = None
    license: str | None = None
    gated: bool = False
    private: bool = False
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class SplitSlice:
    """Rows `start` to `stop` (exclusive) of a split."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Split:
    """The rows of a split, of which nothing is decoded.

    Attributes:
        rows: How many there are.
        features: Column to its type: a feature of `datasets`, or what `columns.kind_of` makes of one.
        read: Gives the values of a column from a row to another (exclusive): labels as whole numbers, text or None,
            images as `Encoded`.
        class_names: Column to the names that its whole numbers stand for; of other columns the values are the classes.
        where: Names a row for errors; None: it is counted.
    """

    rows: int
    features: Mapping[str, Any]
    read: Callable[[str, int, int], Iterable[Any]]
    class_names: Mapping[str, list[str]] = field(default_factory=dict)
    where: Callable[[int], str] | None = None


class Reader:
    """A dataset whose images are not decoded yet.

    Args:
        facts: Where it comes from.
        splits: Name to `Split`, or to what opens it at its first use; in the dataset's order.
    """

    def __init__(self, facts: SourceFacts, splits: Mapping[str, Split | Callable[[], Split]]) -> None:
        self.facts = facts
        self._splits = dict(splits)

    def __getitem__(self, name: str) -> Split:
        split = self._splits[name]
        if not isinstance(split, Split):
            split = self._splits[name] = split()
        return split

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._splits)

    def rows(self, split: str) -> int:
        """Count the rows of a split."""
        return self[split].rows

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Check the columns of a split, or find those that are None; SourceError if that fails."""
        features, where = self[split].features, f"split {split!r} of {self.facts.id}"
        return find_image_column(features, image, where), find_label_column(features, label, where)

    def class_names(self, split: str, label: str) -> list[str] | None:
        """Give the names that the whole-number labels of a column stand for; None: the values are the classes."""
        return self[split].class_names.get(label)

    def labels(self, part: SplitSlice, label: str) -> list[object]:
        """Read the labels of some rows: whole numbers, text or None."""
        return list(self[part.split].read(label, part.start, part.stop))

    def images(self, part: SplitSlice, image: str) -> Iterator[Encoded]:
        """Read the images of some rows without decoding them."""
        return iter(self[part.split].read(image, part.start, part.stop))

    def where(self, split: str, column: str, row: int) -> str:
        """Name a row, by the place in a file that it comes from where there is one."""
        name = self[split].where
        return name(row) if name else f"split {split!r}, column {column!r}, row {row} (counted from 0)"


def locate(parts: Sequence[SplitSlice], index: int) -> tuple[str, int]:
    """Find the split and the row, from 0, that the row `index` of the parts taken together comes from."""
    for part in parts:
        if index < len(part):
            return part.split, part.start + index
        index -= len(part)
    raise IndexError(index)
