"""confusion.safetensors: how often each class was taken for each, by training set and model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.store.files import write_bytes_atomic

Matrix = NDArray[np.integer[Any]]


def write_confusion(path: Path, matrices: Mapping[tuple[str, str], Matrix]) -> None:
    """Write confusion matrices.

    Args:
        path: The file.
        matrices: C x C whole numbers by training set and model; row the true class, column the predicted one.

    Raises:
        RunError: The file system failed.
    """
    tensors = {f"{name}/{model}": matrix.astype(np.int64) for (name, model), matrix in matrices.items()}
    write_bytes_atomic(path, save(tensors))


def read_confusion(path: Path) -> dict[tuple[str, str], Matrix]:
    """Read confusion matrices: int64 C x C by training set and model.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        tensors = load_file(path)
        return {(name, model): tensors[f"{name}/{model}"] for name, _, model in (key.partition("/") for key in tensors)}
    except (SafetensorError, OSError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}.", hint="`hmdc-hub evaluate` writes it again.") from error
