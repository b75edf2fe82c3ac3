from __future__ import annotations

from typing import Any

import pytest
from datasets import Array3D, ClassLabel, Image, List, Value

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.detect import image_column, kind_of, label_column

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
    assert image_column(features, None, "it") == found


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
    assert label_column(features, None, "it") == found


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
        ({"Image": Value("string")}, None, r"no image column", "base64.b64decode(text)"),
        ({"img": List(Value("int64"))}, None, r"no image column; its columns: img \(List\)", "PIL.Image.fromarray"),
        ({"image": Image()}, "img", r"no column 'img'; its columns: image \(images\)", "leave image_column out"),
        ({"image": Image(), "x": LABEL}, "x", "column 'x' of it holds ClassLabel, not images", "image_column: image"),
        ({"p": Array3D((3, 4, 4), "uint8")}, "p", "holds Array3D, not images", "PIL.Image.fromarray"),
    ],
)
def test_refused_image_columns(features: dict[str, Any], wanted: str | None, words: str, next_step: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        image_column(features, wanted, "it")
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
        ({"label": List(LABEL)}, None, "'label' of it holds List", "for (label,) in data['label']"),
        ({"label": Value("float64")}, None, "'label' of it holds float64", "cast_column('label', Value(\"int64\"))"),
        ({"label": LABEL}, "lable", "no column 'lable'", "leave label_column out"),
        ({"img": Image(), "y": LABEL}, "img", "'img' of it holds images", "label_column: y"),
    ],
)
def test_refused_label_columns(features: dict[str, Any], wanted: str | None, words: str, next_step: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        label_column(features, wanted, "it")
    assert next_step in caught.value.hint
