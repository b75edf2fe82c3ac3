"""Condensed sets of other programs: files, folders, datasets of the Hub, and objects of this Python session."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmdc_hub import multi_formation
from hmdc_hub.errors import FormatError, HmdcError, NetworkError, NotFoundError, SourceError, UsageError
from hmdc_hub.evaluator.baselines import EvaluatedSet
from hmdc_hub.evaluator.pixels import check_shapes, content_hash, images_and_labels, not_normalised, pixels_of, times
from hmdc_hub.sources import Source, read_images
from hmdc_hub.store.condensed import METADATA_KEY, check_header, read_condensed
from hmdc_hub.store.dataset import CondensedDataset
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.parquet import iter_sizes, measure, to_uint8
from hmdc_hub.text import some

# A set may have so many images, and so many times the images of its source: it is smaller, and all in memory.
FEW, TIMES = 1000, 10
MOST_PIXELS = 2**24  # of an image of a set: 4096 x 4096
# Most bytes that a parquet file holds unpacked, and how many times its size beside them.
UNPACKED, TIMES_UNPACKED = 64 * 1024 * 1024, 20

_ARRAYS = re.compile(r"(\.(npy|npz|pt|pth|pkl|pickle)|[-.]idx[13][-.]ubyte(\.gz)?)$", re.IGNORECASE)
_AS_TENSORS = """\
import torch, numpy as np, safetensors.torch
images, labels = np.load("images.npy"), np.load("labels.npy")  # or torch.load(..., weights_only=True), or as it needs
images, labels = torch.as_tensor(images).contiguous(), torch.as_tensor(labels).contiguous()
safetensors.torch.save_file({"images": images, "labels": labels}, "set.safetensors")  # which is then read"""

# From keys of a recipe, which those who score a set have not written, to options.
_WORDS = (
    (r"^source\.\w+: ", ""),
    (r"or copy  revision: .*", "or name a full commit with --revision."),
    (r", or choose another column with  label_column: .*", "."),
    (r"\b(config|revision): (?=\S)", r"--\1 "),
    (r"\bLeave (config|revision) out", r"Leave --\1 out"),
    (r"\bid: (?=\S)", ""),
)

_COLUMNS = (
    "A set has one column of images and one of classes; Dataset.select_columns and cast_column of datasets make it so. "
    "An image folder has a folder of images per class."
)


def evaluated_set(
    data: Any,
    source: Source,
    *,
    name: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    normalised: bool = False,
    fit: Literal["crop", "stretch"] = "crop",
    background: Literal["white", "black"] = "white",
) -> EvaluatedSet:
    """Read a condensed set of any program, its labels as those of the source.

    Args:
        data: A safetensors file, with tensors as the pair below or of ours. Or what can be a source: a parquet file, a
            folder of parquet files or of one folder of images per class, a dataset on the Hub, `builtin:digits`, a
            `datasets.Dataset` or a torch dataset; of these the train split, or the only one, is read, and images become
            of the source's side and channels as its own did. Or a `CondensedDataset`, or the pair (images, labels):
            N x ch x H x W or N x H x W x ch, uint8 or floats in [0, 1], and N whole numbers.
        source: What the set was condensed from, on the CPU.
        name: What reports call it; None: as the file or dataset is called.
        config: Configuration of a folder or dataset.
        revision: Branch, tag or commit of a dataset on the Hub.
        normalised: The floats are source-normalised, `(pixel - mean) / std`, instead of pixels in [0, 1].
        fit: As `source.fit` of the recipe, for images that are not square.
        background: As `source.background`, for images with transparent pixels.

    Returns:
        The set in the order of the data; classes may have different numbers of images, or none. `exact` are the floats,
        where there are such.

    Raises:
        UsageError: It is not there, is no set of images with labels, or does not fit the source.
        FormatError: It is a file of ours and damaged.
        NetworkError: It must be downloaded and that failed.
    """
    if isinstance(data, EvaluatedSet):
        return data
    options = {"config": config, "revision": revision, "fit": fit, "background": background}
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if name is None:
            name = path.stem if path.is_file() else re.split("[/:]", str(data))[-1]
            name = path.resolve().name if path.is_dir() else name
        return _Reader(name, str(data), source, normalised).path(path, options)
    name = name or (data.header.name if isinstance(data, CondensedDataset) else "set")
    reader = _Reader(name, name, source, normalised)
    if (pair := _tensors(data)) is not None:
        return reader.pair(*images_and_labels(name, *pair))
    reader.refuse_normalised("holds images, and only floats can be normalised")
    if isinstance(data, CondensedDataset):
        reader.check_fits(data.images.shape)
        known = {"exact": data.images, "factor": data.factor, "condense_hash": data.header.condense_hash}
        return reader.numbered(to_uint8(data.images), data.labels, data.class_names, **known)
    return reader.images(data, None, options)


