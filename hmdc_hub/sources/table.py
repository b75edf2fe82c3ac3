"""Read a dataset of the `datasets` library: from the Hub, a folder or a file, it is the same from here on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hmdc_hub.sources import detect
from hmdc_hub.sources.reader import Encoded, Facts, Part, row_of_split

_BATCH = 256


class TableReader:
    """A `Reader` of splits that are `datasets.Dataset`s. Images are read as bytes or paths and never decoded here.

    Args:
        facts: Where the dataset comes from.
        tables: Split name to dataset.
    """

    def __init__(self, facts: Facts, tables: Mapping[str, Any]) -> None:
        self.facts = facts
        self._tables = dict(tables)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the dataset's order."""
        return tuple(self._tables)

    def rows(self, split: str) -> int:
        """Count the rows of a split."""
        return len(self._tables[split])

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Check the columns of a split, or find those that are None."""
        features = self._tables[split].features
        where = f"split {split!r} of {self.facts.id}"
        return detect.image_column(features, image, where), detect.label_column(features, label, where)

    def class_names(self, split: str, label: str) -> list[str] | None:
        """Give the names of a ClassLabel column, in its order; None for other columns."""
        names = getattr(self._tables[split].features[label], "names", None)
        return list(names) if names else None

    def labels(self, part: Part, label: str) -> list[object]:
        """Read the labels of some rows as they are stored: whole numbers, text or None."""
        table = self._tables[part.split].select_columns([label]).select(range(part.start, part.stop))
        values: list[object] = table.with_format("arrow")[:][label].to_pylist()
        return values

    def images(self, part: Part, image: str) -> Iterator[Encoded]:
        """Read the images of some rows without decoding them."""
        table = self._tables[part.split].select_columns([image]).select(range(part.start, part.stop))
        for batch in table.with_format("arrow").iter(batch_size=_BATCH):
            for value in batch[image].to_pylist():
                yield _encoded(value)

    def where(self, split: str, column: str, row: int) -> str:
        """Name a row for errors."""
        return row_of_split(split, column, row)


def _encoded(value: Any) -> Encoded:
    if not isinstance(value, Mapping):
        return value if isinstance(value, bytes) else None
    data, path = value.get("bytes"), value.get("path")
    return data if data is not None else path
