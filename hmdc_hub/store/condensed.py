"""condensed.safetensors: the exact floats of a condensed set, in stored form (before decoding).

Safetensors files are written a part at a time, so that what they hold need never be in memory as a whole: the library
writes tensors that are all there. Its format is a length, a table in JSON and the numbers
(https://huggingface.co/docs/safetensors, "Format"); it reads what is written here, and writes the same bytes where no
two types of numbers are equally wide.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmdc_hub.errors import FormatError, HmdcError, NotFoundError
from hmdc_hub.schema import ArtifactInfo, SetHeader, canonical_json, sha256_of
from hmdc_hub.store.files import atomic, parse_record

MAX_HEADER = 16 * 1024 * 1024  # most bytes of a file's table, with the class names; the library reads 100 million
METADATA_KEY = "hmdc"  # the one metadata key of our files: the library writes several in random order

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip

# Most bytes of the training images, in 8 bits, that a set decodes to, for any set and as a multiple of its file: with
# factor f they are f * f / 4 times as many, and f is 2 or 3 in every published set.
MOST_DECODED, MOST_TIMES = 64 * 1024 * 1024, 16


def write_condensed(path: Path, images: Tensor, labels: Tensor, header: SetHeader) -> None:
    """Write a condensed set, images N x ch x H x W and int64 labels N, as `write_classes` does."""
    _check_table(str(path), images.dtype, images.shape, header)
    _check_labels(str(path), labels.cpu(), header)
    write_classes(path, [images], images.shape[1:], header)


def write_classes(path: Path, classes: Iterable[Tensor], shape: Sequence[int], header: SetHeader) -> None:
    """Write a condensed set without having all of it at a time; the same arguments give the same bytes.

    Args:
        path: The file, usually `condensed.safetensors`; replaced in one step.
        classes: float32 n x ch x H x W in [0, 1], stored form, one class after another.
        shape: ch, H, W.
        header: What a reader needs to decode and normalise.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
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
    """Say what the training images of a set must be, M, ch, H, W, from its info.json, before any of them is read.

    A stranger's numbers may be anything; those that memory is allocated by must follow from one another, and the exact
    floats must be there: they are stored as they are, so that the size of their file cannot be made up. Of that file,
    its condensed.safetensors, the table is read. It is a FormatError if the numbers do not follow from one another or
    from the size of that file, or if the images are more than any set of that size has.
    """
    if not tensors.is_file():
        raise NotFoundError(f"There is no file {tensors}.")
    source, stored = info.source, len(info.source.class_names) * info.ipc
    training, pixels = stored * info.factor**2, source.channels * source.size**2
    if (info.synthetic_images, info.training_images) != (stored, training):
        raise FormatError(
            f"info.json is damaged: {info.synthetic_images:,} synthetic and {info.training_images:,} training images "
            f"for {len(source.class_names)} classes of {info.ipc:,}, factor {info.factor:,}."
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
        text, said = (f"{n[0]}, {n[1]}, {n[2]}, {' x '.join(map(str, n[3:]))}" for n in (found, due))
        raise FormatError(
            f"{tensors} holds {text}, and info.json says {said} (classes, images of each, factor, shape)."
        )
    return training, source.channels, source.size, source.size


def read_condensed(path: Path) -> tuple[Tensor, Tensor, SetHeader]:
    """Read a condensed set: images float32 N x ch x H x W in [0, 1] (stored form), labels int64 N, header.

    A FormatError if it is damaged or not one of ours, NewerFormatError if it is of a newer version than is read here.
    """
    with _opened(path) as (file, header):
        labels = _checked_labels(path, file, header)
        images: Tensor = file.get_tensor("images")
    _check_pixels(str(path), images)
    return images, labels, header


def read_classes(path: Path) -> Iterator[Tensor]:
    """Read the images of a condensed set class after class, each when it is asked for: float32 n x ch x H x W."""
    with _opened(path) as (file, header):
        _checked_labels(path, file, header)
        images = file.get_slice("images")
        for begin in range(0, len(header.class_names) * header.ipc, header.ipc):
            of_class: Tensor = images[begin : begin + header.ipc]
            _check_pixels(str(path), of_class)
            yield of_class


def read_header(path: Path) -> tuple[SetHeader, bool]:
    """Read the header of a condensed set, and whether it has a checksum, which every reader compares."""
    with _opened(path) as (file, header):
        return header, "sha256" in json.loads(file.metadata()[METADATA_KEY])


class _StoredHeader(SetHeader):
    sha256: str | None = None  # over the header itself, the table and the numbers


def _checksum(header: Mapping[str, Any], digest: str) -> str:
    return sha256_of({"header": {key: header[key] for key in header if key != "sha256"}, "content": digest})


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, SetHeader]]:
    """Open a condensed set and compare its checksum, which one of an older program has not."""
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
            plain = json.loads(metadata[METADATA_KEY])
            if "sha256" in plain and plain["sha256"] != _checksum(plain, content_digest(path)):
                raise FormatError(f"{path} was changed or damaged since it was written: its checksum is another.")
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
    shape, count = tuple(shape), len(header.class_names) * header.ipc
    if dtype != torch.float32 or len(shape) != 4 or shape[1] not in (1, 3):
        raise _damaged(where, f"images are {dtype} {shape}, not float32 N x (1 or 3) x H x W")
    if shape[0] != count or count == 0:
        raise _damaged(where, f"{shape[0]} images for {len(header.class_names)} classes of {header.ipc}")
    channels, height, width = shape[1:]
    if height != width or header.factor < 1 or height % header.factor:
        what = f"images of {height} x {width} pixels are not squares divisible by factor {header.factor}"
        raise _damaged(where, what)
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


