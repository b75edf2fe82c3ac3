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
)  # fmt: skip

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Evaluation, Run, condense, evaluate
    from hmdc_hub.pipeline.recipe import Recipe, load_recipe
    from hmdc_hub.store.dataset import CondensedDataset, load

__version__ = "0.1.0"

# Imported on first use: `import hmdc_hub` and `hmdc-hub --help` must not wait for torch.
_LATER = dict.fromkeys(("Evaluation", "Run", "condense", "evaluate"), "hmdc_hub.pipeline.api")
_LATER |= dict.fromkeys(("Recipe", "load_recipe"), "hmdc_hub.pipeline.recipe")
_LATER |= dict.fromkeys(("CondensedDataset", "load"), "hmdc_hub.store.dataset")

__all__ = [*_LATER, *(name for name in list(globals()) if name.endswith(("Error", "Interrupted"))), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'hmdc_hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
