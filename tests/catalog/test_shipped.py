"""What ships: every recipe and pool entry, the JSON schemas and the recipe reference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.catalog import (
    MODELS,
    RECIPES,
    Entry,
    dump_recipe,
    list_entries,
    load_model,
    load_recipe,
    read_recipe_file,
)
from hmdc_hub.catalog.problems import all_keys, example_value, node_at, schema_of
from hmdc_hub.catalog.yaml12 import read_value, read_yaml
from hmdc_hub.schema import ModelSpec, Recipe
from tools.reference import generated_files, json_schema, main, model_json_schema

SHIPPED_RECIPES, SHIPPED_MODELS = list_entries(RECIPES), list_entries(MODELS)


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_something_ships() -> None:
    assert SHIPPED_RECIPES
    assert SHIPPED_MODELS


@pytest.mark.parametrize("entry", SHIPPED_RECIPES, ids=names(SHIPPED_RECIPES))
def test_every_shipped_recipe_is_right(entry: Entry, tmp_path: Path) -> None:
    recipe = load_recipe(entry.name)
    assert recipe.name == entry.name
    assert recipe.description
    assert entry.path.read_text(encoding="utf-8").splitlines()[0] == f"# yaml-language-server: $schema={RECIPES.schema}"
    assert "hmdc-hub condense" in entry.header
    assert (entry.source, entry.ipc) == (recipe.source.id, recipe.condense.ipc)
    assert list(entry.pool) == [model.name for model in recipe.pool]
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe_file(stored) == recipe
    assert (
        shape_errors(read_yaml(entry.path.read_text(encoding="utf-8"), entry.name).data, json.loads(json_schema()))
        == []
    )


def test_former_sets_of_the_papers_pair_stay_repetitions_of_its_recipe() -> None:
    """It was cifar10_ipc10 once, and had antialias; what a recipe is called is no part of its hash."""
    former = load_recipe("cifar10_ipc10_paper", ["condense.encode=antialias", "evaluate.encode=antialias"])
    assert former.condense_hash().startswith("6d81c421")
    assert former.protocol_hash().startswith("3fb43b73")


@pytest.mark.parametrize("entry", SHIPPED_RECIPES, ids=names(SHIPPED_RECIPES))
def test_a_recipe_is_scored_on_models_of_its_pool_and_on_another(entry: Entry) -> None:
    recipe = load_recipe(entry.name)
    pool, scored = {m.name for m in recipe.pool}, {m.name for m in recipe.evaluate.settled().models}
    assert pool < scored


@pytest.mark.parametrize("entry", SHIPPED_MODELS, ids=names(SHIPPED_MODELS))
def test_every_shipped_model_is_right(entry: Entry) -> None:
    model = load_model(entry.name)
    assert model.name == entry.name
    assert model.description
    assert entry.path.read_text(encoding="utf-8").splitlines()[0] == f"# yaml-language-server: $schema={MODELS.schema}"
    assert entry.header
    data = read_yaml(entry.path.read_text(encoding="utf-8"), entry.name).data
    assert shape_errors(data, json.loads(model_json_schema())) == []


@pytest.mark.parametrize("path", generated_files(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated_files()[path], "run python -m tools.reference"


def test_generated_files_are_written_anew_by_one_command(pool: Path) -> None:
    page = "# Head\n" + 2 * "<!-- Written by `python -m tools.reference` from hmdc_hub/schema/; edit the schema. -->\n"
    page = page.replace("schema. -->\n", "schema. -->\nold\n<!-- End of what is written. -->\nKept.\n")
    (pool / "docs").mkdir()
    (pool / "docs" / "recipes.md").write_text(page)
    main()
    assert (pool / "recipes" / RECIPES.schema).read_text() == json_schema()
    assert (pool / "model_pool" / MODELS.schema).read_text() == model_json_schema()
    written = (pool / "docs" / "recipes.md").read_text()
    assert written.count("| `ipc` |") == 1
    assert written.startswith("# Head\n") and written.count("Kept.") == 2 and "old\n" not in written


def shape_errors(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> list[str]:
    """Check a value against the parts of JSON schema that say which keys and types there are."""
    root = root or schema
    if "$ref" in schema:
        return shape_errors(value, root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        tries = [shape_errors(value, option, root) for option in alternatives]
        return [] if [] in tries else [f"{value!r} fits nothing"]
    types: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    expected = types | {"integer": int, "number": (int, float)}
    if "type" in schema and (
        not isinstance(value, expected[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        return [f"{value!r} is no {schema['type']}"]
    errors = [f"{value!r} is not allowed"] if "enum" in schema and value not in schema["enum"] else []
    if isinstance(value, list):
        errors += [error for item in value for error in shape_errors(item, schema.get("items", {}), root)]
    if isinstance(value, dict):
        errors += [f"{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            inside = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            errors += [f"{key} is unknown"] if inside is False else []
            errors += shape_errors(item, inside, root) if isinstance(inside, dict) else []
    return errors


def test_the_schema_takes_what_people_write_and_refuses_the_rest() -> None:
    schema = json.loads(json_schema())
    good: dict[str, Any] = {
        "source": {"id": "x", "size": 32},
        "pool": ["mlp", {"name": "a", "source": "builtin", "id": "mlp", "args": {"blocks": [1, 2], "bias": True}}],
        "condense": {"ipc": 1, "images": {"lr": 1}},
        "evaluate": {"models": ["./mine.yaml"]},
        "publish": {"name": "a", "config": "b", "license": None},
    }
    assert shape_errors(good, schema) == []
    assert Recipe.model_validate(
        good | {"name": "x", "pool": good["pool"][1:], "evaluate": {"models": good["pool"][1:]}}
    )
    assert shape_errors(good | {"sede": 1}, schema) == ["sede is unknown"]
    assert shape_errors(good | {"pool": [1]}, schema) == ["1 fits nothing"]
    assert shape_errors(good | {"condense": {"ipc": "1"}}, schema) == ["'1' fits nothing"]
    assert shape_errors(good | {"condense": {}}, schema) == ["ipc is missing"]
    assert shape_errors(good | {"pool": [{"source": "builtin", "id": "mlp"}]}, schema) != []
    assert shape_errors({"source": "builtin", "id": "mlp"}, json.loads(model_json_schema())) == []


def test_every_definition_of_the_schemas_is_strict_and_described() -> None:
    for text in (json_schema(), model_json_schema()):
        schema = json.loads(text)
        assert text.endswith("}\n")
        for section in [schema, *schema["$defs"].values()]:
            assert section["additionalProperties"] is False
            assert section["description"]
            for name, key in section["properties"].items():
                assert key.get("description") or "$ref" in key, name


@pytest.mark.parametrize("model", [Recipe, ModelSpec])
def test_examples_are_right_themselves(model: type[Recipe] | type[ModelSpec]) -> None:
    """An example that an error message shows must not be the next error."""
    schema = json.loads(json_schema() if model is Recipe else model_json_schema())
    for dotted, node in all_keys(schema_of(model)):
        if not (text := example_value(node)):
            assert dotted.rpartition(".")[2] == "description"
            continue
        value = read_value(text)
        here: dict[str, Any] = schema
        for part in dotted.split("."):
            while "$ref" in here:
                here = schema["$defs"][here["$ref"].rsplit("/", 1)[-1]]
            here = here["properties"][part]
        assert shape_errors(value, here, schema) == [], dotted


def test_the_reference_has_every_key() -> None:
    text = next(content for path, content in generated_files().items() if path.name == "recipes.md")
    keys = [*all_keys(schema_of(Recipe)), *all_keys(schema_of(ModelSpec))]
    assert len(re.findall(r"^\| `\w+` \|", text, flags=re.MULTILINE)) == len(keys)
    former = re.findall(r"^## Former names$.*?^<!--", text, flags=re.MULTILINE | re.DOTALL)[0]
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)", text, flags=re.M)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= anchors
    for row in re.findall(r"^\|.*\|$", text.replace(former, ""), flags=re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == 6, row


def test_keys_are_found_by_their_path() -> None:
    assert node_at(Recipe, ("pool", 0, "lr", "condense")) is not None
    assert node_at(Recipe, ("pool", "0", "args", "anything")) is not None
    for path in (("pool", "x"), ("seed", "x"), ("condense", "images", "lr", "x"), ("nothing",), ("pool", "-1")):
        assert node_at(Recipe, path) is None
