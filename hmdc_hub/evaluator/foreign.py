"""Condensed sets of other programs: files, folders, datasets of the Hub, and objects of this Python session."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmdc_hub import multi_formation
from hmdc_hub.errors import FormatError, HmdcError, NetworkError, NotFoundError, SourceError, UsageError
from hmdc_hub.evaluator.baselines import EvaluatedSet
from hmdc_hub.evaluator.pixels import OVERSHOOT, OVERSHOOT_SHARE, Statistics, not_by, usual
from hmdc_hub.schema import canonical_json
from hmdc_hub.sources import Source, read_images
from hmdc_hub.store.condensed import METADATA_KEY, check_header, read_condensed
from hmdc_hub.store.dataset import CondensedDataset
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.parquet import iter_sizes, measure, to_uint8
from hmdc_hub.text import some

# A set may have so many images, and so many times the images of its source: it is smaller, and all in memory.
FEW, TIMES = 1000, 10
ROUNDING = 1e-4  # how far outside [0, 1] floats may lie that are meant to be in it
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
    """Read a condensed set of any program, in the order of its data, with labels as those of the source.

    UsageError: it is not there, is no set of images with labels, or does not fit the source; FormatError: it is a file
    of ours and damaged; NetworkError: it must be downloaded and that failed.

    Args:
        data: A safetensors file, with tensors as the pair below or of ours. Or what can be a source: a parquet file, a
            folder of parquet files or of one folder of images per class, a dataset on the Hub, `builtin:digits`, a
            `datasets.Dataset` or a torch dataset; of these the train split, or the only one, is read, and images become
            of the source's side and channels as its own did. Or a `CondensedDataset`, or the pair (images, labels):
            N x ch x H x W or N x H x W x ch, uint8 or floats in [0, 1], which are kept as `exact`; N whole numbers.
        source: What the set was condensed from, on the CPU. It may have classes of which the set has no image.
        name: What reports call it; None: as the file or dataset is called.
        config: Configuration of a folder or dataset.
        revision: Branch, tag or commit of a dataset on the Hub.
        normalised: The floats are source-normalised, `(pixel - mean) / std`, instead of pixels in [0, 1].
        fit: As `source.fit` of the recipe, for images that are not square.
        background: As `source.background`, for images with transparent pixels.
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
        return reader.pair(*pair)
    reader.refuse_normalised("holds images, and only floats can be normalised")
    if isinstance(data, CondensedDataset):
        reader.check_fits(data.images.shape)
        known = {"exact": data.images, "factor": data.factor, "condense_hash": data.header.condense_hash}
        return reader.numbered(to_uint8(data.images), data.labels, data.class_names, **known)
    return reader.images(data, None, options)


