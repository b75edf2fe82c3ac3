"""condensed.safetensors: the exact floats of a condensed set, in stored form (before decoding)."""

from __future__ import annotations

import errno
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.schema import SetHeader, canonical_json
from hmdc_hub.store.files import atomic, parse_record

METADATA_KEY = "hmdc"


def write_condensed(path: Path, images: Tensor, labels: Tensor, header: SetHeader) -> None:
    """Write a condensed set; the same arguments give the same bytes in every process.

    The header goes under one metadata key: safetensors writes several keys in random order.

    Args:
        path: The file, usually `condensed.safetensors`; replaced in one step.
        images: float32 N x ch x H x W in [0, 1], stored form, class-major.
        labels: int64 N, `header.ipc` of each class in order.
        header: What a reader needs to decode and normalise.

    Raises:
        FormatError: The arguments do not fit together; nothing was written.
        RunError: The file system failed.
    """
    images = images.detach().cpu().contiguous()
    labels = labels.detach().cpu().contiguous()
    _check(str(path), images, labels, header)
    metadata = {METADATA_KEY: canonical_json(header.model_dump(mode="json"))}
    with atomic(path) as temporary:
        # save_file makes files that only their owner may read; others of a run have the usual mode, so make it first.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file({"images": images, "labels": labels}, temporary, metadata=metadata)
        except SafetensorError as error:
            full = "os error 28" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
        temporary.chmod(mode)


def read_condensed(path: Path) -> tuple[Tensor, Tensor, SetHeader]:
    """Read a condensed set and check it.

    Returns:
        images float32 N x ch x H x W in [0, 1] (stored form), labels int64 N, header.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged or not one of ours.
        NewerFormatError: It is of a newer format version than this program reads.
    """
    where = str(path)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise FormatError(f"{where} is no condensed set: its header has no {METADATA_KEY!r} key.")
            # The header first: a newer version may hold other tensors.
            header = parse_record(metadata[METADATA_KEY], SetHeader, f"The header of {where}")
            missing = {"images", "labels"} - set(file.keys())
            if missing:
                raise FormatError(f"{where} is damaged: no tensor named {' or '.join(sorted(missing))}.")
            images: Tensor = file.get_tensor("images")
            labels: Tensor = file.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{where} is damaged: {error}.") from error
    _check(where, images, labels, header)
    return images, labels, header


def _check(where: str, images: Tensor, labels: Tensor, header: SetHeader) -> None:
    """Refuse what a reader could not decode, naming the first rule it breaks."""

    def refuse(what: str) -> FormatError:
        return FormatError(f"{where} is damaged: {what}.")

    count = len(header.class_names) * header.ipc
    if images.dtype != torch.float32 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise refuse(f"images are {images.dtype} {tuple(images.shape)}, not float32 N x (1 or 3) x H x W")
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise refuse(f"labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({len(images)},)")
    if len(images) != count or count == 0:
        raise refuse(f"{len(images)} images for {len(header.class_names)} classes of {header.ipc}")
    if not torch.equal(labels, torch.arange(len(header.class_names)).repeat_interleave(header.ipc)):
        raise refuse(f"labels are not {header.ipc} of each class in order")
    channels, height, width = images.shape[1:]
    if height != width or header.factor < 1 or height % header.factor:
        raise refuse(f"images of {height} x {width} pixels are not squares divisible by factor {header.factor}")
    if len(header.mean) != channels or len(header.std) != channels or min(header.std) <= 0:
        raise refuse(f"mean and std are not {channels} numbers each, std above 0")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise refuse(f"pixels from {low.item():g} to {high.item():g} are not in [0, 1]")
