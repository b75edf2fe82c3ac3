"""What is scored: a condensed set of ours or of any other program, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub import pack
from hmdc_hub.errors import FormatError
from hmdc_hub.schema import Recipe
from hmdc_hub.store import RunDir, read_condensed, read_info, read_parquet, sha256_file, training_shape


@dataclass(frozen=True, eq=False)
class Subject:
    """A condensed set as the evaluator sees it.

    Attributes:
        name: What reports call it.
        images: uint8 M x ch x H x W, what is trained on.
        labels: int64 M.
        stored: Stored images of each class.
        sha256: Of the file that holds the images.
        factor: Side of the grid of training images that one stored image holds.
        exact: The images before they were rounded to 8 bits, float32 in [0, 1]; None: there are none.
        start: The stored images before the first image step, float32 in [0, 1] C x n x ch x H x W; None: unknown.
        condensed_by: Names of the models that condensed it, as pool entries are called.
        condense_hash: Of its recipe; None like the two next for a set of another program.
        family_hash: Of its recipe without the seed, as published.
        seed: Of its recipe.
        notes: What reading it changed or found that a person should know, such as a resize; a clause each.
    """

    name: str
    images: Tensor
    labels: Tensor
    stored: tuple[int, ...]
    sha256: str
    factor: int = 1
    exact: Tensor | None = None
    start: Tensor | None = None
    condensed_by: tuple[str, ...] = ()
    condense_hash: str | None = None
    family_hash: str | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()


def of_run(recipe: Recipe, run: RunDir) -> Subject:
    """Read what a run condensed, and of exact and starting images what its protocol compares with.

    Args:
        recipe: Resolved.
        run: Holds info.json, train.parquet, and condensed.safetensors and start.safetensors if they are needed.

    Raises:
        NotFoundError: One of the files is not there.
        FormatError: One is damaged, or they do not belong together.
    """
    info, n, factor, against = read_info(run.info), recipe.condense.ipc, recipe.condense.factor, recipe.evaluate.against
    if (n, factor) != (info.ipc, info.factor):
        raise FormatError(
            f"{run.path}: info.json says ipc {info.ipc}, factor {info.factor}; recipe.yaml ipc {n}, factor {factor}."
        )
    images, labels = read_parquet(run.parquet, shape=training_shape(info, run.condensed))
    exact = start = None
    if "exact" in against:
        stored, _, _ = read_condensed(run.condensed)
        exact = pack.decode(_by_class(stored, n), factor).flatten(0, 1)
    if "start" in against:
        start = _by_class(read_condensed(run.start)[0], n)
    return Subject(
        name=recipe.name,
        images=images,
        labels=labels,
        stored=(n,) * len(torch.unique(labels)),
        sha256=sha256_file(run.parquet),
        factor=factor,
        exact=exact,
        start=start,
        condensed_by=tuple(spec.name for spec in recipe.pool),
        condense_hash=recipe.condense_hash(),
        family_hash=recipe.without_paths(read_info(run.info).source).family_hash(),
        seed=recipe.seed,
    )


def _by_class(stored: Tensor, n: int) -> Tensor:
    return stored.reshape(-1, n, *stored.shape[1:])
