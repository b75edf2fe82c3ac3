"""Datasets that come with a library: scikit-learn's digits, and torchvision's that have a split to score on.

Files of torchvision are kept in `$HMDC_HUB_CACHE/torchvision` (default `~/.cache/hmdc-hub/torchvision`), in its own
layout, so an existing download can be linked there. Some of its sets are pickles (CIFAR-10 and CIFAR-100): torchvision
compares their MD5 with the one in its source before it opens them, and only that makes unpickling acceptable.
"""

from __future__ import annotations

import inspect
import tarfile
import zipfile
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hmdc_hub import rng
from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.sources.objects import Pairs, pairs_split
from hmdc_hub.sources.reader import Reader, SourceFacts, Split
from hmdc_hub.store.files import cache_folder
from hmdc_hub.text import close, did_you_mean

PREFIX = "torchvision:"


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
        split: pairs_split(split, Pairs(pixels[chosen], labels[chosen], names), known=True)
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
    """
    name = source.removeprefix(PREFIX)
    if name in ("ImageFolder", "DatasetFolder"):
        raise SourceError(
            f"source.id: {source} names no dataset but a way to read a folder",
            hint="Give the folder itself, for example  id: ./my-images  with train/<class>/ and test/<class>/ in it.",
        )
    if name not in TORCHVISION:
        near = did_you_mean([PREFIX + known for known in close(name, TORCHVISION, cutoff=0.5)])
        raise SourceError(
            f"source.id: {source} is not a dataset of torchvision that has images, classes and a test split; those "
            f"are {', '.join(TORCHVISION)}",
            hint=near[:1].upper() + near[1:] or "Choose one of them.",
        )
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


def _split(name: str, split: str, arguments: dict[str, Any]) -> Split:
    import torchvision

    made = getattr(torchvision.datasets, name)
    if "loader" in inspect.signature(made).parameters:
        arguments["loader"] = str  # so that to ask for a label decodes nothing
    load = torchvision.datasets.folder.default_loader
    return pairs_split(
        split,
        _open_or_download(name, made, arguments),
        known=True,
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
