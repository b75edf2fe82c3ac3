"""What a source's labels say, without a pixel: what the dry run counts and `recipes validate` looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hmdc_hub.schema import LeftOut, SourceSpec
from hmdc_hub.sources import SourceIndex, source_notes


@dataclass(frozen=True)
class Rows:
    """What is read of a source.

    Attributes:
        spec: The recipe's section with nothing left open.
        class_names: C names.
        train_counts: Images per class that are condensed.
        test_count: Images that are scored on.
        left_out: What is in the source and is not read.
    """

    spec: SourceSpec
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_count: int
    left_out: tuple[LeftOut, ...]

    @classmethod
    def of(cls, index: SourceIndex) -> Rows:
        """Keep what can be sent to another process."""
        left_out = index.facts.left_out
        return cls(index.spec, tuple(index.class_names), tuple(index.train_counts), index.test_count, left_out)

    def said(self) -> list[str]:
        """Say which rows and columns were chosen, and what was left out, line by line."""
        return source_notes(self.spec, self.class_names, self.train_counts, self.test_count, self.left_out)

    def document(self) -> dict[str, Any]:
        """Say the same as plain data for `--json`."""
        return {
            **self.spec.model_dump(mode="json"),
            "class_names": list(self.class_names),
            "train_counts": list(self.train_counts),
            "test_count": self.test_count,
            "left_out": [one.model_dump(mode="json") for one in self.left_out],
        }
