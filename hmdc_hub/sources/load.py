"""From the `source` section of a recipe to decoded images; and a proposal of that section, for `hmdc-hub init`."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hmdc_hub.errors import SourceError
from hmdc_hub.events import Callback, Note, silent
from hmdc_hub.schema import LOCAL, LeftOut, SourceSpec
from hmdc_hub.sources.objects import TORCHVISION, open_data, open_digits, open_object, open_torchvision
from hmdc_hub.sources.pixels import Background, Levels, allocate, fill, open_header, open_image, to_pixels
from hmdc_hub.sources.reader import Encoded, Reader, SplitSlice, locate
from hmdc_hub.sources.rows import (
    TEST_NAMES,
    Parts,
    check_apart,
    check_varied,
    file_keys,
    find_splits,
    held_out_count,
    held_out_rows,
    is_blank,
    parse_split,
    pixel_keys,
    read_labels,
    repeated_rows,
    undividable,
)
from hmdc_hub.sources.source import (
    PYTHON,
    ClassSortedImages,
    Source,
    SourceSummary,
    left_out_notes,
    make_source,
    offsets_of,
)
from hmdc_hub.sources.tables import local_path, open_hub, open_local

DIGITS = "builtin:digits"
FRACTIONS = ("test_fraction", "validation_fraction")  # keys of a source, in the order in which they divide it
TRACE = 0.01  # share of test images that may be train images too: large collections have a few, a score hardly changes
SAMPLE = 64
SMALLEST_SIZE, LARGEST_SIZE = 4, 224

_ORIENTATION = 0x0112  # of EXIF


def open_reader(source: str, revision: str | None = None, config: str | None = None) -> Reader:
    """Find a dataset by its id; arguments and meaning as the keys of the recipe.

    UsageError: there is none, or a key does not apply to it; NetworkError: it must be downloaded and that failed.
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
    """
    resolved = _resolved(open_reader(spec.id, spec.revision, spec.config), spec, require_test=True)[0]
    return resolved.model_copy(update={"id": load_source(resolved).info.id}) if spec.id.startswith(PYTHON) else resolved


@dataclass(frozen=True, eq=False)
class SourceIndex:
    """What can be told of a source without decoding an image."""

    reader: Reader
    spec: SourceSpec  # with nothing left to detection
    train: Parts  # rows of its train split
    test: Parts  # of its test split; none where a fraction of the other is scored on
    class_names: list[str]
    train_labels: NDArray[np.int64]  # in 0..C-1, of the rows of `train`
    test_labels: NDArray[np.int64]

    def summary(self) -> SourceSummary:
        """Count what is used as what, up to equal files where a fraction of the images is scored on."""
        facts, scored = self.reader.facts, [len(self.test_labels)]
        counts = np.bincount(self.train_labels, minlength=len(self.class_names)).tolist()
        for fraction in (getattr(self.spec, name) for name in FRACTIONS):
            if fraction is not None:  # the last one counts
                scored = [held_out_count(count, fraction) for count in counts]
                counts = [count - part for count, part in zip(counts, scored, strict=True)]
        if facts.kind != "torchvision":  # to count the rows of a split might download it
            used = {part.split for part in (*self.train, *self.test)}
            unused = [name for name in self.reader.splits if name not in used]
            reasons = {f"split {name!r} is not used": self.reader[name].rows for name in unused}
            left_out = [LeftOut(reason=reason, count=count, examples=[]) for reason, count in reasons.items()]
            facts = replace(facts, left_out=(*facts.left_out, *left_out))
        return SourceSummary(self.spec, facts, tuple(self.class_names), tuple(counts), sum(scored))

    def images(self, parts: Parts) -> Iterator[Encoded]:
        """Read the images of some rows without decoding them."""
        column = str(self.spec.image_column)
        return (image for part in parts for image in self.reader[part.split].read(column, part.start, part.stop))

    def where(self, row: int) -> str:
        """Name a row of `train` and `test` taken together for errors."""
        split, place = locate((*self.train, *self.test), row)
        return self.reader.where(split, str(self.spec.image_column), place)


def index_source(spec: SourceSpec, *, require_test: bool = True) -> SourceIndex:
    """Open a source and read its labels; decodes nothing. There need be no images to score on without `require_test`.

    A UsageError names the split, column and row that are not as they must be.
    """
    reader = open_reader(spec.id, spec.revision, spec.config)
    spec, train, test = _resolved(reader, spec, require_test)
    names, train_labels, test_labels = read_labels(reader, train, test, str(spec.label_column))
    if fractions := [name for name in FRACTIONS if getattr(spec, name) is not None]:
        counts = np.bincount(train_labels, minlength=len(names))
        if alone := [name for name, count in zip(names, counts, strict=True) if count <= len(fractions)]:
            raise undividable(alone, fractions[-1])
    return SourceIndex(reader, spec, train, test, names, train_labels, test_labels)


def _resolved(reader: Reader, spec: SourceSpec, require_test: bool) -> tuple[SourceSpec, Parts, Parts]:
    """Fill what a recipe leaves to detection, and find the rows of both splits."""
    train_split, test_split = find_splits(reader, spec.train_split, spec.test_split)
    train, test = parse_split(reader, train_split, "train_split"), Parts()
    if spec.test_fraction is not None or spec.validation_fraction is not None:
        test_split = None
    elif test_split is not None:
        test = parse_split(reader, test_split, "test_split")
        check_apart(train, test, train_split, test_split)
    elif require_test:
        raise SourceError(
            f"{reader.facts.id} has no split to score on: none of {', '.join(TEST_NAMES)} is left beside the one that "
            f"is condensed (its splits: {', '.join(reader.splits)})",
            hint="Keep a fifth of every class for it with  test_fraction: 0.2  or name a split with  "
            "test_split: <name>",
        )
    image, label = reader.columns(train[0].split, spec.image_column, spec.label_column)
    for part in (*train, *test):
        reader.columns(part.split, image, label)
    found = {"revision": reader.facts.revision, "config": reader.facts.config}
    found |= {"train_split": train_split, "test_split": test_split, "image_column": image, "label_column": label}
    return spec.model_copy(update=found), train, test


def load_source(spec: SourceSpec, *, callback: Callback = silent) -> Source:
    """Read and decode a source dataset to uint8 images of `spec.size` and `spec.channels`, on the CPU.

    All labels are checked before the first image is decoded, and each image is decoded into its place in the order of
    the classes. More than `pixels.MAPPED_FROM` bytes of images lie in a temporary file, which the tensors view.
    `callback` is told what is used as what, and what is left out.

    A UsageError names the split, column and row, or two images that are in both splits; NetworkError: it must be
    downloaded and that failed; RunError: the temporary file cannot be made, as on a full disk.
    """
    asked, index = spec.id, index_source(spec)
    spec, names, parts = index.spec, index.class_names, (*index.train, *index.test)
    labels = np.concatenate([index.train_labels, index.test_labels])
    train, test, aside = _divided(index, labels)
    train = train[np.argsort(labels[train], kind="stable")]
    rows = np.concatenate([train, test, aside])
    positions = np.empty_like(rows)
    positions[rows] = np.arange(len(rows))
    out = allocate((len(rows), spec.channels, spec.size, spec.size))
    # White is found over all rows of the splits, so that no slice of them changes it.
    whole = tuple(SplitSlice(name, 0, index.reader[name].rows) for name in dict.fromkeys(part.split for part in parts))
    levels = Levels(lambda: index.images(whole))
    fill(out, index.images(parts), positions, index.where, spec.fit, background=spec.background, levels=levels)
    images = torch.from_numpy(out)
    counts = np.bincount(labels[train], minlength=len(names)).tolist()
    sorted_, test_images = (
        ClassSortedImages(images[: len(train)], offsets_of(counts)),
        images[len(train) :][: len(test)],
    )
    check_varied(sorted_, names, spec)
    summary = replace(index.summary(), train_counts=tuple(counts), test_count=len(test))
    source = make_source(
        sorted_,
        test_images,
        torch.from_numpy(labels[test]),
        facts=summary.facts,
        class_names=names,
        train_split=spec.train_split,
        test_split=spec.test_split or spec.train_split,
        test_fraction=spec.test_fraction if spec.validation_fraction is None else spec.validation_fraction,
        image_column=spec.image_column,
        label_column=spec.label_column,
        repeated=_count_repeated(index, rows, sorted_.images, test_images, callback),
        bits=levels.in_use,
    )
    if asked.startswith(LOCAL) and not source.info.fingerprint.startswith(asked.rpartition("@")[2]):
        raise SourceError(
            f"source.id: what is registered as {asked.removeprefix(LOCAL).partition('@')[0]} has the fingerprint "
            f"{source.info.fingerprint[:16]}, {asked} has another: other images, or others every time they are read",
            hint="Register the same data, without random transforms.",
        )
    for number, text in enumerate((*summary.lines(), *levels.notes)):
        callback(Note(text, detail=number < 2))  # what is used as what; after that, what is not
    return source


def _divided(index: SourceIndex, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Say which rows of the index are condensed, which are scored on, and which are neither: three arrays of int64.

    The last are the test images of `test_fraction` where `validation_fraction` holds others back.
    """
    spec, names, rows = index.spec, index.class_names, np.arange(len(labels))
    scored = rows >= len(index.train_labels)
    if spec.test_fraction is None and spec.validation_fraction is None:
        return rows[~scored], rows[scored], rows[:0]
    keys, aside = file_keys(index.images(index.train)), np.zeros_like(scored)
    if spec.test_fraction is not None:
        scored = held_out_rows(keys, labels, names, spec.test_fraction)
    if spec.validation_fraction is not None:
        aside, left = scored, rows[~scored]
        scored = np.zeros_like(aside)
        scored[left] = held_out_rows(
            keys[left], labels[left], names, spec.validation_fraction, key="validation_fraction"
        )
    return rows[~scored & ~aside], rows[scored], rows[aside]


