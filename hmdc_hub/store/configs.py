"""What a package or a published set says of its configurations in its card, and which of them is meant.

A card, and the folder, may be a stranger's: what is read of them is bounded, and no link leads out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.schema import RESERVED
from hmdc_hub.schema.base import NAME
from hmdc_hub.store.files import opened

MAX_CARD = 16 * 1024 * 1024
MAX_VALUES = 100_000  # in a card's block: a few lines of YAML can stand for billions of values, or for endless ones
# What a value in YAML begins after, and how often it may stand in a block: PyYAML takes a kilobyte for every value.
_BEGINS, MAX_BEGINNINGS = ("\n", ",", "[", "{", "- ", "? "), 2 * MAX_VALUES
SCORES_CONFIG = "scores"  # the configuration that holds score tables instead of images


def check_name(config: str) -> None:
    """Refuse what cannot be a configuration's name, such as a path, with a UsageError."""
    if not is_name(config):
        raise UsageError(f"{config!r} is not the name of a configuration, such as ipc10.")


def is_name(config: str) -> bool:
    """Tell whether a text can be a configuration's name; `$` in NAME would let a final line break through."""
    return re.fullmatch(NAME, config) is not None and not config.endswith("\n") and config not in RESERVED


def read_card_text(path: Path) -> str:
    """Read a card as it is, line ends included, since what others wrote is kept; bytes that are no text are marked."""
    with opened(path) as file:
        data = file.read(MAX_CARD + 1)
    if len(data) > MAX_CARD:
        raise FormatError(f"{path} has more than {MAX_CARD:,} bytes, the most that is read of a card.")
    return data.decode("utf-8", errors="replace")


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Split a card into its YAML block and what follows it: `{}` and all of it if no block can be read."""
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


def configs_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a card's block says of the configurations that hmdc-hub published; empty if it says nothing."""
    hmdc = block.get("hmdc")
    found = hmdc.get("configs") if isinstance(hmdc, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def entries_of(block: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """List what a card, which may be anybody's, has under `configs` or `dataset_info`."""
    found = block.get(key)
    if key == "dataset_info" and isinstance(found, Mapping):
        found = [{"config_name": "default"} | dict(found)]
    return [dict(entry) for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def read_card(text: str) -> tuple[list[str], str | None]:
    """Read the image configurations that a card names, in its order, and the default one or None."""
    images = {
        entry["config_name"]: entry.get("default") is True
        for entry in entries_of(split_card(text)[0], "configs")
        if isinstance(entry.get("config_name"), str) and is_name(entry["config_name"])
    }
    return list(images), next((name for name, default in images.items() if default), None)


def choose(found: Sequence[str], default: str | None, config: str | None, where: str) -> str:
    """Pick a configuration: the one asked for, else the only one, else the default of those found in `where`."""
    if config is not None:
        if config not in found:
            raise NotFoundError(f"{where} has no configuration {config!r}; it has {', '.join(found)}.")
        return config
    chosen = found[0] if len(found) == 1 else default
    if chosen is None or chosen not in found:
        raise UsageError(
            f"{where} has several configurations: {', '.join(found)}.", hint=f'Name one, such as config="{found[0]}".'
        )
    return chosen


def refuse_links(package: Path, configs: Iterable[str]) -> None:
    """Refuse a package in which a link leads out of it, with a FormatError.

    Links within it are harmless. So are those of a snapshot in a cache of the Hub's client, whose files are links to
    the cache's own. The package may itself be a link; what belongs to none of its configurations is not looked at.
    """
    root = os.path.realpath(package)
    above, name = os.path.split(os.path.dirname(root))
    inside = [root, os.path.join(above, "blobs")] if name == "snapshots" else [root]
    for path in _parts(package, configs):
        if path.is_symlink():
            target = os.path.realpath(path)
            if not any(target.startswith(place + os.sep) for place in inside):
                raise FormatError(
                    f"{path} is a link that leads out of {package}, to {os.readlink(path)}; it was not followed.",
                    hint="Do not trust the package; if it is yours, put a copy in the place of the link.",
                )


def _parts(package: Path, configs: Iterable[str]) -> Iterator[Path]:
    """List what is read of a package, folders before what is in them; folders that are links are not entered."""
    yield from (package / name for name in ("README.md", "croissant.json", "assets", "scores"))
    for config in configs:
        yield package / "scores" / f"{config}.parquet"
        for top in (package / config, package / "assets" / config):
            yield top
            for folder, folders, files in os.walk(top):
                yield from (Path(folder, name) for name in (*folders, *files))
