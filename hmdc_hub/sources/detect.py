"""Find the image column and the label column of a dataset among its features.

Written against the feature types of the `datasets` library by their names, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmdc_hub.errors import SourceError

IMAGE_NAMES = ("image", "img", "images", "pixels", "pixel_values", "picture", "photo")
LABEL_NAMES = ("label", "fine_label", "labels", "class", "target", "category", "y")


def kind_of(feature: Any) -> str:
    """Classify a feature of `datasets`.

    Returns:
        image, image file (a struct of bytes and path, or bytes), class label, int, string, float or other.
    """
    name = type(feature).__name__
    if name == "Image":
        return "image"
    if name == "ClassLabel":
        return "class label"
    if isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}:
        return "image file"
    dtype = str(getattr(feature, "dtype", "")) if name == "Value" else ""
    if dtype in ("binary", "large_binary"):
        return "image file"
    if dtype.startswith(("int", "uint", "bool")):
        return "int"
    if dtype.startswith(("string", "large_string")):
        return "string"
    if dtype.startswith(("float", "decimal")):
        return "float"
    return "other"


def image_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str:
    """Check the image column that a recipe names, or find it.

    Args:
        features: The features of the split.
        wanted: Name in the recipe; None: the only column of images, or the one among several with a usual name.
        where: The dataset and split, for errors.

    Raises:
        SourceError: There is no such column, it holds no images, or several would do.
    """
    kinds = {name: kind_of(feature) for name, feature in features.items()}
    if wanted is not None:
        _present(features, wanted, "image_column", where)
        if kinds[wanted] not in ("image", "image file"):
            raise SourceError(
                f"source.image_column: column {wanted!r} of {where} holds {_describe(features[wanted])}, not images",
                hint=_choices(kinds, ("image", "image file"), "image_column"),
            )
        return wanted
    for kind in ("image", "image file"):
        candidates = [name for name, other in kinds.items() if other == kind]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            usual = [name for name in IMAGE_NAMES if name in candidates]
            if usual:
                return usual[0]
            raise SourceError(
                f"{where} has several image columns and none has a usual name: {', '.join(candidates)}",
                hint=f"Say which one, for example  image_column: {candidates[0]}",
            )
    raise SourceError(
        f"{where} has no image column; its columns: {_listing(features)}",
        hint="A source needs a column of the feature type Image; cast it with datasets' Dataset.cast_column.",
    )


def label_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str:
    """Check the label column that a recipe names, or find it; arguments as `image_column`.

    Found are the only ClassLabel column, or the one among several with a usual name (fine_label before coarse_label);
    without any, a column of whole numbers or text with a usual name.

    Raises:
        SourceError: There is no such column, it holds no classes, or several would do.
    """
    kinds = {name: kind_of(feature) for name, feature in features.items()}
    if wanted is not None:
        _present(features, wanted, "label_column", where)
        _check_label(features, kinds, wanted, where)
        return wanted
    labels = [name for name, kind in kinds.items() if kind == "class label"]
    if len(labels) == 1:
        return labels[0]
    usual = [name for name in LABEL_NAMES if name in (labels or features)]
    if usual:
        _check_label(features, kinds, usual[0], where)
        return usual[0]
    if labels:
        raise SourceError(
            f"{where} has several label columns and none has a usual name: {', '.join(labels)}",
            hint=f"Say which one, for example  label_column: {labels[0]}",
        )
    raise SourceError(
        f"{where} has no label column; its columns: {_listing(features)}",
        hint=_choices(kinds, ("int", "string"), "label_column"),
    )


def _check_label(features: Mapping[str, Any], kinds: Mapping[str, str], name: str, where: str) -> None:
    if kinds[name] not in ("class label", "int", "string"):
        raise SourceError(
            f"source.label_column: column {name!r} of {where} holds {_describe(features[name])}; labels must be a "
            "ClassLabel, whole numbers or text, one class per image",
            hint=_choices(kinds, ("class label", "int", "string"), "label_column"),
        )


def _present(features: Mapping[str, Any], name: str, key: str, where: str) -> None:
    if name not in features:
        raise SourceError(
            f"source.{key}: {where} has no column {name!r}; its columns: {_listing(features)}",
            hint=f"Name one of them, or leave {key} out to have it detected.",
        )


def _choices(kinds: Mapping[str, str], wanted: tuple[str, ...], key: str) -> str:
    names = [name for name, kind in kinds.items() if kind in wanted]
    if names:
        return f"Name one that fits, for example  {key}: {names[0]}"
    return "Add such a column to the dataset, or choose another dataset."


def _listing(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_describe(feature)})" for name, feature in features.items()) or "none"


def _describe(feature: Any) -> str:
    kind = kind_of(feature)
    if kind != "other":
        return {"image": "images", "image file": "bytes", "class label": "ClassLabel"}.get(
            kind, str(getattr(feature, "dtype", kind))
        )
    return type(feature).__name__ if not isinstance(feature, Mapping) else "a struct"
