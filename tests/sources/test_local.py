from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, load_source, resolve_source
from tests.sources.files import CLASSES, cells, encoded, image_folder, parquet_folder, picture, png, rows, write_parquet

LABEL = ClassLabel(names=list(CLASSES))


def load(path: Path | str, **keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": str(path), "size": 8, "channels": 1} | keys))


def values(source: Source) -> list[list[int]]:
    """Return the grey values of the train images, class by class."""
    bank = source.train
    return [bank.of_class(c)[:, 0, 0, 0].tolist() for c in range(bank.num_classes)]


def test_parquet_folder(tmp_path: Path) -> None:
    source = load(parquet_folder(tmp_path / "pets"))
    assert values(source) == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert source.test_images[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert source.test_labels.tolist() == [2, 1, 0, 2]
    info = source.info
    assert (info.id, info.kind, info.revision, info.license, info.gated) == ("pets", "local", None, None, False)
    assert (info.image_column, info.label_column, info.config) == ("image", "label", "default")
    assert (info.train_split, info.test_split) == ("train", "test")
    assert info.class_names == list(CLASSES)


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    first = load(parquet_folder(tmp_path))
    parquet_folder(tmp_path, train=rows(9, first=50))
    for file in tmp_path.rglob("*.parquet"):
        os.utime(file, (1, 1))  # another time of change, whatever the clock's resolution
    assert values(load(tmp_path)) == [[value + 50 for value in row] for row in values(first)]


def test_readme_gives_configurations_names_and_licence(tmp_path: Path) -> None:
    for config in ("big", "small"):
        parquet_folder(tmp_path / config, train=rows(9, first=60 if config == "big" else 0))
    files = "\n".join(
        f"- config_name: {config}\n  data_files:\n"
        f"  - {{split: train, path: {config}/data/train-*}}\n  - {{split: test, path: {config}/data/test-*}}"
        for config in ("big", "small")
    )
    (tmp_path / "README.md").write_text(f"---\nlicense: cc-by-4.0\nconfigs:\n{files}\n---\nPets\n")
    with pytest.raises(SourceError, match="several configurations and no default: big, small") as caught:
        load(tmp_path)
    assert "config: big" in caught.value.hint
    with pytest.raises(SourceError, match="no configuration 'huge'; it has big, small"):
        load(tmp_path, config="huge")
    source = load(tmp_path, config="big")
    assert values(source)[2] == [60, 63, 66]
    assert (source.info.config, source.info.license) == ("big", "cc-by-4.0")


def test_unknown_configuration_of_a_folder_without_a_readme(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source\.config"):
        load(parquet_folder(tmp_path), config="huge")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_class_folders_of_images(tmp_path: Path, kind: str) -> None:
    root = image_folder(tmp_path, {"train": {"dog": 1, "cat": 3, "Bee": 2}, "test": {"cat": 2, "dog": 1}}, kind)
    source = load(root)
    assert source.info.class_names == ["Bee", "cat", "dog"]
    assert source.train.counts == (2, 3, 1)
    assert values(source) == [[80, 81], [40, 41, 42], [0]]
    assert source.test_labels.tolist() == [1, 1, 2]


def test_one_parquet_file_is_divided_by_slices(tmp_path: Path) -> None:
    images, labels = rows(12)
    file = write_parquet(tmp_path / "pets.parquet", {"img": images, "y": labels}, {"img": Image(), "y": LABEL})
    with pytest.raises(SourceError, match="no split to score on") as caught:
        load(file)
    assert "test_fraction: 0.2" in caught.value.hint
    source = load(file, train_split="train[:75%]", test_split="train[75%:]")
    assert values(source) == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert source.test_images[:, 0, 0, 0].tolist() == [9, 10, 11]
    assert (source.info.id, source.info.train_split) == ("pets.parquet", "train[:75%]")


@pytest.mark.parametrize("kind", ["dict", "single"])
def test_folders_of_save_to_disk(tmp_path: Path, kind: str) -> None:
    features = Features({"image": Image(), "label": LABEL})
    images, labels = rows(9)
    table = Dataset.from_dict({"image": images, "label": labels}, features=features)
    if kind == "dict":
        test = Dataset.from_dict({"image": rows(4, 100)[0], "label": [2, 1, 0, 2]}, features=features)
        DatasetDict({"train": table, "test": test.select([3, 1])}).save_to_disk(tmp_path / "saved")
        source = load(tmp_path / "saved")
        assert source.test_labels.tolist() == [2, 1]
    else:
        table.save_to_disk(tmp_path / "saved")
        source = load(tmp_path / "saved", train_split="train[:6]", test_split="train[6:]")
        assert source.test_labels.tolist() == [2, 1, 0]
    assert values(source)[0][:2] == [2, 5]
    (tmp_path / "saved" / ("dataset_dict.json" if kind == "dict" else "state.json")).write_text("{")
    with pytest.raises(SourceError, match="looks like a folder of save_to_disk"):
        load(tmp_path / "saved")


def test_splits_of_save_to_disk_must_name_the_same_classes(tmp_path: Path) -> None:
    tables = {}
    for split, names in (("train", CLASSES), ("test", CLASSES[::-1])):
        images, labels = rows(6)
        features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
        tables[split] = Dataset.from_dict({"image": images, "label": labels}, features=features)
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    with pytest.raises(SourceError, match="'label' names other classes in split 'test'"):
        load(tmp_path / "saved")


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_folder(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    one, other, third = load("~/pets"), load("./pets"), load("pets")
    assert one.info == other.info == third.info
    assert resolve_source(SourceSpec(id="~/pets", size=8)).id == "~/pets"


def test_a_folder_may_be_called_like_a_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet_folder(tmp_path / "imagefolder")
    assert load("imagefolder").info.id == "imagefolder"


@pytest.mark.parametrize(
    ("label", "stored", "names"),
    [
        (Value("int64"), [7, 3, 3, 7, 12], ["3", "7", "12"]),
        (Value("uint8"), [7, 3, 3, 7, 12], ["3", "7", "12"]),
        (Value("string"), ["b", "a", "a", "b", "ä"], ["a", "b", "ä"]),
        (Value("bool"), [True, False, False, True, True], ["False", "True"]),
    ],
)
def test_labels_without_names_are_sorted(tmp_path: Path, label: Any, stored: list[Any], names: list[str]) -> None:
    images = rows(5)[0]
    source = load(parquet_folder(tmp_path, (images, stored), (rows(2, 100)[0], stored[:2]), label=label))
    assert source.info.class_names == names
    assert values(source)[:2] == [[1, 2], [0, 3] if len(names) == 3 else [0, 3, 4]]
    assert source.test_labels.tolist() == [1, 0]


def test_resolved_keys_load_the_same(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path, names=("img", "fine_label"))
    resolved = resolve_source(SourceSpec(id=str(folder), size=8, channels=1))
    assert (resolved.image_column, resolved.label_column) == ("img", "fine_label")
    assert (resolved.train_split, resolved.test_split, resolved.config) == ("train", "test", "default")
    assert load_source(resolved).info == load(folder).info


def test_struct_columns_without_feature_types_are_images(tmp_path: Path) -> None:
    plain = {"image": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("int64")}
    for split, first in (("train", 0), ("test", 100)):
        images, labels = rows(6, first)
        write_parquet(tmp_path / f"{split}.parquet", {"image": images, "label": labels}, plain)
    assert values(load(tmp_path)) == [[2, 5], [1, 4], [0, 3]]


def test_size_fit_and_channels(tmp_path: Path) -> None:
    wide = picture(0, (32, 8))
    wide.paste((200, 100, 50), (12, 0, 20, 8))
    images = cells([encoded(wide), *(png(k, (32, 8)) for k in (1, 2))])
    folder = parquet_folder(tmp_path, (images, [0, 1, 2]))
    source = load(folder, channels=3)
    assert source.train.images.shape == (3, 3, 8, 8)
    assert source.train.images[0, :, 4, 4].tolist() == [200, 100, 50]
    assert int((source.train.images[0, 0] == 0).sum()) == 0
    assert int((load(folder, channels=3, fit="stretch").train.images[0, 0] == 0).sum()) > 30


def bad_row(row: int, image: Any = "keep", label: Any = "keep") -> tuple[list[Any], list[Any]]:
    images, labels = rows(9)
    changed: list[Any] = list(labels)
    if image != "keep":
        images[row] = image
    if label != "keep":
        changed[row] = label
    return images, changed


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("image", "label", "feature", "words"),
    [
        ({"bytes": b"broken", "path": None}, "keep", LABEL, "column 'image', row 5 .*cannot be decoded"),
        ({"bytes": png(3)[:50], "path": None}, "keep", LABEL, "column 'image', row 5 .*cannot be decoded"),
        ({"bytes": None, "path": "gone.png"}, "keep", LABEL, "column 'image', row 5 .*'gone.png' does not exist"),
        ({"bytes": None, "path": None}, "keep", LABEL, "column 'image', row 5 .*the image is empty"),
        (None, "keep", LABEL, "column 'image', row 5 .*the image is empty"),
        ("keep", None, LABEL, "column 'label', row 5 .*the label is empty"),
        ("keep", 3, LABEL, "column 'label', row 5 .*the label is 3; the 3 classes are numbered 0 to 2"),
        ("keep", -1, LABEL, "column 'label', row 5 .*the label is -1; the 3 classes are .*; -1 usually marks"),
        ("keep", -1, Value("int64"), "column 'label', row 5 .*the label is -1"),
        ("keep", None, Value("string"), "column 'label', row 5 .*the label is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, split: str, image: Any, label: Any, feature: Any, words: str) -> None:
    images, labels = bad_row(5, image, label)
    good: tuple[list[Any], list[Any]] = rows(9)
    if feature == Value("string"):
        labels, good = [None if c is None else str(c) for c in labels], (good[0], [str(c) for c in good[1]])
    bad = (images, labels)
    folder = parquet_folder(
        tmp_path, bad if split == "train" else good, bad if split == "test" else good, label=feature
    )
    with pytest.raises(SourceError, match=f"split '{split}', {words}") as caught:
        load(folder)
    assert caught.value.hint


def test_rows_of_a_slice_are_named_by_their_place_in_the_split(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path, bad_row(7, image={"bytes": b"broken", "path": None}))
    with pytest.raises(SourceError, match="row 7 "):
        load(folder, train_split="train[3:]")


@pytest.mark.parametrize(
    ("train", "test", "feature", "words"),
    [
        ([0, 2, 0], [0, 2], LABEL, "1 of 3 classes have no image .*'train' that are condensed: 'bee'"),
        ([0, 2, 0], [0, 1], LABEL, "1 of 3 classes have no image .*: 'bee'"),
        ([0, 1, 0], [0, 2], Value("int64"), "split 'test', column 'label', row 1 .*label is 2; no image of the train"),
        (["a", "b", "a"], ["b", "z"], Value("string"), "split 'test', column 'label', row 1 .*label is 'z'; no image"),
        ([0.0, 1.0, 0.0], [0.0], Value("float32"), "'label' of split 'train' of .* holds float32"),
        ([1, 1, 1], [1], Value("int64"), "one class, '1'"),
        ([0, 1, 2], [], LABEL, "has a parquet file without rows"),
        ([], [0, 1], LABEL, "has a parquet file without rows"),
    ],
)
def test_splits_that_cannot_be_used(
    tmp_path: Path, train: list[Any], test: list[Any], feature: Any, words: str
) -> None:
    images = rows(3)[0]
    folder = parquet_folder(tmp_path, (images[: len(train)], train), (images[: len(test)], test), label=feature)
    with pytest.raises(SourceError, match=words) as caught:
        load(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"image_column": "img"}, "split 'train' of .* has no column 'img'"),
        ({"label_column": "y"}, "has no column 'y'"),
        ({"image_column": "label"}, "column 'label' of .* holds ClassLabel, not images"),
        ({"label_column": "image"}, "column 'image' of .* holds images"),
        ({"train_split": "full"}, "no split 'full'; its splits are train, test"),
        ({"test_split": "validation"}, "no split 'validation'; its splits are train, test"),
        ({"test_split": "train"}, "share 9 rows"),
        ({"train_split": "train[50%:]", "test_split": "train[:60%]"}, "share 1 rows"),
        ({"revision": "main"}, "not a dataset of the Hub"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        load(parquet_folder(tmp_path), **keys)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["./gone", "/gone/for/good", "~/gone", "a/b/c", "gone.parquet"])
def test_paths_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceError, match="was taken for a folder or file.*nothing is there") as caught:
        load(name)
    assert "relative to the folder the command runs in" in caught.value.hint


@pytest.mark.parametrize("content", ["nothing", "text", "script", "damaged"])
def test_folders_that_hold_no_dataset(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    words = "holds no files that can be read"
    if content == "text":
        (folder / "notes.md").write_text("nothing")
    elif content == "script":
        (folder / "pets.py").write_text("raise SystemExit('this must never run')")
        words = "is a program .*no code of a dataset is ever run"
    elif content == "damaged":
        (folder / "train.parquet").write_bytes(b"PAR1 and nothing else PAR1")
        words = "cannot be read"
    with pytest.raises(SourceError, match=words) as caught:
        load(folder)
    assert caught.value.hint


def test_other_files_than_parquet(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"")
    with pytest.raises(SourceError, match=r"of files only \.parquet and \.tar"):
        load(tmp_path / "pets.zip")


def test_sizes_in_a_readme_that_are_wrong(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: image, dtype: image}\n  - name: label\n    dtype:\n"
        "      class_label:\n        names: {'0': ant, '1': bee, '2': cat}\n  splits:\n"
        "  - {name: train, num_examples: 1000, num_bytes: 1}\n  - {name: test, num_examples: 4, num_bytes: 1}\n---\n"
    )
    with pytest.raises(SourceError, match="has other sizes in its README than its files"):
        load(folder)


def test_tiny_and_unequal_classes(tmp_path: Path) -> None:
    images = cells([png(k) for k in range(8)])
    source = load(parquet_folder(tmp_path, (images, [1, 1, 1, 0, 1, 1, 2, 1])))
    assert source.train.counts == (1, 6, 1)
    assert values(source) == [[3], [0, 1, 2, 4, 5, 7], [6]]


def test_caches_stay_in_the_test(tmp_path: Path, own_caches: Path) -> None:
    load(parquet_folder(tmp_path))
    assert own_caches in Path(datasets.config.HF_DATASETS_CACHE).parents
    assert any((own_caches / "datasets").rglob("*.arrow"))
