"""From the `source` section of a recipe to decoded images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hmdc_hub.errors import SourceError
from hmdc_hub.events import Listener, Note, silent
from hmdc_hub.schema import LeftOut, SourceSpec
from hmdc_hub.sources.bank import ClassBank, Source, make_source, offsets_of, source_notes
from hmdc_hub.sources.blank import check_varied
from hmdc_hub.sources.content import (
    TRACE,
    file_keys,
    held_out_count,
    held_out_rows,
    pixel_keys,
    repeated_rows,
    undividable,
)
from hmdc_hub.sources.convert import fill
from hmdc_hub.sources.digits import DigitsReader
from hmdc_hub.sources.labels import read_labels, train_counts
from hmdc_hub.sources.levels import Levels
from hmdc_hub.sources.mapped import allocate
from hmdc_hub.sources.reader import Encoded, Facts, Part, Reader, locate
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

    Opens the dataset, and downloads it if it is not in the cache; reads no label and decodes nothing.

    Raises:
        SourceError: Detection fails or a key is wrong.
        NetworkError: The dataset must be downloaded and that failed.
    """
    return _resolved(open_reader(spec.id, spec.revision, spec.config), spec, require_test=True)


@dataclass(frozen=True, eq=False)
class SourceIndex:
    """What can be told of a source without decoding an image.

    Attributes:
        reader: The opened dataset.
        spec: The recipe's section with nothing left to detection.
        train: Rows of its train split; `test` of its test split, none where `spec.test_fraction` divides the
            other.
        class_names: C names.
        train_labels: int64, in 0..C-1, of the rows of `train`; `test_labels` of `test`.
    """

    reader: Reader
    spec: SourceSpec
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    class_names: list[str]
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]

    @property
    def train_counts(self) -> list[int]:
        """Images per class that are condensed; up to equal files where a fraction of them is scored on."""
        counts, fraction = train_counts(self.class_names, self.train_labels), self.spec.test_fraction
        return counts if fraction is None else [count - held_out_count(count, fraction) for count in counts]

    @property
    def test_count(self) -> int:
        """Images that are scored on, likewise."""
        return len(self.test_labels) + len(self.train_labels) - sum(self.train_counts)

    @property
    def facts(self) -> Facts:
        """Where the source comes from; the splits that are not used are among what was left out."""
        facts, used = self.reader.facts, {part.split for part in (*self.train, *self.test)}
        if facts.kind == "torchvision":
            return facts  # to count the rows of a split might download it
        unused = [
            LeftOut(reason=f"split {split!r} is not used", count=self.reader.rows(split), examples=[])
            for split in self.reader.splits
            if split not in used
        ]
        return replace(facts, left_out=(*facts.left_out, *unused))


def index_source(spec: SourceSpec, *, require_test: bool = True) -> SourceIndex:
    """Open a source and read its labels; decodes nothing.

    Args:
        spec: The recipe's section; what is None in it is detected.
        require_test: Whether there must be images to score on.

    Raises:
        SourceError: A split, column or label is not as it must be; names the split, column and row.
        NetworkError: The dataset must be downloaded and that failed.
    """
    reader = open_reader(spec.id, spec.revision, spec.config)
    spec = _resolved(reader, spec, require_test)
    train = parse_split(reader, str(spec.train_split), "train_split")
    test = parse_split(reader, spec.test_split, "test_split") if spec.test_split is not None else ()
    names, train_labels, test_labels = read_labels(reader, train, test, str(spec.label_column))
    if spec.test_fraction is not None:
        counts = train_counts(names, train_labels)
        if alone := [name for name, count in zip(names, counts, strict=True) if count < 2]:
            raise undividable(alone)
    return SourceIndex(reader, spec, train, test, names, train_labels, test_labels)


