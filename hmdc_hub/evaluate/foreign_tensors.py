"""Safetensors files of condensed sets: those of other programs, and condensed.safetensors of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmdc_hub import pack
from hmdc_hub.errors import HmdcError, UsageError
from hmdc_hub.evaluate.foreign_statistics import Statistics, one_by_one, proves, usual
from hmdc_hub.evaluate.pairs import both_as_tensors, find_pairs
from hmdc_hub.sources import Source
from hmdc_hub.store import read_condensed, sha256_file, to_uint8
from hmdc_hub.store.tensors import METADATA_KEY, check_header

SUFFIX = ".safetensors"

ROUNDING = 1e-4
"""How far outside [0, 1] floats may lie that are meant to be in it."""

OVERSHOOT, OVERSHOOT_SHARE = 0.02, 0.05
"""Pixels mapped back may lie this far outside [0, 1], and this share of them further: optimised images do overshoot,
but those that other statistics normalised do so by more."""

FEW, TIMES = 1000, 10
"""A set may have so many images, and so many times the images of its source."""

_TORCH = "import torch, safetensors.torch; images, labels = torch.load({name}, weights_only=True)"
_PICKLE = 'import pickle, safetensors.torch; images, labels = pickle.load(open({name}, "rb"))'
_LOAD = {
    ".npy": "import numpy, torch, safetensors.torch; images, labels = torch.from_numpy(numpy.load({name})), "
    "torch.from_numpy(numpy.load('labels.npy'))",
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".npz": "import numpy, torch, safetensors.torch; images, labels = "
    '(torch.from_numpy(numpy.load({name})[key]) for key in ("images", "labels"))',
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
}
_SAVE = 'safetensors.torch.save_file({{"images": images.contiguous(), "labels": labels.contiguous()}}, {name})'


@dataclass(frozen=True, eq=False)
class Contents:
    """Images and labels as a file numbers them.

    Attributes:
        images: uint8 M x ch x H x W.
        labels: int64 M.
        names: What the labels stand for; None: nothing but numbers.
        sha256: Of the file; None: there is no single one.
        exact: As in `Subject`; `factor`, `condense_hash` and `notes` likewise.
    """

    images: Tensor
    labels: Tensor
    names: list[str] | None
    sha256: str | None
    exact: Tensor | None = None
    factor: int = 1
    condense_hash: str | None = None
    notes: tuple[str, ...] = ()


def refuse_pickle(path: Path) -> None:
    """Refuse files whose readers run code, or may, by their suffix; others pass.

    Raises:
        UsageError: It is one; the hint has the lines of Python that convert it, with the file of the labels beside it.
    """
    load = _LOAD.get(path.suffix.lower())
    if load is None:
        return
    saved = repr(str(path.with_suffix(SUFFIX)))
    pairs = find_pairs(path)
    first = both_as_tensors(pairs[0]) if pairs else load.format(name=repr(str(path)))
    raise UsageError(
        f"{path} is not read: a {path.suffix} file can hold a pickle, and to open one can run any program.",
        hint="If you trust it, convert it; where it names or nests images and labels otherwise, adapt the first "
        f"line:\n  {first}\n  {_SAVE.format(name=saved)}",
    )


def most_images(source: Source) -> int:
    """Say how many images a set of this source may have: a condensed one has fewer than the source, all in memory."""
    return max(FEW, TIMES * sum(source.info.train_counts))


def refuse_many(target: str, images: int, source: Source) -> None:
    """Refuse a set that is many times as large as what it was condensed from.

    Raises:
        UsageError: It is.
    """
    if images > most_images(source):
        raise UsageError(
            f"{target} has {images:,} images; of a source of {sum(source.info.train_counts):,}, sets of up to "
            f"{most_images(source):,} are scored.",
            hint="Save a part of it.",
        )


def read_tensors(path: Path, source: Source, *, normalised: bool) -> Contents:
    """Read a safetensors file.

    Args:
        path: The file. Of ours it holds stored images, which are decoded. Otherwise `images`, or the only tensor of
            four dimensions, is N x ch x H x W or N x H x W x ch, and `labels`, or the only one of N whole numbers, N.
        source: Says side and channels, which must be the file's, and the statistics for `normalised`.
        normalised: The floats are source-normalised, `(pixel - mean) / std`, instead of pixels in [0, 1].

    Raises:
        UsageError: It does not hold one image of the source's shape and one class number per row.
        FormatError: It is of ours and damaged.
    """
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            if METADATA_KEY in (file.metadata() or {}):
                return _ours(path, source, normalised)
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            whole = {key for key, part in slices.items() if part.get_dtype()[0] in "IU"}
            images_key = _images_key(path, shapes)
            labels_key = _labels_key(path, shapes, whole, images_key)
            # All of it before a tensor is read: its file may be larger than the memory.
            refuse_many(str(path), shapes[images_key][0], source)
            _check_shape(path, _channels_first(path, shapes[images_key]), source)
            images, labels = file.get_tensor(images_key), file.get_tensor(labels_key)
    except HmdcError:
        raise  # some of ours are of the types below
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}.", hint="Write or copy it again.") from error
    if images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    pixels, exact, notes = _pixels(path, images, source, normalised)
    return Contents(pixels, labels.long(), None, sha256_file(path), exact, notes=notes)


def _ours(path: Path, source: Source, normalised: bool) -> Contents:
    if normalised:
        raise _not_normalised(path, "is a file of hmdc-hub, which holds pixels")
    with safe_open(path, framework="pt") as file:
        shape = tuple(file.get_slice("images").get_shape()) if "images" in file.keys() else ()  # noqa: SIM118
    if len(shape) == 4:
        _check_shape(path, shape, source)
    stored, labels, header = read_condensed(path)
    refuse_many(str(path), len(stored) * header.factor**2, source)
    exact = pack.decode(stored.reshape(-1, header.ipc, *stored.shape[1:]), header.factor).flatten(0, 1)
    labels = labels.repeat_interleave(header.factor**2)
    return Contents(
        to_uint8(exact), labels, header.class_names, sha256_file(path), exact, header.factor, header.condense_hash
    )


def _images_key(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    found = ["images"] if "images" in shapes else [key for key, shape in shapes.items() if len(shape) == 4]
    if len(found) != 1:
        raise UsageError(
            f"{path} has no tensor images and {len(found) or 'none'} of four dimensions; it holds {_listing(shapes)}.",
            hint="Save the images, N x channels x height x width, under the name images.",
        )
    if len(shapes[found[0]]) != 4:
        raise UsageError(
            f"{path}: images are {_times(shapes[found[0]])}, not N x channels x height x width.",
            hint="Grey images without channels become that by images[:, None], grouped ones by images.flatten(0, 1).",
        )
    if shapes[found[0]][0] == 0:
        raise UsageError(f"{path} has no images: {found[0]} is {_times(shapes[found[0]])}.")
    return found[0]


def _labels_key(path: Path, shapes: Mapping[str, tuple[int, ...]], whole: set[str], images: str) -> str:
    count = shapes[images][0]
    # Without hard labels, floats of two dimensions can only be meant as soft ones.
    soft = [key for key, shape in shapes.items() if key not in whole and len(shape) == 2 and shape[0] == count]
    found = [key for key in whole if shapes[key] == (count,)] or soft
    if "labels" not in shapes and len(found) != 1:
        raise UsageError(
            f"{path} has no tensor labels, and {len(found) or 'none'} of {count} whole numbers; it holds "
            f"{_listing(shapes)}.",
            hint="Save the class number of every image, int64, under the name labels.",
        )
    key = "labels" if "labels" in shapes else found[0]
    if key in soft:
        raise UsageError(
            f"{path}: {key} holds {_times(shapes[key])} floats, soft labels, and the protocols here train on hard "
            "ones. To take the largest of each silently would be to score another set.",
            hint=f"To score that other set, save {key}.argmax(1) as labels, and say so wherever you give the score.",
        )
    if key not in whole or shapes[key] != (count,):
        kind = "whole numbers" if key in whole else "values that are no whole numbers"
        raise UsageError(
            f"{path}: {key} holds {_times(shapes[key])} {kind} instead of {count} class numbers, one per image.",
            hint="Save the class number of every image as int64, in the order of the images.",
        )
    return key


def _channels_first(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    count, *sides = shape
    if sides[0] in (1, 3):
        return shape
    if sides[2] in (1, 3):
        return count, sides[2], *sides[:2]
    raise UsageError(
        f"{path}: images are {_times(shape)}; neither the second nor the last number is 1 (grey) or 3 (colour).",
        hint="Save them as N x channels x height x width.",
    )


def _check_shape(path: Path, shape: tuple[int, ...], source: Source) -> None:
    channels, height, width = shape[1:]
    side = source.train.side
    if height != width:
        raise UsageError(
            f"{path}: images are {height} x {width} pixels; those of a source are squares, here {side} x {side}.",
            hint="Save them as PNG files in a folder per class: files are resized as the source is.",
        )
    wanted = {"size": side, "channels": source.train.channels}
    wrong = [f"source.{key}: {n}" for key, n in (("size", height), ("channels", channels)) if n != wanted[key]]
    if wrong:
        raise UsageError(
            f"{path}: images are {channels} x {height} x {width}, those of the source {wanted['channels']} x {side} x "
            f"{side}; tensors are scored as they are, never resampled.",
            hint=f"Score them on a copy of the recipe (`hmdc-hub recipes cp`) with  {'  and  '.join(wrong)}",
        )


def _pixels(
    path: Path, images: Tensor, source: Source, normalised: bool
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Give images in 8 bits, the floats they were rounded from if there are any, and what to note."""
    if images.dtype == torch.uint8:
        if normalised:
            raise _not_normalised(path, "holds uint8 images, which are pixels")
        return images, None, ()
    if not images.is_floating_point():
        raise UsageError(
            f"{path}: images are {_type(images)}; pixels are uint8 from 0 to 255 or floats from 0 to 1.",
            hint="Save images.to(torch.uint8).",
        )
    images = images.float()
    if bad := int((~images.isfinite()).sum()):
        raise UsageError(f"{path}: {bad} of {images.numel()} values of the images are NaN or infinite.")
    low, high = (float(bound) for bound in images.aminmax())
    inside = low >= -ROUNDING and high <= 1 + ROUNDING
    if normalised:
        # Beside catching a mistake this makes the file's hash name one set: it can be read in one way only.
        if inside:
            raise _not_normalised(path, f"holds images from {low:.4g} to {high:.4g}, as pixels are")
        exact, note = _mapped_back(path, images, source)
        return to_uint8(exact), exact, (note,)
    if not inside:
        raise UsageError(
            f"{path}: images reach from {low:.4g} to {high:.4g}; pixels are floats from 0 to 1, or uint8.",
            hint=_not_by_the_source(images, source)
            or "--normalised maps pixels that were normalised by the source's mean and std back; values up to 255 "
            "are saved as images.round().to(torch.uint8).",
        )
    exact = images.clamp(0, 1)
    return to_uint8(exact), exact, ()


