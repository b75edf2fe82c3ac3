"""Which configuration of a package is meant."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.schema import RESERVED
from hmdc_hub.schema.base import NAME

MAX_VALUES = 100_000
"""In a card's block: a few lines of YAML can stand for billions of values, or for endless ones."""

MAX_CARD = 16 * 1024 * 1024

_BEGINS, MAX_BEGINNINGS = ("\n", ",", "[", "{", "- ", "? "), 2 * MAX_VALUES
"""What a value in YAML begins after, and how often it may stand in a block: PyYAML takes a kilobyte for every value."""

SCORES_CONFIG = "scores"
"""Configuration that holds score tables instead of images."""


def check_name(config: str) -> None:
    """Refuse what cannot be a configuration's name, such as a path.

    Raises:
        UsageError: It is not.
    """
    if not is_name(config):
        raise UsageError(f"{config!r} is not the name of a configuration, such as ipc10.")


def is_name(config: str) -> bool:
    """Tell whether a text can be a configuration's name; `$` in NAME would let a final line break through."""
    return re.fullmatch(NAME, config) is not None and not config.endswith("\n") and config not in RESERVED


def read_card_text(path: Path) -> str:
    """Read a card as it is, line ends included, since what others wrote is kept; bytes that are no text are marked.

    Raises:
        FormatError: It is larger than any card.
    """
    with path.open("rb") as file:
        data = file.read(MAX_CARD + 1)
    if len(data) > MAX_CARD:
        raise FormatError(f"{path} has more than {MAX_CARD:,} bytes, the most that is read of a card.")
    return data.decode("utf-8", errors="replace")


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Split a card into its YAML block and its body.

    Args:
        text: The whole README.md, which may be anybody's.

    Returns:
        The block, and what follows it; `{}` and the whole text if there is none or it cannot be read.
    """
    match = re.match(r"---\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|$)", text, flags=re.DOTALL)
    try:
        short = match is not None and sum(map(match.group(1).count, _BEGINS)) <= MAX_BEGINNINGS
        block = yaml.safe_load(match.group(1)) if match and short else None
        if match and isinstance(block, dict) and _written_out(block, {}) <= MAX_VALUES:
            return block, text[match.end() :]
    # PyYAML lets what Python says about a bad tag through: `!!bool x` is a KeyError, `!!int ""` an IndexError.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        pass
    return {}, text


def _written_out(value: Any, known: dict[int, float]) -> float:
    """Count the values in a block with every alias written out; infinitely many if one holds itself."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(value)]


def read_card(text: str) -> tuple[list[str], str | None]:
    """Read the image configurations and the default one from a card's YAML block.

    Args:
        text: The whole README.md, which may be anybody's: what cannot be read counts as absent.

    Returns:
        Names in the card's order, and the default one or None.
    """
    configs = split_card(text)[0].get("configs")
    entries = configs if isinstance(configs, list) else []
    named = [c for c in entries if isinstance(c, dict) and isinstance(c.get("config_name"), str)]
    images = [c for c in named if is_name(c["config_name"])]
    default = next((str(c["config_name"]) for c in images if c.get("default") is True), None)
    return [str(c["config_name"]) for c in images], default


def choose(found: Sequence[str], default: str | None, config: str | None, where: str) -> str:
    """Pick a configuration.

    Args:
        found: The names there are, at least one.
        default: What the card calls the default.
        config: What the caller asked for.
        where: Package or Hub id, for messages.

    Raises:
        NotFoundError: The one asked for is not there.
        UsageError: None was asked for, and there are several without a default.
    """
    if config is not None:
        if config not in found:
            raise NotFoundError(f"{where} has no configuration {config!r}; it has {', '.join(found)}.")
        return config
    if len(found) == 1:
        return found[0]
    if default in found:
        return str(default)
    raise UsageError(
        f"{where} has several configurations: {', '.join(found)}.", hint=f'Name one, such as config="{found[0]}".'
    )
