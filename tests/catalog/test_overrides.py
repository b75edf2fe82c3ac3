from __future__ import annotations

from pathlib import Path

import pytest

from hmdc_hub.catalog import load_recipe, looks_like_override
from hmdc_hub.errors import RecipeError
from tests.catalog.conftest import MODEL, WriteRecipe


def test_overrides_reach_every_kind_of_place(write: WriteRecipe, pool: Path) -> None:
    path = write((f"  - {MODEL}\n", "  - net_a\n"))
    recipe = load_recipe(
        path,
        [
            "condense.ipc=10",
            "condense.images.lr=1e-3",
            "seed = 7",
            "condense.cluster={every: 5, enabled: false}",
            "pool.0.lr.condense=0.1",
            "pool.0.args.depth=4",
            "pool.1.name=renamed",
            "evaluate.models=[net_b, ./net_a.yaml, {name: x, source: builtin, id: mlp}]",
            "evaluate.models.0.args.width=3",
            "evaluate.models.1=net_a",
            "publish.license=cc-by-4.0",
            "source.revision='0123'",
            "description=off",
            "condense.ipc=20",
        ],
    )
    assert recipe.condense.ipc == 20
    assert recipe.condense.images.lr == 1e-3
    assert recipe.condense.images.momentum == 0.5
    assert recipe.seed == 7
    assert (recipe.condense.cluster.every, recipe.condense.cluster.enabled) == (5, False)
    assert recipe.pool[0].lr.condense == 0.1
    assert recipe.pool[0].args == {"depth": 4, "width": 128}
    assert [model.name for model in recipe.pool] == ["net_a", "renamed"]
    assert [model.name for model in recipe.evaluate.models] == ["net_b", "net_a", "x"]
    assert recipe.evaluate.models[0].args == {"width": 3}
    assert recipe.publish.license == "cc-by-4.0"
    assert recipe.source.revision == "0123"
    assert recipe.description == "off"


def test_nothing_behind_the_equals_sign_is_null(write: WriteRecipe) -> None:
    path = write(("config: ipc1", "config: ipc1\n  license: mit"))
    assert load_recipe(path).publish.license == "mit"
    assert load_recipe(path, ["publish.license="]).publish.license is None


def test_an_override_can_repair_the_file(write: WriteRecipe) -> None:
    path = write(("  ipc: 1\n", "  ipc: many\n"), (f"models: [{MODEL}]", "models: [no_such_net]"))
    recipe = load_recipe(path, ["condense.ipc=3", f"evaluate.models=[{MODEL}]"])
    assert recipe.condense.ipc == 3
    with pytest.raises(RecipeError, match=r"line 8: source.id = 3"):
        load_recipe(write(("  id: builtin:digits", "\n\n\n\n  id: 3")), ["condense.ipc=3"])


