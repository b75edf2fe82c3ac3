"""What the ways to a dataset have in common: rows with an image and a label, in named splits.

`hmdc_hub.sources.digits`, `table` (the Hub and local files) and `vision` (torchvision) each make a `Reader`; everything
after that is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from hmdc_hub.schema import LeftOut

Encoded = bytes | str | Image.Image | None
"""One image as a dataset holds it: the bytes of a file, the path of one, an open image, or nothing."""

Kind = Literal["builtin", "torchvision", "hub", "local"]


@dataclass(frozen=True)
class Facts:
    """Where a dataset comes from; the fields are those of `hmdc_hub.schema.SourceInfo`."""

    id: str
    kind: Kind
    revision: str | None = None
    config: str | None = None
    license: str | None = None
    gated: bool = False
    private: bool = False
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` (exclusive) of a split."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Reader(Protocol):
    """A dataset whose images are not decoded yet."""

    @property
    def facts(self) -> Facts:
        """Where it comes from."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the dataset's order."""
        ...

    def rows(self, split: str) -> int:
        """Count the rows of a split."""
        ...

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Check the columns of a split, or find those that are None; SourceError if that fails."""
        ...

    def class_names(self, split: str, label: str) -> list[str] | None:
        """Give the names that the whole-number labels of a column stand for; None: the values are the classes."""
        ...

    def labels(self, part: Part, label: str) -> list[object]:
        """Read the labels of some rows."""
        ...

    def images(self, part: Part, image: str) -> Iterator[Encoded]:
        """Read the images of some rows without decoding them."""
        ...

    def where(self, split: str, column: str, row: int) -> str:
        """Name a row, and the place in a file that it comes from where there is one, for errors."""
        ...


def row_of_split(split: str, column: str, row: int) -> str:
    """Name a row of a table; see `Reader.where`."""
    return f"split {split!r}, column {column!r}, row {row} (counted from 0)"


def locate(parts: Sequence[Part], index: int) -> tuple[str, int]:
    """Find the split and the row, from 0, that the row `index` of the parts taken together comes from."""
    for part in parts:
        if index < len(part):
            return part.split, part.start + index
        index -= len(part)
    raise IndexError(index)
