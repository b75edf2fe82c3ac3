"""The rows of a source, without its pixels: what the dry run counts and `recipes validate` checks."""

from __future__ import annotations

from dataclasses import dataclass

from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import open_reader, resolve_source
from hmdc_hub.sources.labels import read_labels, train_counts
from hmdc_hub.sources.splits import parse_split


@dataclass(frozen=True)
class Rows:
    """What a source's labels say.

    Attributes:
        spec: The section with nothing left open.
        class_names: C names.
        train_counts: Images per class that are condensed.
        test_count: Images that are scored on.
    """

    spec: SourceSpec
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_count: int

    def said(self) -> list[str]:
        """Say which rows and columns were chosen, and what was left out, line by line."""
        spec, counts = self.spec, self.train_counts
        each = f"{counts[0]}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        test = spec.test_split or f"{spec.test_fraction:.0%} of every class of {spec.train_split}"
        return [
            f"train {spec.train_split}: {sum(counts)} images, {each} in each of {len(counts)} classes",
            f"test {test}: {self.test_count} images; columns {spec.image_column} and {spec.label_column}",
        ]


def read_rows(spec: SourceSpec) -> Rows:
    """Open a source and read its labels; no image is decoded.

    Raises:
        SourceError: It cannot be used as the section says.
        NetworkError: It must be downloaded and that failed.
    """
    spec = resolve_source(spec)
    reader = open_reader(spec.id, spec.revision, spec.config)
    train = parse_split(reader, str(spec.train_split), "train_split")
    test = parse_split(reader, spec.test_split, "test_split") if spec.test_split else ()
    names, labels, test_labels = read_labels(reader, train, test, str(spec.label_column))
    return Rows(spec, tuple(names), tuple(train_counts(names, labels)), len(test_labels))
