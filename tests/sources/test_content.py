from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import SourceError
from hmdc_hub.events import Event
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, index_source, load_source
from hmdc_hub.sources.rows import file_keys, held_out_count, held_out_rows, pixel_keys, repeated_rows
from tests.sources.files import CLASSES, cells, encoded, parquet_folder, picture, png, rows, tree, write_parquet

FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}


def load(path: Path, **keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": str(path), "size": 8} | keys))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.randoms(use_true_random=False),
)
def test_every_class_has_images_on_both_sides_and_equal_ones_on_one(
    images: list[tuple[int, int]], fraction: float, random: Any
) -> None:
    labels = np.array([c for c, _ in images])
    keys = np.array([hash((c, image)) & 0xFFFF for c, image in images], dtype=np.uint64)
    names = [str(c) for c in range(labels.max() + 1)]
    distinct = [len(set(keys[labels == c].tolist())) for c in range(len(names))]
    if min(distinct) < 2:
        with pytest.raises(SourceError, match="have no two different images"):
            held_out_rows(keys, labels, names, fraction)
        return
    test = held_out_rows(keys, labels, names, fraction)
    for c in range(len(names)):
        mine = labels == c
        assert 0 < test[mine].sum() < mine.sum()
        assert not set(keys[mine & test].tolist()) & set(keys[mine & ~test].tolist())
        if distinct[c] == mine.sum():
            assert test[mine].sum() == held_out_count(int(mine.sum()), fraction)
    order = np.array(random.sample(range(len(labels)), len(labels)))
    assert (held_out_rows(keys[order], labels[order], names, fraction) == test[order]).all()


def test_where_every_file_has_copies_the_rarest_is_scored_on() -> None:
    keys = np.array([7, 7, 7, 9, 9, 9, 9, 5], dtype=np.uint64)
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    test = held_out_rows(np.append(keys, np.uint64(6)), np.append(labels, 1), ["a", "b"], 0.2)
    assert test[:7].tolist() == [True] * 3 + [False] * 4 and test[7:].sum() == 1


@pytest.mark.parametrize(
    ("images", "fraction", "count"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2), (12, 0.2, 2), (13, 0.2, 3), (5, 0.9, 4)]
)
def test_how_many_are_scored_on(images: int, fraction: float, count: int) -> None:
    assert held_out_count(images, fraction) == count


def test_a_part_to_score_on_is_a_share_of_every_class(tmp_path: Path) -> None:
    counts = {"ant": 10, "bee": 2, "cat": 25, "dog": 3}
    source = load(tree(tmp_path, counts), test_fraction=0.2)
    assert source.train.counts == (8, 1, 20, 2)
    assert source.test_labels.bincount().tolist() == [2, 1, 5, 1]
    assert (source.info.test_split, source.info.test_fraction, source.info.test_count) == ("train", 0.2, 9)
    both = torch.cat([source.train.images, source.test_images])
    assert len({image.numpy().tobytes() for image in both}) == 40
    whole = load(tree(tmp_path / "again", counts), test_fraction=0.2)
    assert whole.info.fingerprint == source.info.fingerprint