def load_source(spec: SourceSpec, *, listener: Listener = silent) -> Source:
    """Read and decode a source dataset.

    All labels are checked before the first image is decoded, and each image is decoded into its place in the order of
    the classes. More than `mapped.MAPPED_FROM` bytes of images lie in a temporary file, which the tensors view.

    Args:
        spec: The recipe's section; what is None in it is detected.
        listener: Told what is used as what, and what is left out.

    Returns:
        uint8 images of `spec.size` and `spec.channels`, the train split sorted by class, on the CPU.

    Raises:
        SourceError: A split, column, label or image is not as it must be; names the split, column and row. Or more than
            a trace of the test images are train images too.
        NetworkError: The dataset must be downloaded and that failed.
        RunError: The images need a temporary file, and it cannot be made, as on a full disk.
    """
    index = index_source(spec)
    spec, names = index.spec, index.class_names
    labels, scored = np.concatenate([index.train_labels, index.test_labels]), _scored_rows(index)
    train, test = np.flatnonzero(~scored), np.flatnonzero(scored)
    train = train[np.argsort(labels[train], kind="stable")]
    rows = np.concatenate([train, test])
    positions = np.empty_like(rows)
    positions[rows] = np.arange(len(rows))
    parts = (*index.train, *index.test)
    out = allocate((len(rows), spec.channels, spec.size, spec.size))
    levels = _levels(index)
    fill(
        out,
        _images(index, parts),
        positions,
        lambda row: _where(index, row),
        spec.fit,
        background=spec.background,
        levels=levels,
    )
    images = torch.from_numpy(out)
    bank = ClassBank(images[: len(train)], offsets_of(train_counts(names, labels[train])))
    test_images = images[len(train) :]
    check_varied(bank, names, spec, lambda row: _image(index, int(rows[row])))
    source = make_source(
        bank,
        test_images,
        torch.from_numpy(labels[test]),
        facts=index.facts,
        class_names=names,
        splits=(str(spec.train_split), spec.test_split or str(spec.train_split)),
        columns=(str(spec.image_column), str(spec.label_column)),
        test_fraction=spec.test_fraction,
        repeated=_count_repeated(index, rows, bank.images, test_images, listener),
        bits=levels.in_use,
    )
    for text in source_notes(spec, names, bank.counts, len(test), source.info.left_out) + [*levels.notes]:
        listener(Note(text))
    return source


def _scored_rows(index: SourceIndex) -> NDArray[np.bool_]:
    """Tell the rows of all parts that are scored on from those that are condensed."""
    if index.spec.test_fraction is None:
        return np.arange(len(index.train_labels) + len(index.test_labels)) >= len(index.train_labels)
    keys = file_keys(_images(index, index.train))
    return held_out_rows(keys, index.train_labels, index.class_names, index.spec.test_fraction)


def _images(index: SourceIndex, parts: tuple[Part, ...]) -> Iterator[Encoded]:
    return (image for part in parts for image in index.reader.images(part, str(index.spec.image_column)))


def _image(index: SourceIndex, row: int) -> Encoded:
    split, place = locate((*index.train, *index.test), row)
    return next(iter(index.reader.images(Part(split, place, place + 1), str(index.spec.image_column))))


def _where(index: SourceIndex, row: int) -> str:
    """Name a row of all parts for errors."""
    split, place = locate((*index.train, *index.test), row)
    return index.reader.where(split, str(index.spec.image_column), place)


def _levels(index: SourceIndex) -> Levels:
    """Find white over all rows of the splits, so that no slice of them changes it."""
    splits = dict.fromkeys(part.split for part in (*index.train, *index.test))
    return Levels(lambda: _images(index, tuple(Part(name, 0, index.reader.rows(name)) for name in splits)))


def _count_repeated(
    index: SourceIndex, rows: NDArray[np.int64], train: torch.Tensor, test: torch.Tensor, listener: Listener
) -> int:
    """Count the test images that are train images too, and refuse more than a trace of them.

    Args:
        index: The source.
        rows: Row of all its parts of each train image, then of each test image.
        train: uint8 N x channels x side x side.
        test: uint8 M x channels x side x side.
        listener: Told of a trace.
    """
    found = repeated_rows(pixel_keys(train), pixel_keys(test))
    if len(found) <= TRACE * len(test):
        if len(found):
            listener(Note(f"{len(found)} of {len(test)} test images are, pixel by pixel, train images too"))
        return len(found)
    one, same = (_where(index, int(rows[place])) for place in (len(train) + found[0, 0], found[0, 1]))
    raise SourceError(
        f"{len(found)} of {len(test)} test images are, pixel by pixel, train images too, such as "
        f"{one} and {same}; a score on images that were condensed says nothing",
        hint="Remove the copies."
        if index.spec.test_fraction is not None
        else "Remove them from one of the splits; or leave test_split out and say  test_fraction: 0.2 , which keeps "
        "a part of the train split that is apart.",
    )


def _resolved(reader: Reader, spec: SourceSpec, require_test: bool) -> SourceSpec:
    train_split, test_split = find_splits(reader, spec.train_split, spec.test_split)
    train = parse_split(reader, train_split, "train_split")
    if spec.test_fraction is not None:
        test_split = None
    elif test_split is None and require_test:
        raise no_test_split(reader)
    test = () if test_split is None else parse_split(reader, test_split, "test_split")
    if test_split is not None:
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


def _hub_only(source: str, revision: str | None) -> None:
    if revision is not None:
        raise SourceError(
            f"source.revision: {source} is not a dataset of the Hub, so it has no revision {revision!r}",
            hint="Leave revision out.",
        )
