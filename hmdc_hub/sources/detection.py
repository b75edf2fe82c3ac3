"""Look at a dataset and propose the `source` section of a recipe, for `hmdc-hub init`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources.checks import is_blank
from hmdc_hub.sources.load import index_source
from hmdc_hub.sources.pixels import Background, open_image, to_pixels
from hmdc_hub.sources.reader import SourceFacts

SAMPLE = 64
SMALLEST_SIZE, LARGEST_SIZE = 4, 224


@dataclass(frozen=True)
class Detection:
    """What was found in a dataset.

    Attributes:
        facts: Id, kind, commit, configuration, licence, gating.
        source: The `source` section with everything filled in that was found. Its size is the median of the shorter
            sides, even and at most 224; it has one channel if every image of the sample is grey, and a black background
            if every one is blank on white, and not every one on black. `test_split` is None if the dataset has none.
        splits: Rows of the splits that were opened, by name.
        class_names: C names.
        train_counts: Images per class of the train split.
        test_count: Images of the test split, 0 without one.
        sides: Smallest, median and largest shorter side in pixels, over a sample of the train split.
    """

    facts: SourceFacts
    source: SourceSpec
    splits: Mapping[str, int]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_count: int
    sides: tuple[int, int, int]

    def spec(self) -> SourceSpec:
        """Give `source`."""
        return self.source

    def __getattr__(self, name: str) -> Any:
        """Give a key of `source`, such as `train_split`, `image_column` or `size`."""
        if name in SourceSpec.model_fields:
            return getattr(self.source, name)
        raise AttributeError(name)


def describe(source: str, **keys: Any) -> Detection:
    """Look at a dataset: an id as in a recipe, and keys of its `source` section that are known already.

    Downloads the dataset if it is not in the cache; reads all labels, decodes up to 64 images.

    Raises:
        UsageError: It cannot be used as a source, apart from a missing test split.
        NetworkError: It must be downloaded and that failed.
    """
    index = index_source(SourceSpec(id=source, size=LARGEST_SIZE, **keys), require_test=False)
    count = min(SAMPLE, len(index.train[0]))
    # Spread evenly over the rows, which may be sorted by class.
    sample = [open_image(index.image(k * len(index.train[0]) // count)) for k in range(count)]
    sides = sorted(min(one.size) for one in sample)
    channels: Literal[1, 3] = 1 if all(map(_is_grey, sample)) else 3
    background: Background = "black" if _vanish(sample, "white") and not _vanish(sample, "black") else "white"
    size = min(LARGEST_SIZE, max(SMALLEST_SIZE, 2 * round(statistics.median(sides) / 2)))
    return Detection(
        facts=index.facts,
        source=index.spec.model_copy(update={"size": size, "channels": channels, "background": background}),
        splits={part.split: index.reader.rows(part.split) for part in (*index.train, *index.test)},
        class_names=tuple(index.class_names),
        train_counts=tuple(index.train_counts),
        test_count=index.test_count,
        sides=(sides[0], int(statistics.median(sides)), sides[-1]),
    )


def _vanish(sample: list[Image.Image], background: Background) -> bool:
    """Tell whether there is nothing to be seen in transparent images, as in white drawings on white."""
    return all(
        one.has_transparency_data
        and is_blank(to_pixels(one, size=LARGEST_SIZE, channels=3, fit="stretch", background=background))
        for one in sample
    )


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return True
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
