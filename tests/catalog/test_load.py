from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.catalog import dump_recipe, load_model, load_recipe, read_recipe_file, stored_recipe_text
from hmdc_hub.catalog.yaml12 import read_yaml
from hmdc_hub.errors import FormatError, NotFoundError, RecipeError
from hmdc_hub.schema import Recipe
from tests.catalog.conftest import MODEL, RECIPE, WriteRecipe


def test_a_recipe_is_resolved(write: WriteRecipe, pool: Path) -> None:
    path = write((f"  - {MODEL}\n", "  - net_a\n"), (f"models: [{MODEL}]", "models: [net_b, net_a]"))
    recipe = load_recipe(path)
    assert recipe.name == "small"
    assert [model.name for model in recipe.pool] == ["net_a", "other"]
    assert recipe.pool[0].args == {"depth": 3, "width": 128}
    assert [model.id for model in recipe.evaluate.models] == ["mlp", "convnet"]
    assert recipe.condense.images.lr == 0.005
    assert load_recipe(Path(path)) == recipe


def test_a_list_of_sizes_stands_for_a_recipe_of_each(write: WriteRecipe) -> None:
    path, sizes = write(("config: ipc1", "config: ipc")), [10, 1]
    whole = load_recipe(path, [f"condense.ipc={sizes}"])
    assert whole.condense.ipc == sizes and whole.condense.sizes == (10, 1)
    for size, recipe in zip(sizes, whole.of_sizes(), strict=True):
        alone = [f"condense.ipc={size}", f"name=small_ipc{size}", f"publish.config=ipc{size}"]
        assert recipe == load_recipe(path, alone)
        assert recipe.of_sizes() == [recipe] and recipe.condense.sizes == (recipe.condense.size,)
        assert whole.condense_hash() != recipe.condense_hash() == load_recipe(path, alone[:1]).condense_hash()
    with pytest.raises(ValueError, match="is a list"):
        _ = whole.condense.size
    one = load_recipe(path, ["condense.ipc=[10]"])  # whoever writes a list gets folders of sizes
    assert one.condense.sizes == (10,) and one.of_sizes() == whole.of_sizes()[:1]


@pytest.mark.parametrize("override", [f"name={'n' * 59}", f"publish.config={'c' * 63}"])
def test_names_leave_room_for_the_size(write: WriteRecipe, override: str) -> None:
    assert load_recipe(write(), [override])
    assert load_recipe(write(), [override, "condense.ipc=[9]"])
    with pytest.raises(RecipeError, match=r"more than 64 characters; shorten it"):
        load_recipe(write(), [override, "condense.ipc=[1, 10]"])


def test_the_name_comes_from_the_file_where_there_is_none(write: WriteRecipe) -> None:
    assert load_recipe(write(("name: small\n", ""), name="my-own_1.yaml")).name == "my-own_1"
    assert load_recipe(write(("name: small\n", ""), name="1e3.yml")).name == "1e3"
    assert load_recipe(write(name="x.yaml")).name == "small"


def test_models_are_found_beside_the_recipe_and_in_the_current_folder(
    write: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "nets").mkdir(parents=True)
    (elsewhere / "mine.yaml").write_text("source: builtin\nid: mlp\nargs: {depth: 9}\n")
    (elsewhere / "nets" / "far.yaml").write_text("name: own_name\nsource: builtin\nid: mlp\n")
    monkeypatch.chdir(elsewhere)
    names = f"models: [./mine.yaml, nets/far.yaml, model_pool/net_a.yaml, net_b.yaml, {elsewhere}/nets/far.yaml]"
    path = write((f"models: [{MODEL}]", names.replace(f", {elsewhere}/nets/far.yaml", "")))
    models = load_recipe(path).evaluate.models
    assert [model.name for model in models] == ["mine", "own_name", "net_a", "net_b"]
    assert models[0].args == {"depth": 9}
    (tmp_path / "mine.yaml").write_text("source: builtin\nid: mlp\nargs: {depth: 1}\n")
    assert load_recipe(path).evaluate.models[0].args == {"depth": 1}
    absolute = write((f"models: [{MODEL}]", f"models: [{elsewhere}/nets/far.yaml]"))
    assert load_recipe(absolute).evaluate.models[0].name == "own_name"


def test_pool_entries_are_loaded_by_name_and_path(pool: Path, tmp_path: Path) -> None:
    assert load_model("net_a").name == "net_a"
    assert load_model("net_a.yaml") == load_model("net_a")
    assert load_model(str(pool / "model_pool" / "net_a.yaml")) == load_model("net_a")
    with pytest.raises(NotFoundError, match=r"there is no pool entry 'net_aa'; did you mean net_a"):
        load_model("net_aa")


def test_a_run_keeps_what_was_resolved(write: WriteRecipe, pool: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write((f"  - {MODEL}\n", "  - net_a\n")), ["condense.images.lr=1e-5"])
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(recipe), encoding="utf-8")
    (pool / "model_pool" / "net_a.yaml").unlink()
    again = read_recipe_file(stored)
    assert again == recipe
    assert again.condense_hash() == recipe.condense_hash()
    assert again.protocol_hash() == recipe.protocol_hash()
    assert load_recipe(str(stored)) == recipe


def test_the_stored_form_has_every_key_and_is_easy_to_read(write: WriteRecipe) -> None:
    text = dump_recipe(load_recipe(write()))
    assert text.startswith("# ")
    for line in ("  factor: 2", "    lr: 0.005", "  - name: tiny", "    color: [brightness, saturation, contrast]"):
        assert line in text.splitlines()
    long = "one sentence " * 30 + "end"
    assert f"description: {long}" in dump_recipe(load_recipe(write(("For tests", long)))).splitlines()
    assert read_yaml(text, "x.yaml").data["source"]["revision"] is None


