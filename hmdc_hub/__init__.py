"""Condense image datasets with HMDC, score them across architectures, publish them as Hugging Face datasets.

Example:
    >>> import hmdc_hub as hmdc
    >>> run = hmdc.condense(hmdc.load_recipe("digits_ipc1"))
    >>> print(hmdc.evaluate(run).summary())
    >>> train = run.condensed
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hmdc_hub.errors import (
        AccessError,
        DeviceError,
        DivergedError,
        FormatError,
        HmdcError,
        Interrupted,
        ModelError,
        NetworkError,
        NewerFormatError,
        NotFoundError,
        OutOfMemoryError,
        PeerLostError,
        RecipeError,
        RunError,
        RunExistsError,
        SourceError,
        UsageError,
    )
    from hmdc_hub.pipeline import Evaluation, Recipe, Run, condense, evaluate, load_recipe
    from hmdc_hub.store import CondensedDataset, load

__all__ = [
    "AccessError",
    "CondensedDataset",
    "DeviceError",
    "DivergedError",
    "Evaluation",
    "FormatError",
    "HmdcError",
    "Interrupted",
    "ModelError",
    "NetworkError",
    "NewerFormatError",
    "NotFoundError",
    "OutOfMemoryError",
    "PeerLostError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "RunExistsError",
    "SourceError",
    "UsageError",
    "__version__",
    "condense",
    "evaluate",
    "load",
    "load_recipe",
]

_HOMES = {
    "hmdc_hub.pipeline": ("Evaluation", "Recipe", "Run", "condense", "evaluate", "load_recipe"),
    "hmdc_hub.store": ("CondensedDataset", "load"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `import hmdc_hub` and `hmdc-hub --help` must not wait for torch.
    if name in __all__:
        home = next((home for home, names in _HOMES.items() if name in names), "hmdc_hub.errors")
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'hmdc_hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
