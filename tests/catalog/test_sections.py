"""Recipes from Python: nested dicts beside dotted overrides, recipes as dicts, objects of the session."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.catalog import (
    change,
    dump_recipe,
    load_model,
    load_recipe,
    read_published_recipe,
    read_recipe_file,
    recipe_from_dict,
)
from hmdc_hub.errors import FormatError, FormerNameWarning, RecipeError
from hmdc_hub.schema import ModelSpec, SourceSpec
from tests.catalog.conftest import MODEL, WriteRecipe

OWN = ModelSpec(name="own", source="python", id="__main__.make.<locals>.Net@0123abcd")


def test_nested_dicts_change_what_they_name_and_keep_the_rest(write: WriteRecipe, pool: Path) -> None:
    recipe = load_recipe(
        write(),
        ["condense.ipc=2", "condense.cluster.every=3"],
        {
            "condense": {
                "ipc": 3,
                "images": {"lr": 1},
                "cluster": {"enabled": False},
                "cutmix": {},
                "augment": {"color": ("contrast",)},
            },
            "pool": ["net_a", load_model("net_b"), {"name": "inline", "source": "builtin", "id": "mlp"}],
            "evaluate": {"models": ["net_b"], "lr": None},
            "source": {"id": Path("some") / "folder"},
        },
    )
    assert (recipe.condense.ipc, recipe.condense.images.lr, recipe.condense.images.momentum) == (3, 1, 0.5)
    assert (recipe.condense.cluster.every, recipe.condense.cluster.enabled) == (3, False)
    assert recipe.condense.augment.color == ["contrast"]
    assert [model.name for model in recipe.pool] == ["net_a", "net_b", "inline"]
    assert recipe.evaluate.models == [load_model("net_b")]
    assert recipe.source.id == "some/folder"
    assert load_recipe(write(), sections={"source": recipe.source}).source == recipe.source


def test_a_loaded_recipe_is_changed_as_a_file_is(write: WriteRecipe, pool: Path) -> None:
    recipe, changes = load_recipe(write()), {"evaluate": {"models": ["net_b"]}, "condense": {"images": {"lr": 1}}}
    made = change(recipe, ["condense.ipc=3", "pool.0.args.depth=4"], changes, "mine")
    assert made == load_recipe(write(), ["condense.ipc=3", "pool.0.args.depth=4"], changes)
    assert change(recipe, [], {}, "mine") == recipe
    with pytest.raises(RecipeError, match=r"(?s)^mine: 2 problems.*sede = 1: .*condense.ipc = 0: .*-o condense.ipc=10"):
        change(recipe, ["condense.ipc=0"], {"sede": 1}, "mine")
    with pytest.warns(FormerNameWarning, match="mine: condense.start is now condense.initialisation"):
        assert change(recipe, ["condense.start=random"], {}, "mine").condense.initialisation == "random"


def test_dicts_give_the_hashes_of_overrides(write: WriteRecipe) -> None:
    one = load_recipe(write(), ["condense.ipc=2", "evaluate.seeds=3", "seed=4"])
    other = load_recipe(write(), sections={"condense": {"ipc": 2}, "evaluate": {"seeds": 3}, "seed": 4})
    assert one == other and one.condense_hash() == other.condense_hash()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"condense": {"ipc": 0}}, "condense.ipc = 0: Input should be greater than or equal to 1\n"),
        ({"condense": {"ipc": 0}}, "for example  ipc: 10"),
        ({"condense": {"ipcc": 1}}, "condense.ipcc = 1: is not a known key; did you mean condense.ipc?"),
        ({"condens": {"ipc": 1}}, "condens.ipc = 1: is not a known key; did you mean condense.ipc?"),
        ({"condense": 3}, "condense = 3: Input should be a section"),
        ({"pool": "net"}, "pool = net: Input should be a valid list; write [net]"),
        ({"pool": [3]}, "pool.0 = 3: Input should be a name in model_pool/ or a mapping"),
        ({"pool": ["no_such_net"]}, "pool.0 = no_such_net: is not in the model pool"),
        ({"seed": float("nan")}, "seed = nan: Input should be a valid integer"),
        ({"description": object()}, "Input should be a valid string"),
        ({1: 2}, "1 = 2: is not a known key"),
    ],
)
def test_what_is_wrong_in_a_dict_is_said_with_its_key(write: WriteRecipe, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), sections=sections)
    assert words in caught.value.message
    assert all(problem.line is None for problem in caught.value.problems)


def test_a_recipe_is_made_of_a_dict(pool: Path, write: WriteRecipe) -> None:
    plain = load_recipe(write()).model_dump(mode="json")
    assert recipe_from_dict(plain) == load_recipe(write())
    short = {key: plain[key] for key in ("name", "source", "publish")}
    short |= {"pool": ["net_a", OWN], "condense": {"ipc": 1}, "evaluate": {"models": ["net_b"]}}
    recipe = recipe_from_dict(short)
    assert [model.name for model in recipe.pool] == ["net_a", "own"]
    assert recipe_from_dict(short | {"source": SourceSpec(**plain["source"])}) == recipe
    with pytest.raises(
        RecipeError, match=r"(?s)^mine: 3 problems.*condense.ipc: Field required.*sede = 1: is not a known"
    ):
        recipe_from_dict(short | {"sede": 1, "condense": {}, "seed": "x"}, where="mine")
    with pytest.warns(FormerNameWarning, match="mine: evaluate.against is now evaluate.baselines"):
        recipe_from_dict(short | {"evaluate": {"models": ["net_b"], "against": ["full"]}}, where="mine")


def test_a_module_of_the_session_goes_into_a_recipe_and_its_files(write: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write(), sections={"pool": [OWN, "mlp"], "evaluate": {"models": [OWN]}})
    assert recipe.pool[0] == OWN and not OWN.reproducible
    assert all(model.reproducible for model in recipe.pool[1:])
    other = OWN.model_copy(update={"id": OWN.id[:-1] + "e"})
    assert load_recipe(write(), sections={"pool": [other, "mlp"]}).condense_hash() != recipe.condense_hash()
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(recipe), encoding="utf-8")
    # A run directory and a package hold it; only building it fails where it is not.
    assert read_recipe_file(stored) == read_published_recipe(stored) == load_recipe(stored) == recipe


@pytest.mark.parametrize("id_", ["../x@0123abcd", "/etc@0123abcd", "~x@0123abcd", "a@short", "a b@0123abcd", "Net"])
def test_a_published_module_is_named_as_one(write: WriteRecipe, tmp_path: Path, id_: str) -> None:
    recipe = load_recipe(write(), sections={"pool": [OWN.model_copy(update={"id": id_}), "mlp"]})
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(recipe), encoding="utf-8")
    with pytest.raises(FormatError, match=r"pool\.0\.id"):
        read_published_recipe(stored)


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        (MODEL, "{name: own, source: python, id: x}", "pool.0.source", 8),
        (f"models: [{MODEL}]", "models: [{name: own, source: python, id: x}]", "evaluate.models.0.source", 18),
        ("id: builtin:digits", "id: python:mine", "source.id", 4),
    ],
)
def test_a_file_names_no_object_of_a_session(write: WriteRecipe, old: str, new: str, key: str, line: int) -> None:
    with pytest.raises(RecipeError, match="only there in a Python session") as caught:
        load_recipe(write((old, new)))
    assert [(problem.key, problem.line) for problem in caught.value.problems] == [(key, line)]


def test_neither_an_override_nor_a_pool_entry_names_one(write: WriteRecipe, tmp_path: Path) -> None:
    for override in ("source.id=python:mine", "pool.0.source=python", "pool.0={name: own, source: python, id: x}"):
        with pytest.raises(RecipeError, match="only there in a Python session"):
            load_recipe(write(), [override])
    entry = tmp_path / "entry.yaml"
    entry.write_text("source: python\nid: x\n")
    with pytest.raises(RecipeError, match="line 1: source = python: is only there in a Python session"):
        load_model(entry)


def test_former_names_in_dicts(write: WriteRecipe) -> None:
    with pytest.warns(FormerNameWarning, match="condense.start is now condense.initialisation"):
        recipe = load_recipe(write(), sections={"condense": {"start": "random"}})
    assert recipe.condense.initialisation == "random"
    with warnings.catch_warnings(action="error"):
        load_recipe(write(), sections={"condense": {"initialisation": "random"}})
