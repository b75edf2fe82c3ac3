"""Packages (the folder that a Hub repository will hold), their card, and pushing them.

Names that ask the Hub are imported on first use, so that packaging does not wait for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import render
from hmdc_hub.publish.facts import ConfigFacts, read_config, read_facts
from hmdc_hub.publish.front_matter import dump

if TYPE_CHECKING:
    from hmdc_hub.publish.plan import PushOptions, PushPlan, Wanted
    from hmdc_hub.publish.push import Published, Push, publish

__all__ = [
    "ConfigFacts", "Published", "Push", "PushOptions", "PushPlan", "Wanted", "dump", "package", "publish",
    "read_config", "read_facts", "render",
]  # fmt: skip

_HOMES = dict.fromkeys(("PushOptions", "PushPlan", "Wanted"), "hmdc_hub.publish.plan")
_HOMES |= dict.fromkeys(("Published", "Push", "publish"), "hmdc_hub.publish.push")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hmdc_hub.publish' has no attribute {name!r}")
