"""Packages (the folder that a Hub repository will hold), their card, and pushing them.

Names that ask the Hub are imported on first use, so that packaging does not wait for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import render
from hmdc_hub.publish.facts import ConfigFacts, read_config, read_facts

if TYPE_CHECKING:
    from hmdc_hub.publish.plan import Plan, Wishes
    from hmdc_hub.publish.push import Published, Push, publish
    from hmdc_hub.publish.staging import Wanted

__all__ = [
    "ConfigFacts",
    "Plan",
    "Published",
    "Push",
    "Wanted",
    "Wishes",
    "package",
    "publish",
    "read_config",
    "read_facts",
    "render",
]

_HOMES = {
    "Plan": "hmdc_hub.publish.plan",
    "Published": "hmdc_hub.publish.push",
    "Push": "hmdc_hub.publish.push",
    "publish": "hmdc_hub.publish.push",
    "Wanted": "hmdc_hub.publish.staging",
    "Wishes": "hmdc_hub.publish.plan",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hmdc_hub.publish' has no attribute {name!r}")
