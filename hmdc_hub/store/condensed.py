"""condensed.safetensors: the exact floats of a condensed set, in stored form (before decoding)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmdc_hub.errors import FormatError, HmdcError, NotFoundError
from hmdc_hub.schema import ArtifactInfo, SetHeader, canonical_json, sha256_of
from hmdc_hub.store.files import parse_record
from hmdc_hub.store.tensors import MAX_HEADER, METADATA_KEY, Parts, check_header, content_digest, write_tensors

MOST_DECODED, MOST_TIMES = 64 * 1024 * 1024, 16
"""Most bytes of the training images, in 8 bits, that a set decodes to, for any set and as a multiple of its file: with
factor f they are f * f / 4 times as many, and f is 2 or 3 in every published set."""


def write_condensed(path: Path, images: Tensor, labels: Tensor, header: SetHeader) -> None:
    """Write a condensed set; the same arguments give the same bytes in every process.

    Args:
        path: The file, usually `condensed.safetensors`; replaced in one step.
        images: float32 N x ch x H x W in [0, 1], stored form, class-major.
        labels: int64 N, `header.ipc` of each class in order.
        header: What a reader needs to decode and normalise.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
        RunError: The file system failed.
    """
    _check_table(str(path), images.dtype, images.shape, header)
    _check_labels(str(path), labels.cpu(), header)
    write_classes(path, [images], images.shape[1:], header)


def write_classes(path: Path, classes: Iterable[Tensor], shape: Sequence[int], header: SetHeader) -> None:
    """Write a condensed set as `write_condensed` does, without having all of it at a time.

    Args:
        path: The file, usually `condensed.safetensors`; replaced in one step.
        classes: float32 n x ch x H x W in [0, 1], stored form, one class after another.
        shape: ch, H, W.
        header: What a reader needs to decode and normalise.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
        RunError: The file system failed.
    """
    labels = _labels(header)
    whole = (len(labels), *shape)

    def parts() -> Iterator[Tensor]:
        count = 0
        for images in classes:
            count += len(images)
            _check_table(str(path), images.dtype, (len(labels), *images.shape[1:]), header)
            if images.shape[1:] != whole[1:] or count > len(labels):
                raise _damaged(str(path), f"{tuple(images.shape)} is no part of images {whole}")
            _check_pixels(str(path), images)
            yield images
        if count < len(labels):
            raise _damaged(str(path), f"{count} images for {len(header.class_names)} classes of {header.ipc}")

    _check_table(str(path), torch.float32, whole, header)
    tensors = {"images": Parts(torch.float32, whole, parts()), "labels": Parts.of(labels)}
    plain = header.model_dump(mode="json")
    write_tensors(path, tensors, lambda digest: canonical_json(plain | {"sha256": _checksum(plain, digest)}))


def training_shape(info: ArtifactInfo, tensors: Path) -> tuple[int, int, int, int]:
    """Say what the training images of a set must be, from its info.json, before any of them is read.

    A stranger's numbers may be anything; those that memory is allocated by must follow from one another, and the exact
    floats must be there: they are stored as they are, so that the size of their file cannot be made up. Of that file
    its table is read.

    Args:
        info: Of the set.
        tensors: Its condensed.safetensors.

    Returns:
        M, ch, H, W.

    Raises:
        NotFoundError: There is no such file.
        FormatError: The numbers do not follow from one another or from the size of that file, or the images are more
            than any set of that size has.
    """
    if not tensors.is_file():
        raise NotFoundError(f"There is no file {tensors}.")
    source, stored = info.source, len(info.source.class_names) * info.ipc
    training, pixels = stored * info.factor**2, source.channels * source.size**2
    if (info.stored_images, info.training_images) != (stored, training):
        raise FormatError(
            f"info.json is damaged: {info.stored_images:,} stored and {info.training_images:,} training images for "
            f"{len(source.class_names)} classes of {info.ipc:,}, factor {info.factor:,}."
        )
    size = tensors.stat().st_size
    floats = stored * (4 * pixels + 8)
    if not floats <= size <= floats + MAX_HEADER:
        raise FormatError(
            f"{tensors} has {size:,} bytes, and {stored:,} images of {source.size} x {source.size} x {source.channels} "
            f"floats, as info.json says, have {floats:,}."
        )
    if training * pixels > max(MOST_DECODED, MOST_TIMES * size):
        raise FormatError(
            f"info.json says that {tensors} of {size:,} bytes becomes {training:,} images of {training * pixels:,} "
            f"bytes; at most {MOST_TIMES} times its size is read."
        )
    with _opened(tensors) as (file, header):
        found = (len(header.class_names), header.ipc, header.factor, *file.get_slice("images").get_shape())
    due = (len(source.class_names), info.ipc, info.factor, stored, source.channels, source.size, source.size)
    if found != due:
        raise FormatError(
            f"{tensors} holds {_text(found)}, and info.json says {_text(due)} (classes, images of each, factor, shape)."
        )
    return training, source.channels, source.size, source.size


def read_condensed(path: Path) -> tuple[Tensor, Tensor, SetHeader]:
    """Read a condensed set and check it.

    Returns:
        images float32 N x ch x H x W in [0, 1] (stored form), labels int64 N, header.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged or not one of ours.
        NewerFormatError: It is of a newer format version than this program reads.
    """
    with _opened(path) as (file, header):
        labels = _checked_labels(path, file, header)
        images: Tensor = file.get_tensor("images")
    _check_pixels(str(path), images)
    return images, labels, header


def read_classes(path: Path) -> Iterator[Tensor]:
    """Read the images of a condensed set class after class, each when it is asked for: float32 n x ch x H x W.

    Raises:
        FormatError, NewerFormatError, NotFoundError: As `read_condensed`.
    """
    with _opened(path) as (file, header):
        _checked_labels(path, file, header)
        images = file.get_slice("images")
        for begin in range(0, len(header.class_names) * header.ipc, header.ipc):
            of_class: Tensor = images[begin : begin + header.ipc]
            _check_pixels(str(path), of_class)
            yield of_class


def read_header(path: Path) -> tuple[SetHeader, bool]:
    """Read the header of a condensed set, and whether it has a checksum, which every reader compares.

    Raises:
        FormatError, NewerFormatError, NotFoundError: As `read_condensed`.
    """
    with _opened(path) as (file, header):
        return header, "sha256" in json.loads(file.metadata()[METADATA_KEY])


class _StoredHeader(SetHeader):
    """The header as it is in the file: with a checksum over itself, the table and the numbers."""

    sha256: str | None = None


def _checksum(header: Mapping[str, Any], digest: str) -> str:
    return sha256_of({"header": {key: header[key] for key in header if key != "sha256"}, "content": digest})


def _compare_checksum(path: Path, header: Mapping[str, Any]) -> None:
    """Refuse a file whose header, as it stands there, has another checksum; one of an older program has none."""
    if "sha256" not in header:
        return
    try:
        found = _checksum(header, content_digest(path))
    except ValueError as error:
        raise _damaged(str(path), str(error)) from error
    if header["sha256"] != found:
        raise FormatError(f"{path} was changed or damaged since it was written: its checksum is another.")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, SetHeader]]:
    """Open a condensed set and compare its checksum; gives the open file and its header."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise FormatError(f"{path} is no condensed set: its header has no {METADATA_KEY!r} key.")
            # The header first: a newer version may hold other tensors.
            stored = parse_record(metadata[METADATA_KEY], _StoredHeader, f"The header of {path}")
            header = SetHeader.model_validate(stored.model_dump(exclude={"sha256"}))
            _compare_checksum(path, json.loads(metadata[METADATA_KEY]))
            missing = {"images", "labels"} - set(file.keys())
            if missing:
                raise FormatError(f"{path} is damaged: no tensor named {' or '.join(sorted(missing))}.")
            yield file, header
    except HmdcError:
        raise  # some of ours are of the types below
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def _checked_labels(path: Path, file: Any, header: SetHeader) -> Tensor:
    """Read the labels, after the types and shapes of both tensors were checked."""
    for name, code, dtype in (("images", "F32", "float32"), ("labels", "I64", "int64")):
        if (found := file.get_slice(name).get_dtype()) != code:
            raise _damaged(str(path), f"{name} are {found}, not {dtype}")
    _check_table(str(path), torch.float32, file.get_slice("images").get_shape(), header)
    count = len(header.class_names) * header.ipc
    if (shape := file.get_slice("labels").get_shape()) != [count]:
        raise _damaged(str(path), f"labels are {shape}, not [{count}]")
    labels: Tensor = file.get_tensor("labels")
    _check_labels(str(path), labels, header)
    return labels


