from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.catalog import MODELS, RECIPES, entries, find, list_entries, load_recipe, shipped_folder
from hmdc_hub.errors import NotFoundError, UsageError


@pytest.mark.parametrize("name", ["first", "first.yaml", "first.yml", "recipes/first.yaml", "recipes/first"])
def test_shipped_recipes_are_found(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(RECIPES, name) == pool / "recipes" / "first.yaml"
    assert load_recipe(name).name == "first"


def test_a_file_that_is_there_comes_before_a_shipped_one(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("first.yaml", "recipes/first.yaml"):
        (tmp_path / name).write_text("x: 1\n")
        assert find(RECIPES, name) == Path(name)
    (tmp_path / "first").mkdir()  # such as a run directory
    assert find(RECIPES, "first") == pool / "recipes" / "first.yaml"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("frist", "there is no recipe 'frist'; did you mean first?"),
        ("elsewhere/first.yaml", "no file elsewhere/first.yaml, and no recipe of that name; did you mean first?"),
        ("model_pool/first.yaml", "no file model_pool/first.yaml, and no recipe of that name; did you mean first?"),
        ("zzz", "there is no recipe 'zzz'\nrecipes/ that ships with hmdc-hub holds: first, second"),
        ("", "there is no recipe ''"),
        ("mine", "there is no recipe 'mine'; did you mean the file mine.yaml?"),
        ("x" * 300, "there is no recipe 'xxx"),
    ],
)
def test_what_is_not_there_comes_with_what_is(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("x: 1\n")
    with pytest.raises(NotFoundError) as caught:
        find(RECIPES, name)
    assert words in str(caught.value)
    if "file" not in words:
        assert caught.value.hint == "See hmdc-hub recipes ls"


def test_a_file_without_permission_is_an_error_of_use(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "first.yaml":
            raise PermissionError(13, "Permission denied")
        return really_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"first cannot be read: Permission denied"):
        load_recipe("first")


def test_listing_recipes(pool: Path) -> None:
    first, second = list_entries(RECIPES)
    assert (first.name, first.description, first.path) == ("first", "For tests", pool / "recipes" / "first.yaml")
    assert (first.source, first.ipc, first.pool) == ("builtin:digits", 1, ("net_a", "other"))
    assert first.header == "Two minutes.\n  run recipes/first.yaml"
    assert second.header == ""


def test_listing_models(pool: Path) -> None:
    net_a, net_b = list_entries(MODELS)
    assert (net_a.name, net_a.description, net_a.source) == ("net_a", "Net A", "builtin:convnet")
    assert net_a.header == "What it is."
    assert net_b.source == "builtin:mlp"


def test_a_recipe_that_cannot_be_read_is_listed_with_the_reason(pool: Path) -> None:
    (pool / "recipes" / "bad.yaml").write_text("a: [\n")
    (pool / "recipes" / "odd.yaml").write_text("source: 1\npool: 2\ncondense: {ipc: x}\n")
    (pool / "recipes" / "paths.yaml").write_text("pool: [./nets/mine.yaml, {id: mlp}, 3]\n")
    bad, first, odd, paths, second = list_entries(RECIPES)
    assert bad.description.startswith("cannot be read: line ")
    assert (first.name, second.name) == ("first", "second")
    assert (odd.source, odd.ipc, odd.pool) == ("", None, ())
    assert paths.pool == ("mine", "?", "3")


def test_header_is_the_leading_comment(pool: Path) -> None:
    (pool / "model_pool" / "net_a.yaml").write_text("# a\n#\n#  b\nx: 1\n# c\n")
    (pool / "model_pool" / "net_b.yaml").write_text("x: 1\n# c\n")
    assert [entry.header for entry in list_entries(MODELS)] == ["a\n\n b", ""]


def test_only_our_own_checkout_counts(pool: Path) -> None:
    root = pool.parent
    (root / "recipes").mkdir()
    assert shipped_folder(RECIPES) == pool / "recipes"
    for content in ("[project]\nname = 'somebody-elses'\n", "not toml [", "[tool.x]\ny = 1\n", "project = 3\n"):
        (root / "pyproject.toml").write_text(content)
        entries._is_checkout.cache_clear()
        assert shipped_folder(RECIPES) == pool / "recipes"
    (root / "pyproject.toml").write_text("[project]\nname = 'hmdc-hub'\n")
    entries._is_checkout.cache_clear()
    assert shipped_folder(RECIPES) == root / "recipes"
    assert shipped_folder(MODELS) == root / "model_pool"


def test_nothing_heavy_is_imported() -> None:
    listing = "c.list_entries(c.RECIPES); c.list_entries(c.MODELS)"
    code = f"import sys, hmdc_hub.catalog as c; {listing}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for module in ("torch", "numpy", "transformers", "datasets", "PIL", "huggingface_hub"):
        assert f"'{module}'" not in done.stdout
