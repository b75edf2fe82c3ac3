"""Find the image column and the label column of a dataset among its features.

Written against the feature types of the `datasets` library by their names, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmdc_hub.errors import SourceError

IMAGE_NAMES = ("image", "img", "images", "pixels", "pixel_values", "picture", "photo")
LABEL_NAMES = ("label", "labels", "class", "target", "y")
"""Names, in any case, that say that a column holds the classes."""
LESSER_LABEL_NAMES = ("fine_label", "category", "cls")
"""Usual names of it where no column has one of those, the first one first."""

_IMAGES, _CLASSES = ("image", "image file"), ("class label", "int", "string")


def kind_of(feature: Any) -> str:
    """Classify a feature of `datasets`, or the column of a source that is none of its: then the kind itself.

    Returns:
        image, image file (a struct of bytes and path, or bytes), class label, int, string, float or other.
    """
    if isinstance(feature, str):
        return feature
    name = type(feature).__name__
    if name in ("Image", "ClassLabel"):
        return "image" if name == "Image" else "class label"
    if isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}:
        return "image file"
    dtype = str(getattr(feature, "dtype", "")) if name == "Value" else ""
    starts = {"binary": "image file", "large_binary": "image file", "int": "int", "uint": "int", "bool": "int",
              "string": "string", "large_string": "string", "float": "float", "decimal": "float"}  # fmt: skip
    return next((kind for start, kind in starts.items() if dtype.startswith(start)), "other")


def find_image_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str:
    """Check the image column that a recipe names, or find the only one, or the one with a usual name.

    Raises:
        SourceError: There is no such column, it holds no images, or several would do.
    """
    kinds = {name: kind_of(feature) for name, feature in features.items()}
    if wanted is not None:
        _check_present(features, wanted, "image_column", where)
        if kinds[wanted] not in _IMAGES:
            raise SourceError(
                f"source.image_column: column {wanted!r} of {where} holds {_type_of(features[wanted])}, not images",
                hint=_one_that_fits(kinds, _IMAGES, "image_column") or _lines_for_images(kinds, wanted),
            )
        return wanted
    for kind in _IMAGES:
        candidates = [name for name, other in kinds.items() if other == kind]
        usual = candidates if len(candidates) == 1 else [name for name in IMAGE_NAMES if name in candidates]
        if usual:
            return usual[0]
        if candidates:
            raise SourceError(
                f"{where} has several image columns and none has a usual name: {', '.join(candidates)}",
                hint=f"Say which one, for example  image_column: {candidates[0]}",
            )
    raise SourceError(
        f"{where} has no image column; its columns: {_listed(features)}", hint=_lines_for_images(kinds, None)
    )


def find_label_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str:
    """Check the label column that a recipe names, or find it.

    Found is the column whose name says that it holds the classes; without one, fine_label, the only ClassLabel column,
    or a column of whole numbers or text called category or cls.

    Raises:
        SourceError: There is no such column, it holds no classes, or several would do.
    """
    kinds = {name: kind_of(feature) for name, feature in features.items()}
    possible = [name for name, kind in kinds.items() if kind in _CLASSES]
    if wanted is not None:
        _check_present(features, wanted, "label_column", where)
    else:
        for candidates in (
            [name for name in possible if name.strip().lower() in LABEL_NAMES],
            [name for name in LESSER_LABEL_NAMES[:1] if name in possible],
            [name for name in possible if kinds[name] == "class label"],
            [name for name in LESSER_LABEL_NAMES if name in possible],
        ):
            if len(candidates) > 1:
                raise SourceError(
                    f"{where} has several columns that may hold the classes: {', '.join(candidates)}",
                    hint=f"Say which one, for example  label_column: {candidates[0]}",
                )
            if candidates:
                return candidates[0]
        wanted = next((name for name in features if name.lower() in LABEL_NAMES), None)
    if wanted is None:
        raise SourceError(
            f"{where} has no label column; its columns: {_listed(features)}",
            hint=_one_that_fits(kinds, ("int", "string"), "label_column")
            or "Add a column of whole numbers or text with "
            "the class of each image, or make a folder of images per class.",
        )
    if wanted not in possible:
        raise SourceError(
            f"source.label_column: column {wanted!r} of {where} holds {_type_of(features[wanted])}; labels must be a "
            "ClassLabel, whole numbers or text, one class per image",
            hint=_one_that_fits(kinds, _CLASSES, "label_column") or _lines_for_classes(kinds, wanted),
        )
    return wanted


def _check_present(features: Mapping[str, Any], name: str, key: str, where: str) -> None:
    if name not in features:
        raise SourceError(
            f"source.{key}: {where} has no column {name!r}; its columns: {_listed(features)}",
            hint=f"Name one of them, or leave {key} out to have it detected.",
        )


def _one_that_fits(kinds: Mapping[str, str], wanted: tuple[str, ...], key: str) -> str:
    names = [name for name, kind in kinds.items() if kind in wanted]
    return f"Name one that fits, for example  {key}: {names[0]}" if names else ""


_READ = 'data = load_dataset("parquet", data_files="<file>.parquet", split="train")'
_WRITE = '.to_parquet("converted.parquet")'


def _lines_for_classes(kinds: Mapping[str, str], name: str) -> str:
    """Give the lines of Python that turn a column into classes."""
    if kinds[name] == "float":
        convert, needs = f'data.cast_column({name!r}, Value("int64"))', "Value, load_dataset"
    else:
        first = f"[str(label) for (label,) in data[{name!r}]]"
        convert, needs = f"data.remove_columns({name!r}).add_column({name!r}, {first})", "load_dataset"
    return (
        "Where each image has one class, write it as a whole number or text, and name the new file as the source:\n"
        f"  from datasets import {needs}\n  {_READ}\n  {convert}{_WRITE}"
    )


def _lines_for_images(kinds: Mapping[str, str], wanted: str | None) -> str:
    """Give the lines of Python that turn what may be images into images."""
    usual = [name for name in kinds if name.lower() in IMAGE_NAMES]
    name = wanted or next(iter(usual + [name for name, kind in kinds.items() if kind == "other"]), None)
    if name is None:
        return "A source needs a column of image files; or give a folder that holds a folder of images per class."
    column, start = f"data[{name!r}]", f"  from datasets import Image, load_dataset\n  {_READ}\n"
    write = f"  data.remove_columns({name!r}).add_column({name!r}, files).cast_column({name!r}, Image()){_WRITE}"
    if kinds[name] == "string":
        lines = (
            f"{start}  data.cast_column({name!r}, Image()){_WRITE}   # paths of files\n"
            "or, where the text is base64,\n  import base64\n"
            f'  files = [{{"bytes": base64.b64decode(text), "path": None}} for text in {column}]\n{write}'
        )
    else:
        lines = (
            f"  import numpy, PIL.Image\n{start}  shape = (28, 28)   # height, width, and 3 for colour\n"
            f"  images = [PIL.Image.fromarray(numpy.uint8(row).reshape(shape)) for row in {column}]\n"
            f"  files = [Image().encode_example(image) for image in images]\n{write}"
        )
    return f"Write the images as files, and name the new one as the source:\n{lines}"


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type_of(feature)})" for name, feature in features.items()) or "none"


def _type_of(feature: Any) -> str:
    kind = kind_of(feature)
    if kind == "other":
        return "a struct" if isinstance(feature, Mapping) else kind if feature == kind else type(feature).__name__
    names = {"image": "images", "image file": "bytes", "class label": "ClassLabel"}
    return names.get(kind, str(getattr(feature, "dtype", kind)))
