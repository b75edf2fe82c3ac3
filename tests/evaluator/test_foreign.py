"""Sets of other programs as files of images, written by real writers: images, classes, mistakes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from hmdc_hub.errors import NetworkError, UsageError
from hmdc_hub.evaluator import evaluated_set
from hmdc_hub.evaluator.baselines import training_sets
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import load_source
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.parquet import png_bytes, read_parquet
from tests.evaluator import toys
from tests.evaluator.foreign_sets import (
    LABELS,
    ROWS,
    colour,
    folder,
    named,
    noise,
    parquet,
    pictures,
    table,
    tensors,
    work_in,
)
from tests.hub import Fault, LocalHub
from tests.sources.files import write_parquet


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(tmp_path, monkeypatch)


# Files of images


def test_a_parquet_file(tmp_path: Path) -> None:
    path = parquet("theirs.parquet", LABELS, ClassLabel(names=list(ROWS)))
    found = evaluated_set(path, toys.source())
    assert torch.equal(found.images, noise()) and found.images.dtype == torch.uint8
    assert found.labels.tolist() == LABELS and found.labels.dtype == torch.int64
    assert (found.name, found.stored, found.factor) == ("theirs", (2, 1, 2), 1)
    assert found.sha256 == sha256_file(tmp_path / path)
    unknown = (found.exact, found.initialisation, found.condense_hash, found.family_hash, found.seed)
    assert unknown == (None,) * 5 and found.condensed_by == ()
    assert found.notes == ("columns img and label",)


def test_of_a_folder_of_parquet_files_the_train_split_counts() -> None:
    Path("both").mkdir()
    parquet("both/train-00000-of-00001.parquet", LABELS, ClassLabel(names=list(ROWS)))
    parquet("both/test-00000-of-00001.parquet", [1], ClassLabel(names=list(ROWS)))
    found = evaluated_set("both", toys.source())
    assert torch.equal(found.images, noise()) and found.labels.tolist() == LABELS
    assert found.name == "both"


def test_the_train_split_need_not_be_the_first() -> None:
    train, test = table(noise(), LABELS, Value("int64")), table(noise()[:1], [1], Value("int64"))
    DatasetDict({"test": test, "train": train}).save_to_disk("saved")
    assert evaluated_set("saved", toys.source()).labels.tolist() == LABELS


def test_a_train_split_without_rows() -> None:
    bare = DatasetDict({"train": table(noise()[:0], [], Value("int64"))})
    with pytest.raises(UsageError, match="'train' of python:data has no rows"):
        evaluated_set(bare, toys.source())


def test_what_has_no_single_file_is_hashed_as_read() -> None:
    hashes = set()
    for name, change in (("a", None), ("b", "pixel"), ("c", "label")):
        images, labels = noise(), list(LABELS)
        if change == "pixel":
            images[4, 0, 7, 7] ^= 1
        if change == "label":
            labels[4] = 1
        DatasetDict({"train": table(images, labels, Value("int64"))}).save_to_disk(name)
        hashes.add(evaluated_set(name, toys.source()).sha256)
    assert len(hashes) == 3 and all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)
    head = json.dumps({"images": [5, 1, 8, 8]}, separators=(",", ":")).encode()
    pixels, labels_ = noise().numpy().tobytes(), np.array(LABELS, dtype="<i8").tobytes()
    assert hashlib.sha256(head + pixels + labels_).hexdigest() in hashes
    Path("files").mkdir()
    parquet("files/train.parquet", LABELS, Value("int64"))
    assert evaluated_set("files", toys.source()).sha256 in hashes  # the same set in another form


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_images_become_what_the_source_is(channels: int, fit: Any) -> None:
    wide = torch.cat([noise(3, 3, 16), noise(3, 3, 16).flip(0)], 3)
    folder("theirs", ROWS, wide, "train")
    folder("theirs", ROWS, wide.flip(2), "test")
    spec = {"id": "theirs", "size": 8, "channels": channels, "fit": fit}
    wanted = load_source(SourceSpec.model_validate(spec)).train.images
    found = evaluated_set("theirs", toys.source() if channels == 1 else colour(), fit=fit)
    assert torch.equal(found.images, wanted)
    assert found.notes[0] == "resized from 32x16 to 8x8"
    assert found.notes[1:] == (() if channels == 3 else ("3 of 3 images were in colour and became grey",))


@pytest.mark.parametrize(("side", "resized"), [(16, True), (8, False)])
def test_a_file_whose_images_are_resized_is_known_by_its_pixels(side: int, resized: bool) -> None:
    images = noise(5, side=side)
    parquet("a.parquet", LABELS, Value("int64"), torch.cat([images, images.flip(0)], 3) if resized else images)
    crop, stretch = (evaluated_set("a.parquet", toys.source(), fit=fit) for fit in ("crop", "stretch"))
    assert torch.equal(crop.images, stretch.images) != resized
    assert (crop.sha256 != stretch.sha256) == resized == (crop.sha256 != sha256_file(Path("a.parquet")))


def test_grey_files_become_colour() -> None:
    found = evaluated_set(folder("theirs", ROWS), colour())
    assert torch.equal(found.images, noise(3).expand(-1, 3, -1, -1)) and found.notes == ()


@pytest.mark.parametrize(("background", "levels"), [("white", [255, 255]), ("black", [0, 255])])
def test_transparent_parts_lie_over_what_the_source_says(background: Any, levels: list[int]) -> None:
    for name in ROWS:
        picture = Image.new("LA", (8, 8), (255, 0))
        picture.paste((255, 255), (0, 0, 8, 4))
        Path("theirs", name).mkdir(parents=True)
        picture.save(Path("theirs", name, "0.png"))
    images = evaluated_set("theirs", toys.source(), background=background).images
    assert [int(images[:, :, 7].max()), int(images[:, :, 0].min())] == levels


def test_images_of_12_bits_are_read_by_one_white() -> None:
    for name, level in zip(ROWS, (4095, 2048, 410), strict=True):
        Path("theirs", name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), level, np.uint16)).save(Path("theirs", name, "0.png"))
    found = evaluated_set("theirs", toys.source())
    assert found.images.amax((1, 2, 3)).tolist() == [255, 128, 26]
    assert "taken for images of 12 bits" in found.notes[0]


def test_several_sizes_are_noted() -> None:
    folder("theirs", ROWS[:2], noise(2, side=12))
    folder("theirs", ROWS[2:], noise(1, side=6))
    assert evaluated_set("theirs", toys.source()).notes == ("resized from 12x12 and other sizes to 8x8",)


def test_the_only_split_is_read_whatever_its_name() -> None:
    folder("one", ROWS, split="test")
    assert evaluated_set("one", toys.source()).labels.tolist() == [0, 1, 2]
    folder("one", ROWS, split="validation")
    with pytest.raises(UsageError, match="one has the splits validation, test; of several, the one named train"):
        evaluated_set("one", toys.source())


def test_the_built_in_digits() -> None:
    digits = load_source(SourceSpec(id="builtin:digits", size=8, channels=1))
    found = evaluated_set("builtin:digits", digits)
    assert found.name == "digits" and found.stored == digits.train.counts
    assert torch.equal(found.images[found.labels == 3], digits.train.of_class(3))


def test_a_dataset_on_the_hub(hub: LocalHub) -> None:
    data = Path(parquet("train.parquet", LABELS, ClassLabel(names=list(ROWS)))).read_bytes()
    old = hub.create_repo("ann/their-set", files={"data/train-00000-of-00001.parquet": data})
    new = Path(parquet("train.parquet", LABELS[::-1], ClassLabel(names=list(ROWS)))).read_bytes()
    hub.commit("ann/their-set", {"data/train-00000-of-00001.parquet": new})
    found = evaluated_set("ann/their-set", toys.source())
    assert (found.name, found.labels.tolist()) == ("their-set", LABELS[::-1])
    found = evaluated_set("ann/their-set", toys.source(), revision=old)
    assert torch.equal(found.images, noise()) and found.labels.tolist() == LABELS
    with pytest.raises(UsageError, match="The dataset ann/their-set has no revision 'v9'"):
        evaluated_set("ann/their-set", toys.source(), revision="v9")
    with pytest.raises(UsageError, match="^ann/their-set has no configuration 'ipc10'; it has default") as caught:
        evaluated_set("ann/their-set", toys.source(), config="ipc10")
    assert "--config default" in caught.value.hint
    with pytest.raises(UsageError, match="no folder and no Hub dataset ann/nothing"):
        evaluated_set("ann/nothing", toys.source())


def test_the_parquet_of_a_run(tmp_path: Path) -> None:
    run = toys.run(tmp_path / "run", toys.recipe())
    images, labels = read_parquet(run.parquet)
    for target in (run.parquet, run.path):
        found = evaluated_set(str(target), toys.source())
        assert torch.equal(found.images, images) and torch.equal(found.labels, labels)


# Classes


@pytest.mark.parametrize(
    ("theirs", "ours", "classes"),
    [
        (["row2", "row0", "row1"], ROWS, [2, 0, 1]),
        (["FIRE_TRUCK", "maple tree", "bee"], ("Bee", "fire truck", "Maple_Tree"), [1, 2, 0]),
        (["row2", "row0"], ROWS, [2, 0]),  # a class without images need not be named
        (["a_b", "A b", "c"], ("A b", "a_b", "c"), [1, 0, 2]),  # alike but for what does not matter: to the letter
        (["2", "0", "1"], ROWS, [2, 0, 1]),
        (["02", "00", "01"], ("0", "1", "2"), [2, 0, 1]),
        (["3", "1", "2"], ("1", "2", "3"), [2, 0, 1]),
        (["3", "7", "5"], ("7", "5", "3"), [2, 0, 1]),
    ],
)
def test_classes_are_found_by_name_or_number(theirs: list[str], ours: tuple[str, ...], classes: list[int]) -> None:
    labels = list(range(len(theirs)))
    path = parquet("theirs.parquet", labels, ClassLabel(names=theirs))
    assert evaluated_set(path, named(*ours)).labels.tolist() == classes
    path = parquet("text.parquet", theirs, Value("string"))
    assert evaluated_set(path, named(*ours)).labels.tolist() == classes


def test_numbered_folders_are_no_names_in_the_order_of_the_alphabet() -> None:
    numbers = [str(number) for number in range(11)]
    found = evaluated_set(folder("theirs", numbers), named(*(f"row{number}" for number in range(11))))
    images = dict(zip(numbers, noise(11), strict=True))
    for image, label in zip(found.images, found.labels.tolist(), strict=True):
        assert torch.equal(image, images[str(label)])


def test_whole_numbers_are_classes_or_what_the_source_calls_them() -> None:
    path = parquet("theirs.parquet", LABELS, Value("int64"))
    assert evaluated_set(path, toys.source()).labels.tolist() == LABELS
    path = parquet("theirs.parquet", [3, 1, 2], Value("int64"))
    assert evaluated_set(path, named("1", "2", "3")).labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("theirs", "ours", "words", "hint"),
    [
        (["cat", "dog", "row1"], ROWS, "2 of the 3 classes.*'cat', 'dog'; the source has 3: 'row0'", "case, spaces"),
        (["a", "b", "c", "d", "e", "f"], ROWS, "'a', 'b', 'c', 'd', 'e', ...; the source", "number them from 0"),
        (["a_b", "c"], ("A b", "a b", "c"), "1 of the 2.*'a_b'", "Name them"),
        (["1", "2", "3"], ROWS, "reach from 1 to 3, but the source has 3 classes, numbered 0 to 2", "from 0: 'row0'"),
        (["0", "1", "2"], ("1", "2", "3"), "1 of the 3.*'0'; the source has 3: '1'", "do not matter)."),
        (["00", "01"], ("1", "2"), "2 of the 2", "do not matter)."),
        (["0", "1", "12"], ("0", "1", "2"), "reach from 0 to 12, but the source has 3 classes", "from 0: '0'"),
        (["row0", "Row 0"], ROWS, "Several classes.*'row0', 'Row 0'", "one name"),
        (["1", "01"], ROWS, "Several classes.*'1', '01'", "one name"),
    ],
)
def test_classes_that_cannot_be_found(theirs: list[str], ours: tuple[str, ...], words: str, hint: str) -> None:
    path = parquet("theirs.parquet", list(range(len(theirs))), ClassLabel(names=theirs))
    with pytest.raises(UsageError, match=words) as caught:
        evaluated_set(path, named(*ours))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "feature", "words"),
    [
        ([0, 1, -1], ClassLabel(names=list(ROWS)), r"'label', row 2 \(counted from 0\): the label is -1"),
        ([0, -1, 1], Value("int64"), r"row 1 \(counted from 0\): the label is -1"),
        ([0, 1, None], Value("int64"), "row 2 .*the label is empty"),
        ([None, None], Value("string"), "row 0 .*the label is empty"),
        ([0, 1, 3], Value("int64"), "reach from 0 to 3, but the source has 3 classes"),
        ([[0.5, 0.5], [1.0, 0.0]], datasets.List(Value("float32")), "one class per image"),
        ([0.0, 1.0], Value("float32"), "holds float32; labels must be"),
    ],
)
def test_labels_that_are_none(labels: list[Any], feature: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluated_set(parquet("theirs.parquet", labels, feature), toys.source())


def test_a_label_beyond_the_names_of_its_column() -> None:
    picture = [{"bytes": png_bytes(noise(1)[0].permute(1, 2, 0).numpy()), "path": None}]
    features = {"image": datasets.Image(), "label": ClassLabel(names=list(ROWS))}
    write_parquet(Path("theirs.parquet"), {"image": picture, "label": [3]}, features)
    with pytest.raises(UsageError, match="row 0 .*the label is 3; the 3 classes are numbered 0 to 2"):
        evaluated_set("theirs.parquet", toys.source())


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
def test_a_class_may_be_missing_and_the_evaluator_bears_it(form: str) -> None:
    labels = [0, 0, 2, 0]
    if form == "parquet":
        path = parquet("theirs.parquet", labels, Value("int64"))
    else:
        path = tensors(images=noise(4), labels=torch.tensor(labels))
    real = toys.source()
    found = evaluated_set(path, real)
    assert found.stored == (3, 0, 1) and found.notes[-1] == "no image of 1 of 3 classes: 'row1'"
    protocol = toys.recipe(baselines=["random", "random-encoded", "k-means", "herding"], random_draws=1).evaluate
    for made in training_sets(protocol, real, found, torch.device("cpu")):
        assert torch.bincount(made.labels, minlength=3).tolist() == [3, 0, 1], made.name


# What is no set


def mistakes() -> dict[str, dict[str, Any]]:
    """Write files with all sorts of mistakes; returns targets with the options they are read with."""
    features = Features({"a": datasets.Image(), "b": datasets.Image(), "label": Value("int64")})
    two = {"a": pictures(noise()), "b": pictures(noise()), "label": LABELS}
    Dataset.from_dict(two, features=features).to_parquet("two.parquet")
    table(noise(), LABELS, Value("int64")).remove_columns("label").to_parquet("bare.parquet")
    table(noise(), LABELS, Value("int64")).remove_columns("img").to_parquet("blind.parquet")
    # Cut afterwards: older versions of the library cannot write a table without rows.
    pq.write_table(pq.read_table(parquet("none.parquet", LABELS, Value("int64"))).slice(0, 0), "none.parquet")
    Path("broken.parquet").write_bytes(b"PAR1")
    Path("flat").mkdir()
    pictures(noise())[0].save("flat/0.png")
    Path("empty").mkdir()
    folder("damaged", ROWS)
    Path("damaged/row1/0.png").write_bytes(b"no image")
    folder("fine", ROWS)
    plain = ("two.parquet", "bare.parquet", "blind.parquet", "none.parquet", "broken.parquet", "flat", "empty")
    other = ("damaged", "./gone", "gone.parquet", "builtin:nothing", "torchvision:Nothing")
    return {target: {} for target in plain + other} | {"fine": {"config": "huge"}}


def test_mistakes_are_told_without_keys_of_recipes(hub: LocalHub) -> None:
    for target, options in mistakes().items():
        with pytest.raises(UsageError) as caught:
            evaluated_set(target, toys.source(), **options)
        said = str(caught.value)
        assert target.removeprefix("./") in said or target == "damaged", said
        assert not re.search(r"source\.|_column:|\b(id|config|revision): |to condense", said), said
        assert type(caught.value) is UsageError and caught.value.hint


def test_a_damaged_image_is_named() -> None:
    mistakes()
    with pytest.raises(UsageError, match=r"row1/0\.png: the image file .* cannot be decoded"):
        evaluated_set("damaged", toys.source())


@pytest.mark.parametrize(
    ("target", "words"), [("two.parquet", "several image columns"), ("none.parquet", "without rows")]
)
def test_columns_and_rows_that_are_missing(target: str, words: str) -> None:
    mistakes()
    with pytest.raises(UsageError, match=words):
        evaluated_set(target, toys.source())


def test_a_hub_that_does_not_answer_or_is_not_asked(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("repo-info", "drop-before", times=99))
    with pytest.raises(NetworkError, match="ann/their-set: the Hub cannot be reached"):
        evaluated_set("ann/their-set", toys.source())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="^HF_HUB_OFFLINE is set") as caught:
        evaluated_set("ann/their-set", toys.source())
    assert caught.value.hint == "Unset HF_HUB_OFFLINE, or name a full commit with --revision."
