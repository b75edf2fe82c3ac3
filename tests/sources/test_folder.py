from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, describe, index_source, load_source
from tests.sources.files import (
    BLUE,
    COLOURS,
    GREEN,
    RED,
    YELLOW,
    encoded,
    parquet_folder,
    rows,
    tree,
    write,
    write_parquet,
)

FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}


def load(path: Path | str, **keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": str(path), "size": 8} | keys))


def colours(source: Source) -> list[tuple[int, ...]]:
    """Tell the colour of each class: that of all its images, train and test."""
    found = []
    for c in range(source.train.num_classes):
        images = [*source.train.of_class(c), *source.test_images[source.test_labels == c]]
        means = {tuple(30 if value < 110 else 200 for value in image.float().mean((1, 2)).tolist()) for image in images}
        assert len(means) == 1, f"class {c} has images of {means}"
        found.append(means.pop())
    return found


def left_out(source: Source) -> dict[str, tuple[int, list[str]]]:
    return {one.reason: (one.count, one.examples) for one in source.info.left_out}


def test_classes_may_be_called_like_a_split(tmp_path: Path) -> None:
    names = ("bus", "train", "bullet_train", "test-tube")
    source = load(tree(tmp_path, {f"{split}/{n}": k for split, k in (("train", 12), ("test", 4)) for n in names}))
    assert source.info.class_names == ["bullet_train", "bus", "test-tube", "train"]
    assert source.train.counts == (12,) * 4
    assert source.test_labels.bincount().tolist() == [4] * 4
    assert colours(source) == [BLUE, RED, YELLOW, GREEN]
    assert (source.info.left_out, source.info.repeated) == ([], 0)


def test_file_names_say_nothing_about_splits(tmp_path: Path) -> None:
    for c, name in enumerate(("rose", "tulip", "daisy")):
        for k, stem in enumerate(("a", "taste-test-3", "from train 5", "dev", "eval", "val-2", "b", "c", "d", "e")):
            write(tmp_path / name / f"{stem}.png", COLOURS[c], 10 * c + k)
    with pytest.raises(SourceError, match="no split to score on") as caught:
        load(tmp_path)
    assert "test_fraction: 0.2" in caught.value.hint
    source = load(tmp_path, test_fraction=0.2)
    assert source.train.counts == (8, 8, 8)
    assert source.test_labels.bincount().tolist() == [2, 2, 2]
    assert colours(source) == [BLUE, RED, GREEN]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Train", "Test"), {"train", "test"}),
        (("TRAINING", "testing"), {"train", "test"}),
        (("train", "val"), {"train", "validation"}),
        (("train", "Dev"), {"train", "validation"}),
        (("train", "eval"), {"train", "test"}),
        (("training", "valid", "HoldOut"), {"train", "validation", "test"}),
    ],
)
def test_names_of_splits(tmp_path: Path, folders: tuple[str, ...], splits: set[str]) -> None:
    root = tree(tmp_path, {f"{folder}/{name}": 3 for folder in folders for name in ("ant", "bee")})
    source = load(root)
    assert source.train.counts == (3, 3)
    assert len(source.test_labels) == 6
    assert source.info.test_split == ("test" if "test" in splits else "validation")
    assert set(index_source(SourceSpec(id=str(root), size=8)).reader.splits) == splits
    unused: Any = {"split 'validation' is not used": (6, [])} if len(splits) == 3 else {}
    assert left_out(source) == unused


def test_classes_of_two_levels_stay_apart(tmp_path: Path) -> None:
    names = ("airport/indoor", "airport/outdoor", "hotel/indoor", "hotel/outdoor")
    source = load(tree(tmp_path, {f"{split}/{name}": 3 for split in ("train", "test") for name in names}))
    assert source.info.class_names == list(names)
    assert source.train.counts == (3,) * 4
    assert colours(source) == list(COLOURS)


@pytest.mark.parametrize("root", ["my [v2] data", "a*b", "what?", "test run/set", "train", "[0-9]", "naïve ünï"])
def test_paths_mean_nothing_but_themselves(tmp_path: Path, root: str) -> None:
    names = ("ant", "b[e]e", "c*t")
    source = load(tree(tmp_path / root, {f"{split}/{name}": 3 for split in ("train", "test") for name in names}))
    assert source.info.class_names == list(names)
    assert source.info.id == root.rpartition("/")[2]
    assert colours(source) == [RED, GREEN, BLUE]


