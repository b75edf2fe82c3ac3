"""The digits that ship with scikit-learn: a real dataset without a download.

1,797 grey images of handwritten digits, 8 x 8 pixels with values 0 to 16: the test part of "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998), CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmdc_hub import rng
from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Encoded, Facts, Part, row_of_split

_TEST_SHARE = 0.2
_COLUMNS = ("image", "label")


class DigitsReader:
    """A `Reader` of scikit-learn's digits, divided into 1,438 train and 359 test images, every class alike."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # half a second that other sources need not wait for

        data = load_digits()
        pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
        labels = data.target.astype(np.int64)
        test = _test_rows(labels)
        self._pixels = {"train": pixels[~test], "test": pixels[test]}
        self._labels = {"train": labels[~test], "test": labels[test]}

    @property
    def facts(self) -> Facts:
        """Where it comes from."""
        return Facts("builtin:digits", "builtin", license="cc-by-4.0")

    @property
    def splits(self) -> tuple[str, ...]:
        """Train and test."""
        return ("train", "test")

    def rows(self, split: str) -> int:
        """Count the rows of a split."""
        return len(self._labels[split])

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Give the columns; other names are refused."""
        return fixed_columns(self.facts.id, image, label)

    def class_names(self, split: str, label: str) -> list[str] | None:
        """Give the names 0 to 9."""
        return [str(digit) for digit in range(10)]

    def labels(self, part: Part, label: str) -> list[object]:
        """Read the labels of some rows."""
        return [int(value) for value in self._labels[part.split][part.start : part.stop]]

    def images(self, part: Part, image: str) -> Iterator[Encoded]:
        """Give the images of some rows, 8 x 8 and grey."""
        for pixels in self._pixels[part.split][part.start : part.stop]:
            yield Image.fromarray(pixels)

    def where(self, split: str, column: str, row: int) -> str:
        """Name a row for errors."""
        return row_of_split(split, column, row)


def fixed_columns(source: str, image: str | None, label: str | None) -> tuple[str, str]:
    """Check the columns of a source that has no table: `image` and `label`, or nothing, may be asked for.

    Raises:
        SourceError: Another column is asked for.
    """
    for key, wanted, fixed in (("image_column", image, "image"), ("label_column", label, "label")):
        if wanted not in (None, fixed):
            raise SourceError(
                f"source.{key}: {source} has no column {wanted!r}; its columns are image and label",
                hint=f"Leave {key} out.",
            )
    return _COLUMNS


def _test_rows(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose a fifth of every class by keyed hashes, which no library version can change."""
    test = np.zeros(len(labels), dtype=np.bool_)
    for c in range(10):
        rows = np.flatnonzero(labels == c).tolist()
        rows.sort(key=lambda row: rng.derived_seed(0, "digits test split", row))
        test[rows[: round(_TEST_SHARE * len(rows))]] = True
    return test
