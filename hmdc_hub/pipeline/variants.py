"""Variants of a recipe: what the overrides, mappings and files of a sweep ask for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hmdc_hub.catalog import read_yaml
from hmdc_hub.errors import UsageError
from hmdc_hub.pipeline.recipe import Recipe, changed
from hmdc_hub.report.sweep import RECIPE
from hmdc_hub.text import cut, flat

MOST = 200  # variants; a mistyped grid has thousands


@dataclass(frozen=True)
class Variant:
    """A recipe under a name; `changes` are those of the sweep's recipe, by dotted key."""

    name: str
    recipe: Recipe
    changes: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """The name as that of a directory, which two names do not share."""
        text = re.sub(r"[^A-Za-z0-9._=+-]+", "-", self.name).strip("-.")
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        return text if text == self.name and len(text) <= 60 else f"{text[:50]}-{digest}"


def split_values(text: str) -> list[str]:
    """Split the values of a key at commas that stand outside brackets and quotes: `[a, b],c` has two."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def parse_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Sort `KEY=VALUE`, which change the recipe itself, from `KEY=VALUE,VALUE`, which make variants of it."""
    fixed, swept = list[str](), dict[str, list[str]]()
    for override in overrides:
        key, equals, text = override.partition("=")
        values = split_values(text)
        if not equals or len(values) == 1:
            fixed.append(override)
        elif key.strip() in swept:
            raise UsageError(f"-o {key.strip()} stands twice.", hint=f"Give all its values in one: -o {key}=A,B,C")
        else:
            swept[key.strip()] = values
    return fixed, swept


def shown(key: str, value: Any) -> str:
    """Write a change for people: the key without `condense.`, the value as in YAML."""

    def named(thing: Any) -> str:
        return str(getattr(thing, "name", None) or getattr(thing, "__name__", type(thing).__name__))

    text = value if isinstance(value, str) else json.dumps(value, default=named, ensure_ascii=False).replace('"', "")
    return f"{key.removeprefix('condense.')}={text}"


def make_variants(
    recipe: Recipe, swept: Mapping[str, Sequence[Any]], named: Mapping[str, Mapping[str, Any]], grid: bool, text: bool
) -> list[Variant]:
    """Make the recipe as it is and its variants, without those that are the same as one before; `text`: values are.

    RecipeError if one breaks the schema; UsageError if a key cannot be swept, or nothing differs.
    """
    for key in [*swept, *(key for section in named.values() for key, _ in flat(section))]:
        _refuse_key(key)
    if grid and swept:
        choices = [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
    else:
        choices = [{key: value} for key, values in swept.items() for value in values]
    wanted = [(", ".join(shown(key, value) for key, value in one.items()), one, text) for one in choices]
    wanted += [(name, dict(flat(section)), False) for name, section in named.items()]
    if len(wanted) > MOST:
        raise UsageError(f"{len(wanted):,} variants are more than the {MOST} of one sweep.", hint="Sweep fewer values.")
    variants = [Variant(RECIPE, recipe, {})]
    hashes, sizes = {recipe.family_hash()}, recipe.condense.sizes
    for name, changes, as_text in wanted:
        overrides = [f"{key}={value}" for key, value in changes.items()] if as_text else []
        made = changed(recipe, f"{recipe.name} with {name}", overrides, {} if as_text else changes)
        if made.family_hash() in hashes:
            continue
        if name in (one.name for one in variants):
            raise UsageError(f"two variants are called {name!r}.", hint=f"Names differ, and {RECIPE!r} is taken.")
        if max(len(made.condense.sizes), len(sizes)) > 1 and made.condense.sizes != sizes:
            raise UsageError(
                f"{name} makes other sizes than the recipe: {list(made.condense.sizes)}, not {list(sizes)}.",
                hint="Of several sizes each is compared with the same of the others; one number may be swept alone.",
            )
        hashes.add(made.family_hash())
        variants.append(Variant(name, Recipe.of(made, overridden=True), changes))
    if len(variants) == 1:
        raise UsageError(
            "nothing is swept: no variant differs from the recipe.",
            hint="Give a key two values or more: -o condense.images.lr=0.01,0.02 . One value changes all.",
        )
    return variants


def _refuse_key(key: str) -> None:
    if key == "seed":
        raise UsageError("seed is no key to sweep.", hint="--seeds N (seeds=N) condenses every variant with N seeds.")
    if key == "condense.resets":
        raise UsageError(
            "condense.resets is no key to sweep: all variants have one budget, which decides it.",
            hint="Sweep condense.networks.reset_every, or run a sweep for each budget: --steps N (steps=N).",
        )
    if not key.startswith(("condense.", "pool")):
        raise UsageError(
            f"{key} is no key to sweep: variants are scored on the same images in the same way.",
            hint=f"A key of condense or the pool is swept; one value changes {key} for all: -o {key}=VALUE",
        )


def read_variants(path: Path) -> dict[str, dict[str, Any]]:
    """Read a YAML file of named variants: mappings of keys, dotted or nested, by name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    data = read_yaml(text, str(path)).data
    wrong = [name for name, section in data.items() if not isinstance(section, dict) or not section]
    if not data or wrong:
        raise UsageError(
            f"{path}: {cut(str(wrong[0]), 60) if wrong else 'it'} has no keys; a variant is a name with keys.",
            hint="For example:  no balance: {condense.balance: false, condense.normalise: false}",
        )
    return {str(name): section for name, section in data.items()}