@pytest.mark.parametrize("root", ["my [v2] data", "a*b", "what?", "test run/set"])
def test_tables_in_such_paths_are_read_too(tmp_path: Path, root: str) -> None:
    parquet_folder(tmp_path / "aXb", train=rows(9, first=60))
    folder = parquet_folder(tmp_path / root)
    write_parquet(folder / "more.parquet", dict(zip(("image", "label"), rows(9, 60), strict=True)), FEATURES)
    found, plain = load(folder).info, load(folder.rename(tmp_path / "plain")).info
    assert (found.id, found.train_counts) == (Path(root).name, [3, 3, 3])
    assert found == plain.model_copy(update={"id": found.id}), "left out are the same, read is the same"
    assert found.left_out[0].examples == ["more.parquet"]
    folder = parquet_folder(tmp_path / root, train=rows(12))
    assert load(folder).train.counts == (4, 4, 4), "what was prepared before must not be taken for it"
    file = next(folder.glob("data/train*.parquet"))
    assert load(file, test_fraction=0.3).train.counts == (3, 3, 3)
    (tmp_path / "link").symlink_to(folder)
    assert load(tmp_path / "link").info == load(folder).info
    with pytest.raises(SourceError, match="source.config: .*other"):
        load(folder, config="other")


@pytest.mark.parametrize("beside", ["README.md", "some.arrow", "metadata.parquet"])
def test_tables_in_such_paths_are_refused_where_their_format_is_no_matter_of_names(tmp_path: Path, beside: str) -> None:
    folder = parquet_folder(tmp_path / "a*b")
    card = "---\nconfigs:\n- config_name: one\n  data_files: data/*.parquet\n---\n"
    (folder / beside).write_text(card if beside == "README.md" else "")
    if beside == "metadata.parquet":
        write(folder / "ant" / "0.png", COLOURS[0], 0)
    with pytest.raises(SourceError, match=re.escape("*, ? and [ in ")) as caught:
        load(folder)
    assert "Rename the folder" in caught.value.hint


@pytest.mark.parametrize("suffix", ["avif", "jfif", "JPG", "PnG", "webp", "bmp", "tif", "gif", ""])
def test_an_image_is_what_pillow_opens(tmp_path: Path, suffix: str) -> None:
    for k in range(4):
        for c, name in enumerate(("ant", "bee")):
            file = write(tmp_path / name / f"{k}.png", COLOURS[c], 10 * c + k)
            image = Image.open(file).convert("P" if suffix == "gif" else "RGB")
            kind = Image.registered_extensions().get(f".{suffix.lower()}", "PNG")
            file.with_name(f"{k}.{suffix}".rstrip(".")).write_bytes(encoded(image, kind))
            file.unlink(missing_ok=suffix.lower() != "png")
    if suffix.lower() == "png":
        for file in tmp_path.rglob("*.PnG"):
            assert file.is_file()
    source = load(tmp_path, test_fraction=0.25)
    assert source.train.counts == (3, 3)
    assert colours(source) == [RED, GREEN]
    assert source.info.left_out == []


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{split}/{name}": 2 for split in ("train", "test") for name in ("ant", "bee")})
    (root / "notes.txt").write_text("hello")
    (root / "README.md").write_text("# Pets\n")
    (root / "train/ant/Thumbs.db").write_bytes(b"\0" * 9)
    (root / "train/ant/clip.mp4").write_bytes(b"\0" * 9)
    (root / "train/ant/._00.png").write_bytes(b"\0")
    (root / ".git/objects").mkdir(parents=True)
    (root / "__MACOSX/train/ant").mkdir(parents=True)
    (root / "train/cat").mkdir()
    (root / "test/ant/gone.png").symlink_to(root / "nothing.png")
    write(root / "extra/ant/5.png", RED, 70)
    write(root / "cover.png", RED, 71)
    write(root / "train/montage.png", RED, 72)
    source = load(root)
    assert source.train.counts == (2, 2)
    assert len(source.test_labels) == 4
    assert left_out(source) == {
        "no images": (4, ["README.md", "notes.txt", "train/ant/Thumbs.db"]),
        "hidden": (3, [".git", "__MACOSX", "train/ant/._00.png"]),
        "empty folders": (1, ["train/cat"]),
        "links to nothing": (1, ["test/ant/gone.png"]),
        "beside the splits": (2, ["cover.png", "extra/ant/5.png"]),
        "in no class folder": (1, ["train/montage.png"]),
    }
    assert {one.reason: one.count for one in describe(str(root)).facts.left_out} == {
        reason: count for reason, (count, _) in left_out(source).items()
    }


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", {"ant": 3, "bee": 3})
    data = tree(tmp_path / "data", {"test/ant": 1, "test/bee": 1})
    for file in data.rglob("*.png"):
        write(file, RED if "ant" in str(file) else GREEN, 900 + ("ant" in str(file)))
    (data / "train").mkdir()
    (data / "train/ant").symlink_to(elsewhere / "ant")
    (data / "train/bee").mkdir()
    for file in (elsewhere / "bee").iterdir():
        (data / "train/bee" / file.name).symlink_to(file)
    source = load(data)
    assert source.train.counts == (3, 3)
    assert colours(source) == [RED, GREEN]
    (tmp_path / "linked").symlink_to(data)
    assert load(tmp_path / "linked").train.counts == (3, 3)


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_links_in_a_circle_are_refused(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "data", {"train/ant": 2, "train/bee": 2})
    (root / "train/ant/again").symlink_to(target, target_is_directory=True)
    with pytest.raises(SourceError, match="is a link to a folder that it is in") as caught:
        load(root)
    assert "Remove the link" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/ant": 2, "train/bee": 2})
    (root / "train/ant").chmod(0)
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        load(root)


