"""Whole runs of the condenser on tiny data, on the CPU, and the digest of what they wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hmdc_hub.condense import condense
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.loop import Condenser
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.team import Team
from hmdc_hub.events import Event, StopFlag
from hmdc_hub.models import build_for
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


def condenser_of(recipe: Recipe, team: Team) -> Condenser:
    source = tiny_source()
    real = RealImages(source, recipe.condense, 0, CPU)
    members = Members([build_for(spec, source) for spec in recipe.pool], recipe.condense, 0)
    hand = Hand(recipe.condense, 0, real, members)
    pool = Pool(hand, team)
    pool.reset(0, real)
    pixels = torch.stack([hand.starting_images(label) for label in range(real.classes)])
    return Condenser(recipe.condense, 0, real, pool, StoredImages.begin(range(real.classes), pixels, source))