def refuse_arrays(path: Path, lines: str = _AS_TENSORS) -> None:
    """Refuse, by its name, a file of arrays, whose readers may run code, or a folder of such; `lines` convert them."""
    files = [file for file in path.rglob("[!.]*") if not file.is_dir()] if path.is_dir() else [path]
    if files and all(_ARRAYS.search(file.name) for file in files):
        raise UsageError(
            f"{path} is not read: files of arrays can hold a pickle, and to open one can run any program.",
            hint="If you trust it, convert it (docs/your-data.md, Arrays, has more lines):\n"
            + "\n".join(f"  {line}" for line in lines.splitlines()),
        )


class _Reader(NamedTuple):
    """Reads one set, for one source."""

    name: str  # of the set
    what: str  # errors are about: a path, or the name
    source: Source
    normalised: bool

    def path(self, path: Path, options: dict[str, Any]) -> EvaluatedSet:
        """Read what can be named: a file, a folder, a dataset on the Hub."""
        refuse_arrays(path)
        if path.suffix == ".safetensors" and not path.is_dir():
            for option in ("config", "revision"):
                if options[option] is not None:
                    raise UsageError(f"--{option} does not apply to a file.", hint="Leave it out.")
            if not path.is_file():
                raise NotFoundError(f"There is no file {path}.", hint="Paths are relative to the current folder.")
            return self.tensors(path)
        if path.is_file() and path.suffix != ".parquet":
            kind = path.suffix or "file without a suffix"
            raise UsageError(
                f"{path} is a {kind}; of files, .parquet and .safetensors can be read.",
                hint="Convert it, or give the folder that it is in.",
            )
        self.refuse_normalised("holds images, and only floats can be normalised")
        return self.images(self.what, path, options)

    def images(self, data: Any, path: Path | None, options: dict[str, Any]) -> EvaluatedSet:
        """Read the train split, or the only one, of what can be a source; `path`: where it may be on this disk."""
        side, channels, most = self.source.train.side, self.source.train.channels, self.most_images
        try:
            if path is not None:
                _refuse_bombs(path, most)
            options = options | {"max_images": most, "max_pixels": MOST_PIXELS}
            found = read_images(data, size=side, channels=3 if channels == 3 else 1, **options)
        except SourceError as error:
            if path is not None and path.is_dir():
                refuse_arrays(path)
                if files := sorted(path.glob("*.safetensors")):
                    hint = f"Name the file: {files[0]}"
                    raise UsageError(f"{path} is a folder that holds no images.", hint=hint) from None
            hint = _reworded(error.hint)
            raise UsageError(_reworded(error.message), hint=_COLUMNS if "_column: " in hint else hint) from error
        except NetworkError as error:
            raise NetworkError(_reworded(error.message), hint=_reworded(error.hint)) from error
        notes = [] if found.columns == ("image", "label") else ["columns {} and {}".format(*found.columns)]
        notes += found.notes
        others = [size for size, _ in found.sizes.most_common() if size != (side, side)]
        if others:
            width, height = others[0]
            more = " and other sizes" if len(others) > 1 else ""
            notes.append(f"resized from {width}x{height}{more} to {side}x{side}")
        if channels == 1 and found.colour:
            notes.append(f"{found.colour} of {len(found.images)} images were in colour and became grey")
        # Pixels that were made here are more than the file says: they depend on `fit`.
        digest = sha256_file(path) if path is not None and path.is_file() and not others else None
        return self.numbered(found.images, found.labels, found.class_names, sha256=digest, notes=tuple(notes))

    def tensors(self, path: Path) -> EvaluatedSet:
        """Read a safetensors file, of ours or with tensors of images and labels."""
        try:
            check_header(path)
            with safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
                shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
                if METADATA_KEY in (file.metadata() or {}):
                    return self.ours(path, shapes.get("images", ()))
                whole = {key for key, part in slices.items() if part.get_dtype()[0] in "IU"}
                images, labels = _keys(path, shapes, whole)
                # All of it before a tensor is read: its file may be larger than the memory.
                check_shapes(self.what, images, shapes[images], labels, shapes[labels], labels in whole)
                self.refuse_many(shapes[images][0])
                self.check_fits(shapes[images])
                pair = images_and_labels(self.what, file.get_tensor(images), file.get_tensor(labels))
        except HmdcError:
            raise  # some of ours are of the types below
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{path} cannot be read as safetensors: {error}.", hint="Write or copy it again."
            ) from error
        return self.pair(*pair, sha256=sha256_file(path))

    def ours(self, path: Path, shape: tuple[int, ...]) -> EvaluatedSet:
        """Read a file of hmdc-hub, whose images have a shape."""
        self.refuse_normalised("is a file of hmdc-hub, which holds pixels")
        if len(shape) == 4:
            self.check_fits(shape)
        synthetic, labels, header = read_condensed(path)
        factor = header.factor
        self.refuse_many(len(synthetic) * factor**2)
        exact = multi_formation.decode(synthetic.reshape(-1, header.ipc, *synthetic.shape[1:]), factor).flatten(0, 1)
        labels = labels.repeat_interleave(factor**2)
        known = {"exact": exact, "factor": factor, "condense_hash": header.condense_hash, "sha256": sha256_file(path)}
        return self.numbered(to_uint8(exact), labels, header.class_names, **known)

    def pair(self, images: Tensor, labels: Tensor, sha256: str | None = None) -> EvaluatedSet:
        """Take images N x ch x H x W and class numbers N."""
        self.check_fits(images.shape)
        pixels, exact, notes = pixels_of(self.what, images, self.source, normalised=self.normalised)
        return self.numbered(pixels, labels, None, exact=exact, notes=notes, sha256=sha256)

    def numbered(self, images: Tensor, labels: Tensor, names: Sequence[str] | None, **known: Any) -> EvaluatedSet:
        """Number labels, which are numbers of `names` if there are such, as the source does; `known` of the set."""
        classes = self.source.info.class_names
        if names is not None:
            labels = torch.tensor(_match(self.what, names, classes))[labels]
        elif (low := int(labels.min())) < 0 or int(labels.max()) >= len(classes):
            raise _out_of_range(self.what, low, int(labels.max()), classes)
        counts = torch.bincount(labels, minlength=len(classes)).tolist()
        if missing := [name for name, number in zip(classes, counts, strict=True) if number == 0]:
            note = f"no image of {len(missing)} of {len(classes)} classes: {some(missing)}"
            known["notes"] = (*known.get("notes", ()), note)
        known["sha256"] = known.get("sha256") or content_hash(images, labels, known.get("exact"))
        stored = tuple(number // known.get("factor", 1) ** 2 for number in counts)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).lstrip("._-") or "set"
        return EvaluatedSet(name, images, labels, stored, **known)

    @property
    def most_images(self) -> int:
        return max(FEW, TIMES * sum(self.source.info.train_counts))

    def refuse_many(self, images: int) -> None:
        if images > self.most_images:
            raise UsageError(
                f"{self.what} has {images:,} images; of a source of {sum(self.source.info.train_counts):,}, sets of up "
                f"to {self.most_images:,} are scored.",
                hint="Save a part of it.",
            )

    def refuse_normalised(self, why: str) -> None:
        """Refuse --normalised, since nothing is there to be mapped back."""
        if self.normalised:
            raise not_normalised(self.what, why)

    def check_fits(self, shape: Sequence[int]) -> None:
        """Refuse images, given by their shape, of other size or channels than the source's."""
        channels, height, width = shape[1:] if shape[1] in (1, 3) else (shape[3], *shape[1:3])
        side, wanted = self.source.train.side, self.source.train.channels
        if height != width:
            raise UsageError(
                f"{self.what}: images are {height} x {width} pixels; those of a source are squares, here {side} x "
                f"{side}.",
                hint="Save them as PNG files in a folder per class: files are resized as the source is.",
            )
        wrong = [f"source.size: {height}"] * (height != side) + [f"source.channels: {channels}"] * (channels != wanted)
        if wrong:
            raise UsageError(
                f"{self.what}: images are {channels} x {height} x {width}, those of the source {wanted} x {side} x "
                f"{side}; tensors are scored as they are, never resampled.",
                hint=f"Score them on a copy of the recipe (`hmdc-hub recipes cp`) with  {'  and  '.join(wrong)}",
            )


def _tensors(data: Any) -> tuple[Tensor, Tensor] | None:
    """Take a pair of images and numbers as tensors; None: it is none, or its labels are text."""
    if not (isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "shape")):
        return None
    labels = np.asarray(data[1]) if isinstance(data[1], tuple | list) else data[1]
    if not hasattr(labels, "shape") or (isinstance(labels, np.ndarray) and labels.dtype.kind not in "biuf"):
        return None
    return torch.as_tensor(data[0]), torch.as_tensor(labels)


