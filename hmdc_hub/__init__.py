"""Condense image datasets with HMDC, score them across architectures, publish them as Hugging Face datasets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hmdc_hub.catalog import load_recipe
    from hmdc_hub.store import CondensedSet, load

__all__ = ["CondensedSet", "__version__", "load", "load_recipe"]

# Imported on first use: `import hmdc_hub` and `hmdc-hub --help` must not wait for torch.
_HOMES = {"CondensedSet": "hmdc_hub.store", "load": "hmdc_hub.store", "load_recipe": "hmdc_hub.catalog"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hmdc_hub' has no attribute {name!r}")
