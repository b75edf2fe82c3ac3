"""Evaluation protocols: recipes/protocols/*.yaml, the `evaluate` section of a recipe, or that of scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmdc_hub.catalog.entries import PROTOCOLS, RECIPES, find, read_document, shipped
from hmdc_hub.catalog.keys import close, did_you_mean, key_at
from hmdc_hub.catalog.load import load_recipe
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.schema import EvaluateSpec, Recipe


def protocol_overrides(name_or_path: str) -> list[str]:
    """Read a protocol as overrides of a recipe, such as `evaluate.epochs=2000`.

    Args:
        name_or_path: The name of a shipped protocol (quick, paper) or of a shipped recipe, or a path: of a YAML file
            with some keys of a recipe's `evaluate` section, of a recipe, or of a scores.json.

    Raises:
        NotFoundError: There is no such protocol.
        UsageError: The file holds no protocol, or a key that protocols do not have.
    """
    path = _find(name_or_path)
    section = _scored(path, name_or_path) if path.suffix == ".json" else _written(path, name_or_path)
    unknown = [key for key in section if key_at(Recipe, ("evaluate", key)) is None]
    if unknown:
        near = close(unknown[0], list(EvaluateSpec.model_fields))
        known = did_you_mean(near) if near else f"it has {', '.join(EvaluateSpec.model_fields)}"
        raise UsageError(f"{name_or_path}: {unknown[0]} is no key of a protocol; {known}")
    return [f"evaluate.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in _flat(section)]


def protocol_name(name_or_path: str) -> str:
    """Give a short name of a protocol, for directories."""
    path = Path(name_or_path)
    return path.parent.name if path.name in ("scores.json", "recipe.yaml") else path.stem


def _find(name: str) -> Path:
    try:
        return find(PROTOCOLS, name)
    except NotFoundError:
        if name in shipped(RECIPES):
            return shipped(RECIPES)[name]
        raise


def _scored(path: Path, where: str) -> dict[str, Any]:
    try:
        protocol = EvaluateSpec.model_validate(json.loads(path.read_text(encoding="utf-8"))["protocol"])
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{where} is no scores.json with a protocol: {error}") from error
    local = [name for model in protocol.models for name in model.local_names().values()]
    if local:  # scores may be a stranger's, and are data
        raise UsageError(
            f"{where} names {local[0]}, a file of whoever made the scores.",
            hint="If it is yours: --protocol takes the run's recipe.yaml, too.",
        )
    return protocol.model_dump(mode="json")


def _written(path: Path, where: str) -> dict[str, Any]:
    document = read_document(path, where)
    if "evaluate" in document.data:
        return load_recipe(path).evaluate.model_dump(mode="json")
    return {key: value for key, value in document.data.items() if key not in ("name", "description")}


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
