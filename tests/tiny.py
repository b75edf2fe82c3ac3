"""A recipe that runs in a second, and its source: real digits, 8 pixels, two small networks."""

from __future__ import annotations

from functools import cache
from typing import Any

from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source, load_source

CONVNET = {"name": "convnet_tiny", "source": "builtin", "id": "convnet", "args": {"depth": 1, "width": 4}}
MLP = {"name": "mlp_tiny", "source": "builtin", "id": "mlp", "args": {"depth": 2, "width": 8}}
VIT = {
    "name": "vit_tiny_test",
    "source": "transformers",
    "id": "vit",
    "args": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 4,
    },
}

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "description": "For tests",
    "source": {"id": "builtin:digits", "size": 8, "channels": 1},
    "pool": [CONVNET, MLP],
    "condense": {
        "ipc": 1,
        "factor": 2,
        "resets": 2,
        "batch": 8,
        "cluster": {"every": 2, "candidates": 24, "max_iter": 5},
        "networks": {"reset_every": 3, "batches_per_step": 2, "batch": 16},
        "projection": {"batches_per_step": 1},
        "augment": {"flip": False},
    },
    "evaluate": {"models": [MLP], "seeds": 2, "random_draws": 1, "epochs": 2, "augment": {"flip": False}},
    "publish": {"name": "tiny-hmdc", "config": "ipc1", "license": "cc-by-4.0"},
}


def tiny_recipe(**condense: Any) -> Recipe:
    """Return the recipe, with keys of its `condense` section replaced."""
    return Recipe.model_validate(RECIPE | {"condense": RECIPE["condense"] | condense})


@cache
def tiny_source() -> Source:
    return load_source(tiny_recipe().source)
