"""A source that any network separates, a recipe of small networks, and a run of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmdc_hub.rng import generator
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.sources import ClassSortedImages, Source, SourceFacts, make_source
from hmdc_hub.store.rundir import RunDir
from tests.builders import make_run

SIDE = 8
COUNTS = (20, 20, 5)
"""Real images per class; the last class is smaller than some baselines want."""

PLAIN: dict[str, Any] = {"flip": False, "color": [], "crop": False, "scale": False, "rotate": False, "cutout": False}
MLP: dict[str, Any] = {"name": "mlp", "source": "builtin", "id": "mlp", "args": {"depth": 1, "width": 8}}
CONVNET: dict[str, Any] = {"name": "conv", "source": "builtin", "id": "convnet", "args": {"depth": 2, "width": 4}}
RESNET: dict[str, Any] = {"name": "res", "source": "builtin", "id": "resnet", "args": {"width": 4, "blocks": [1, 1]}}


def model_spec(plain: dict[str, Any], **keys: Any) -> ModelSpec:
    return ModelSpec.model_validate(plain | keys)


def recipe(*, ipc: int = 2, pool: list[dict[str, Any]] | None = None, **evaluate: Any) -> Recipe:
    """Return a recipe with these keys in its `evaluate` section."""
    against = ["random", "random-encoded", "initialisation", "k-means"]
    protocol = {"models": [MLP, CONVNET], "seeds": 2, "random_draws": 2, "epochs": 3, "batch": 16, "baselines": against}
    return Recipe.model_validate(
        {
            "name": "toys",
            "source": {"id": "someone/toys", "size": SIDE, "channels": 1},
            "pool": pool or [CONVNET, MLP],
            "condense": {"ipc": ipc, "factor": 2, "resets": 1},
            "evaluate": protocol | evaluate,
            "publish": {"name": "toys-hmdc", "config": f"ipc{ipc}"},
        }
    )


def toys(counts: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Draw images of which every class has a bright row of its own, uint8 N x 1 x 8 x 8, and their labels."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.randint(0, 60, (len(labels), 1, SIDE, SIDE), generator=generator(seed, "toys"), dtype=torch.uint8)
    images[torch.arange(len(labels)), :, 1 + 2 * labels] += 180
    return images, labels


def source(counts: tuple[int, ...] = COUNTS) -> Source:
    images, labels = toys(counts, 0)
    test_images, test_labels = toys((10,) * len(counts), 1)
    bank = ClassSortedImages.from_unsorted(images, labels, len(counts))
    facts = SourceFacts("someone/toys", "hub", revision="1f3a" * 10)
    return make_source(bank, test_images, test_labels, facts=facts, class_names=[f"row{c}" for c in range(len(counts))])


def run(path: Path, of: Recipe) -> RunDir:
    """Write a run of a recipe whose condensed and starting images are random."""
    return make_run(path, recipe=of, source=source().info, scored=False)