def refuse_arrays(path: Path, lines: str = _AS_TENSORS) -> None:
    """Refuse, by its name, a file of arrays, whose readers may run code; `lines` convert them.

    Likewise a folder that could not be read and has such, but nothing that is usually read.
    """
    files = [file for file in path.rglob("[!.]*") if not file.is_dir()] if path.is_dir() else [path]
    usual = {*Image.registered_extensions(), ".parquet", ".arrow", ".tar"} if path.is_dir() else ()
    if any(_ARRAYS.search(file.name) for file in files) and not any(file.suffix.lower() in usual for file in files):
        raise UsageError(
            f"{path} is not read: files of arrays can hold a pickle, and to open one can run any program.",
            hint="If you trust it, convert it (docs/your-data-and-model.md, Arrays, has more lines):\n"
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
        if not path.is_dir():
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
                if files := sorted(path.glob("*.safetensors")):
                    hint = f"Name the file: {files[0]}"
                    raise UsageError(f"{path} is a folder that holds no images.", hint=hint) from None
                refuse_arrays(path)
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
                self.check_shapes(images, shapes[images], labels, shapes[labels], labels in whole)
                self.refuse_many(shapes[images][0])
                self.check_fits(shapes[images])
                pair = file.get_tensor(images), file.get_tensor(labels)
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
        """Take images, N x ch x H x W or N x H x W x ch, uint8 or floats, and their classes, N whole numbers."""
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        self.check_shapes("images", tuple(images.shape), "labels", tuple(labels.shape), whole)
        self.check_fits(images.shape)
        images = images if images.shape[1] in (1, 3) else images.permute(0, 3, 1, 2)
        # They may lie on a GPU, and be what an optimiser has just changed.
        images, labels = images.detach().cpu().contiguous(), labels.detach().cpu().long()
        if images.dtype == torch.uint8:
            self.refuse_normalised("holds uint8 images, which are pixels")
            return self.numbered(images, labels, None, sha256=sha256)
        exact, notes = self.unit(images)
        return self.numbered(to_uint8(exact), labels, None, exact=exact, notes=notes, sha256=sha256)

    def unit(self, images: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Turn floats, N x ch x H x W, into pixels in [0, 1] (float32), with what to note."""
        what = self.what
        if not images.is_floating_point():
            raise UsageError(
                f"{what}: images are {str(images.dtype).removeprefix('torch.')}; pixels are uint8 from 0 to 255 or "
                "floats from 0 to 1.",
                hint="Save images.to(torch.uint8).",
            )
        images = images.float()
        if bad := int((~images.isfinite()).sum()):
            raise UsageError(f"{what}: {bad} of {images.numel()} values of the images are NaN or infinite.")
        low, high = (float(bound) for bound in images.aminmax())
        if low >= -ROUNDING and high <= 1 + ROUNDING:
            # Beside catching a mistake this makes the file's hash name one set: it can be read in one way only.
            self.refuse_normalised(f"holds images from {low:.4g} to {high:.4g}, as pixels are")
            return images.clamp(0, 1), ()
        own = Statistics("the source's", tuple(self.source.info.mean), tuple(self.source.info.std))
        hint = not_by(own, images)
        if not self.normalised:
            raise UsageError(
                f"{what}: images reach from {low:.4g} to {high:.4g}; pixels are floats from 0 to 1, or uint8.",
                hint=hint
                or "--normalised maps pixels that were normalised by the source's mean and std back; values up to 255 "
                "are saved as images.round().to(torch.uint8).",
            )
        if hint:
            raise UsageError(
                f"{what}: these images cannot have been normalised by {own}, with which they would be mapped back.",
                hint=hint,
            )
        if (share := own.outside(images)) > OVERSHOOT_SHARE:
            fitting = [str(other) for other in usual(images) if other.outside(images) <= OVERSHOOT_SHARE]
            raise UsageError(
                f"{what}: {share:.1%} of the pixels lie more than {OVERSHOOT} outside [0, 1] when mapped back with "
                f"{own}; at most {OVERSHOOT_SHARE:.0%} may, so others must have normalised them.",
                hint="Map them back with the statistics they were made with, and save pixels from 0 to 1."
                + (f" Of those in use these would fit: {'; '.join(fitting)}." if fitting else ""),
            )
        pixels = self.source.denormalise(images)
        low, high = (float(bound) for bound in pixels.aminmax())
        clamped = int(((own.back(images) - pixels).abs() > ROUNDING).sum()) / pixels.numel()
        return pixels, (f"mapped back to pixels from {low:.3f} to {high:.3f}, {clamped:.1%} of them clamped",)

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
        known["sha256"] = known.get("sha256") or _content_hash(images, labels, known.get("exact"))
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
            raise UsageError(f"--normalised does not apply: {self.what} {why}.", hint="Leave it out.")

    def check_shapes(
        self, images: str, shape: Sequence[int], labels: str, labels_shape: Sequence[int], whole: bool
    ) -> None:
        """Refuse tensors that are not images and labels by their names and shapes, with a UsageError.

        Wanted are N x ch x H x W or N x H x W x ch with 1 or 3 channels, and N whole numbers.
        """
        what = self.what
        if len(shape) != 4:
            raise UsageError(
                f"{what}: images are {_times(shape)}, not N x channels x height x width.",
                hint="Grey images without channels become that by images[:, None], grouped ones by "
                "images.flatten(0, 1).",
            )
        count = shape[0]
        if count == 0:
            raise UsageError(f"{what} has no images: {images} is {_times(shape)}.")
        if not whole and len(labels_shape) == 2 and labels_shape[0] == count:
            raise UsageError(
                f"{what}: {labels} holds {_times(labels_shape)} floats, soft labels, and the protocols here train on "
                "hard ones. To take the largest of each silently would be to score another set.",
                hint=f"To score that other set, save {labels}.argmax(1) as labels, and say so wherever you give the "
                "score.",
            )
        if not whole or tuple(labels_shape) != (count,):
            kind = "whole numbers" if whole else "values that are no whole numbers"
            raise UsageError(
                f"{what}: {labels} holds {_times(labels_shape)} {kind} instead of {count} class numbers, one per "
                "image.",
                hint="Save the class number of every image as int64, in the order of the images.",
            )
        if shape[1] not in (1, 3) and shape[3] not in (1, 3):
            raise UsageError(
                f"{what}: images are {_times(shape)}; neither the second nor the last number is 1 (grey) or 3 "
                "(colour).",
                hint="Save them as N x channels x height x width.",
            )

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


def _times(shape: Sequence[int]) -> str:
    """Write a shape: `5 x 3 x 8 x 8`."""
    return " x ".join(map(str, shape)) or "a single number"


def _content_hash(images: Tensor, labels: Tensor, exact: Tensor | None) -> str:
    """Hash pixels (uint8), class indices (int64) and, if there are any, exact floats (float32) with SHA-256 (hex)."""
    digest = hashlib.sha256(canonical_json({"images": list(images.shape)}).encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.numpy().astype("<i8").data)
    if exact is not None:
        digest.update(exact.contiguous().numpy().astype("<f4").data)
    return digest.hexdigest()


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
    holds = ", ".join(f"{key} ({_times(shape)})" for key, shape in shapes.items()) or "nothing"
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
