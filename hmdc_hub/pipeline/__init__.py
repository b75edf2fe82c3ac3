"""The whole job, from a recipe to a published set, for Python and for the command line.

Nothing here prints, exits or reads arguments. Names are imported on first use: reading a recipe needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Evaluation, Run, condense, evaluate
    from hmdc_hub.pipeline.recipe import Recipe, load_recipe

__all__ = ["Evaluation", "Recipe", "Run", "condense", "evaluate", "load_recipe"]

_IN_RECIPE = ("Recipe", "load_recipe")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{'recipe' if name in _IN_RECIPE else 'api'}"), name)
    raise AttributeError(f"module 'hmdc_hub.pipeline' has no attribute {name!r}")