@pytest.mark.parametrize(
    ("files", "words", "step"),
    [
        (
            ("train/cat/0.png", "train/dog/spaniel/0.png", "train/dog/boxer/0.png"),
            r"of different depth, as in train/cat/0\.png and train/dog/(spaniel|boxer)/0\.png: is 'dog' the class, or "
            "'dog/(spaniel|boxer)'",
            "rename  dog/boxer  to  dog-boxer",
        ),
        (
            ("train/cat/0.png", "train/dog/0.png", "test/a/cat/0.png", "test/a/dog/0.png"),
            r"of different depth, as in train/cat/0\.png and test/a/cat/0\.png",
            "rename  a/cat  to  a-cat",
        ),
        (
            ("pets/train/cat/0.png", "pets/test/cat/0.png", "pets/test/dog/0.png"),
            r"splits below other folders, as in pets/.* are the top-level folders",
            "id: {root}/pets",
        ),
        (
            ("cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"),
            "splits below other folders, as in cat/",
            "train/<class>/<image>",
        ),
        (("train/a/0.png", "Train/b/0.png"), "the folders Train and train of .* are both a train split", "mv train"),
        (
            ("train/a/0.png", "val/a/0.png", "dev/a/0.png"),
            "dev and val .* both a validation split",
            "mv val unused-val",
        ),
        (
            ("Train set/a/0.png", "Test set/a/0.png"),
            "the folders Test set, Train set .* look like",
            "mv 'Test set' test",
        ),
        (("train_images/0.png", "test-images/1.png"), "would all be classes", "mv test-images test"),
        (("0.png", "1.png", "labels.csv"), "without labels: the folder", "If labels.csv has them, call it so"),
        (("0.png", "1.png"), r"without labels: the folder has 0\.png and 1 more", "metadata.csv"),
        (("train/0.png", "test/0.png"), r"without labels: (test/ and train/|train/ and test/) has", "metadata.csv"),
        (
            ("test/a/0.png", "cat/0.png", "dog/0.png"),
            "no classes to condense: test/ is a split by its name, and cat/0.png and",
            "train/<class>/",
        ),
        (
            ("train/0.png", "bus/0.png", "tram/0.png"),
            "no classes to condense: train/ is a split by its name, and bus/0.png and",
            "If train/ is a class, put all class folders into one folder called train",
        ),
        (("test/a/0.png", "test/b/0.png"), "has no split named 'train'; its splits are test", "train_split: test"),
        (("train/a/0.png", "test/a/0.png", "train/a/1.png"), "one class, 'a'", "two classes or more"),
    ],
)
def test_trees_that_do_not_say_what_is_what(tmp_path: Path, files: tuple[str, ...], words: str, step: str) -> None:
    for k, file in enumerate(files):
        if file.endswith(".csv"):
            (tmp_path / file).write_text("id,class\n")
        else:
            write(tmp_path / file, RED, k)
    with pytest.raises(SourceError, match=words) as caught:
        load(tmp_path)
    assert step.format(root=tmp_path) in caught.value.hint