def _mapped_back(path: Path, images: Tensor, source: Source) -> tuple[Tensor, str]:
    own = Statistics("the source's", tuple(source.info.mean), tuple(source.info.std))
    if hint := _not_by_the_source(images, source):
        raise UsageError(
            f"{path}: these images cannot have been normalised by {own}, with which they would be mapped back.",
            hint=hint,
        )
    pixels = source.denormalise(images)
    beyond = (own.back(images) - pixels).abs()
    share = _share_outside(own.back(images))
    if share > OVERSHOOT_SHARE:
        fitting = [other for other in usual(images.shape[1]) if _share_outside(other.back(images)) <= OVERSHOOT_SHARE]
        raise UsageError(
            f"{path}: {share:.1%} of the pixels lie more than {OVERSHOOT} outside [0, 1] when mapped back with {own}; "
            f"at most {OVERSHOOT_SHARE:.0%} may, so others must have normalised them.",
            hint="Map them back with the statistics they were made with, and save pixels from 0 to 1."
            + (f" Of those in use these would fit: {'; '.join(map(str, fitting))}." if fitting else ""),
        )
    low, high = (float(bound) for bound in pixels.aminmax())
    clamped = int((beyond > ROUNDING).sum()) / beyond.numel()
    return pixels, f"mapped back to pixels from {low:.3f} to {high:.3f}, {clamped:.1%} of them clamped"