def _labels(header: SetHeader) -> Tensor:
    return torch.arange(len(header.class_names)).repeat_interleave(header.ipc)


def _check_table(where: str, dtype: torch.dtype | str, shape: Sequence[int], header: SetHeader) -> None:
    """Refuse what a reader could not decode, naming the first rule it breaks."""
    shape = tuple(shape)
    count = len(header.class_names) * header.ipc
    if dtype != torch.float32 or len(shape) != 4 or shape[1] not in (1, 3):
        raise _damaged(where, f"images are {dtype} {shape}, not float32 N x (1 or 3) x H x W")
    if shape[0] != count or count == 0:
        raise _damaged(where, f"{shape[0]} images for {len(header.class_names)} classes of {header.ipc}")
    channels, height, width = shape[1:]
    if height != width or header.factor < 1 or height % header.factor:
        raise _damaged(
            where, f"images of {height} x {width} pixels are not squares divisible by factor {header.factor}"
        )
    if len(header.mean) != channels or len(header.std) != channels or min(header.std) <= 0:
        raise _damaged(where, f"mean and std are not {channels} numbers each, std above 0")


def _check_labels(where: str, labels: Tensor, header: SetHeader) -> None:
    wanted = _labels(header)
    if labels.dtype != torch.int64 or labels.shape != wanted.shape:
        raise _damaged(where, f"labels are {labels.dtype} {tuple(labels.shape)}, not int64 {tuple(wanted.shape)}")
    if not torch.equal(labels, wanted):
        raise _damaged(where, f"labels are not {header.ipc} of each class in order")


def _check_pixels(where: str, images: Tensor) -> None:
    if not len(images):
        return
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise _damaged(where, f"pixels from {low.item():g} to {high.item():g} are not in [0, 1]")


def _text(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:3])) + ", " + " x ".join(map(str, numbers[3:]))


def _damaged(where: str, what: str) -> FormatError:
    return FormatError(f"{where} is damaged: {what}.")
