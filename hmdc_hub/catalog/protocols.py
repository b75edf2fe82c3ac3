"""Evaluation protocols: recipes/protocols/*.yaml, the `evaluate` section of a recipe, or that of scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hmdc_hub.catalog.entries import PROTOCOLS, RECIPES, find, read_document, shipped
from hmdc_hub.catalog.load import expand_models, flat, load_recipe, rename, tell
from hmdc_hub.catalog.problems import check
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.schema import EvaluateSpec


def protocol_overrides(name_or_path: str) -> list[str]:
    """Read a protocol as overrides of a recipe, such as `evaluate.epochs=2000`.

    Args:
        name_or_path: The name of a shipped protocol (quick, paper) or of a shipped recipe, or a path: of a YAML file
            with some keys of a recipe's `evaluate` section, of a recipe, or of a scores.json.

    Raises:
        NotFoundError: There is no such protocol.
        UsageError: The file holds no protocol, or something in it is wrong.
    """
    try:
        path = find(PROTOCOLS, name_or_path)
    except NotFoundError:
        if name_or_path not in shipped(RECIPES):
            raise
        path = shipped(RECIPES)[name_or_path]
    section = (_scored if path.suffix == ".json" else _written)(path, name_or_path)
    return [f"evaluate.{'.'.join(path)}={json.dumps(value, ensure_ascii=False)}" for path, value in flat(section)]


def protocol_name(name_or_path: str) -> str:
    """Give a short name of a protocol, for directories."""
    path = Path(name_or_path)
    name = path.resolve().parent.name if path.name in ("scores.json", "recipe.yaml") else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "custom"


def _scored(path: Path, where: str) -> dict[str, Any]:
    try:
        protocol = EvaluateSpec.model_validate(json.loads(path.read_text(encoding="utf-8"))["protocol"])
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{where} is no scores.json of this version of hmdc-hub: it holds no protocol.",
            hint="A protocol is also a recipe, or a YAML file with some keys of a recipe's evaluate section.",
        ) from error
    local = [name for model in protocol.models for name in model.local_names().values()]
    if local:  # scores may be a stranger's, and are data
        raise UsageError(
            f"{where} names {local[0]}, a file of whoever made the scores.",
            hint="If it is yours: --protocol takes the run's recipe.yaml, too.",
        )
    return protocol.model_dump(mode="json")


def _written(path: Path, where: str) -> dict[str, Any]:
    document = rename(EvaluateSpec, read_document(path, where))
    if "evaluate" in document.data:
        return load_recipe(path).evaluate.model_dump(mode="json")
    tell(document, where)
    data = document.data
    for key in ("name", "description"):
        data.pop(key, None)
    # Models may stay as a recipe has them; whether the rest is right is found with any.
    left_out = {"models"} - data.keys()
    data.setdefault("models", [{"name": "any", "source": "builtin", "id": "mlp"}])
    expand_models(document, ("models",), path.parent)
    return check(EvaluateSpec, document, where).model_dump(mode="json", exclude=left_out, exclude_unset=True)
