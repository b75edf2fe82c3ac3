"""Look at a dataset and propose the `source` section of a recipe, for `hmdc-hub init`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image

from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources.blank import is_blank
from hmdc_hub.sources.convert import to_pixels
from hmdc_hub.sources.decode import open_image
from hmdc_hub.sources.load import index_source
from hmdc_hub.sources.reader import Facts, Part, Reader

SAMPLE = 64
LARGEST_SIZE = 224
SMALLEST_SIZE = 4


@dataclass(frozen=True)
class Detection:
    """What was found in a dataset.

    Attributes:
        facts: Id, kind, commit, configuration, licence, gating.
        splits: Rows of the splits that were opened, by name.
        train_split: Split to condense.
        test_split: Split to score on; None if the dataset has none, then the recipe says where the images to score on
            come from.
        test_fraction: Share of the train split to score on, as it was asked for.
        image_column: Column of the images; `label_column` of the labels.
        class_names: C names.
        train_counts: Images per class of the train split.
        test_count: Images of the test split, 0 without one.
        sides: Smallest, median and largest shorter side in pixels, over a sample of the train split.
        size: Proposed side: the median, even, at most 224.
        channels: Proposed: 1 if every image of the sample is grey, else 3.
        background: Proposed: black if every image of the sample is blank on white, and not every one on black.
    """

    facts: Facts
    splits: Mapping[str, int]
    train_split: str
    test_split: str | None
    test_fraction: float | None
    image_column: str
    label_column: str
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_count: int
    sides: tuple[int, int, int]
    size: int
    channels: Literal[1, 3]
    background: Literal["white", "black"] = "white"

    def spec(self) -> SourceSpec:
        """Give the `source` section with everything filled in that was found."""
        return SourceSpec(
            id=self.facts.id,
            revision=self.facts.revision,
            config=self.facts.config,
            train_split=self.train_split,
            test_split=self.test_split,
            test_fraction=self.test_fraction,
            image_column=self.image_column,
            label_column=self.label_column,
            size=self.size,
            channels=self.channels,
            background=self.background,
        )


def describe(
    source: str,
    revision: str | None = None,
    config: str | None = None,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Detection:
    """Look at a dataset; arguments as the recipe's keys, with `source` for `id`.

    Downloads the dataset if it is not in the cache; reads all labels, decodes up to 64 images.

    Raises:
        SourceError: It cannot be used as a source, apart from a missing test split.
        NetworkError: It must be downloaded and that failed.
    """
    asked = SourceSpec(
        id=source,
        revision=revision,
        config=config,
        train_split=train_split,
        test_split=test_split,
        test_fraction=test_fraction,
        image_column=image_column,
        label_column=label_column,
        size=LARGEST_SIZE,
    )
    index = index_source(asked, require_test=False)
    reader, spec = index.reader, index.spec
    sample = _sample(reader, index.train[0], str(spec.image_column))
    sides = sorted(min(one.size) for one in sample)
    return Detection(
        facts=index.facts,
        splits={part.split: reader.rows(part.split) for part in (*index.train, *index.test)},
        train_split=str(spec.train_split),
        test_split=spec.test_split,
        test_fraction=spec.test_fraction,
        image_column=str(spec.image_column),
        label_column=str(spec.label_column),
        class_names=tuple(index.class_names),
        train_counts=tuple(index.train_counts),
        test_count=index.test_count,
        sides=(sides[0], int(statistics.median(sides)), sides[-1]),
        size=_even(statistics.median(sides)),
        channels=1 if all(_is_grey(one) for one in sample) else 3,
        background="black" if _vanish(sample, "white") and not _vanish(sample, "black") else "white",
    )


def _sample(reader: Reader, part: Part, column: str) -> list[Image.Image]:
    """Open images spread evenly over the rows, which may be sorted by class."""
    count = min(SAMPLE, len(part))
    rows = [part.start + index * len(part) // count for index in range(count)]
    return [open_image(next(iter(reader.images(Part(part.split, row, row + 1), column)))) for row in rows]


def _even(side: float) -> int:
    return min(LARGEST_SIZE, max(SMALLEST_SIZE, 2 * round(side / 2)))


def _vanish(sample: list[Image.Image], background: Literal["white", "black"]) -> bool:
    """Tell whether there is nothing to be seen in transparent images, as in white drawings on white."""
    convert = partial(to_pixels, size=LARGEST_SIZE, channels=3, fit="stretch", background=background)
    return all(one.has_transparency_data and is_blank(convert(one)) for one in sample)


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return True
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