def _damaged(where: str, what: str) -> FormatError:
    return FormatError(f"{where} is damaged: {what}.")


@dataclass(frozen=True)
class Parts:
    """A tensor that comes in parts, which are rows of it, one after another, on any device; gone through once."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Iterable[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Parts:
        """Take a tensor in one part."""
        return cls(tensor.dtype, tuple(tensor.shape), [tensor])


def in_order(tensors: Mapping[str, Parts]) -> list[str]:
    """Return the names in the order of the file: wide numbers first, so that all are aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_tensors(path: Path, tensors: Mapping[str, Parts], header: Callable[[str], str]) -> None:
    """Write a safetensors file in one step; the same arguments give the same bytes in every process.

    `header` makes the text under `METADATA_KEY` from the file's `content_digest`, one as long as another.
    """
    names = in_order(tensors)
    table, end = dict[str, Any](), 0
    for name in names:
        tensor, begin = tensors[name], end
        end += prod(tensor.shape) * tensor.dtype.itemsize
        table[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    with atomic(path) as temporary, temporary.open("wb") as file:
        # The digest is known at the end and stands at the beginning.
        head = _head(table, header("0" * 64))
        file.write(head)
        digest = hashlib.sha256(_compact(table))
        for name in names:
            before = file.tell()
            for part in tensors[name].parts:
                assert part.dtype == tensors[name].dtype, f"{name}: {part.dtype}, not {tensors[name].dtype}"
                data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(data)
                file.write(data)
            begin, end = table[name]["data_offsets"]
            assert file.tell() - before == end - begin, f"{name}: {file.tell() - before} bytes, not {end - begin}"
        final = _head(table, header(digest.hexdigest()))
        assert len(final) == len(head)
        file.seek(0)
        file.write(final)


def check_header(path: Path) -> None:
    """Refuse, by ValueError, a file whose table is larger than any honest one, before a library reads it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its table has {length:,} bytes; at most {MAX_HEADER:,} are read")


def content_digest(path: Path) -> str:
    """Compute the SHA-256 (hex) of a file's table and numbers, without its metadata; ValueError if it has no table."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its table is longer than the file")
        table = json.loads(file.read(length))
        if not isinstance(table, dict):
            raise ValueError("its table is no JSON object")
        found = hashlib.sha256(_compact({name: entry for name, entry in table.items() if name != "__metadata__"}))
        return hashlib.file_digest(file, lambda: found).hexdigest()


def _head(table: Mapping[str, Any], header: str) -> bytes:
    text = _compact({"__metadata__": {METADATA_KEY: header}} | dict(table))
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