def _count_repeated(
    index: SourceIndex, rows: NDArray[np.int64], train: Tensor, test: Tensor, callback: Callback
) -> int:
    """Count the test images that are train images too, and refuse more than a trace of them.

    `rows` are those of the index of each train image, then of each test image.
    """
    found = repeated_rows(pixel_keys(train), pixel_keys(test))
    said = f"{len(found)} of {len(test)} test images are, pixel by pixel, train images too"
    if len(found) <= TRACE * len(test):
        if len(found):
            callback(Note(said))
        return len(found)
    one, same = (index.where(int(rows[place])) for place in (len(train) + found[0, 0], found[0, 1]))
    raise SourceError(
        f"{said}, such as {one} and {same}; a score on images that were condensed says nothing",
        hint="Remove the copies."
        if not index.test
        else "Remove them from one of the splits; or leave test_split out and say  test_fraction: 0.2 , which keeps "
        "a part of the train split that is apart.",
    )


# What `hmdc-hub init` looks at


@dataclass(frozen=True)
class Detection(SourceSummary):
    """What was found in a dataset, and a `source` section for it.

    The size of `spec` is the median of the shorter sides, even and at most 224; it has one channel if every image of
    the sample is grey, and a black background if every one is blank on white, and not every one on black. Its
    `test_split` is None if the dataset has none.
    """

    sides: tuple[int, int, int]  # smallest, median and largest shorter side in pixels, over a sample of the train split

    def lines(self) -> list[str]:
        """Say what was found, for people."""
        smallest, median, largest = self.sides
        sides = f"{median}" if smallest == largest else f"{smallest} to {largest}, median {median}"
        revision = f", revision {self.facts.revision}" if self.facts.revision else ""
        return [
            *super().lines(),
            f"shorter side {sides} pixels, {'grey' if self.spec.channels == 1 else 'colour'}",
            f"licence {self.facts.license or 'unknown'}{', gated' if self.facts.gated else ''}{revision}",
        ]


