"""From the `source` section of a recipe to decoded images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources.bank import ClassBank, Source, make_source, offsets_of
from hmdc_hub.sources.blank import check_varied
from hmdc_hub.sources.convert import fill
from hmdc_hub.sources.digits import DigitsReader
from hmdc_hub.sources.labels import read_labels, train_counts
from hmdc_hub.sources.levels import Levels
from hmdc_hub.sources.mapped import allocate
from hmdc_hub.sources.reader import Encoded, Part, Reader, locate
from hmdc_hub.sources.splits import check_apart, find_splits, no_test_split, parse_split

BUILTINS = ("builtin:digits",)


def open_reader(source: str, revision: str | None = None, config: str | None = None) -> Reader:
    """Find a dataset by its id; arguments and meaning as the keys of the recipe.

    Args:
        source: `builtin:digits`, `torchvision:<Name>`, a path that exists, or a Hub dataset.
        revision: Of a Hub dataset; None: its newest commit.
        config: Configuration; None: the default or only one.

    Raises:
        SourceError: There is no such dataset, or a key does not apply to it.
        NetworkError: It must be downloaded and that failed.
    """
    if source.startswith("builtin:"):
        _hub_only(source, revision)
        if source not in BUILTINS:
            raise SourceError(f"source.id: {source} is not built in", hint=f"Built in: {', '.join(BUILTINS)}")
        if config is not None:
            raise SourceError(f"source.config: {source} has no configurations", hint="Leave config out.")
        return DigitsReader()
    if source.startswith("torchvision:"):
        _hub_only(source, revision)
        from hmdc_hub.sources.vision import open_vision

        return open_vision(source, config)
    if source.startswith("local:"):
        name, _, fingerprint = source.removeprefix("local:").partition("@")
        raise SourceError(
            f"source.id: {source} stands for data that the author of this recipe had on disk, called {name}",
            hint="If you have them, let source.id name your copy"
            + (f"; its fingerprint in info.json must begin with {fingerprint}." if fingerprint else "."),
        )
    from hmdc_hub.sources.local import local_path, open_local

    path = local_path(source)
    if path is not None:
        _hub_only(source, revision)
        return open_local(source, path, config)
    from hmdc_hub.sources.hub import open_hub

    return open_hub(source, revision, config)


def resolve_source(spec: SourceSpec) -> SourceSpec:
    """Fill what a recipe leaves to detection: commit, configuration, splits and columns.

    Opens the dataset, and downloads it if it is not in the cache; decodes nothing.

    Raises:
        SourceError: Detection fails or a key is wrong.
        NetworkError: The dataset must be downloaded and that failed.
    """
    return _resolved(open_reader(spec.id, spec.revision, spec.config), spec)


def load_source(spec: SourceSpec) -> Source:
    """Read and decode a source dataset.

    All labels are checked before the first image is decoded, and each image is decoded into its place in the order of
    the classes. A split of more than `mapped.MAPPED_FROM` bytes lies in a temporary file, which its tensors view.

    Args:
        spec: The recipe's section; what is None in it is detected.

    Returns:
        uint8 images of `spec.size` and `spec.channels`, the train split sorted by class, on the CPU.

    Raises:
        SourceError: A split, column, label or image is not as it must be; names the split, column and row.
        NetworkError: The dataset must be downloaded and that failed.
        RunError: A split needs a temporary file, and it cannot be made, as on a full disk.
    """
    reader = open_reader(spec.id, spec.revision, spec.config)
    spec = _resolved(reader, spec)
    train_split, test_split = str(spec.train_split), str(spec.test_split)
    train, test = parse_split(reader, train_split, "train_split"), parse_split(reader, test_split, "test_split")
    names, train_labels, test_labels = read_labels(reader, train, test, str(spec.label_column))
    order = np.argsort(train_labels, kind="stable")
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    levels = _levels(reader, spec, (*train, *test))
    bank = ClassBank(_pixels(reader, spec, train, positions, levels), offsets_of(train_counts(names, train_labels)))
    check_varied(bank, names, spec, lambda row: _image(reader, train, int(order[row]), str(spec.image_column)))
    return make_source(
        bank,
        _pixels(reader, spec, test, np.arange(len(test_labels)), levels),
        torch.from_numpy(test_labels),
        facts=reader.facts,
        class_names=names,
        splits=(train_split, test_split),
        columns=(str(spec.image_column), str(spec.label_column)),
        bits=levels.in_use,
        notes=levels.notes,
    )


def _resolved(reader: Reader, spec: SourceSpec) -> SourceSpec:
    train_split, test_split = find_splits(reader, spec.train_split, spec.test_split)
    train = parse_split(reader, train_split, "train_split")
    if test_split is None:
        raise no_test_split(reader)
    test = parse_split(reader, test_split, "test_split")
    check_apart(train, test, train_split, test_split)
    image, label = reader.columns(train[0].split, spec.image_column, spec.label_column)
    for part in (*train, *test):
        reader.columns(part.split, image, label)
    return spec.model_copy(
        update={
            "revision": reader.facts.revision,
            "config": reader.facts.config,
            "train_split": train_split,
            "test_split": test_split,
            "image_column": image,
            "label_column": label,
        }
    )


def _levels(reader: Reader, spec: SourceSpec, parts: tuple[Part, ...]) -> Levels:
    """Find white over all rows of the splits, so that no slice of them changes it."""
    splits = [Part(name, 0, reader.rows(name)) for name in dict.fromkeys(part.split for part in parts)]
    return Levels(lambda: (image for split in splits for image in reader.images(split, str(spec.image_column))))


def _image(reader: Reader, parts: tuple[Part, ...], index: int, column: str) -> Encoded:
    split, row = locate(parts, index)
    return next(iter(reader.images(Part(split, row, row + 1), column)))


def _pixels(
    reader: Reader, spec: SourceSpec, parts: tuple[Part, ...], positions: NDArray[np.int64], levels: Levels
) -> torch.Tensor:
    out = allocate((len(positions), spec.channels, spec.size, spec.size))
    column = str(spec.image_column)
    images = (image for part in parts for image in reader.images(part, column))
    fill(out, images, positions, parts, column, spec.fit, background=spec.background, levels=levels)
    return torch.from_numpy(out)


def _hub_only(source: str, revision: str | None) -> None:
    if revision is not None:
        raise SourceError(
            f"source.revision: {source} is not a dataset of the Hub, so it has no revision {revision!r}",
            hint="Leave revision out.",
        )
