"""Sources that are pairs of images and labels: objects of this Python process, and datasets that come with a library.

Objects are what `datasets` and torch call a dataset, tensors and arrays; libraries have scikit-learn's digits, and the
sets of torchvision that have a split to score on. Files of torchvision are kept in `$HMDC_HUB_CACHE/torchvision`
(default `~/.cache/hmdc-hub/torchvision`), in its own layout, so an existing download can be linked there. Some of its
sets are pickles (CIFAR-10 and CIFAR-100): torchvision compares their MD5 with the one in its source before it opens
them, and only that makes unpickling acceptable.
"""

from __future__ import annotations

import inspect
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset

from hmdc_hub import rng
from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.sources.pixels import ROUNDING
from hmdc_hub.sources.reader import Reader, SourceFacts, Split
from hmdc_hub.sources.source import PYTHON
from hmdc_hub.sources.tables import table_split
from hmdc_hub.store.files import cache_folder
from hmdc_hub.text import close, did_you_mean

TORCHVISION = "torchvision:"  # begins the ids of its datasets

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
            data = _Pairs(data[0], labels)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, str | bytes | tuple | list):
        endless = " without a length" if hasattr(data, "__iter__") and not hasattr(data, "__len__") else ""
        raise SourceError(
            f"split {split!r} is a {type(data).__name__}{endless}; {_WHAT}",
            hint="Read it into a list-like dataset first, for example with  datasets.Dataset.from_generator",
        )
    return partial(_pairs_split, split, data)


class _Pairs:
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


def _pairs_split(
    split: str,
    data: Any,
    *,
    load: Callable[[Any], Any] = lambda image: image,
    hint: str = "Mend the dataset: this item cannot be had.",
) -> Split:
    """Read a dataset of pairs (image, label); `load` is done with every image first, `hint` is for lost items."""
    known = isinstance(data, _Pairs) or type(data).__module__.startswith("torchvision.datasets")  # may store its labels
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
    text = (not known or isinstance(data, _Pairs)) and len(data) and isinstance(labels()[0], str)
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


# Datasets of libraries


def open_digits() -> Reader:
    """Open a real dataset that needs no download, divided into 1,438 train and 359 test images, every class alike.

    1,797 grey images of handwritten digits, 8 x 8 pixels with values 0 to 16: the test part of "Optical Recognition of
    Handwritten Digits" (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998), CC BY 4.0.
    """
    from sklearn.datasets import load_digits  # half a second that other sources need not wait for

    data = load_digits()
    pixels, labels = np.rint(data.images * (255 / 16)).astype(np.uint8), data.target
    test = np.zeros(len(labels), dtype=np.bool_)
    for c in range(10):  # a fifth of every class by keyed hashes, which no library version can change
        rows = np.flatnonzero(labels == c).tolist()
        rows.sort(key=lambda row: rng.derived_seed(0, "digits test split", row))
        test[rows[: round(0.2 * len(rows))]] = True
    names = [str(digit) for digit in range(10)]
    splits = {
        split: _pairs_split(split, _Pairs(pixels[chosen], labels[chosen], names))
        for split, chosen in (("train", ~test), ("test", test))
    }
    return Reader(SourceFacts("builtin:digits", "builtin", license="cc-by-4.0"), splits)


class _Set(NamedTuple):
    """How one dataset is divided."""

    splits: Mapping[str, Mapping[str, Any]]  # name of a split to the arguments that select it
    config_argument: str | None = None  # argument that selects one of `configs`, of which the first is the default
    configs: tuple[str, ...] = ()
    license: str | None = None  # Hub id of the licence where the publisher states one


def _named(*names: str) -> Mapping[str, Mapping[str, Any]]:
    return {name: {"split": name} for name in names}


_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}

