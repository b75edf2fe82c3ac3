"""Sources that show nothing, and what to lay transparent parts over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, describe, load_source
from hmdc_hub.sources.rows import equal_classes
from tests.sources.files import cells, encoded, parquet_folder, png


def drawing(k: int, ink: str = "white", mode: str = "RGBA") -> bytes:
    """Draw a line of one colour on transparent ground of the same colour."""
    alpha = Image.new("L", (8, 8))
    ImageDraw.Draw(alpha).line((k % 8, 0, 7 - k % 8, 7), fill=255)
    image = Image.new("RGBA", (8, 8), ink)
    image.putalpha(alpha)
    return encoded(image.convert(mode))


def folder(root: Path, images: Sequence[bytes], test: Sequence[bytes] | None = None) -> Path:
    """Write images as those of three classes in turn, and the first three again, a shade off, as test images."""
    others = [png(250 - k) for k in range(3)] if test is None else test
    return parquet_folder(root, (cells(images), [k % 3 for k in range(len(images))]), (cells(others), [0, 1, 2]))


def load(root: Path, background: str = "white") -> Source:
    return load_source(SourceSpec(id=str(root), size=8, channels=1, background=background))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("ink", "ground"), [("white", "black"), ("black", "white")])
def test_a_drawing_in_the_colour_of_the_ground_is_refused_with_the_ground_that_shows_it(
    tmp_path: Path, mode: str, ink: str, ground: str
) -> None:
    root = folder(tmp_path, [drawing(k, ink, mode) for k in range(9)])
    with pytest.raises(
        SourceError, match=f"all 9 images of the source are blank, of one colour, at 8 x 8 pixels on {ink}"
    ) as caught:
        load(root, ink)
    assert caught.value.hint.endswith(f"Transparent drawings in {ink} need  source.background: {ground}")
    images = load(root, ground).train.images.numpy()
    assert set(np.unique(images)) == {0, 255} and len(np.unique(images, axis=0)) > 3


def test_a_class_of_one_and_the_same_image_is_refused(tmp_path: Path) -> None:
    images = [png(10 * k) for k in range(9)]
    images[4] = images[7] = images[1]
    with pytest.raises(SourceError, match="all 3 images of class 'bee' are blank, of one colour, at 8 x 8") as caught:
        load(folder(tmp_path / "one", images))
    assert "leave the class out" in caught.value.hint
    images[3] = images[6] = images[0]
    with pytest.raises(SourceError, match="of class 'ant' .and likewise in 1 more. are blank"):
        load(folder(tmp_path / "two", images))
    noise = [encoded(Image.fromarray(np.random.default_rng(k).random((8, 8)) > 0.5)) for k in range(3)]
    with pytest.raises(SourceError, match="all 9 images of the source are equal, at 8"):
        load(folder(tmp_path / "all", noise[:1] * 9))


def test_one_class_that_vanishes(tmp_path: Path) -> None:
    """The others are seen on either ground; that one of their images repeats changes nothing."""
    images = [drawing(k) if k % 3 == 2 else png(10 * (k // 4)) for k in range(12)]
    with pytest.raises(SourceError, match="all 4 images of class 'cat' are blank"):
        load(folder(tmp_path, images))
    assert load(tmp_path, "black").train.counts == (4, 4, 4)


def test_another_ground_is_proposed_only_to_images_of_one_colour(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="are equal, at 8 x 8 .* nothing in them to learn from") as caught:
        load(folder(tmp_path, [drawing(1, "black")] * 6))
    assert "background" not in caught.value.hint


def test_classes_of_a_single_image_and_images_that_repeat_elsewhere_are_fine(tmp_path: Path) -> None:
    assert load(folder(tmp_path / "single", [png(k) for k in (5, 5, 9)])).train.counts == (1, 1, 1)
    assert load(folder(tmp_path / "pairs", [png(k) for k in (5, 5, 5, 9, 9, 9)])).train.counts == (2, 2, 2)


def test_the_last_image_of_many_tells_a_class_from_a_blank_one() -> None:
    images = np.zeros((1200, 1, 4, 4), np.uint8)
    images[599] = images[1199, 0, 3, 3] = 1
    assert equal_classes(images, (0, 600, 601, 1200)) == []
    images[1199] = 0
    assert equal_classes(images, (0, 600, 601, 1200)) == [2]
    images[599] = 0
    assert equal_classes(images, (0, 600, 601, 1200)) == [0, 2]


@pytest.mark.parametrize(
    ("images", "background"),
    [
        ([drawing(k) for k in range(9)], "black"),
        ([drawing(k, "black") for k in range(9)], "white"),
        ([*(drawing(k) for k in range(8)), drawing(3, "red")], "white"),
        ([png(255, mode="RGBA")] * 9, "white"),
        ([png(255)] * 9, "white"),
        ([png(k, mode="RGBA") for k in range(9)], "white"),
    ],
)
def test_init_proposes_a_ground_that_shows_something(tmp_path: Path, images: list[bytes], background: str) -> None:
    found = describe(str(folder(tmp_path, images)))
    assert found.spec.background == background
