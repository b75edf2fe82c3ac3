"""`recipes` and `pool`: what they print and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmdc_hub import catalog
from hmdc_hub.catalog import list_entries, load_recipe, read_recipe_file
from tests.cli import tiny
from tests.cli.conftest import Call
from tests.hub import LocalHub
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import image_folder

RECIPES = [entry.name for entry in list_entries(catalog.RECIPES)]
MODELS = [entry.name for entry in list_entries(catalog.MODELS)]


@pytest.mark.parametrize(("verb", "names"), [("recipes", RECIPES), ("pool", MODELS)])
def test_ls(call: Call, verb: str, names: list[str]) -> None:
    done = call(verb, "ls")
    assert done.status == 0 and done.err.startswith("next: ")
    header, *rows = done.out.splitlines()
    assert header.split() == ["NAME", "DESCRIPTION"]
    assert [row.split()[0] for row in rows] == names
    listed = json.loads(call(verb, "ls", "--json").out)
    assert [entry["name"] for entry in listed] == names and all(entry["description"] for entry in listed)


@pytest.mark.parametrize(("verb", "folder", "names"), [("recipes", "recipes", RECIPES), ("pool", "model_pool", MODELS)])
def test_show_is_the_file(call: Call, verb: str, folder: str, names: list[str]) -> None:
    file = Path(__file__).parents[2] / folder / f"{names[0]}.yaml"
    done = call(verb, "show", names[0])
    assert done == (0, file.read_text(), "")


def test_show_resolved_is_what_a_run_keeps(call: Call, tmp_path: Path) -> None:
    done = call("recipes", "show", "digits_ipc1", "--resolved", "-o", "condense.ipc=3")
    assert done.status == 0 and done.err == ""
    (tmp_path / "recipe.yaml").write_text(done.out)
    wanted = load_recipe("digits_ipc1", ["condense.ipc=3"])
    assert read_recipe_file(tmp_path / "recipe.yaml") == wanted and wanted.condense.ipc == 3
    shown = json.loads(call("recipes", "show", "digits_ipc1", "-o", "condense.ipc=3", "--json").out)
    assert shown == wanted.model_dump(mode="json")


def test_show_does_not_pretend_to_override_a_file(call: Call) -> None:
    done = call("recipes", "show", "digits_ipc1", "-o", "seed=1")
    assert done.status == 2 and "add --resolved" in done.err


def test_pool_show_json(call: Call) -> None:
    assert json.loads(call("pool", "show", "convnet3", "--json").out)["args"]["width"] == 128


@pytest.mark.parametrize(("verb", "name"), [("recipes", "digits_ipc1"), ("pool", "convnet3")])
def test_cp_then_refuses_to_overwrite(call: Call, folder: Path, verb: str, name: str) -> None:
    done = call(verb, "cp", name, "mine.yaml")
    assert done.status == 0 and done.out.splitlines()[0] == "mine.yaml" and "next: edit it" in done.err
    assert sorted(path.name for path in folder.iterdir()) == sorted(done.out.split())
    (folder / "mine.yaml").write_text("precious")
    done = call(verb, "cp", name, "mine.yaml")
    assert done.status == 2 and "mine.yaml exists already" in done.err and "--force" in done.err
    assert (folder / "mine.yaml").read_text() == "precious"
    assert call(verb, "cp", name, "mine.yaml", "--force").status == 0
    assert (folder / "mine.yaml").read_text() != "precious"


def test_a_copied_recipe_is_valid(call: Call, folder: Path) -> None:
    assert call("recipes", "cp", "digits_ipc1").status == 0
    done = call("recipes", "validate", "digits_ipc1.yaml")
    assert done.status == 0 and done.out.startswith("digits_ipc1.yaml: valid (condense ")
    assert done.err == "next: hmdc-hub condense digits_ipc1.yaml\n"


@pytest.mark.slow
def test_all_shipped_recipes_are_valid(call: Call) -> None:
    done = call("recipes", "validate", *RECIPES)
    assert done.status == 0, done.err
    said = [line for line in done.out.splitlines() if not line.startswith(" ")]
    assert [line.split(": valid (condense ")[0] for line in said] == RECIPES
    lines = done.out.split("digits_ipc1: valid")[1].splitlines()
    assert (
        lines[1] == "  1438 images of train to condense, 139 to 146 in each of 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, ..."
    )
    assert "  not looked at: uoft-cs/cifar10, which is not in the cache" in done.out
    assert "  not looked at: WinKawaks/vit-tiny-patch16-224 for vit_tiny_imagenet, not in the cache" in done.out


def test_validate_reports_every_problem_of_every_file(call: Call, folder: Path) -> None:
    (folder / "a.yaml").write_text("seed: -1\n" + tiny.TEXT.replace("  ipc: 1\n", "  ipc: none\n"))
    (folder / "b.yaml").write_text(tiny.TEXT.replace("condense:", "condence:"))
    done = call("recipes", "validate", "a.yaml", "digits_ipc1", "b.yaml", "c.yaml")
    assert done.status == 2 and "Traceback" not in done.err
    assert done.out.startswith("digits_ipc1: valid") and done.out.count("valid") == 1
    for words in ("a.yaml: 2 problems", "seed = -1", "condense.ipc = none", "b.yaml:", "condence", "c.yaml"):
        assert words in done.err
    assert done.err.count("error: ") == 1
    done = call("recipes", "validate", "a.yaml", "digits_ipc1", "c.yaml", "--json")
    verdicts = json.loads(done.out)
    assert done.status == 2 and [verdict["valid"] for verdict in verdicts] == [False, True, False]
    assert [problem["key"] for problem in verdicts[0]["problems"]] == ["seed", "condense.ipc"]
    assert verdicts[0]["problems"][0]["line"] == 1 and verdicts[1]["condense_hash"]


def test_validate_checks_overrides(call: Call) -> None:
    done = call("recipes", "validate", "digits_ipc1", "-o", "condense.ipc=0", "-o", "pool.0.lr.condense=x")
    assert done.status == 2 and "2 problems" in done.err and "pool.0.lr.condense = x" in done.err


def refused(call: Call, name: str, *words: str) -> None:
    """Check that validation finds what condensing would refuse, in the same words."""
    said = [call("recipes", "validate", name), call("condense", name)]
    assert [done.status for done in said] == [2, 2] and "valid" not in said[0].out
    for word in words:
        assert word in said[0].err and word in said[1].err, (word, said)


def test_valid_is_not_followed_by_a_refusal(call: Call, folder: Path) -> None:
    tiny.write(folder / "label.yaml", source='source: {id: "builtin:digits", size: 8, channels: 1, label_column: x}')
    refused(call, "label.yaml", "x")
    tiny.write(folder / "split.yaml", source='source: {id: "builtin:digits", size: 8, channels: 1, train_split: tran}')
    refused(call, "split.yaml", "tran")
    tiny.write(folder / "ipc.yaml", ipc="  ipc: 147")
    refused(call, "ipc.yaml", "condense.ipc = 147 is more than the largest class", "146 train images")
    tiny.write(folder / "gone.yaml", source="source: {id: ./nowhere, size: 8, channels: 1}")
    refused(call, "gone.yaml", "nothing is there")
    patch = "models: [{name: vit_a, source: transformers, id: vit, args: {patch_size: 3}}]"
    tiny.write(folder / "model.yaml", models=f"  {patch}")
    refused(call, "model.yaml", "Pool entry vit_a: ", "does not divide the side of 8 pixels")


def test_every_problem_is_named_at_once(call: Call, folder: Path) -> None:
    tiny.write(folder / "a.yaml", ipc="  ipc: 1000", models="  models: [{name: m, source: builtin, id: mpl}]")
    done = call("recipes", "validate", "a.yaml")
    assert done.status == 2 and "a.yaml: 2 problems" in done.err
    assert (
        "condense.ipc = 1000" in done.err and "no model with id 'mpl'" in done.err and "-o condense.ipc=10" in done.err
    )
    (verdict,) = json.loads(call("recipes", "validate", "a.yaml", "--json").out)
    assert not verdict["valid"] and len(verdict["problems"]) == 2 and verdict["source"]["test_count"] == 359


def test_too_few_images_to_hold_some_back(call: Call, folder: Path) -> None:
    image_folder(folder / "set", {"train": {"a": 2, "b": 1}, "test": {"a": 1, "b": 1}})
    tiny.write(folder / "a.yaml", source="source: {id: set, size: 8, channels: 1}", seeds="  holdout: 0.5\n  seeds: 1")
    done = call("recipes", "validate", "a.yaml")
    assert done.status == 2 and "evaluate.holdout needs two train images of every class; b has 1" in done.err


def test_validate_says_what_it_read_and_what_not(call: Call, folder: Path) -> None:
    image_folder(folder / "set", {"train": {"a": 3, "b": 2}, "test": {"a": 1, "b": 1}})
    (folder / "set/train/a/notes.txt").write_text("x")
    tiny.write(folder / "a.yaml", source="source: {id: set, size: 8, channels: 1}")
    done = call("recipes", "validate", "a.yaml")
    assert done.out.splitlines()[1:] == [
        "  5 images of train to condense, 2 to 3 in each of 2 classes: a, b",
        "  2 to score on, test; columns image and label",
        "  left out, no images: 1 (train/a/notes.txt)",
    ]
    (verdict,) = json.loads(call("recipes", "validate", "a.yaml", "--json").out)
    assert verdict["source"]["train_counts"] == [3, 2] and verdict["source"]["left_out"][0]["count"] == 1
    assert verdict["not_looked_at"] == [] and verdict["source"]["label_column"] == "label"


def test_validate_asks_no_network(call: Call, folder: Path, hub: LocalHub) -> None:
    tiny.write(folder / "a.yaml", source="source: {id: someone/pets, size: 8, channels: 1}")
    done = call("recipes", "validate", "a.yaml")
    assert done.status == 0 and hub.requests == []
    assert "not looked at: someone/pets, which is not in the cache at a commit that the recipe names" in done.out
