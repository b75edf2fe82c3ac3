"""Read the classification datasets of torchvision that come with a split to score on.

Files are kept in `$HMDC_HUB_CACHE/torchvision` (default `~/.cache/hmdc-hub/torchvision`), in torchvision's own layout,
so an existing download can be linked there. Some of these sets are pickles (CIFAR-10 and CIFAR-100): torchvision
compares their MD5 with the one in its source before it opens them, and only that makes unpickling acceptable.
"""

from __future__ import annotations

import difflib
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.sources.digits import fixed_columns
from hmdc_hub.sources.reader import Encoded, Facts, Part, row_of_split
from hmdc_hub.store.files import cache_folder

PREFIX = "torchvision:"


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


_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}


def _named(*names: str) -> Mapping[str, Mapping[str, Any]]:
    return {name: {"split": name} for name in names}


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


def open_vision(source: str, config: str | None) -> VisionReader:
    """Find a torchvision dataset; nothing is read or downloaded yet.

    Args:
        source: Id in a recipe, `torchvision:<Name>`.
        config: For datasets with several forms (EMNIST, Imagenette); None: the first one.

    Raises:
        SourceError: No such dataset, or no such form of it.
    """
    name = source.removeprefix(PREFIX)
    if name not in SETS:
        raise _unknown(name)
    known = SETS[name]
    if config is not None and config not in known.configs:
        raise SourceError(
            f"source.config: {source} has no configuration {config!r}"
            + (f"; it has {', '.join(known.configs)}" if known.configs else "; it has none at all"),
            hint=f"Write for example  config: {known.configs[0]}" if known.configs else "Leave config out.",
        )
    config = config or (known.configs[0] if known.configs else None)
    return VisionReader(Facts(source, "torchvision", config=config, license=known.license), known, name)


@dataclass
class VisionReader:
    """A `Reader` of a torchvision dataset; a split is opened, and downloaded if missing, at its first use."""

    facts: Facts
    known: _Set
    name: str
    _open: dict[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.known.splits)

    def rows(self, split: str) -> int:
        """Count the rows of a split."""
        return len(self._dataset(split))

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Give the columns; other names are refused."""
        return fixed_columns(self.facts.id, image, label)

    def class_names(self, split: str, label: str) -> list[str] | None:
        """Give the names if torchvision knows them."""
        names = getattr(self._dataset(split), "classes", None)
        if not names:
            return None
        # Imagenette has several names per class; EMNIST's letters begin with a class that does not exist.
        plain = [name if isinstance(name, str) else name[0] for name in names]
        return plain[1:] if plain[0] == "N/A" else plain

    def labels(self, part: Part, label: str) -> list[object]:
        """Read the labels of some rows."""
        dataset = self._dataset(part.split)
        shift = 1 if list(getattr(dataset, "classes", None) or [""])[0] == "N/A" else 0
        values = _stored_labels(dataset)
        rows = range(part.start, part.stop)
        return [int(values[row] if values else dataset[row][1]) - shift for row in rows]

    def images(self, part: Part, image: str) -> Iterator[Encoded]:
        """Read the images of some rows, as torchvision opens them."""
        dataset = self._dataset(part.split)
        for row in range(part.start, part.stop):
            try:
                yield dataset[row][0]
            except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a damaged PNG
                raise SourceError(
                    f"split {part.split!r}, row {row} (counted from 0): the image cannot be read: {error}",
                    hint=f"Remove the files of {self.name} under {vision_root()} to download them again.",
                ) from error

    def where(self, split: str, column: str, row: int) -> str:
        """Name a row for errors."""
        return row_of_split(split, column, row)

    def _dataset(self, split: str) -> Any:
        if split not in self._open:
            arguments = dict(self.known.splits[split])
            if self.known.config_argument:
                arguments[self.known.config_argument] = self.facts.config
            self._open[split] = _open_or_download(self.name, arguments)
        return self._open[split]


def vision_root() -> Path:
    """Give the folder that torchvision's files are kept in."""
    return cache_folder("torchvision")


def _open_or_download(name: str, arguments: Mapping[str, Any]) -> Any:
    import torchvision
    from huggingface_hub import constants

    make, root = getattr(torchvision.datasets, name), vision_root()
    try:
        return make(root=str(root), download=False, **arguments)
    except (RuntimeError, OSError):
        if constants.HF_HUB_OFFLINE:
            raise NetworkError(
                f"{PREFIX}{name} is not in {root}, and HF_HUB_OFFLINE forbids to download it",
                hint="Unset HF_HUB_OFFLINE, or put torchvision's files there.",
            ) from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        return make(root=str(root), download=True, **arguments)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise NetworkError(
            f"{PREFIX}{name} could not be downloaded to {root}: {error}",
            hint="Check the network and the space on that disk, and run the command again; or put torchvision's files "
            "there. HMDC_HUB_CACHE names another folder.",
        ) from error


def _stored_labels(dataset: Any) -> list[Any] | None:
    """Get all labels without opening an image, or None where that fails.

    torchvision has no common attribute for them, and some are private: so they are believed only after the first and
    the last row agree with what indexing gives.
    """
    for attribute in ("targets", "labels", "_labels", "_samples"):
        stored = getattr(dataset, attribute, None)
        if stored is None or len(stored) != len(dataset):
            continue
        values = stored.tolist() if hasattr(stored, "tolist") else list(stored)
        if attribute == "_samples":
            values = [value[1] for value in values]
        if all(values[row] == dataset[row][1] for row in (0, len(values) - 1)):
            return values
    return None


def _unknown(name: str) -> SourceError:
    if name in ("ImageFolder", "DatasetFolder"):
        return SourceError(
            f"source.id: {PREFIX}{name} names no dataset but a way to read a folder",
            hint="Give the folder itself, for example  id: ./my-images  with train/<class>/ and test/<class>/ in it.",
        )
    by_lower = {known.lower(): known for known in SETS}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    return SourceError(
        f"source.id: {PREFIX}{name} is not a dataset of torchvision that has images, classes and a test split; those "
        f"are {', '.join(SETS)}",
        hint=f"Did you mean {' or '.join(PREFIX + match for match in close)}?" if close else "Choose one of them.",
    )
