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

# Under their own names: so type checkers take them for names of this package, too.
from hmdc_hub.errors import AccessError as AccessError
from hmdc_hub.errors import DeviceError as DeviceError
from hmdc_hub.errors import DivergedError as DivergedError
from hmdc_hub.errors import FormatError as FormatError
from hmdc_hub.errors import HmdcError as HmdcError
from hmdc_hub.errors import Interrupted as Interrupted
from hmdc_hub.errors import ModelError as ModelError
from hmdc_hub.errors import NetworkError as NetworkError
from hmdc_hub.errors import NewerFormatError as NewerFormatError
from hmdc_hub.errors import NotFoundError as NotFoundError
from hmdc_hub.errors import OutOfMemoryError as OutOfMemoryError
from hmdc_hub.errors import PeerLostError as PeerLostError
from hmdc_hub.errors import RecipeError as RecipeError
from hmdc_hub.errors import RunError as RunError
from hmdc_hub.errors import RunExistsError as RunExistsError
from hmdc_hub.errors import SourceError as SourceError
from hmdc_hub.errors import UsageError as UsageError

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Evaluation as Evaluation
    from hmdc_hub.pipeline.api import Run as Run
    from hmdc_hub.pipeline.api import condense as condense
    from hmdc_hub.pipeline.api import evaluate as evaluate
    from hmdc_hub.pipeline.recipe import Recipe as Recipe
    from hmdc_hub.pipeline.recipe import load_recipe as load_recipe
    from hmdc_hub.pipeline.sweep import Sweep as Sweep
    from hmdc_hub.pipeline.sweep import sweep as sweep
    from hmdc_hub.store.dataset import CondensedDataset as CondensedDataset
    from hmdc_hub.store.dataset import load as load

__version__ = "0.1.0"

# Imported on first use: `import hmdc_hub` and `hmdc-hub --help` must not wait for torch.
_LATER = dict.fromkeys(("Evaluation", "Run", "condense", "evaluate"), "hmdc_hub.pipeline.api")
_LATER |= dict.fromkeys(("Sweep", "sweep"), "hmdc_hub.pipeline.sweep")
_LATER |= dict.fromkeys(("Recipe", "load_recipe"), "hmdc_hub.pipeline.recipe")
_LATER |= dict.fromkeys(("CondensedDataset", "load"), "hmdc_hub.store.dataset")

__all__ = [*_LATER, *(name for name in list(globals()) if name.endswith(("Error", "Interrupted"))), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'hmdc_hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
