from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from hmdc_hub.errors import SourceError
from hmdc_hub.sources import describe, load_source
from hmdc_hub.sources.load import SAMPLE
from tests.sources.files import cells, encoded, image_folder, parquet_folder, png, rows, write_parquet


def test_digits() -> None:
    found = describe("builtin:digits")
    assert (found.spec.size, found.spec.channels, found.sides) == (8, 1, (8, 8, 8))
    assert (sum(found.train_counts), found.test_count) == (1438, 359)
    assert found.facts.license == "cc-by-4.0"
    assert load_source(found.spec).info.fingerprint


def test_parquet_folder(tmp_path: Path) -> None:
    found = describe(str(parquet_folder(tmp_path / "pets", names=("img", "fine_label"))))
    spec = found.spec
    assert (spec.image_column, spec.label_column) == ("img", "fine_label")
    assert found.class_names == ("ant", "bee", "cat")
    assert found.train_counts == (3, 3, 3)
    assert (spec.train_split, spec.test_split, found.test_count) == ("train", "test", 4)
    assert spec.channels == 1  # grey, although stored as RGB
    assert (spec.config, spec.size, spec.id) == ("default", 8, str(tmp_path / "pets"))
    assert load_source(spec).train.counts == (3, 3, 3)


def test_class_folders(tmp_path: Path) -> None:
    found = describe(str(image_folder(tmp_path, {"train": {"a": 3, "b": 2}, "test": {"a": 1, "b": 1}}, "JPEG")))
    assert (found.sides, found.spec.size) == ((6, 6, 6), 6)


def test_without_a_test_split_the_rest_is_found(tmp_path: Path) -> None:
    from datasets import ClassLabel, Image

    images, labels = rows(6)
    features = {"image": Image(), "label": ClassLabel(names=["a", "b", "c"])}
    found = describe(str(write_parquet(tmp_path / "a.parquet", {"image": images, "label": labels}, features)))
    assert (found.spec.test_split, found.test_count) == (None, 0)
    assert found.lines()[1] == "0 to score on, no split; columns image and label"


@pytest.mark.parametrize(
    ("sides", "size"),
    [((32,), 32), ((27,), 28), ((33, 33, 900), 32), ((500, 400, 300), 224), ((1, 2), 4), ((96, 96, 64), 96)],
)
def test_the_size_is_the_usual_shorter_side(tmp_path: Path, sides: tuple[int, ...], size: int) -> None:
    images = cells([png(k, (side + 5, side)) for k, side in enumerate(sides)] * 3)
    labels = list(range(3)) * len(sides)
    found = describe(str(parquet_folder(tmp_path, (images, labels))))
    assert found.spec.size == size
    assert found.sides[0] == min(sides)
    assert found.sides[2] == max(sides)


def test_one_coloured_image_makes_it_colour(tmp_path: Path) -> None:
    images, labels = rows(9)
    images[4] = cells([encoded(Pillow.new("RGB", (8, 8), (9, 9, 10)))])[0]
    assert describe(str(parquet_folder(tmp_path, (images, labels)))).spec.channels == 3


def test_a_sample_of_images_is_enough(tmp_path: Path) -> None:
    images, labels = rows(3 * SAMPLE)
    noise = np.random.RandomState(0).randint(0, 255, (8, 8, 3)).astype(np.uint8)
    images[-1] = cells([encoded(Pillow.fromarray(noise))])[0]  # the last row is not among every third
    images[1] = {"bytes": b"broken", "path": None}
    found = describe(str(parquet_folder(tmp_path, (images, labels))))
    assert found.spec.channels == 1
    assert sum(found.train_counts) == 3 * SAMPLE


@pytest.mark.parametrize(
    ("keys", "words"), [({"config": "x"}, r"source\.config"), ({"revision": "main"}, "not a dataset of the Hub")]
)
def test_what_cannot_be_is_refused(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        describe(str(parquet_folder(tmp_path)), **keys)