# Sets without a test split of their own (Caltech, EuroSAT, ...) are missing. FGVCAircraft's trainval is missing because
# it overlaps train; write train+val.
SETS: Mapping[str, _Set] = {
    "CIFAR10": _Set(_FLAG),
    "CIFAR100": _Set(_FLAG),
    "Country211": _Set(_named("train", "valid", "test")),
    "DTD": _Set(_named("train", "val", "test")),
    "EMNIST": _Set(_FLAG, "split", ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")),
    "FGVCAircraft": _Set(_named("train", "val", "test")),
    "FashionMNIST": _Set(_FLAG, license="mit"),
    "Flowers102": _Set(_named("train", "val", "test")),
    "Food101": _Set(_named("train", "test")),
    "GTSRB": _Set(_named("train", "test")),
    "Imagenette": _Set(_named("train", "val"), "size", ("full", "320px", "160px")),
    "KMNIST": _Set(_FLAG, license="cc-by-sa-4.0"),
    "MNIST": _Set(_FLAG),
    "OxfordIIITPet": _Set({"train": {"split": "trainval"}, "test": {"split": "test"}}, license="cc-by-sa-4.0"),
    "QMNIST": _Set(_FLAG),
    "RenderedSST2": _Set(_named("train", "val", "test")),
    "STL10": _Set(_named("train", "test")),
    "SVHN": _Set(_named("train", "test")),
    "USPS": _Set(_FLAG),
}


def open_torchvision(source: str, config: str | None) -> Reader:
    """Find a torchvision dataset; a split is opened, and downloaded if missing, at its first use.

    `config` selects one of several forms (EMNIST, Imagenette); None: the first one.
    """
    name = source.removeprefix(TORCHVISION)
    if name in ("ImageFolder", "DatasetFolder"):
        raise SourceError(
            f"source.id: {source} names no dataset but a way to read a folder",
            hint="Give the folder itself, for example  id: ./my-images  with train/<class>/ and test/<class>/ in it.",
        )
    if name not in SETS:
        near = did_you_mean([TORCHVISION + known for known in close(name, SETS, cutoff=0.5)])
        raise SourceError(
            f"source.id: {source} is not a dataset of torchvision that has images, classes and a test split; those "
            f"are {', '.join(SETS)}",
            hint=near[:1].upper() + near[1:] or "Choose one of them.",
        )
    known = SETS[name]
    if config is not None and config not in known.configs:
        raise SourceError(
            f"source.config: {source} has no configuration {config!r}"
            + (f"; it has {', '.join(known.configs)}" if known.configs else "; it has none at all"),
            hint=f"Write for example  config: {known.configs[0]}" if known.configs else "Leave config out.",
        )
    config = config or (known.configs[0] if known.configs else None)
    chosen = {known.config_argument: config} if known.config_argument else {}
    splits = {
        split: partial(_torchvision_split, name, split, {**keys, **chosen}) for split, keys in known.splits.items()
    }
    return Reader(SourceFacts(source, "torchvision", config=config, license=known.license), splits)


def _torchvision_split(name: str, split: str, arguments: dict[str, Any]) -> Split:
    import torchvision

    made = getattr(torchvision.datasets, name)
    if "loader" in inspect.signature(made).parameters:
        arguments["loader"] = str  # so that to ask for a label decodes nothing
    load = torchvision.datasets.folder.default_loader
    return _pairs_split(
        split,
        _open_or_download(name, made, arguments),
        load=lambda image: load(image) if isinstance(image, str) else image,
        hint=f"Remove the files of {name} under {cache_folder('torchvision')} to download them again.",
    )


def _open_or_download(name: str, made: Any, arguments: Mapping[str, Any]) -> Any:
    from huggingface_hub import constants

    root = cache_folder("torchvision")
    try:
        return made(root=str(root), download=False, **arguments)
    except (RuntimeError, OSError):
        if constants.HF_HUB_OFFLINE:
            raise NetworkError(
                f"{TORCHVISION}{name} is not in {root}, and HF_HUB_OFFLINE forbids to download it",
                hint="Unset HF_HUB_OFFLINE, or put torchvision's files there.",
            ) from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        return made(root=str(root), download=True, **arguments)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise NetworkError(
            f"{TORCHVISION}{name} could not be downloaded to {root}: {error}",
            hint="Check the network and the space on that disk, and run the command again; or put torchvision's files "
            "there. HMDC_HUB_CACHE names another folder.",
        ) from error