FINITE = st.floats(allow_nan=False, allow_infinity=False)
NO_PATH = st.text(st.characters(exclude_characters="/\\~"), max_size=12)
ARGS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.integers(-(2**63), 2**63 - 1) | FINITE | st.booleans() | NO_PATH | st.lists(st.integers(0, 9)),
    max_size=3,
)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    data: dict[str, Any] = read_yaml(RECIPE, "x.yaml").data
    data["name"] = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
    data["description"] = draw(st.text(max_size=30))
    data["seed"] = draw(st.integers(0, 2**63 - 1))
    data["source"]["id"] = draw(st.text(min_size=1, max_size=12) | st.sampled_from(["off", "1e3", "12:30", "null"]))
    data["source"]["revision"] = draw(st.none() | st.from_regex(r"[0-9a-f]{7}", fullmatch=True))
    data["condense"]["images"] = {"lr": draw(POSITIVE | st.integers(1, 9)), "momentum": draw(st.just(0) | st.just(0.5))}
    data["pool"][0]["args"] = draw(ARGS)
    data["evaluate"]["weight_decay"] = draw(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
    return Recipe.model_validate(data)


@pytest.mark.slow
@settings(deadline=None)
@given(recipe=recipes())
def test_any_recipe_survives_being_stored(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "stored.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    again = read_recipe_file(path)
    assert repr(again) == repr(recipe)
    assert again.condense_hash() == recipe.condense_hash()
    assert again.protocol_hash() == recipe.protocol_hash()


def test_a_stored_recipe_that_was_changed_is_noticed(tmp_path: Path, write: WriteRecipe) -> None:
    path, recipe = tmp_path / "stored.yaml", load_recipe(write())
    path.write_text(stored_recipe_text(recipe), encoding="utf-8")
    assert read_recipe_file(path) == load_recipe(path) == recipe
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("seed: 0", "seed: 1", 1), encoding="utf-8")
    with pytest.raises(FormatError, match="its checksum is another") as caught:
        read_recipe_file(path)
    assert "delete its last line" in caught.value.hint
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    assert read_recipe_file(path).seed == 1


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"name: x\n", b"name: [\n", b"a: 1\na: 2\n"])
def test_a_damaged_stored_recipe_is_no_mistake_of_the_user(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(damage)
    with pytest.raises(FormatError, match="the stored recipe is damaged, or another version of hmdc-hub wrote it"):
        read_recipe_file(path)


def test_a_stored_recipe_of_another_version_is_told_from_ours(write: WriteRecipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(load_recipe(write())) + "new_key: 1\n", encoding="utf-8")
    with pytest.raises(FormatError, match="new_key = 1: is not a known key"):
        read_recipe_file(path)
    path.write_text(dump_recipe(load_recipe(write())).replace("- name: tiny", "- mlp\n  - name: tiny", 1))
    with pytest.raises(FormatError, match=r"pool\.0 = mlp: Input should be"):
        read_recipe_file(path)
    with pytest.raises(NotFoundError, match="does not exist"):
        read_recipe_file(tmp_path / "none.yaml")


def hashes(path: str, *overrides: str) -> tuple[str, str]:
    recipe = load_recipe(path, overrides)
    return recipe.condense_hash(), recipe.protocol_hash()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "condense", "protocol"),
    [
        ("publish.name=other", False, False),
        ("publish.license=mit", False, False),
        ("description=other", False, False),
        ("name=other", False, False),
        ("condense.ipc=1", False, False),  # as in the file
        ("condense.factor=2", False, False),  # the default, spelt out
        ("condense.images.lr=5e-3", False, False),
        ("condense.images.momentum=0.50", False, False),
        ("condense.ipc=2", True, False),
        ("source.revision=abc", True, False),
        ("pool.1.lr.condense=0.06", True, False),
        ("evaluate.epochs=7", False, True),
        ("evaluate.models.0.lr.evaluate=0.5", False, True),
        ("seed=1", True, False),
        ("evaluate.seed=1", False, True),
        ("evaluate.batch_norm=frozen", False, True),
    ],
)
def test_hashes_change_with_what_they_stand_for(
    write: WriteRecipe, override: str, condense: bool, protocol: bool
) -> None:
    before, after = hashes(write()), hashes(write(), override)
    assert (before[0] != after[0], before[1] != after[1]) == (condense, protocol)


def test_hashes_do_not_depend_on_order_or_spelling(write: WriteRecipe, tmp_path: Path) -> None:
    head, source, rest = RECIPE.partition("source:\n  id: builtin:digits\n  size: 16\n  channels: 1\n")
    assert source
    turned = tmp_path / "turned.yaml"
    turned.write_text(
        rest + "source: {channels: 1, size: 0x10, id: 'builtin:digits'}\n" + head.replace("small", "turned")
    )
    assert hashes(str(turned)) == hashes(write())


def test_hashes_do_not_depend_on_naming_a_model_or_writing_it_out(write: WriteRecipe, pool: Path) -> None:
    named = write((f"  - {MODEL}\n", "  - net_a\n"))
    inline = "{name: net_a, description: Net A, source: builtin, id: convnet, args: {width: 128, depth: 3}}"
    written_out = write((f"  - {MODEL}\n", f"  - {inline}\n"), name="other.yaml")
    assert hashes(named) == hashes(written_out)
