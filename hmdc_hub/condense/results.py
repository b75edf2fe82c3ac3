"""What a run writes: stored images as exact floats, and decoded ones in 8 bits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hmdc_hub import pack
from hmdc_hub.condense.ranks import Ranks
from hmdc_hub.schema import Recipe, SetHeader
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_classes, to_uint8, write_classes, write_parquet_parts


def write_set(path: Path, rows: Iterator[Tensor], recipe: Recipe, source: Source, ranks: Ranks) -> None:
    """Write the synthetic images of all ranks; the first does it, a class at a time.

    Args:
        path: Of the safetensors file.
        rows: Of all classes, 1 x n x ch x H x W, source-normalised, as `Ranks.gather` gives them.
        recipe: Whose they are.
        source: Says classes and normalisation.
        ranks: All of them call this at the same time.
    """
    bank = source.train
    classes = (source.denormalise(one)[0] for one in rows)
    if ranks.index != 0:
        deque(classes, maxlen=0)
        return
    header = SetHeader(
        name=recipe.name,
        ipc=recipe.condense.ipc,
        factor=recipe.condense.factor,
        class_names=list(source.info.class_names),
        mean=source.info.mean,
        std=source.info.std,
        condense_hash=recipe.condense_hash(),
    )
    write_classes(path, classes, (bank.channels, bank.side, bank.side), header)


def write_decoded(run: RunDir, recipe: Recipe, source: Source) -> tuple[int, int]:
    """Write train.parquet from condensed.safetensors: whoever decodes the file gets the same pixels.

    Returns:
        Numbers of stored and of decoded images.
    """
    spec, stored = recipe.condense, len(source.info.class_names) * recipe.condense.ipc

    def decoded() -> Iterator[tuple[Tensor, Tensor]]:
        for label, images in enumerate(read_classes(run.condensed)):
            found = to_uint8(pack.decode(images, spec.factor))
            yield found, torch.full((len(found),), label)

    return stored, write_parquet_parts(run.parquet, decoded(), source.info.class_names)
