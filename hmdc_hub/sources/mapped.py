"""Room for decoded images: in memory, or in a file that is mapped into it where they are many.

A mapped file costs address space, not memory: the system writes pages that nobody uses to the disk and reads them back
when they are asked for. Readers see an ordinary array. A folder for temporary files that is itself kept in memory
(tmpfs) takes that advantage away; TMPDIR names another one.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmdc_hub.errors import RunError

MAPPED_FROM = 2**30
"""Most bytes of the decoded images of a source that are kept in memory."""

_BLOCK = 2**20

_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What a file system answers that cannot reserve space, whether there is any or not."""


def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make an array to decode images into; its values are not set.

    Args:
        shape: N x channels x side x side.

    Returns:
        uint8 of that shape, in memory up to `MAPPED_FROM` bytes, else in a temporary file that has no name and is gone
        with the array, however the process ends.

    Raises:
        RunError: The temporary file cannot be made, as on a full disk.
    """
    size = math.prod(shape)
    return np.empty(shape, dtype=np.uint8) if size <= MAPPED_FROM else _map(size).reshape(shape)


def take(images: Tensor, rows: Tensor) -> Tensor:
    """Copy some images; a copy that is mapped is written row by row and never whole in memory.

    Args:
        images: uint8 N x channels x side x side.
        rows: int64 M, in 0..N-1.

    Returns:
        uint8 M x channels x side x side, on the device of the images.

    Raises:
        RunError: As `allocate`.
    """
    if images.device.type != "cpu":
        return images[rows]
    out = torch.from_numpy(allocate((len(rows), *images.shape[1:])))
    torch.index_select(images, 0, rows, out=out)
    return out


def _map(size: int) -> NDArray[np.uint8]:
    try:
        # On POSIX the file has no name from here on, and on Windows it is deleted with its last handle.
        with tempfile.TemporaryFile() as file:
            _reserve(file, size)
            # Writable, since torch warns of arrays that are not. The mapping keeps the file when it is closed here.
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.uint8)
    except OSError as error:
        raise RunError(
            f"{tempfile.tempdir or 'TMPDIR'}: cannot make a temporary file for {size:,} bytes of decoded images, which "
            f"are too many to keep in memory: {error.strerror or error}",
            hint="Free some space there, or name a folder on a larger disk:  export TMPDIR=<folder>",
        ) from error


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its space now: a disk that is full later would kill the process (SIGBUS) at a write to the map."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    block = bytes(_BLOCK)
    for start in range(0, size, _BLOCK):
        file.write(block[: size - start])
    file.flush()