def _keys(path: Path, shapes: Mapping[str, tuple[int, ...]], whole: set[str]) -> tuple[str, str]:
    """Find `images`, or the only tensor of four dimensions, and `labels`, or what can be it."""
    holds = ", ".join(f"{key} ({times(shape)})" for key, shape in shapes.items()) or "nothing"
    images = ["images"] if "images" in shapes else [key for key, shape in shapes.items() if len(shape) == 4]
    if len(images) != 1:
        raise UsageError(
            f"{path} has no tensor images and {len(images) or 'none'} of four dimensions; it holds {holds}.",
            hint="Save the images, N x channels x height x width, under the name images.",
        )
    count = (shapes[images[0]] or (0,))[0]
    # Without hard labels, floats of two dimensions can only be meant as soft ones, and are refused as such.
    soft = [key for key, shape in shapes.items() if key not in whole and len(shape) == 2 and shape[0] == count]
    labels = ["labels"] if "labels" in shapes else [key for key in whole if shapes[key] == (count,)] or soft
    if len(labels) != 1:
        raise UsageError(
            f"{path} has no tensor labels, and {len(labels) or 'none'} of {count} whole numbers; it holds {holds}.",
            hint="Save the class number of every image, int64, under the name labels.",
        )
    return images[0], labels[0]


