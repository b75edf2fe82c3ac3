"""What every kind of source is read as: named splits of rows, with a column of images and one of labels.

Columns are known by the names of the feature types of the `datasets` library, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import LeftOut

Encoded = bytes | str | Image.Image | None  # an image as a dataset holds it: a file's bytes or path, or an open one

IMAGE_NAMES = ("image", "img", "images", "pixels", "pixel_values", "picture", "photo")
LABEL_NAMES = ("label", "labels", "class", "target", "y")  # in any case: that column holds the classes
LESSER_LABEL_NAMES = ("fine_label", "category", "cls")  # where no column has one of those, the first one first

_IMAGES, _CLASSES = ("image", "image file"), ("class label", "int", "string")


@dataclass(frozen=True)
class SourceFacts:
    """Where a dataset comes from; the fields are those of `hmdc_hub.schema.SourceInfo`."""

    id: str
    kind: Literal["builtin", "torchvision", "hub", "local"]
    revision: str | None = None
    config: str | None = None
    license: str | None = None
    gated: bool = False
    private: bool = False
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class SplitSlice:
    """Rows `start` to `stop` (exclusive) of a split."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Split:
    """The rows of a split, of which nothing is decoded."""

    rows: int
    features: Mapping[str, Any]  # column to its type: a feature of `datasets`, or what `kind_of` makes of one
    # Gives the values of a column from a row to another: labels are whole numbers, text or None, images `Encoded`.
    read: Callable[[str, int, int], Iterable[Any]]
    class_names: Mapping[str, list[str]] = field(default_factory=dict)  # what a column's whole numbers stand for
    where: Callable[[int], str] | None = None  # names a row for errors; None: it is counted


class Reader:
    """A dataset whose images are not decoded yet; a split may be given as what opens it at its first use."""

    def __init__(self, facts: SourceFacts, splits: Mapping[str, Split | Callable[[], Split]]) -> None:
        self.facts = facts
        self._splits = dict(splits)

    def __getitem__(self, name: str) -> Split:
        split = self._splits[name]
        if not isinstance(split, Split):
            split = self._splits[name] = split()
        return split

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the dataset's order."""
        return tuple(self._splits)

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Check the columns of a split, or find those that are None; SourceError if that fails."""
        features, where = self[split].features, f"split {split!r} of {self.facts.id}"
        return find_image_column(features, image, where), find_label_column(features, label, where)

    def where(self, split: str, column: str, row: int) -> str:
        """Name a row, by the place in a file that it comes from where there is one."""
        name = self[split].where
        return name(row) if name else f"split {split!r}, column {column!r}, row {row} (counted from 0)"


def locate(parts: Sequence[SplitSlice], index: int) -> tuple[str, int]:
    """Find the split and the row, from 0, that the row `index` of the parts taken together comes from."""
    for part in parts:
        if index < len(part):
            return part.split, part.start + index
        index -= len(part)
    raise IndexError(index)


# Columns


def kind_of(feature: Any) -> str:
    """Classify a feature of `datasets`, or the column of a source that is none of its: then the kind itself.

    It is image, image file (a struct of bytes and path, or bytes), class label, int, string, float or other.
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
    """Check the image column that a recipe names, or find the only one, or the one with a usual name."""
    if wanted is not None:
        return _checked(features, wanted, "image_column", where)
    for kind in _IMAGES:
        candidates = [name for name, feature in features.items() if kind_of(feature) == kind]
        usual = candidates if len(candidates) == 1 else [name for name in IMAGE_NAMES if name in candidates]
        if usual:
            return usual[0]
        if candidates:
            raise SourceError(
                f"{where} has several image columns and none has a usual name: {', '.join(candidates)}",
                hint=f"Say which one, for example  image_column: {candidates[0]}",
            )
    raise SourceError(f"{where} has no image column; its columns: {_listed(features)}", hint=_RULES["image_column"][2])


def find_label_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str:
    """Check the label column that a recipe names, or find it.

    Found is the column whose name says that it holds the classes; without one, fine_label, the only ClassLabel column,
    or a column of whole numbers or text called category or cls.
    """
    if wanted is None:
        kinds = {name: kind_of(feature) for name, feature in features.items()}
        possible = [name for name, kind in kinds.items() if kind in _CLASSES]
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
                hint=f"Name one that fits, for example  label_column: {possible[0]}"
                if possible
                else "Add a column of whole numbers or text with the class of each image, or make a folder of images "
                "per class.",
            )
    return _checked(features, wanted, "label_column", where)


_RULES = {
    "image_column": (
        _IMAGES,
        ", not images",
        "A source needs a column of image files, or a folder that holds a folder of images per class; "
        'docs/your-data-and-model.md, "Columns of other types", makes one of paths, base64 or arrays.',
    ),
    "label_column": (
        _CLASSES,
        "; labels must be a ClassLabel, whole numbers or text, one class per image",
        "Where each image has one class, write it as a whole number or text and name the new file as the source: "
        'docs/your-data-and-model.md, "Columns of other types".',
    ),
}  # by key of a recipe: kinds that fit, the rule, what to do


def _checked(features: Mapping[str, Any], name: str, key: str, where: str) -> str:
    if name not in features:
        raise SourceError(
            f"source.{key}: {where} has no column {name!r}; its columns: {_listed(features)}",
            hint=f"Name one of them, or leave {key} out to have it detected.",
        )
    fitting, rule, convert = _RULES[key]
    if kind_of(features[name]) not in fitting:
        others = [other for other, feature in features.items() if kind_of(feature) in fitting]
        raise SourceError(
            f"source.{key}: column {name!r} of {where} holds {_type_of(features[name])}{rule}",
            hint=f"Name one that fits, for example  {key}: {others[0]}" if others else convert,
        )
    return name


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type_of(feature)})" for name, feature in features.items()) or "none"


def _type_of(feature: Any) -> str:
    kind = kind_of(feature)
    if kind == "other":
        return "a struct" if isinstance(feature, Mapping) else kind if feature == kind else type(feature).__name__
    names = {"image": "images", "image file": "bytes", "class label": "ClassLabel"}
    return names.get(kind, str(getattr(feature, "dtype", kind)))