def test_classes_of_one_word_of_splits_are_classes(tmp_path: Path) -> None:
    root = tree(tmp_path, {"bullet_train": 2, "freight_train": 2, "model train": 2})
    assert load(root, test_fraction=0.5).info.class_names == ["bullet_train", "freight_train", "model train"]


def test_a_class_that_only_the_test_split_has_is_named_with_its_file(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/ant": 2, "train/bee": 2, "test/ant": 1, "test/bees": 1})
    with pytest.raises(SourceError, match=r"test/bees/00\.png: the label is 'bees'.*\(there is 'bee'\)"):
        load(root)


def test_a_damaged_image_is_named_and_not_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/ant": 3, "train/bee": 3, "test/ant": 1, "test/bee": 1})
    (root / "train/ant/01.png").unlink()
    (root / "train/ant/01.PNG").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(SourceError, match=r"train/ant/01\.PNG.* cannot be decoded"):
        load(root)


def test_numbers_as_class_folders_are_sorted_as_text_like_torchvision(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"train/{n}": 1 for n in (0, 1, 2, 10)})
    assert index_source(SourceSpec(id=str(root), size=8), require_test=False).class_names == ["0", "1", "10", "2"]


def test_the_licence_of_a_readme_and_the_only_configuration(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{split}/{name}": 2 for split in ("train", "test") for name in ("ant", "bee")})
    (root / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nPets\n")
    assert (load(root).info.license, load(root).info.config) == ("cc-by-4.0", "default")
    assert load(root, config="default").info == load(root).info
    with pytest.raises(SourceError, match="has no configurations, so 'huge' is none of it"):
        load(root, config="huge")


@pytest.mark.parametrize(
    ("tables", "images", "what"),
    [(1, 0, "tables"), (2, 2, "tables"), (1, 20, "images"), (1, 2, "neither"), (2, 38, "neither")],
)
def test_folders_with_images_and_tables(tmp_path: Path, tables: int, images: int, what: str) -> None:
    for k in range(tables):
        stored, labels = rows(9, 40 * k)
        write_parquet(tmp_path / f"train-{k}.parquet", {"image": stored, "label": labels}, FEATURES)
    for k in range(images):
        write(tmp_path / ("ant", "bee")[k % 2] / f"{k}.png", COLOURS[k % 2], k)
    if what == "neither":
        with pytest.raises(SourceError, match=f"holds {images} images and {tables} of .parquet") as caught:
            load(tmp_path, test_fraction=0.5)
        assert f"id: {tmp_path}/train-0.parquet" in caught.value.hint
        return
    source = load(tmp_path, test_fraction=0.3)
    if what == "tables":
        assert source.info.class_names == ["ant", "bee", "cat"]
        assert sum(source.train.counts) + len(source.test_labels) == 9 * tables
        assert left_out(source) == ({"in no split": (images, ["ant/0.png", "bee/1.png"])} if images else {})
    else:
        assert source.train.counts == (7, 7)
        assert left_out(source) == {"no images": (1, ["train-0.parquet"])}


def test_tables_that_the_patterns_of_datasets_pass_over_are_named(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("test", 100), ("more", 200)):
        stored, labels = rows(6, first)
        write_parquet(tmp_path / f"{name}.parquet", {"image": stored, "label": labels}, FEATURES)
    assert left_out(load(tmp_path)) == {"in no split": (1, ["more.parquet"])}


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"holds archives and no images: images\.zip") as caught:
        load(tmp_path)
    assert "python -m zipfile -e images.zip images" in caught.value.hint


def test_a_file_with_patterns_in_its_name_is_not_its_neighbours_too(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p?.parquet", dict(zip(("image", "label"), rows(9), strict=True)), FEATURES)
    write_parquet(tmp_path / "pq.parquet", dict(zip(("image", "label"), rows(9, 60), strict=True)), FEATURES)
    assert load(file, test_fraction=0.3).train.counts == (2, 2, 2)
