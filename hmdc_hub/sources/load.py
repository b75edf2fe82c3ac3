"""From the `source` section of a recipe to decoded images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmdc_hub.errors import SourceError
from hmdc_hub.events import Callback, Note, silent
from hmdc_hub.schema import LOCAL, LeftOut, SourceSpec
from hmdc_hub.sources.checks import (
    TRACE,
    check_varied,
    file_keys,
    held_out_count,
    held_out_rows,
    pixel_keys,
    repeated_rows,
    undividable,
)
from hmdc_hub.sources.library import PREFIX as TORCHVISION
from hmdc_hub.sources.library import open_digits, open_torchvision
from hmdc_hub.sources.objects import open_data, open_object
from hmdc_hub.sources.pixels import Levels, allocate, fill, open_header
from hmdc_hub.sources.reader import Encoded, Reader, SourceFacts, SplitSlice, locate
from hmdc_hub.sources.rows import check_apart, class_counts, find_splits, no_test_split, parse_split, read_labels
from hmdc_hub.sources.source import (
    PYTHON,
    ClassSortedImages,
    Source,
    left_out_notes,
    make_source,
    offsets_of,
    source_notes,
)
from hmdc_hub.sources.tables import local_path, open_hub, open_local

DIGITS = "builtin:digits"

_ORIENTATION = 0x0112  # of EXIF


def open_reader(source: str, revision: str | None = None, config: str | None = None) -> Reader:
    """Find a dataset by its id; arguments and meaning as the keys of the recipe.

    Raises:
        UsageError: There is no such dataset, or a key does not apply to it.
        NetworkError: It must be downloaded and that failed.
    """
    if source.startswith((PYTHON, LOCAL)):
        return open_object(source)
    known = source.startswith(("builtin:", TORCHVISION))
    path = None if known else local_path(source)
    if not known and path is None:
        return open_hub(source, revision, config)
    if revision is not None:
        raise SourceError(
            f"source.revision: {source} is not a dataset of the Hub, so it has no revision {revision!r}",
            hint="Leave revision out.",
        )
    if path is not None:
        return open_local(source, path, config)
    if source.startswith(TORCHVISION):
        return open_torchvision(source, config)
    if source != DIGITS:
        raise SourceError(f"source.id: {source} is not built in", hint=f"Built in: {DIGITS}")
    if config is not None:
        raise SourceError(f"source.config: {source} has no configurations", hint="Leave config out.")
    return open_digits()


def resolve_source(spec: SourceSpec) -> SourceSpec:
    """Fill what a recipe leaves to detection: commit, configuration, splits and columns.

    Opens the dataset, and downloads it if it is not in the cache; reads no label and decodes nothing. But an object of
    this process, `python:<name>`, is read, and called `local:<name>@<16 hex digits of its fingerprint>` from then on.

    Raises:
        UsageError: Detection fails or a key is wrong.
        NetworkError: The dataset must be downloaded and that failed.
    """
    resolved = _resolved(open_reader(spec.id, spec.revision, spec.config), spec, require_test=True)
    return resolved.model_copy(update={"id": load_source(resolved).info.id}) if spec.id.startswith(PYTHON) else resolved


@dataclass(frozen=True, eq=False)
class SourceIndex:
    """What can be told of a source without decoding an image.

    Attributes:
        reader: The opened dataset.
        spec: The recipe's section with nothing left to detection.
        train: Rows of its train split.
        test: Rows of its test split; none where `spec.test_fraction` divides the other.
        class_names: C names.
        train_labels: int64, in 0..C-1, of the rows of `train`; `test_labels` of `test`.
    """

    reader: Reader
    spec: SourceSpec
    train: tuple[SplitSlice, ...]
    test: tuple[SplitSlice, ...]
    class_names: list[str]
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]

    @property
    def train_counts(self) -> list[int]:
        """Images per class that are condensed; up to equal files where a fraction of them is scored on."""
        counts, fraction = class_counts(self.class_names, self.train_labels), self.spec.test_fraction
        return counts if fraction is None else [count - held_out_count(count, fraction) for count in counts]

    @property
    def test_count(self) -> int:
        """Images that are scored on, likewise."""
        return len(self.test_labels) + len(self.train_labels) - sum(self.train_counts)

    @property
    def facts(self) -> SourceFacts:
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

    def images(self, parts: tuple[SplitSlice, ...]) -> Iterator[Encoded]:
        """Read the images of some rows without decoding them."""
        return (image for part in parts for image in self.reader.images(part, str(self.spec.image_column)))

    def image(self, row: int) -> Encoded:
        """Read the image of a row of `train` and `test` taken together."""
        split, place = locate((*self.train, *self.test), row)
        return next(self.images((SplitSlice(split, place, place + 1),)))

    def where(self, row: int) -> str:
        """Name a row of `train` and `test` taken together for errors."""
        split, place = locate((*self.train, *self.test), row)
        return self.reader.where(split, str(self.spec.image_column), place)


def index_source(spec: SourceSpec, *, require_test: bool = True) -> SourceIndex:
    """Open a source and read its labels; decodes nothing. There need be no images to score on without `require_test`.

    Raises:
        UsageError: A split, column or label is not as it must be; names the split, column and row.
        NetworkError: The dataset must be downloaded and that failed.
    """
    reader = open_reader(spec.id, spec.revision, spec.config)
    spec = _resolved(reader, spec, require_test)
    train = parse_split(reader, str(spec.train_split), "train_split")
    test = parse_split(reader, spec.test_split, "test_split") if spec.test_split is not None else ()
    names, train_labels, test_labels = read_labels(reader, train, test, str(spec.label_column))
    if spec.test_fraction is not None:
        counts = class_counts(names, train_labels)
        if alone := [name for name, count in zip(names, counts, strict=True) if count < 2]:
            raise undividable(alone)
    return SourceIndex(reader, spec, train, test, names, train_labels, test_labels)


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


def load_source(spec: SourceSpec, *, callback: Callback = silent) -> Source:
    """Read and decode a source dataset.

    All labels are checked before the first image is decoded, and each image is decoded into its place in the order of
    the classes. More than `pixels.MAPPED_FROM` bytes of images lie in a temporary file, which the tensors view.

    Args:
        spec: The recipe's section; what is None in it is detected.
        callback: Told what is used as what, and what is left out.

    Returns:
        uint8 images of `spec.size` and `spec.channels`, the train split sorted by class, on the CPU.

    Raises:
        UsageError: A split, column, label or image is not as it must be; names the split, column and row. Or more than
            a trace of the test images are train images too; or an object of this process is not what it was.
        NetworkError: The dataset must be downloaded and that failed.
        RunError: The images need a temporary file, and it cannot be made, as on a full disk.
    """
    asked, index = spec.id, index_source(spec)
    spec, names, parts = index.spec, index.class_names, (*index.train, *index.test)
    labels, scored = np.concatenate([index.train_labels, index.test_labels]), _scored_rows(index)
    train, test = np.flatnonzero(~scored), np.flatnonzero(scored)
    train = train[np.argsort(labels[train], kind="stable")]
    rows = np.concatenate([train, test])
    positions = np.empty_like(rows)
    positions[rows] = np.arange(len(rows))
    out = allocate((len(rows), spec.channels, spec.size, spec.size))
    # White is found over all rows of the splits, so that no slice of them changes it.
    whole = tuple(SplitSlice(name, 0, index.reader.rows(name)) for name in dict.fromkeys(part.split for part in parts))
    levels = Levels(lambda: index.images(whole))
    fill(out, index.images(parts), positions, index.where, spec.fit, background=spec.background, levels=levels)
    images = torch.from_numpy(out)
    sorted_ = ClassSortedImages(images[: len(train)], offsets_of(class_counts(names, labels[train])))
    test_images = images[len(train) :]
    check_varied(sorted_, names, spec, lambda row: index.image(int(rows[row])))
    source = make_source(
        sorted_,
        test_images,
        torch.from_numpy(labels[test]),
        facts=index.facts,
        class_names=names,
        splits=(str(spec.train_split), spec.test_split or str(spec.train_split)),
        columns=(str(spec.image_column), str(spec.label_column)),
        test_fraction=spec.test_fraction,
        repeated=_count_repeated(index, rows, sorted_.images, test_images, callback),
        bits=levels.in_use,
    )
    if asked.startswith(LOCAL) and not source.info.fingerprint.startswith(asked.rpartition("@")[2]):
        raise SourceError(
            f"source.id: what is registered as {asked.removeprefix(LOCAL).partition('@')[0]} has the fingerprint "
            f"{source.info.fingerprint[:16]}, {asked} has another: other images, or others every time they are read",
            hint="Register the same data, without random transforms.",
        )
    for text in source_notes(spec, names, sorted_.counts, len(test), source.info.left_out) + [*levels.notes]:
        callback(Note(text))
    return source


def _scored_rows(index: SourceIndex) -> NDArray[np.bool_]:
    """Tell the rows of all parts that are scored on from those that are condensed."""
    if index.spec.test_fraction is None:
        return np.arange(len(index.train_labels) + len(index.test_labels)) >= len(index.train_labels)
    keys = file_keys(index.images(index.train))
    return held_out_rows(keys, index.train_labels, index.class_names, index.spec.test_fraction)


def _count_repeated(
    index: SourceIndex, rows: NDArray[np.int64], train: Tensor, test: Tensor, callback: Callback
) -> int:
    """Count the test images that are train images too, and refuse more than a trace of them.

    `rows` are those of the index of each train image, then of each test image.
    """
    found = repeated_rows(pixel_keys(train), pixel_keys(test))
    if len(found) <= TRACE * len(test):
        if len(found):
            callback(Note(f"{len(found)} of {len(test)} test images are, pixel by pixel, train images too"))
        return len(found)
    one, same = (index.where(int(rows[place])) for place in (len(train) + found[0, 0], found[0, 1]))
    raise SourceError(
        f"{len(found)} of {len(test)} test images are, pixel by pixel, train images too, such as "
        f"{one} and {same}; a score on images that were condensed says nothing",
        hint="Remove the copies."
        if index.spec.test_fraction is not None
        else "Remove them from one of the splits; or leave test_split out and say  test_fraction: 0.2 , which keeps "
        "a part of the train split that is apart.",
    )


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One split of a dataset.

    Attributes:
        images: uint8 N x channels x size x size, on the CPU, in the order of the dataset.
        labels: int64 N, in 0..C-1.
        class_names: C names. Of labels without names, those that occur, sorted, as text.
        sizes: (width, height) of the images before they were resized, upright, with how many had it.
        colour: How many of them were in colour.
        columns: Image and label column.
        notes: What of the data was left out, and what is white in images of more than 8 bits; lines for the user.
        facts: Where the data come from.
    """

    images: Tensor
    labels: Tensor
    class_names: list[str]
    sizes: Counter[tuple[int, int]]
    colour: int
    columns: tuple[str, str]
    notes: tuple[str, ...]
    facts: SourceFacts


