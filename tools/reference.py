"""Write what is generated from the schema anew, in a checkout: the two JSON schemas and the tables of docs/recipes.md.

`python -m tools.reference`; a test holds the files equal to the code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmdc_hub.catalog.entries import MODELS, RECIPES, shipped_folder
from hmdc_hub.catalog.problems import Node, example_value, options, schema_of, section
from hmdc_hub.catalog.yaml12 import read_value, show
from hmdc_hub.schema import FORMER_BASELINES, NAME, ModelSpec, Recipe

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_BY_NAME = {"type": "string", "description": "A name in model_pool/, or a path such as ./my_model.yaml."}


def json_schema() -> str:
    """Return the JSON schema of a recipe as people write it: models by name or inline, its own name optional."""
    schema = _written_schema(Recipe, "hmdc-hub recipe")
    for models in (schema["properties"]["pool"], schema["$defs"]["EvaluateSpec"]["properties"]["models"]):
        models["items"] = {"anyOf": [_BY_NAME, models["items"]]}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def model_json_schema() -> str:
    """Return the JSON schema of a pool entry as people write it: its name optional."""
    return json.dumps(_written_schema(ModelSpec, "hmdc-hub pool entry"), indent=2, ensure_ascii=False) + "\n"


def _written_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    schema = {"$schema": _DRAFT, "title": title, **_tidy(model.model_json_schema())}
    schema["required"].remove("name")
    (schema["$defs"].get("ModelSpec") or schema)["properties"]["source"]["enum"].remove("python")
    return schema


def _tidy(node: Any) -> Any:
    """Drop the titles that repeat a key, and turn examples that are YAML text into what they stand for."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidy(item) for key, item in node.items() if not (key == "title" and isinstance(item, str))}
    if isinstance(node.get("examples"), list):
        tidy["examples"] = [read_value(item) if isinstance(item, str) else item for item in node["examples"]]
    return tidy


_BEGIN = "<!-- Written by `python -m tools.reference` from hmdc_hub/schema/; edit the schema. -->\n"
_END = "<!-- End of what is written. -->\n"


def recipe_reference(page: str) -> str:
    """Write the tables of docs/recipes.md anew: every key with type, default, meaning and example, and former names.

    Args:
        page: The page; what stands between its two pairs of comments is replaced.
    """
    former = [(f"`{old}`", new) for old, new in Recipe.former_keys().items()]
    former += [(f"baseline `{old}`", new) for old, new in FORMER_BASELINES.items()]
    rows = "".join(f"| {old} | `{new}` |\n" for old, new in former)
    recipe = "\n".join(_tables(schema_of(Recipe), "", "Keys of a recipe"))
    recipe += f"\n## Former names\n\nThese are still read, with a note.\n\n| was | is now |\n|---|---|\n{rows}"
    model = "\n".join(_tables(schema_of(ModelSpec), "", "Keys of a pool entry"))
    tables = iter((recipe, model))
    return re.sub(f"({_BEGIN}).*?({_END})", lambda found: f"{found[1]}\n{next(tables)}\n{found[2]}", page, flags=re.S)


def _tables(node: Node, key: str, title: str) -> list[str]:
    """Write one section's table, then those of the sections in it."""
    keys = section(node) or {}
    lines = [f"## {title}\n", *([" ".join(node["summary"].split("\n\n")[0].split()) + "\n"] if key else [])]
    lines += ["| key | takes | default | meaning | example |", "|---|---|---|---|---|"]
    below = []
    for name, child in keys.items():
        default = f"`{show(child['default'], limit=200)}`" if "default" in child else ""
        default = "*required*" if name in node.get("required", ()) else default
        default = "the file's name" if (key, name) == ("", "name") else default
        # pydantic leaves out a description that is the section's own.
        text, example = _cell(child.get("description", child.get("summary", ""))), ""
        if section(child) is not None and "items" not in child:
            dotted = f"{key}.{name}".lstrip(".")
            takes = f"[section](#{dotted.replace('.', '')})"
            below += _tables(child, dotted, f"`{dotted}`")
        else:
            takes = _cell(" or ".join(dict.fromkeys(map(_takes, options(child)))))
            example = f"`{name}: {value}`" if (value := example_value(child)) else ""
        lines.append(f"| `{name}` | {takes} | {default} | {text} | {example} |")
    return ["\n".join(lines) + "\n", *below]


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "string": "text",
}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<", "minItems": "entries >="}


def _takes(node: Node) -> str:
    """Say what one alternative of a key takes."""
    if "enum" in node:
        return "one of " + ", ".join(show(value) for value in node["enum"] if value != "python")
    if node.get("pattern") == NAME:
        return f"a name: letters, digits, '.', '_' and '-', at most {node['maxLength']}"
    if "properties" in node:
        return "a name in model_pool/ or a mapping"
    limits = ", ".join(f"{sign} {node[limit]}" for limit, sign in _LIMITS.items() if limit in node)
    limits = f" ({limits})" if limits else ""
    for part, word in (("items", "a list, each "), ("additionalProperties", "a mapping of names to values, each ")):
        if isinstance(node.get(part), dict):
            return word + " or ".join(map(_takes, options(node[part]))) + limits
    kind: str = node["type"]
    return _TYPES.get(kind, kind) + limits


def _cell(text: str) -> str:
    """Make a text fit for a table: no bar ends a cell, no angle bracket begins a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def generated_files() -> dict[Path, str]:
    """Map each generated file of a checkout to what it must hold."""
    recipes, models = shipped_folder(RECIPES), shipped_folder(MODELS)
    page = recipes.parent / "docs" / "recipes.md"
    return {
        recipes / RECIPES.schema: json_schema(),
        models / MODELS.schema: model_json_schema(),
        page: recipe_reference(page.read_text(encoding="utf-8")),
    }


def main() -> None:
    """Write them."""
    for file, content in generated_files().items():
        file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
