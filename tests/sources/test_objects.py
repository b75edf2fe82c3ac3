"""Objects of this process as sources, and single splits of whatever can be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, describe, load_source, read_images, register_dataset, resolve_source
from tests.sources.files import encoded, image_folder, parquet_folder, picture
from tests.sources.test_digits import FINGERPRINT

Digits = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """The splits of builtin:digits: uint8 N x 1 x 8 x 8 and labels, in the order of the dataset."""
    found = {split: read_images("builtin:digits", size=8, channels=1, split=split) for split in ("train", "test")}
    return {split: (one.images, one.labels) for split, one in found.items()}


class Pairs(Dataset[tuple[Any, Any]]):
    """A torch dataset that makes each image as it is asked for."""

    def __init__(self, images: Any, labels: Any, image: Callable[[Any], Any] = lambda one: one) -> None:
        self.images, self.labels, self.image = images, labels, image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.image(self.images[row]), self.labels[row]


def load(data: Any, **keys: Any) -> Source:
    spec = {"id": register_dataset(data, "mine"), "size": 8, "channels": 1} | keys
    return load_source(SourceSpec.model_validate(spec))


def as_table(images: torch.Tensor, labels: torch.Tensor) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    pictures = [Image.fromarray(one[0].numpy()) for one in images]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tensors": lambda images, labels: (images, labels),
    "float tensors without channels": lambda images, labels: (images[:, 0].double() / 255, labels),
    "arrays with channels last": lambda images, labels: (images.permute(0, 2, 3, 1).numpy(), labels.numpy()),
    "TensorDataset": lambda images, labels: TensorDataset(images.float() / 255, labels),
    "channels last in a tensor": lambda images, labels: (images.movedim(1, -1), labels),
    "Subset": lambda images, labels: Subset(Pairs(images, labels.tolist()), range(len(images))),
    "PIL images": lambda images, labels: Pairs(images, labels, lambda one: Image.fromarray(one[0].numpy())),
    "arrays": lambda images, labels: Pairs(images, labels, lambda one: one[0].numpy()),
    "text labels": lambda images, labels: Pairs(images, [str(label) for label in labels.tolist()]),
    "datasets.Dataset": as_table,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_are_the_same_source(digits: Digits, form: str) -> None:
    source = load({split: FORMS[form](*pair) for split, pair in digits.items()})
    assert source.info.fingerprint == FINGERPRINT
    assert (source.info.id, source.info.kind) == (f"local:mine@{FINGERPRINT[:16]}", "local")
    assert (source.info.license, source.info.revision, source.info.left_out) == (None, None, [])
    assert source.info.without_paths() == source.info


def test_a_dataset_dict_and_its_columns(digits: Digits) -> None:
    data = datasets.DatasetDict({split: as_table(*pair) for split, pair in digits.items()})
    assert load(data).info.fingerprint == FINGERPRINT
    renamed = data.rename_column("label", "digit").rename_column("image", "scan").shuffle(seed=0)
    info = load(renamed).info
    assert (info.image_column, info.label_column) == ("scan", "digit")
    with pytest.raises(SourceError, match="split 'train' of python:mine has no column 'y'"):
        load(data, label_column="y")


def test_resolving_names_the_data_by_their_fingerprint(digits: Digits) -> None:
    name = register_dataset(dict(digits), "scans")
    assert name == "python:scans"
    resolved = resolve_source(SourceSpec(id=name, size=8, channels=1))
    assert resolved.id == f"local:scans@{FINGERPRINT[:16]}"
    assert (resolved.train_split, resolved.test_split, resolved.image_column) == ("train", "test", "image")
    assert resolve_source(resolved) == resolved
    assert load_source(resolved).info == load_source(SourceSpec(id=name, size=8, channels=1)).info
    images, labels = digits["train"]
    register_dataset({"train": (255 - images, labels), "test": digits["test"]}, "scans")
    with pytest.raises(SourceError, match=f"registered as scans has the fingerprint .* {resolved.id} has another"):
        load_source(resolved)


@pytest.mark.parametrize("id_", ["python:gone", "local:gone@0123456789abcdef"])
def test_what_is_not_registered_says_what_to_do(id_: str) -> None:
    with pytest.raises(SourceError, match=f"{id_} stands for .* called gone; no other process has") as caught:
        load_source(SourceSpec(id=id_, size=8, config="default"))  # as published recipes of folders have it
    assert "register_dataset(data, 'gone')" in caught.value.hint
    assert ("0123456789abcdef" in caught.value.hint) == id_.startswith("local:")


def test_names(digits: Digits) -> None:
    one, other = TensorDataset(*digits["test"]), TensorDataset(*digits["train"])
    first = register_dataset(one)
    assert first.startswith("python:tensordataset")
    assert register_dataset(one) == first != register_dataset(other)
    assert register_dataset(digits["train"]).startswith("python:tensors")
    with pytest.raises(SourceError, match="'a/b' cannot be the name"):
        register_dataset(one, "a/b")


def test_data_that_are_put_together_again_keep_their_name() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), [0, 1, 0, 1]
    name = register_dataset((images, labels))
    assert register_dataset((images, labels)) == register_dataset([images, labels]) == name
    assert register_dataset((images.clone(), labels)) != name
    splits = register_dataset({"train": (images, labels)})
    assert register_dataset({"train": (images, labels)}) == splits
    assert register_dataset({"train": (images, labels), "test": (images, labels)}) != splits


def test_without_a_test_split_a_fraction_is_kept(digits: Digits) -> None:
    with pytest.raises(SourceError, match="python:mine has no split to score on") as caught:
        load(digits["train"])
    assert "test_fraction: 0.2" in caught.value.hint
    tensors, table = load(digits["train"], test_fraction=0.2), load(as_table(*digits["train"]), test_fraction=0.2)
    assert 270 < tensors.info.test_count == table.info.test_count < 300
    assert tensors.train.counts == load(Pairs(*digits["train"]), test_fraction=0.2).train.counts


def test_classes_that_a_dataset_names(digits: Digits) -> None:
    data = TensorDataset(*digits["train"])
    data.classes = ["zero", *"123456789"]  # type: ignore[attr-defined]
    assert load(data, test_fraction=0.2).info.class_names[:2] == ["zero", "1"]
    assert load(Subset(data, range(1000)), test_fraction=0.2).info.class_names[0] == "zero"
    found = describe(register_dataset(data, "named"), test_fraction=0.2)
    assert (found.class_names[0], found.spec.size, found.spec.channels) == ("zero", 8, 1)
    assert found.spec.id == "python:named"


def broken(images: Any, labels: Any, row: int, image: Any = None, label: Any = None) -> Pairs:
    """Give pairs of which one has another image or label."""
    some = list(images[:40]), labels[:40].tolist()
    some[0][row] = some[0][row] if image is None else image
    some[1][row] = some[1][row] if label is None else label
    return Pairs(*some)


@pytest.mark.parametrize(
    ("change", "words", "step"),
    [
        ({"image": torch.full((1, 8, 8), 1.5)}, "floats from 0 to 1.5; they must be in", "before normalisation"),
        ({"image": torch.full((1, 8, 8), torch.nan)}, "floats from nan to nan", "before normalisation"),
        ({"image": np.zeros((8, 8), np.uint16)}, "the type uint16; it must be uint8, or floats", "to(torch.uint8)"),
        ({"image": torch.zeros(4, 8, 8)}, r"the shape \(4, 8, 8\); it must be channels x H x W", "Permute"),
        ({"image": "a.png"}, "the image is a str; it must be a PIL image", "PIL.Image.open"),
        ({"image": Image.new("L", (0, 4))}, "0 x 4 pixels", "Replace"),
        ({"label": torch.ones(10)}, "the label is tensor.*labels are text or whole numbers", "Correct"),
        ({"label": -1}, "the label is -1; .* usually marks a row without one", "Correct"),
        ({"label": "seven"}, "the label is 'seven'; others are of the type int", "Correct"),
    ],
)
def test_an_item_that_cannot_be_used_is_named(digits: Digits, change: dict[str, Any], words: str, step: str) -> None:
    data = broken(*digits["train"], row=17, **change)
    with pytest.raises(SourceError, match=rf"^split 'train', item 17 \(counted from 0\): .*{words}") as caught:
        load(data, test_fraction=0.2)
    assert step in caught.value.hint


def test_a_dataset_that_raises_is_named_with_what_it_raised(digits: Digits) -> None:
    def image(one: torch.Tensor) -> Any:
        raise KeyError("missing.png")

    with pytest.raises(SourceError, match="item 0 .*the dataset raised KeyError: 'missing.png'") as caught:
        load(Pairs(*digits["train"], image), test_fraction=0.2)
    assert isinstance(caught.value.__cause__, KeyError)


def test_images_that_change_are_noticed(digits: Digits) -> None:
    noise = np.random.default_rng(0)
    data = Pairs(*digits["test"], lambda one: noise.integers(0, 256, (8, 8)).astype(np.uint8))
    resolved = resolve_source(SourceSpec(id=register_dataset(data, "noise"), size=8, channels=1, test_fraction=0.2))
    with pytest.raises(SourceError, match="others every time they are read"):
        load_source(resolved)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("nobody asks")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Endless(), "is a Endless without a length; a source is a datasets.Dataset"),
        (datasets.Dataset.from_dict({"x": [1]}).to_iterable_dataset(), "is a IterableDataset"),
        (5, "split 'train' is a int"),
        ({}, "the mapping has no splits"),
        ({"train": "pictures/"}, "split 'train' is a str"),
        ((torch.zeros(3, 1, 8, 8), torch.zeros(2)), r"shape \(3, 1, 8, 8\) and labels of the shape \(2,\) are no"),
        ((torch.zeros(3, 64), torch.zeros(3)), r"images of the shape \(3, 64\)"),
    ],
)
def test_what_is_no_source_is_refused_when_it_is_registered(data: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        register_dataset(data)


def test_items_that_are_no_pairs() -> None:
    class Rows(Pairs):
        def __getitem__(self, row: int) -> Any:
            return {"image": self.images[row], "label": self.labels[row]}

    with pytest.raises(SourceError, match="item 0 .counted from 0.: it is a dict, not a pair"):
        load(Rows(torch.zeros(4, 1, 8, 8), [0, 1, 0, 1]), test_fraction=0.5)


# A single split


def test_one_split_of_anything_is_read(tmp_path: Path, digits: Digits) -> None:
    images, labels = digits["train"]
    for data in ("builtin:digits", (images, labels), as_table(images, labels), {"train": Pairs(images, labels)}):
        found = read_images(data, size=8, channels=1)
        assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
        assert found.class_names == list("0123456789")
        assert (found.sizes, found.colour, found.columns) == ({(8, 8): 1438}, 0, ("image", "label"))
    folder = image_folder(tmp_path / "pets", {"train": {"a": 3, "b": 2}, "test": {"a": 1}})
    found = read_images(folder, size=4, fit="stretch")
    assert found.images.shape == (5, 3, 4, 4) and found.labels.tolist() == [0, 0, 0, 1, 1]
    assert (found.sizes, found.colour, found.notes) == ({(10, 6): 5}, 5, ())
    assert read_images(folder, size=4, split="test").labels.tolist() == [0]
    assert read_images(folder, size=4, split="train[3:]").labels.tolist() == [0, 0]


def test_a_split_may_lack_classes_and_have_one_alone(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path, ([{"bytes": encoded(picture(9)), "path": None}] * 2, [2, 2]))
    found = read_images(folder, size=8)
    assert (found.labels.tolist(), found.class_names) == ([2, 2], ["ant", "bee", "cat"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_images": 8}, "has 9 images, more than the 8 that are read"),
        ({"max_pixels": 63}, "row 0 .counted from 0.: the image is 8 x 8 pixels, more than the 63"),
        ({"split": "validation"}, "no split 'validation'"),
        ({"label_column": "y"}, "no column 'y'"),
    ],
)
def test_limits_and_keys_of_a_single_split(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    folder = parquet_folder(tmp_path)
    assert len(read_images(folder, size=8, max_images=9, max_pixels=64).images) == 9
    with pytest.raises(SourceError, match=words):
        read_images(folder, size=8, **keys)


def test_of_several_splits_one_must_be_called_train(digits: Digits) -> None:
    with pytest.raises(SourceError, match="has the splits a, b; of several, the one named train is read"):
        read_images({"a": digits["test"], "b": digits["test"]}, size=8)
    assert len(read_images({"a": digits["test"]}, size=8).images) == 359