def numbered(number: int) -> Image.Image:
    """Make an image that no other number gives."""
    image = picture(number % 200)
    image.putpixel((number // 200, 0), (255, 0, 0))
    return image


@pytest.mark.parametrize("classes", [60, 200])
def test_many_classes_without_a_test_split(tmp_path: Path, classes: int) -> None:
    images = cells([encoded(numbered(k)) for k in range(2 * classes)])
    columns: dict[str, list[Any]] = {"image": images, "label": [f"class {k % classes:03}" for k in range(2 * classes)]}
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    source = load(write_parquet(tmp_path / "many.parquet", columns, features), test_fraction=0.2, fit="stretch")
    assert source.train.counts == (1,) * classes
    assert source.test_labels.tolist() != sorted(source.test_labels.tolist()), "in the order of the dataset"
    assert source.test_labels.bincount().tolist() == [1] * classes


def test_the_same_files_are_scored_on_at_any_size_and_under_any_name(tmp_path: Path) -> None:
    root = tree(tmp_path / "one", {"ant": 12, "bee": 12})

    def scored(folder: Path, size: int) -> set[bytes]:
        source = load(folder, size=8, test_fraction=0.25)
        small = load(folder, size=size, test_fraction=0.25)
        assert len(small.test_images) == 6
        every = load(folder, size=size, train_split="train", test_split=None, test_fraction=0.01)
        assert len(every.test_images) == 2
        return {image.numpy().tobytes() for image in source.test_images}

    first = scored(root, 4)
    for number, file in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        file.rename(file.with_name(f"x{number}.png"))
    assert scored(root, 12) == first


def test_equal_files_stay_on_one_side(tmp_path: Path) -> None:
    root = tree(tmp_path, {"ant": 12, "bee": 12})
    for file in sorted((root / "ant").iterdir()):
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    source = load(root, test_fraction=0.25)
    assert source.info.repeated == 0
    assert source.train.counts == (18, 9)


def test_classes_that_cannot_be_divided(tmp_path: Path) -> None:
    root = tree(tmp_path, {"ant": 12, "bee": 1})
    with pytest.raises(SourceError, match="1 classes have no two different images.*'bee'") as caught:
        load(root, test_fraction=0.2)
    assert "test_split: <name>" in caught.value.hint
    (root / "bee/copy.png").write_bytes((root / "bee/00.png").read_bytes())
    with pytest.raises(SourceError, match="1 classes have no two different images.*'bee'"):
        load(root, test_fraction=0.2)


def test_a_fraction_and_a_split_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both say what is scored on"):
        SourceSpec(id="x", size=8, test_split="test", test_fraction=0.2)
    folder = parquet_folder(tmp_path)
    source = load(folder, test_fraction=0.3)
    assert source.train.counts == (2, 2, 2)
    assert [(one.reason, one.count) for one in source.info.left_out] == [("split 'test' is not used", 4)]


def test_validation_leaves_the_test_split_alone(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path)
    whole, source = load(folder), load(folder, test_split="test", validation_fraction=0.3)
    assert source.train.counts == (2, 2, 2) and source.info.test_split == "train"
    assert len(source.test_images) == 3 and source.info.fingerprint != whole.info.fingerprint
    pixels = {image.numpy().tobytes() for image in whole.train.images}
    assert {image.numpy().tobytes() for image in (*source.train.images, *source.test_images)} == pixels


def test_validation_is_a_part_of_what_a_test_fraction_leaves(tmp_path: Path) -> None:
    root = tree(tmp_path, {"ant": 20, "bee": 10})
    first, source = load(root, test_fraction=0.2), load(root, test_fraction=0.2, validation_fraction=0.25)
    assert source.train.counts == (12, 6) and source.test_labels.bincount().tolist() == [4, 2]

    def pixels(images: Iterable[Tensor]) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    condensed, scored = pixels(source.train.images), pixels(source.test_images)
    assert condensed | scored == pixels(first.train.images) and not scored & pixels(first.test_images)
    summary = index_source(SourceSpec(id=str(root), size=8, test_fraction=0.2, validation_fraction=0.25)).summary()
    assert (summary.train_counts, summary.test_count) == ((12, 6), 6)
    with pytest.raises(SourceError, match="source.validation_fraction: 1 classes") as caught:
        load(tree(tmp_path / "small", {"ant": 20, "bee": 2}), test_fraction=0.2, validation_fraction=0.25)
    assert "leave validation_fraction out" in caught.value.hint


def test_images_in_both_splits_stop_the_run(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{split}/{name}": 6 for split in ("train", "test") for name in ("ant", "bee")})
    (root / "test/ant/other name.png").write_bytes((root / "train/ant/03.png").read_bytes())
    with pytest.raises(SourceError, match="1 of 13 test images are, pixel by pixel, train images too") as caught:
        load(root)
    assert "test/ant/other name.png and train/ant/03.png" in caught.value.message
    assert "test_fraction: 0.2" in caught.value.hint
    assert load(root, test_fraction=0.2).info.repeated == 0


def test_another_file_of_the_same_pixels_is_the_same_image(tmp_path: Path) -> None:
    images, labels = rows(6)
    again = cells([png(k, (16, 16), "RGBA") for k in range(3)])
    folder = parquet_folder(tmp_path, (images, labels), (again, labels[:3]))
    with pytest.raises(SourceError, match="3 of 3 test images .*row 0 .counted from 0. and split 'train'"):
        load(folder)


def test_a_trace_of_images_in_both_splits_is_said(tmp_path: Path) -> None:
    train, test = [picture(k) for k in range(100)], [picture(100 + k) for k in range(99)]
    for folder, images in (("train", train), ("test", [*test, train[7]])):
        for k, image in enumerate(images):
            file = tmp_path / folder / "ab"[k % 2] / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    notes: list[Event] = []
    source = load_source(SourceSpec(id=str(tmp_path), size=8), callback=notes.append)
    assert source.info.repeated == 1
    assert "1 of 100 test images are, pixel by pixel, train images too" in [getattr(note, "text", "") for note in notes]
    picture(8).save(tmp_path / "test/a/8 again.png")
    with pytest.raises(SourceError, match="2 of 101 test images"):
        load(tmp_path)


def test_what_is_used_is_said(tmp_path: Path) -> None:
    root = tree(tmp_path, {"ant": 5, "bee": 5})
    (root / "notes.txt").write_text("hello")
    said: list[Event] = []
    load_source(SourceSpec(id=str(root), size=8, test_fraction=0.2), callback=said.append)
    assert [getattr(note, "text", "") for note in said] == [
        "8 images of train to condense, 4 in each of 2 classes: ant, bee",
        "2 to score on, 20% of each class of train; columns image and label",
        "left out, no images: 1 (notes.txt)",
    ]


def test_keys_are_of_content() -> None:
    images = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    keys = pixel_keys(images)
    assert len(set(keys.tolist())) == 4
    assert pixel_keys(images[[2, 0, 2]]).tolist() == keys[[2, 0, 2]].tolist()
    one = picture(7)
    assert file_keys([one, one.tobytes(), None, "gone.png"]).tolist()[:2] == file_keys([one.copy()]).tolist() * 2
    assert repeated_rows(keys, keys[[3, 1]]).tolist() == [[0, 3], [1, 1]]


@pytest.mark.parametrize("empty", [-1, None])
@pytest.mark.parametrize("validation", ["labelled", "unlabelled", ""])
def test_a_test_split_without_labels(tmp_path: Path, empty: int | None, validation: str) -> None:
    images = rows(4, 100)[0]
    folder = parquet_folder(tmp_path, test=(images, [empty] * 4))
    if validation:
        columns = dict(zip(("image", "label"), rows(6, 200), strict=True))
        columns["label"] = columns["label"] if validation == "labelled" else [empty] * 6
        write_parquet(folder / "data/validation-00000-of-00001.parquet", columns, FEATURES)
    with pytest.raises(SourceError, match="split 'test' has no labels: all 4 are empty or -1") as caught:
        load(folder)
    assert "test_fraction: 0.2" in caught.value.hint
    assert ("test_split: validation" in caught.value.hint) == bool(validation)
    assert load(folder, test_fraction=0.2).test_labels.tolist()
    if validation == "labelled":
        assert load(folder, test_split="validation").test_labels.tolist()


def test_names_of_the_same_looks(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = tree(tmp_path / "across", {f"train/{composed}": 2, "train/tea": 2, f"test/{decomposed}": 2, "test/tea": 1})
    with pytest.raises(SourceError, match=r"names look the same but have other characters \('caf\\xe9', and 'cafe"):
        load(root)
    root = tree(tmp_path / "within", {f"train/{composed}": 2, f"train/{decomposed}": 2, "test/tea": 1})
    with pytest.raises(SourceError, match="two classes are called .* have other characters"):
        load(root)
