"""Objects of this Python process as sources: what `datasets` and torch call a dataset, tensors and arrays."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.pixels import ROUNDING
from hmdc_hub.sources.reader import Reader, SourceFacts, Split
from hmdc_hub.sources.source import PYTHON
from hmdc_hub.sources.tables import table_split

_WHAT = (
    "a source is a datasets.Dataset or DatasetDict, a torch Dataset of (image, label) pairs, a pair of images and "
    "labels as tensors or arrays, or a mapping of split names to any of these"
)

_registered: dict[str, Any] = {}


def register_dataset(data: Any, name: str | None = None) -> str:
    """Make an object of this process a source.

    Args:
        data: A `datasets.Dataset` or `DatasetDict`; a torch Dataset of (image, label) pairs, each image a PIL image, or
            a tensor or array, channels x H x W, H x W x channels or H x W, uint8 or floats in [0, 1]; a pair (images,
            labels) of tensors or arrays of N such images and N labels (or a list of them); or a mapping of split names
            to any of these.
            What has no splits is the split train; `source.test_fraction` keeps a part of it to score on. Classes are
            those of a ClassLabel feature or of `data.classes`, else the labels that occur, whole numbers or text.
        name: Of the source, in reports and cards; None: one is made up. A name that is taken names the new data then.

    Returns:
        `python:<name>`, for `SourceSpec.id` in this process.

    Raises:
        SourceError: It is none of these, or the name has other characters than letters, digits, `.`, `_` and `-`.
    """
    open_data(data)
    if name is None:
        kind = type(data).__name__.lower().strip("_")
        base = "tensors" if isinstance(data, tuple | list) else "splits" if isinstance(data, dict) else kind
        names = (base if number == 1 else f"{base}-{number}" for number in range(1, sys.maxsize))
        name = next(one for one in names if _same(_registered.get(one, data), data))
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SourceError(
            f"{name!r} cannot be the name of a source: it has letters, digits, '.', '_' and '-'",
            hint="Choose another, for example  name='pets'",
        )
    _registered[name] = data
    return PYTHON + name


def _same(one: Any, other: Any) -> bool:
    """Tell whether two objects are one, or pairs or mappings of the same: a cell of a notebook makes these anew."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    pairs = isinstance(one, tuple | list) and isinstance(other, tuple | list) and len(one) == len(other) == 2
    return one is other or (pairs and all(a is b for a, b in zip(one, other, strict=True)))


def open_object(source: str) -> Reader:
    """Open what was registered in this process as `python:<name>`; a run calls it `local:<name>@<fingerprint>`."""
    name, _, fingerprint = source.partition(":")[2].partition("@")
    if name not in _registered:
        here = "data of its author, on a disk or in Python" if fingerprint else "an object of a Python session"
        check = f"; its fingerprint in info.json must begin with {fingerprint}" if fingerprint else ""
        raise SourceError(
            f"source.id: {source} stands for {here}, called {name}; no other process has them",
            hint="If you have them, let source.id name your copy; or in Python, call  Recipe.from_source(data) , or "
            f"hmdc_hub.sources.register_dataset(data, {name!r}){check}.",
        )
    return open_data(_registered[name], name)


def open_data(data: Any, name: str = "data") -> Reader:
    """Open an object that `register_dataset` takes, under the id `python:<name>`, after a look at what kind it is."""
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if not splits:
        raise SourceError(f"the mapping has no splits; {_WHAT}")
    opened = {str(split): _opener(str(split), one) for split, one in splits.items()}
    return Reader(SourceFacts(PYTHON + name, "local"), opened)


def _opener(split: str, data: Any) -> Callable[[], Split]:
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(data, datasets.Dataset):
        return partial(table_split, data)
    if isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "shape"):
        labels = np.asarray(data[1]) if isinstance(data[1], tuple | list) else data[1]
        if hasattr(labels, "shape"):
            data = Pairs(data[0], labels)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, str | bytes | tuple | list):
        endless = " without a length" if hasattr(data, "__iter__") and not hasattr(data, "__len__") else ""
        raise SourceError(
            f"split {split!r} is a {type(data).__name__}{endless}; {_WHAT}",
            hint="Read it into a list-like dataset first, for example with  datasets.Dataset.from_generator",
        )
    known = isinstance(data, Pairs) or type(data).__module__.startswith("torchvision.datasets")
    return partial(pairs_split, split, data, known=known)


class Pairs:
    """N images and N labels, arrays or tensors, as a dataset of pairs."""

    def __init__(self, images: Any, labels: Any, classes: list[str] | None = None) -> None:
        if len(images.shape) not in (3, 4) or len(labels.shape) != 1 or len(images) != len(labels):
            raise SourceError(
                f"images of the shape {tuple(images.shape)} and labels of the shape {tuple(labels.shape)} are no pairs",
                hint="Give N x channels x H x W or N x H x W, and N labels.",
            )
        self.images, self.targets, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.images[row], self.targets[row]


