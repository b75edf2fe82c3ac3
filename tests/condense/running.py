"""Whole runs of the condenser on tiny data, on the CPU, and the digest of what they wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hmdc_hub.condense import condense
from hmdc_hub.events import Event, StopFlag
from hmdc_hub.schema import Recipe
from hmdc_hub.store import RunDir, sha256_file
from tests.tiny import tiny_source

CPU = torch.device("cpu")


def run(
    folder: Path, recipe: Recipe, listener: Callable[[Event], None] | None = None, stop: StopFlag | None = None
) -> RunDir:
    folder.mkdir(exist_ok=True)
    directory = RunDir(folder)
    condense(recipe, tiny_source(), directory, device=CPU, listener=listener or (lambda event: None), stop=stop)
    return directory


def digest(directory: RunDir) -> tuple[str, str, str]:
    return sha256_file(directory.start), sha256_file(directory.condensed), sha256_file(directory.parquet)
