"""What is generated from the schema: the two JSON schemas and docs/recipes.md.

`python -m hmdc_hub.catalog` writes them anew in a checkout; a test holds them equal to the code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmdc_hub.catalog.entries import MODELS, RECIPES, shipped_folder
from hmdc_hub.catalog.keys import Key, children, example_value, expected, section
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.yaml12 import read_value, show

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """Return the JSON schema of a recipe as people write it: models by name or inline, its own name optional."""
    schema = _schema_of(Recipe, "hmdc-hub recipe")
    evaluate = schema["$defs"]["EvaluateSpec"]["properties"]
    for models in (schema["properties"]["pool"], evaluate["models"]):
        by_name = {"type": "string", "description": "A name in model_pool/, or a path such as ./my_model.yaml."}
        models["items"] = {"anyOf": [by_name, models["items"]]}
    return _pretty(schema)


def model_json_schema() -> str:
    """Return the JSON schema of a pool entry as people write it: its name optional."""
    return _pretty(_schema_of(ModelSpec, "hmdc-hub pool entry"))


def _schema_of(model: type[BaseModel], title: str) -> dict[str, Any]:
    plain = model.model_json_schema()
    _tidy(plain)
    plain["required"].remove("name")
    return {"$schema": _DRAFT, "title": title, **plain}


def _tidy(node: Any) -> None:
    """Drop the titles that repeat a key, and turn examples that are YAML text into what they stand for."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    if isinstance(node.get("examples"), list):
        node["examples"] = [read_value(item) if isinstance(item, str) else item for item in node["examples"]]
    for item in node.values():
        _tidy(item)


def _pretty(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


_HEAD = """\
<!-- Written by `python -m hmdc_hub.catalog` from hmdc_hub/schema/; edit the schema, not this file. -->
# Recipe reference

A recipe is one YAML file: one experiment from source dataset to published package. Copy a shipped one and edit it
(`hmdc-hub recipes cp`), or override single keys on the command line:

```
-o condense.ipc=10                 one key
-o pool.0.lr.condense=0.1          a key of the first model, named or inline
-o evaluate.models=[mlp]           a whole list
-o condense.cluster={every: 5}     a whole section; quote it for your shell
```

Everything but the keys marked *required* may be left out. A key that is not in these tables is refused.

YAML is read by version 1.2: `1e-3` is a number; `true` and `false` are the only booleans, so `off`, `yes` and `12:30`
are text; `null`, `~` and nothing at all are null. Keys that stand twice, anchors, aliases, tags, merge keys and several
documents in one file are refused. A file has at most 64 KiB of UTF-8.

An editor that knows the YAML language server completes and checks a recipe that begins with this line (`recipes cp`
writes it, and the schema beside the copy):

```yaml
# yaml-language-server: $schema=hmdc-recipe.schema.json
```
"""

_MODELS_HEAD = """\

# Pool entries

One model each, in `model_pool/<name>.yaml`, in a file of your own that a recipe names by its path (`./my_model.yaml`,
beside the recipe or in the current folder), or inline in a recipe's `pool` or `evaluate.models`:

```yaml
pool:
  - convnet3
  - ./my_model.yaml
  - {name: convnet3_w64, source: builtin, id: convnet, args: {depth: 3, width: 64}}
```
"""


def recipe_reference() -> str:
    """Return docs/recipes.md: every key of recipes and pool entries with type, default, meaning and example."""
    parts = [
        _HEAD,
        *_tables(Recipe, (), "Keys of a recipe"),
        _MODELS_HEAD,
        *_tables(ModelSpec, (), "Keys of a pool entry"),
    ]
    return "\n".join(parts)


def _tables(model: type[BaseModel], path: tuple[str, ...], title: str) -> list[str]:
    """Write one section's table, then those of the sections in it."""
    keys = children(model, path)
    lines = [f"## {title}\n", *([f"{_sentence(model)}\n"] if path else [])]
    lines += ["| key | takes | default | meaning | example |", "|---|---|---|---|---|"]
    tables = ["\n".join([*lines, *map(_row, keys)]) + "\n"]
    for key in keys:
        inner = section(key.kind)
        if inner is not None:
            tables += _tables(inner, key.path, f"`{key.dotted}`")
    return tables


def _sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _row(key: Key) -> str:
    if section(key.kind) is not None:
        takes, default = (
            f"[section](#{key.dotted.replace('.', '')})",
            "" if not key.field.is_required() else "*required*",
        )
        return f"| `{key.path[-1]}` | {takes} | {default} | {_cell(key.field.description)} | |"
    default = "*required*" if key.field.is_required() else f"`{show(_default(key), limit=200)}`"
    if key.path == ("name",):
        default = "the file's name"
    example = example_value(key)
    cells = [f"`{key.path[-1]}`", _cell(expected(key.kind)), default, _cell(key.field.description)]
    return f"| {' | '.join(cells)} | {f'`{key.path[-1]}: {example}`' if example else ''} |"


def _default(key: Key) -> Any:
    return key.field.get_default(call_default_factory=True, validated_data={})


def _cell(text: str | None) -> str:
    """Make a text fit for a table: no bar ends a cell, no angle bracket begins a tag."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def generated_files() -> dict[Path, str]:
    """Map each generated file of a checkout to what it must hold."""
    recipes, models = shipped_folder(RECIPES), shipped_folder(MODELS)
    return {
        recipes / RECIPES.schema: json_schema(),
        models / MODELS.schema: model_json_schema(),
        recipes.parent / "docs" / "recipes.md": recipe_reference(),
    }
