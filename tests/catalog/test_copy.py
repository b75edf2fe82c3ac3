from __future__ import annotations

from pathlib import Path

import pytest

from hmdc_hub.catalog import MODELS, RECIPES, copy_entry, load_model, load_recipe
from hmdc_hub.errors import NotFoundError, UsageError

SCHEMA = "hmdc-recipe.schema.json"


def test_a_copy_comes_with_its_schema(pool: Path, tmp_path: Path) -> None:
    written = copy_entry(RECIPES, "first", tmp_path)
    assert written == [tmp_path / "first.yaml", tmp_path / SCHEMA]
    assert written[1].read_bytes() == (pool / "recipes" / SCHEMA).read_bytes()
    lines = written[0].read_text().splitlines()
    assert lines[:4] == [f"# yaml-language-server: $schema={SCHEMA}", "#", "# Two minutes.", "#   run first.yaml"]
    assert load_recipe(str(written[0])) == load_recipe("first")


def test_a_copy_under_another_name_is_another_recipe(pool: Path, tmp_path: Path) -> None:
    path = copy_entry(RECIPES, "first", tmp_path / "new" / "mine.yaml")[0]
    assert path == tmp_path / "new" / "mine.yaml"
    assert load_recipe(str(path)).name == "mine"
    assert "#   run mine.yaml" in path.read_text().splitlines()
    assert load_recipe(str(path)).condense_hash() == load_recipe("first").condense_hash()
    assert load_recipe(str(copy_entry(RECIPES, "first", tmp_path / "1e3.yaml")[0])).name == "1e3"


def test_the_first_line_is_put_right(pool: Path, tmp_path: Path) -> None:
    original = pool / "recipes" / "second.yaml"
    for first in ("", "# yaml-language-server: $schema=../somewhere/else.json\n"):
        original.write_text(first + "name: second\n")
        copy = copy_entry(RECIPES, "second", tmp_path, force=True)[0].read_text()
        assert copy == f"# yaml-language-server: $schema={SCHEMA}\nname: second\n"


def test_nothing_is_overwritten_without_force(pool: Path, tmp_path: Path) -> None:
    mine = copy_entry(RECIPES, "first", tmp_path)[0]
    mine.write_text("seed: 5\n")
    with pytest.raises(UsageError, match="first.yaml exists already") as caught:
        copy_entry(RECIPES, "first", tmp_path)
    assert "--force" in caught.value.hint
    with pytest.raises(UsageError, match="exists already"):
        copy_entry(RECIPES, "second", mine)
    assert mine.read_text() == "seed: 5\n"
    copy_entry(RECIPES, "first", tmp_path, force=True)
    assert load_recipe(str(mine)).seed == 0


def test_an_older_schema_of_ours_is_renewed_but_no_other_file(pool: Path, tmp_path: Path) -> None:
    schema = tmp_path / SCHEMA
    schema.write_text('{"title": "hmdc-hub recipe", "old": true}')
    copy_entry(RECIPES, "first", tmp_path)
    assert schema.read_bytes() == (pool / "recipes" / SCHEMA).read_bytes()
    for foreign in ('{"title": "other"}', "[]", "mine"):
        schema.write_text(foreign)
        with pytest.raises(UsageError, match=f"{SCHEMA} exists already"):
            copy_entry(RECIPES, "second", tmp_path)
        assert schema.read_text() == foreign
        assert not (tmp_path / "second.yaml").exists()
    copy_entry(RECIPES, "second", tmp_path, force=True)
    assert schema.read_bytes() == (pool / "recipes" / SCHEMA).read_bytes()


def test_a_recipe_can_be_copied_beside_itself(pool: Path) -> None:
    written = copy_entry(RECIPES, "first", pool / "recipes" / "third.yaml")
    assert load_recipe("third").name == "third"
    assert written[1].read_text() == '{"title": "hmdc-hub recipe"}\n'


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("nowhere", "is neither an existing folder nor a file that ends in .yaml"),
        ("a.txt", "is neither an existing folder nor a file that ends in .yaml"),
        ("my recipe.yaml", "my recipe.yaml cannot name a recipe: letters, digits"),
        ("file/x.yaml", "x.yaml cannot be written"),
    ],
)
def test_destinations_that_do_not_work(pool: Path, tmp_path: Path, destination: str, words: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=words):
        copy_entry(RECIPES, "first", tmp_path / destination)
    with pytest.raises(NotFoundError):
        copy_entry(RECIPES, "no_such", tmp_path)


def test_pool_entries_are_copied_in_the_same_way(pool: Path, tmp_path: Path) -> None:
    written = copy_entry(MODELS, "net_a", tmp_path / "mine.yaml")
    assert written == [tmp_path / "mine.yaml", tmp_path / "hmdc-model.schema.json"]
    assert written[0].read_text().startswith("# yaml-language-server: $schema=hmdc-model.schema.json\n# What it is.\n")
    assert load_model(str(written[0])).args == load_model("net_a").args


def test_the_runbook_of_a_copy_is_about_the_copy(tmp_path: Path) -> None:
    text = copy_entry(RECIPES, "digits_ipc1", tmp_path / "good.yaml")[0].read_text()
    assert "hmdc-hub condense good.yaml" in text and 'load_dataset("runs/good/package")' in text
    assert "hmdc-hub condense digits_ipc10" in text and "recipes/" not in text