def _share_outside(pixels: Tensor) -> float:
    return int(((pixels - pixels.clamp(0, 1)).abs() > OVERSHOOT).sum()) / pixels.numel()


def _not_by_the_source(images: Tensor, source: Source) -> str:
    """Say what to do with floats that something else than the source's statistics made; empty if nothing shows it."""
    own = Statistics("the source's", tuple(source.info.mean), tuple(source.info.std))
    if proves(own, images):
        return ""
    if proves(Statistics("255", (0.0,) * len(own.mean), (1 / 255,) * len(own.mean)), images):
        return "They are pixels from 0 to 255: save images.round().to(torch.uint8), and leave --normalised out."
    for other in usual(images.shape[1]):
        if proves(other, images):
            mean, std = (f"torch.tensor({list(values)}).view(-1, 1, 1)" for values in (other.mean, other.std))
            return (
                f"They fit {other}. If that is it, save pixels, and leave --normalised out:\n"
                f"  images = (images * {std} + {mean}).clamp(0, 1)"
            )
    if one_by_one(images):
        return (
            "Every image has mean 0 and standard deviation 1 by itself, so what it was normalised by is lost: save the "
            "pixels from before, from 0 to 1."
        )
    return ""


def _not_normalised(path: Path, why: str) -> UsageError:
    return UsageError(f"--normalised does not apply: {path} {why}.", hint="Leave it out.")


def _listing(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} ({_times(shape)})" for key, shape in shapes.items()) or "nothing"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
