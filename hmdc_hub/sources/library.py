"""Datasets that come with a library: scikit-learn's digits, and torchvision's that have a split to score on.

Files of torchvision are kept in `$HMDC_HUB_CACHE/torchvision` (default `~/.cache/hmdc-hub/torchvision`), in its own
layout, so an existing download can be linked there. Some of its sets are pickles (CIFAR-10 and CIFAR-100): torchvision
compares their MD5 with the one in its source before it opens them, and only that makes unpickling acceptable.
"""

from __future__ import annotations

import difflib
import inspect
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hmdc_hub import rng
from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.sources.reader import Encoded, Reader, SourceFacts, Split
from hmdc_hub.store.files import cache_folder

PREFIX = "torchvision:"

_TEST_SHARE = 0.2


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
        test[rows[: round(_TEST_SHARE * len(rows))]] = True

    def split(chosen: Any) -> Split:
        columns = {"image": [Image.fromarray(one) for one in pixels[chosen]], "label": labels[chosen].tolist()}
        return Split(
            len(columns["label"]),
            {"image": "image", "label": "class label"},
            lambda column, start, stop: columns[column][start:stop],
            {"label": [str(digit) for digit in range(10)]},
        )

    facts = SourceFacts("builtin:digits", "builtin", license="cc-by-4.0")
    return Reader(facts, {"train": split(~test), "test": split(test)})


@dataclass(frozen=True)
class _Set:
    """How one dataset is divided.

    Attributes:
        splits: Name of a split to the arguments that select it.
        config_argument: Argument that selects one of `configs`, of which the first is the default.
        license: Hub id of the licence where the publisher states one, else None.
    """

    splits: Mapping[str, Mapping[str, Any]]
    config_argument: str | None = None
    configs: tuple[str, ...] = ()
    license: str | None = None


def _named(*names: str) -> Mapping[str, Mapping[str, Any]]:
    return {name: {"split": name} for name in names}


_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}

# Sets without a test split of their own (Caltech, EuroSAT, ...) are missing. FGVCAircraft's trainval is missing because
# it overlaps train; write train+val.
TORCHVISION: Mapping[str, _Set] = {
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

    Raises:
        SourceError: No such dataset, or no such form of it.
    """
    name = source.removeprefix(PREFIX)
    if name not in TORCHVISION:
        raise _unknown(name)
    known = TORCHVISION[name]
    if config is not None and config not in known.configs:
        raise SourceError(
            f"source.config: {source} has no configuration {config!r}"
            + (f"; it has {', '.join(known.configs)}" if known.configs else "; it has none at all"),
            hint=f"Write for example  config: {known.configs[0]}" if known.configs else "Leave config out.",
        )
    config = config or (known.configs[0] if known.configs else None)
    chosen = {known.config_argument: config} if known.config_argument else {}
    splits = {split: partial(_split, name, split, {**keys, **chosen}) for split, keys in known.splits.items()}
    return Reader(SourceFacts(source, "torchvision", config=config, license=known.license), splits)


def torchvision_root() -> Path:
    """Give the folder that torchvision's files are kept in."""
    return cache_folder("torchvision")


def _split(name: str, split: str, arguments: dict[str, Any]) -> Split:
    import torchvision

    made = getattr(torchvision.datasets, name)
    if "loader" in inspect.signature(made).parameters:
        arguments["loader"] = str  # so that to ask for a label decodes nothing
    dataset = _open_or_download(name, made, arguments)
    names = class_names_of(dataset)
    shift = 1 if names and names[0] == "N/A" else 0  # EMNIST's letters begin with a class that does not exist

    def read(column: str, start: int, stop: int) -> Iterator[Encoded | int]:
        if column == "label":
            stored = stored_labels(dataset)
            yield from (int(stored[row] if stored else dataset[row][1]) - shift for row in range(start, stop))
            return
        for row in range(start, stop):
            try:
                image = dataset[row][0]
                yield torchvision.datasets.folder.default_loader(image) if isinstance(image, str) else image
            except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a damaged PNG
                raise SourceError(
                    f"split {split!r}, row {row} (counted from 0): the image cannot be read: {error}",
                    hint=f"Remove the files of {name} under {torchvision_root()} to download them again.",
                ) from error

    kind = "class label" if names else "int"
    return Split(
        len(dataset), {"image": "image", "label": kind}, read, {"label": names[shift:]} if names is not None else {}
    )


def class_names_of(dataset: Any) -> list[str] | None:
    """Give the names in `dataset.classes`, the first where a class has several, as Imagenette's have; None: none."""
    names = getattr(dataset, "classes", None)
    return [name if isinstance(name, str) else name[0] for name in names] if names else None


def stored_labels(dataset: Any) -> list[Any] | None:
    """Get all labels of a dataset of torchvision without opening an image, or None where that fails.

    It has no common attribute for them, so they are believed only after the first and the last row agree with what
    indexing gives.
    """
    for attribute in ("targets", "labels"):
        stored = getattr(dataset, attribute, None)
        if stored is not None and len(stored) == len(dataset):
            values = stored.tolist() if hasattr(stored, "tolist") else list(stored)
            if all(values[row] == dataset[row][1] for row in (0, len(values) - 1)):
                return values
    return None


def _open_or_download(name: str, made: Any, arguments: Mapping[str, Any]) -> Any:
    from huggingface_hub import constants

    root = torchvision_root()
    try:
        return made(root=str(root), download=False, **arguments)
    except (RuntimeError, OSError):
        if constants.HF_HUB_OFFLINE:
            raise NetworkError(
                f"{PREFIX}{name} is not in {root}, and HF_HUB_OFFLINE forbids to download it",
                hint="Unset HF_HUB_OFFLINE, or put torchvision's files there.",
            ) from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        return made(root=str(root), download=True, **arguments)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise NetworkError(
            f"{PREFIX}{name} could not be downloaded to {root}: {error}",
            hint="Check the network and the space on that disk, and run the command again; or put torchvision's files "
            "there. HMDC_HUB_CACHE names another folder.",
        ) from error


def _unknown(name: str) -> SourceError:
    if name in ("ImageFolder", "DatasetFolder"):
        return SourceError(
            f"source.id: {PREFIX}{name} names no dataset but a way to read a folder",
            hint="Give the folder itself, for example  id: ./my-images  with train/<class>/ and test/<class>/ in it.",
        )
    by_lower = {known.lower(): known for known in TORCHVISION}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    return SourceError(
        f"source.id: {PREFIX}{name} is not a dataset of torchvision that has images, classes and a test split; those "
        f"are {', '.join(TORCHVISION)}",
        hint=f"Did you mean {' or '.join(PREFIX + match for match in close)}?" if close else "Choose one of them.",
    )
