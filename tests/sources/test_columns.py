from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from datasets import Array3D, ClassLabel, Dataset, Image, List, Value

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import index_source, load_source
from hmdc_hub.sources.reader import find_image_column, find_label_column, kind_of
from tests.sources.files import cells, conversion, png

LABEL = ClassLabel(names=["a", "b"])
FILE = {"bytes": Value("binary"), "path": Value("string")}


@pytest.mark.parametrize(
    ("feature", "kind"),
    [
        (Image(), "image"),
        (FILE, "image file"),
        (Value("binary"), "image file"),
        (LABEL, "class label"),
        (Value("int64"), "int"),
        (Value("uint8"), "int"),
        (Value("bool"), "int"),
        (Value("string"), "string"),
        (Value("large_string"), "string"),
        (Value("float32"), "float"),
        (List(LABEL), "other"),
        (Array3D((3, 4, 4), "uint8"), "other"),
        ({"a": Value("int8")}, "other"),
    ],
)
def test_kinds_of_features(feature: Any, kind: str) -> None:
    assert kind_of(feature) == kind


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ({"pic": Image(), "label": LABEL}, "pic"),
        ({"mask": Image(), "img": Image()}, "img"),
        ({"img": Image(), "image": Image()}, "image"),
        ({"picture": FILE, "label": LABEL}, "picture"),
        ({"thumb": FILE, "photo": Image()}, "photo"),
        ({"data": Value("binary")}, "data"),
    ],
)
def test_image_column_is_found(features: dict[str, Any], found: str) -> None:
    assert find_image_column(features, None, "it") == found


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ({"img": Image(), "digit": LABEL, "id": Value("int64")}, "digit"),
        ({"coarse_label": LABEL, "fine_label": LABEL}, "fine_label"),
        ({"labels": LABEL, "source": LABEL}, "labels"),
        ({"label": Value("int64"), "id": Value("int64")}, "label"),
        ({"class": Value("string"), "name": Value("string")}, "class"),
        ({"label": Value("float32"), "species": LABEL}, "species"),
        ({"label": Value("string"), "camera": LABEL}, "label"),
        ({"Label": Value("large_string"), "name": Value("string")}, "Label"),
        ({"TARGET": Value("int64"), "camera": LABEL, "lens": LABEL}, "TARGET"),
        ({"image": "image", "label": "string", "note": "string"}, "label"),
        ({"png": Image(), "cls": Value("int64"), "__key__": Value("string")}, "cls"),
    ],
)
def test_label_column_is_found(features: dict[str, Any], found: str) -> None:
    assert find_label_column(features, None, "it") == found


@pytest.mark.parametrize(
    ("features", "wanted", "words", "next_step"),
    [
        (
            {"a": Image(), "b": Image()},
            None,
            "several image columns and none has a usual name: a, b",
            "image_column: a",
        ),
        ({"x": Value("string")}, None, r"no image column; its columns: x \(string\)", "a folder of images per class"),
        ({"Image": Value("string")}, None, r"no image column", "docs/your-data-and-model.md"),
        (
            {"img": List(Value("int64"))},
            None,
            r"no image column; its columns: img \(List\)",
            "docs/your-data-and-model.md",
        ),
        ({"image": Image()}, "img", r"no column 'img'; its columns: image \(images\)", "leave image_column out"),
        ({"image": Image(), "x": LABEL}, "x", "column 'x' of it holds ClassLabel, not images", "image_column: image"),
        ({"p": Array3D((3, 4, 4), "uint8")}, "p", "holds Array3D, not images", "docs/your-data-and-model.md"),
    ],
)
def test_refused_image_columns(features: dict[str, Any], wanted: str | None, words: str, next_step: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        find_image_column(features, wanted, "it")
    assert next_step in caught.value.hint


@pytest.mark.parametrize(
    ("features", "wanted", "words", "next_step"),
    [
        ({"a": LABEL, "b": LABEL}, None, "several columns that may hold the classes: a, b", "label_column: a"),
        ({"label": LABEL, "Y": Value("int64")}, None, "that may hold the classes: label, Y", "label_column: label"),
        ({"class": Value("string"), "target": LABEL}, None, "may hold the classes: class, target", "_column: class"),
        ({"img": Image(), "n": Value("int8")}, None, "no label column; its columns: img", "label_column: n"),
        ({"img": Image()}, None, "no label column", "a folder of images per class"),
        ({"label": Value("float64"), "n": Value("int8")}, None, "'label' of it holds float64", "label_column: n"),
        ({"label": List(LABEL)}, None, "'label' of it holds List", "docs/your-data-and-model.md"),
        ({"label": Value("float64")}, None, "'label' of it holds float64", "docs/your-data-and-model.md"),
        ({"label": LABEL}, "lable", "no column 'lable'", "leave label_column out"),
        ({"img": Image(), "y": LABEL}, "img", "'img' of it holds images", "label_column: y"),
    ],
)
def test_refused_label_columns(features: dict[str, Any], wanted: str | None, words: str, next_step: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        find_label_column(features, wanted, "it")
    assert next_step in caught.value.hint


@pytest.mark.parametrize("kind", ["arrays", "base64", "paths", "lists", "floats"])
def test_the_lines_of_the_page_that_hints_name_make_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [png(20 * k) for k in range(8)]
    images: list[Any] = cells(files)
    labels: list[Any] = [k % 2 for k in range(8)]
    if kind == "arrays":
        images = [[20 * k + j for j in range(64)] for k in range(8)]
    elif kind == "base64":
        images = [base64.b64encode(file).decode() for file in files]
    elif kind == "paths":
        images = [str(tmp_path / f"{k}.png") for k in range(8)]
        for k, file in enumerate(files):
            (tmp_path / f"{k}.png").write_bytes(file)
    else:
        labels = [[label] if kind == "lists" else float(label) for label in labels]
    Dataset.from_dict({"image": images, "label": labels}).to_parquet("mine.parquet")
    with pytest.raises(SourceError) as caught:
        index_source(SourceSpec(id="mine.parquet", size=8), require_test=False)
    assert "docs/your-data-and-model.md" in caught.value.hint and "Columns of other types" in caught.value.hint
    exec(conversion(kind).replace("(28, 28)", "(8, 8)"), {})
    assert load_source(SourceSpec(id="converted.parquet", size=8, test_fraction=0.5)).train.counts == (2, 2)