def test_sections_that_the_file_lacks_are_made(write: WriteRecipe) -> None:
    path = write(("publish:\n  name: small-hmdc\n  config: ipc1\n", "publish:\n"))
    recipe = load_recipe(path, ["publish.name=x", "publish.config=y", "evaluate.cutmix.probability=0"])
    assert (recipe.publish.name, recipe.publish.config, recipe.evaluate.cutmix.probability) == ("x", "y", 0.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("foo", "foo: must be KEY=VALUE with a dotted key"),
        ("=5", "=5: must be KEY=VALUE"),
        ("", "must be KEY=VALUE"),
        ("condense..ipc=5", "must be KEY=VALUE"),
        ("condense.ipc:5", "for example  -o condense.ipc=5"),
        ("--condense.ipc=5", "must be KEY=VALUE"),
        ("condense.ipc=0", "condense.ipc = 0: Input should be greater than or equal to 1\n"),
        ("condense.ipc=0", "for example  -o condense.ipc=10"),
        ("condense.ipc=", "condense.ipc = null: Input should be a valid integer"),
        ("condense.ipc='5'", 'condense.ipc = "5": Input should be a valid integer; write it without quotes'),
        ("condense.match=no", "condense.match = no: Input should be a valid boolean; no is text in YAML 1.2"),
        ("condense.ipcc=3", "condense.ipcc = 3: is not a known key; did you mean condense.ipc?"),
        ("ipc=3", "ipc = 3: is not a known key; did you mean condense.ipc?"),
        ("cndense.ipc=3", "cndense.ipc = 3: is not a known key; did you mean condense.ipc?"),
        ("condense.image.lr=3", "is not a known key; did you mean condense.images.lr?"),
        ("condense.momentum=0", "is not a known key; did you mean condense.images.momentum or evaluate.momentum?"),
        ("epoch=3", "is not a known key; did you mean evaluate.epochs?"),
        ("models=[mlp]", "is not a known key; did you mean evaluate.models?"),
        ("pool.0.lr.condens=1", "is not a known key; did you mean pool.0.lr.condense?"),
        ("zzz=1", "is not a known key; the keys here are name, description, seed, source"),
        ("source.id.x=1", "source.id.x = 1: is not a known key; did you mean source.id?"),
        ("pool.x=1", "is not a known key; pool is a list; its entries are numbered from 0"),
        ("pool.-1=mlp", "is not a known key; pool is a list"),
        ("pool.2=mlp", "pool.2 = mlp: pool has 2 entries, 0 to 1; to make it longer give the whole list"),
        ("evaluate.models.1.name=x", "evaluate.models has 1 entry, 0; to make it longer give the whole list"),
        ("pool.0.taps.0=1", "pool.0.taps has no entries; to make it longer give the whole list"),
        ("pool=mlp", "pool = mlp: Input should be a valid list; write [mlp]"),
        ("pool=mlp", "for example  -o 'pool=[convnet3, vit_tiny]'"),
        ("pool=[a", "pool = [a: a bracket [ opens here and is not closed"),
        ("pool=*x", "pool = *x: aliases are not read"),
        ("pool=[no_such_net]", "pool.0 = no_such_net: is not in the model pool"),
        ("condense.images.lr=.inf", "condense.images.lr = .inf: must be a finite number"),
        ("condense.cluster={evry: 5}", "evry = 5: is not a known key; did you mean condense.cluster.every?"),
        ("condense={}", "condense.ipc: Field required"),
        ("source.revision=123", "source.revision = 123: Input should be a valid string; put it in quotes"),
        ("condense.factor=3", "source.size: 16 is not divisible by condense.factor 3"),
    ],
)  # fmt: skip
def test_wrong_overrides_are_explained(write: WriteRecipe, override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), [override])
    assert words in caught.value.message


def test_a_problem_of_an_override_has_no_line_of_the_file(write: WriteRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), ["condense.ipc=0", "pool.1.lr.condense=0", "condense.images={lr: 0}"])
    assert [problem.line for problem in caught.value.problems] == [None, None, None]
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(("  ipc: 1\n", "  ipc: 0\n")), ["condense.resets=2"])
    assert [problem.line for problem in caught.value.problems] == [15]


def test_an_override_into_a_broken_section_leaves_its_problem(write: WriteRecipe) -> None:
    path = write(("condense:\n  ipc: 1\n  resets: 4\n", "condense: 5\n"))
    with pytest.raises(RecipeError, match=r"line 14: condense = 5: Input should be a section"):
        load_recipe(path, ["condense.ipc=3", "condense.images.lr=1"])


@pytest.mark.parametrize("text", ["b=2", "condense.ipc=10", "pool.0.lr.condense=0.1", "a=", "x=[1, 2]"])
def test_forgotten_o_is_noticed(text: str) -> None:
    assert looks_like_override(text)


@pytest.mark.parametrize("text", ["recipe.yaml", "runs/a=b", "=5", "", "--x=1", "./a=b", "a b=1", "C:\\x=1", "1=2"])
def test_other_arguments_are_left_alone(text: str) -> None:
    assert not looks_like_override(text)