def describe(source: str, **keys: Any) -> Detection:
    """Look at a dataset: an id as in a recipe, and keys of its `source` section that are known already.

    Downloads the dataset if it is not in the cache; reads all labels, decodes up to 64 images. It need not have a test
    split.
    """
    index = index_source(SourceSpec(id=source, size=LARGEST_SIZE, **keys), require_test=False)
    total = len(index.train_labels)
    count, sample = min(SAMPLE, total), []
    for k in range(count):  # spread evenly over the rows, which may be sorted by class
        split, row = locate(index.train, k * total // count)
        sample.append(open_image(next(index.images((SplitSlice(split, row, row + 1),)))))
    sides = sorted(min(one.size) for one in sample)
    size = min(LARGEST_SIZE, max(SMALLEST_SIZE, 2 * round(statistics.median(sides) / 2)))
    background: Background = "black" if _vanish(sample, "white") and not _vanish(sample, "black") else "white"
    found = {"size": size, "channels": 1 if all(map(_is_grey, sample)) else 3, "background": background}
    summary = index.summary()
    spec = summary.spec.model_copy(update=found)
    return Detection(**vars(summary) | {"spec": spec}, sides=(sides[0], int(statistics.median(sides)), sides[-1]))


def _vanish(sample: list[Image.Image], background: Background) -> bool:
    """Tell whether there is nothing to be seen in transparent images, as in white drawings on white."""
    return all(
        one.has_transparency_data
        and is_blank(to_pixels(one, size=LARGEST_SIZE, channels=3, fit="stretch", background=background))
        for one in sample
    )


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return True
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


# A single split


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One split of a dataset."""

    images: Tensor  # uint8 N x channels x size x size, on the CPU, in the order of the dataset
    labels: Tensor  # int64 N, in 0..C-1
    class_names: list[str]  # of labels without names those that occur, sorted, as text
    sizes: Counter[tuple[int, int]]  # (width, height) before they were resized, upright, with how many had it
    colour: int  # how many of them were in colour
    columns: tuple[str, str]  # of images and of labels
    notes: tuple[str, ...]  # what was left out, and what is white in images of more than 8 bits; lines for the user


def read_images(
    data: Any, *, split: str | None = None, max_images: int | None = None, max_pixels: int | None = None, **keys: Any
) -> LabelledImages:
    """Read the images and labels of one split; there need not be another one to score on.

    `data` is what `SourceSpec.id` can be, a path, or an object that `register_dataset` takes; `split` None: train, or
    the only one. More than `max_images` images, or `max_pixels` pixels of one, are refused. `keys` are those of
    `SourceSpec`, `size` at least. Errors as `load_source`.
    """
    path = os.fspath(data) if isinstance(data, str | os.PathLike) else None
    spec = SourceSpec(id=path or f"{PYTHON}data", **keys)
    reader = open_reader(spec.id, spec.revision, spec.config) if path is not None else open_data(data)
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
    image, label = reader.columns(parts[0].split, spec.image_column, spec.label_column)
    names, labels, none = read_labels(reader, parts, (), label, every=False)
    spec = spec.model_copy(update={"image_column": image, "label_column": label})
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
                        hint=f"Save it smaller: it becomes {spec.size} x {spec.size}.",
                    )
                sizes[width, height] += 1
                colour += mode not in ("1", "L", "LA", "F") and not mode.startswith("I")
            yield encoded

    out = np.empty((count, spec.channels, spec.size, spec.size), dtype=np.uint8)
    levels = Levels(lambda: index.images(parts))
    fill(out, images(), np.arange(count), index.where, spec.fit, background=spec.background, levels=levels)
    notes = (*left_out_notes(reader.facts.left_out), *levels.notes)
    pixels = torch.from_numpy(out)
    return LabelledImages(pixels, torch.from_numpy(labels), names, sizes, colour, (image, label), notes)


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