def read_images(
    data: Any,
    *,
    size: int,
    channels: Literal[1, 3] = 3,
    fit: Literal["crop", "stretch"] = "crop",
    background: Literal["white", "black"] = "white",
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_images: int | None = None,
    max_pixels: int | None = None,
) -> LabelledImages:
    """Read the images and labels of one split; there need not be another one to score on.

    `data` is what `SourceSpec.id` can be, a path, or an object that `register_dataset` takes; `split` None: train, or
    the only one. More than `max_images` images, or `max_pixels` pixels of one, are refused; the others are keys of
    `SourceSpec`. Errors as `load_source`.
    """
    reader = open_reader(os.fspath(data), revision, config) if isinstance(data, str | os.PathLike) else open_data(data)
    if split is None:
        if "train" not in reader.splits and len(reader.splits) > 1:
            raise SourceError(
                f"{reader.facts.id} has the splits {', '.join(reader.splits)}; of several, the one named train is read",
                hint="Give the file or folder of the one you mean, or name it train.",
            )
        split = "train" if "train" in reader.splits else reader.splits[0]
    parts = parse_split(reader, split, "split")
    count = sum(map(len, parts))
    if max_images is not None and count > max_images:
        raise SourceError(
            f"{reader.facts.id} has {count:,} images, more than the {max_images:,} that are read",
            hint="Save a part of it.",
        )
    image, label = reader.columns(parts[0].split, image_column, label_column)
    names, labels, none = read_labels(reader, parts, (), label, every=False)
    spec = SourceSpec(id=reader.facts.id, size=size, image_column=image, label_column=label)
    index = SourceIndex(reader, spec, parts, (), names, labels, none)
    sizes: Counter[tuple[int, int]] = Counter()
    colour = 0

    def images() -> Iterator[Encoded]:
        nonlocal colour
        for row, encoded in enumerate(index.images(parts)):
            if (found := _header(encoded)) is not None:
                (width, height), mode = found
                if max_pixels is not None and width * height > max_pixels:
                    raise SourceError(
                        f"{index.where(row)}: the image is {width} x {height} pixels, more than the {max_pixels:,} "
                        "that are read",
                        hint=f"Save it smaller: it becomes {size} x {size}.",
                    )
                sizes[width, height] += 1
                colour += mode not in ("1", "L", "LA", "F") and not mode.startswith("I")
            yield encoded

    out = np.empty((count, channels, size, size), dtype=np.uint8)
    levels = Levels(lambda: index.images(parts))
    fill(out, images(), np.arange(count), index.where, fit, background=background, levels=levels)
    notes = (*left_out_notes(reader.facts.left_out), *levels.notes)
    pixels = torch.from_numpy(out)
    return LabelledImages(pixels, torch.from_numpy(labels), names, sizes, colour, (image, label), notes, reader.facts)


def _header(encoded: Encoded) -> tuple[tuple[int, int], str] | None:
    """Read size, upright, and mode of an image without decoding it; None of what `fill` will refuse."""
    try:
        with open_header(encoded) as image:
            # Pillow decodes a PNG to look for an orientation behind its pixels.
            asked = image.format != "PNG" or "exif" in image.info
            turned = asked and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return (image.size[::-1] if turned else image.size), image.mode
    except Exception:  # whatever a damaged file leads Pillow into
        return None