def _match(what: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Find the class of the source that each name stands for."""
    # Names such as 0, 1, ... are numbers, unless the source's are too and mean something else than the index.
    numbered = [str(index) for index in range(len(known))] == list(known) or not any(map(str.isdecimal, known))
    if numbered and all(map(str.isdecimal, names)):
        indices = [int(name) for name in names]
        if max(indices) >= len(known):
            raise _out_of_range(what, min(indices), max(indices), known)
    else:
        exact = {name: index for index, name in enumerate(known)}
        common = Counter(map(_folded, known))
        folded = {_folded(name): index for index, name in enumerate(known) if common[_folded(name)] == 1}
        indices = [exact.get(name, folded.get(_folded(name), -1)) for name in names]
    unknown = [name for name, index in zip(names, indices, strict=True) if index < 0]
    if unknown:
        raise UsageError(
            f"{len(unknown)} of the {len(names)} classes of {what} are none of the source's: {some(unknown)}; the "
            f"source has {len(known)}: {some(known)}.",
            hint="Name them as the source does (case, spaces and _ do not matter)"
            + (", or number them from 0 in its order." if numbered else "."),
        )
    if twice := [name for name, index in zip(names, indices, strict=True) if indices.count(index) > 1]:
        raise UsageError(
            f"Several classes of {what} are one of the source's: {some(twice)}.", hint="Give every class one name."
        )
    return indices


def _folded(name: str) -> str:
    return re.sub(r"[_\s]+", "", name).casefold()


def _out_of_range(what: str, low: int, high: int, known: Sequence[str]) -> UsageError:
    return UsageError(
        f"The labels of {what} reach from {low} to {high}, but the source has {len(known)} classes, numbered 0 to "
        f"{len(known) - 1}.",
        hint=f"Number them in the source's order, from 0: {some(known)}.",
    )


def _refuse_bombs(path: Path, most: int) -> None:
    """Refuse parquet files that hold more than their size allows, before `datasets` unpacks them onto the disk.

    Files of images hardly become smaller by packing, so that ten or twenty times their size is more than any set has.
    """
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        allowed = UNPACKED + TIMES_UNPACKED * file.stat().st_size
        try:
            measure(file, rows=most, unpacked=allowed)
            if any(held > allowed for held in accumulate(iter_sizes(file))):
                raise FormatError(
                    f"{file} is not read: its {file.stat().st_size:,} bytes become more than {allowed:,}, by rows that "
                    "hold the same."
                )
        except FormatError as error:
            raise UsageError(
                error.message,
                hint="A set of images is written with fewer rows, each image once, and compression='none' in "
                "pyarrow.parquet.write_table.",
            ) from error


def _reworded(text: str) -> str:
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    return text