def pairs_split(
    split: str,
    data: Any,
    *,
    known: bool,
    load: Callable[[Any], Any] = lambda image: image,
    hint: str = "Mend the dataset: this item cannot be had.",
) -> Split:
    """Read a dataset of pairs (image, label); one of torchvision, or `Pairs`, is `known` and may store its labels.

    `load` is done with every image first; `hint` is for items that cannot be had.
    """
    # The first where a class has several, as Imagenette's have.
    classes = getattr(data.dataset if isinstance(data, Subset) else data, "classes", None) or []
    names = [name if isinstance(name, str) else name[0] for name in classes]
    shift = 1 if known and names[:1] == ["N/A"] else 0  # EMNIST's letters begin with a class that does not exist

    def where(row: int) -> str:
        return f"split {split!r}, item {row} (counted from 0)"

    def item(row: int, place: int) -> Any:
        try:
            pair = data[row]
            if isinstance(pair, tuple | list) and len(pair) == 2:
                return pair[place] if place else load(pair[place])
        except Exception as error:
            raise SourceError(f"{where(row)}: the dataset raised {type(error).__name__}: {error}", hint=hint) from error
        raise SourceError(
            f"{where(row)}: it is a {type(pair).__name__}, not a pair of an image and a label",
            hint="Wrap the dataset in one whose __getitem__ returns (image, label).",
        )

    @cache
    def labels() -> list[Any]:
        # A dataset of torchvision need not open its images for them, unless it changes its labels.
        plain = known and len(data) and getattr(data, "target_transform", None) is None
        values = _stored_labels(data) if plain else None
        values = values or [_plain(item(row, 1)) for row in range(len(data))]
        return [value - shift for value in values] if shift else values

    def read(column: str, start: int, stop: int) -> Iterator[Any]:
        if column == "label":
            yield from labels()[start:stop]
            return
        for row in range(start, stop):
            try:
                yield _image(item(row, 0))
            except SourceError as error:
                named = error.message.startswith(where(row))
                raise error if named else SourceError(f"{where(row)}: {error.message}", hint=error.hint) from error

    # Labels of torchvision are numbers, and to read them may open all images.
    text = (not known or isinstance(data, Pairs)) and len(data) and isinstance(labels()[0], str)
    kind = "class label" if names else "string" if text else "int"
    return Split(len(data), {"image": "image", "label": kind}, read, {"label": names[shift:]} if names else {}, where)


def _stored_labels(data: Any) -> list[Any] | None:
    """Get all labels of a dataset of torchvision without opening an image, or None where that fails.

    It has no common attribute for them, so they are believed only after the first and the last row agree with what
    indexing gives.
    """
    for attribute in ("targets", "labels"):
        stored = getattr(data, attribute, None)
        if stored is not None and len(stored) == len(data):
            values = stored.tolist() if hasattr(stored, "tolist") else [_plain(value) for value in stored]
            if all(values[row] == data[row][1] for row in (0, len(values) - 1)):
                return values
    return None


def _plain(value: Any) -> Any:
    """Turn a number of torch or NumPy into one of Python; what is no class stays as it is, and is refused later."""
    number = isinstance(value, np.generic) or (isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if number else value


def _image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise SourceError(
            f"the image is a {type(value).__name__}; it must be a PIL image, a tensor or an array",
            hint="Open files with PIL.Image.open in the dataset's __getitem__.",
        )
    order = (-1, 0)  # of channels, as NumPy and Pillow have them; the other way is taken, too
    if isinstance(value, torch.Tensor):
        value, order = value.detach().cpu(), (0, -1)
        value = (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
    array: NDArray[Any] = value
    places = [place for place in order if array.ndim == 3 and array.shape[place] in (1, 3)]
    if array.ndim != 2 and not places:
        raise SourceError(
            f"the image has the shape {tuple(array.shape)}; it must be channels x H x W (1 or 3 channels) or H x W",
            hint="Permute or convert the images first.",
        )
    if array.ndim == 3:
        array = np.moveaxis(array, places[0], -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.dtype.kind == "f":
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise SourceError(
                f"the image has floats from {low:.6g} to {high:.6g}; they must be in [0, 1]",
                hint="Give images as they were before normalisation; divide by 255 what reaches to 255.",
            )
        array = np.rint(array.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise SourceError(
            f"the image has the type {array.dtype}; it must be uint8, or floats in [0, 1]",
            hint="Pixels from 0 to 255 become that by  images.to(torch.uint8) , others by dividing by the largest "
            "value that their type of image can have.",
        )
    return Image.fromarray(np.ascontiguousarray(array))
