"""What earlier versions wrote is read: names of keys and training sets, formats 1 and 2; hashes stay as they were."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import hmdc_hub
from hmdc_hub.catalog import (
    load_recipe,
    protocol_overrides,
    read_published_recipe,
    read_recipe_file,
    recipe_from_dict,
    stored_recipe_text,
    write_yaml,
)
from hmdc_hub.cli.main import run
from hmdc_hub.errors import FormatError, FormerNameWarning, NewerFormatError, RecipeError
from hmdc_hub.pipeline.evaluation import EvaluateRequest
from hmdc_hub.schema import FORMAT_VERSION, ArtifactInfo, Manifest, Recipe, Scores, is_intact
from hmdc_hub.store.files import json_text, read_info, read_record, read_scores
from tests.catalog.conftest import WriteRecipe

FORMER = Path(__file__).parent / "former"
"""Files of runs of `tiny.yaml` with the versions that wrote formats 1 and 2, as they were written."""

FORMATS = ["format1", "format2"]
CONDENSE_HASH = "47d7a4ec03f4d27c95ca7b77e90951986d92ea5399d0d79184d7fd660560b1e2"
FAMILY_HASH = "adcb6d241dac265d6e7235440378134c36948a062f4f20708332bbf8e018b58a"
PROTOCOL_HASH = "e078ad4fd40edc1955edfe425542be10048b5d213a3183bc737bdf4ccf3a29f9"

# What every recipe meant before there was the key.
ANTIALIAS = ["condense.encode=antialias", "evaluate.encode=antialias"]

IPC, SEEDS = "  ipc: 1\n", "evaluate:\n"


def hashes(recipe: Recipe) -> tuple[str, str, str]:
    return recipe.condense_hash(), recipe.family_hash(), recipe.protocol_hash()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("version", FORMATS)
def test_stored_recipes_are_read_without_a_word(version: str, tmp_path: Path) -> None:
    path = FORMER / version / "recipe.yaml"
    recipe = read_recipe_file(path)
    assert recipe == read_published_recipe(path) == load_recipe(path)
    assert recipe.condense.initialisation == "random"
    assert recipe.evaluate.baselines == ["random", "initialisation"]
    assert hashes(recipe) == (CONDENSE_HASH, FAMILY_HASH, PROTOCOL_HASH)
    assert recipe.condense.networks.accumulation_steps == (2 if version == "format2" else None)  # first there in 2


@pytest.mark.parametrize("read", [read_recipe_file, read_published_recipe])
def test_damage_in_an_older_recipe_is_said_with_its_line(read: Callable[[Path], Recipe], tmp_path: Path) -> None:
    path, text = tmp_path / "recipe.yaml", (FORMER / "format2" / "recipe.yaml").read_text(encoding="utf-8")
    for old, new, words in (
        ("  start: random", "  start: rondom", "condense.start = rondom: Input should be"),
        ("against: [random, start]", "against: start", "evaluate.against = start: Input should be a valid list"),
        ("    parts: 2", "    parts: 0", "condense.networks.parts = 0: Input should be greater"),
    ):
        line = text[: text.index(old)].count("\n") + 1
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(FormatError, match=f"line {line}: {words}"):
            read(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("version", FORMATS)
def test_records_are_read_without_a_word(version: str) -> None:
    info, scores = read_info(FORMER / version / "info.json"), read_scores(FORMER / version / "scores.json")
    assert info.format_version == scores.format_version == int(version[-1])
    assert (info.synthetic_images, info.training_images, info.tf32) == (10, 40, None)
    assert (info.condense_hash, scores.family_hash) == (CONDENSE_HASH, FAMILY_HASH)
    assert info.protocol_hash == scores.protocol_hash == scores.protocol.protocol_hash() == PROTOCOL_HASH
    names = {"condensed", "random", "initialisation"}
    assert set(scores.table) == set(scores.ece) == set(scores.budgets) == set(scores.per_class) == names
    assert {cell.training_set for cell in scores.cells} == names
    assert set(scores.gain) == names - {"condensed"}
    assert set(scores.gap) <= names
    # What is written again has the names of today, and says so.
    again = json.loads(json_text(info)), json.loads(json_text(scores))
    assert [one["format_version"] for one in again] == [FORMAT_VERSION, FORMAT_VERSION]
    assert again[0]["synthetic_images"] == 10 and "initialisation" in again[1]["table"]
    manifest = read_record(FORMER / version / "manifest.json", Manifest)
    listed = {file.path.rpartition("/")[2]: file.sha256 for file in manifest.files}
    assert listed["condensed.safetensors"] == info.tensors_sha256


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize(("name", "kind"), [("info.json", ArtifactInfo), ("scores.json", Scores)])
def test_a_checksum_is_of_the_names_in_the_file(version: str, name: str, kind: type, tmp_path: Path) -> None:
    text = (FORMER / version / name).read_text(encoding="utf-8")
    assert is_intact(json.loads(text))
    changed = tmp_path / name
    changed.write_text(text.replace('"stored_images": 10', '"stored_images": 11').replace('"draw": 0', '"draw": 1', 1))
    with pytest.raises(Exception, match="its checksum is another"):
        read_record(changed, kind)


def test_a_newer_format_is_told_from_damage(tmp_path: Path) -> None:
    """What this version writes, the ones before must refuse as newer: they know none of its names."""
    assert FORMAT_VERSION == 3
    plain = json.loads((FORMER / "format2" / "info.json").read_text(encoding="utf-8"))
    path = tmp_path / "info.json"
    path.write_text(json.dumps(plain | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(NewerFormatError):
        read_info(path)


@pytest.mark.parametrize("version", FORMATS)
def test_files_that_do_not_say_how_images_were_shrunk_mean_antialias(version: str, tmp_path: Path) -> None:
    """Those of all programs before there was the key, whichever way is the default of new recipes."""
    path, scores = FORMER / version / "recipe.yaml", FORMER / version / "scores.json"
    for recipe in (read_recipe_file(path), read_published_recipe(path), load_recipe(path)):
        assert (recipe.condense.encode, recipe.evaluate.encode) == ("antialias", "antialias")
        assert load_recipe(path, ["seed=1"]).condense.encode == "antialias"
        again = tmp_path / "again.yaml"
        again.write_text(stored_recipe_text(recipe), encoding="utf-8")
        assert "encode" not in again.read_text(encoding="utf-8")  # so an older program reads it
        assert read_recipe_file(again) == recipe
    read = read_scores(scores)
    assert read.protocol.encode == "antialias" and '"encode"' not in json_text(read)
    assert 'evaluate.encode="antialias"' in protocol_overrides(str(scores))


def test_a_new_recipe_has_the_nearest_tiles_and_says_so_in_its_files_and_hashes(tmp_path: Path) -> None:
    former, new = load_recipe("digits_ipc1", ANTIALIAS), load_recipe("digits_ipc1")
    assert all(one != other for one, other in zip(hashes(former), hashes(new), strict=True))
    assert hashes(load_recipe("digits_ipc1", ["condense.encode=bilinear"]))[2] == hashes(new)[2]
    plain = former.model_dump(mode="json")
    assert recipe_from_dict(plain) == new, "nested dicts of a program that says nothing"
    path = tmp_path / "recipe.yaml"
    path.write_text(stored_recipe_text(new), encoding="utf-8")
    assert path.read_text(encoding="utf-8").count("encode: least-squares") == 2
    assert read_recipe_file(path) == read_published_recipe(path) == load_recipe(path) == new
    written = tmp_path / "mine.yaml"
    written.write_text(write_yaml(plain), encoding="utf-8")
    assert load_recipe(written, ["name=digits_ipc1"]) == new
    mixed = load_recipe(written, ["name=digits_ipc1", "condense.encode=antialias"])
    assert (mixed.condense.encode, mixed.evaluate.encode) == ("antialias", "least-squares")


def test_what_people_wrote_is_read_with_one_note_for_each_name() -> None:
    with pytest.warns(FormerNameWarning) as caught:
        recipe = load_recipe(FORMER / "tiny.yaml", ANTIALIAS)
    assert [str(one.message).rpartition("tiny.yaml: ")[2] for one in caught] == [
        "line 11: condense.start is now condense.initialisation; the old name is still read",
        "line 12: condense.networks.parts is now condense.networks.accumulation_steps; the old name is still read",
        "line 21: evaluate.against is now evaluate.baselines; the old name is still read",
        "line 21: baseline start is now initialisation; the old name is still read",
    ]
    assert all(one.filename == __file__ for one in caught), "a note points at who asked"
    assert recipe.condense.networks.accumulation_steps == 2
    assert hashes(recipe)[2] == PROTOCOL_HASH
    # A run fills in which splits and columns those are.
    settled = recipe.source.model_copy(
        update={"train_split": "train", "test_split": "test", "image_column": "image", "label_column": "label"}
    )
    assert hashes(recipe.model_copy(update={"source": settled})) == (CONDENSE_HASH, FAMILY_HASH, PROTOCOL_HASH)


def test_a_note_points_at_who_asked_however_far_away(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seeds: 2\nagainst: [random, start]\n")
    with pytest.warns(FormerNameWarning) as caught:
        hmdc_hub.load_recipe(FORMER / "tiny.yaml")
        hmdc_hub.load_recipe(hmdc_hub.load_recipe("digits_ipc1"), "evaluate.against=[random]")
        EvaluateRequest(protocol=path).changes()
    assert len(caught) > 5 and all(one.filename == __file__ for one in caught)


def test_overrides_have_former_names_too(write: WriteRecipe) -> None:
    old = ["condense.start=random", "condense.networks.parts=3", "evaluate.against=[random, start]"]
    with pytest.warns(FormerNameWarning) as caught:
        recipe = load_recipe(write(), old)
    assert [str(one.message).rpartition(": ")[2].partition(";")[0] for one in caught] == [
        "condense.start is now condense.initialisation",
        "condense.networks.parts is now condense.networks.accumulation_steps",
        "evaluate.against is now evaluate.baselines",
        "baseline start is now initialisation",
    ]
    new = ["condense.initialisation=random", "condense.networks.accumulation_steps=3"]
    with warnings.catch_warnings(action="error"):
        assert load_recipe(write(), [*new, "evaluate.baselines=[random, initialisation]"]) == recipe


def test_an_override_by_todays_name_replaces_a_former_one(write: WriteRecipe) -> None:
    path = write((IPC, "  ipc: 1\n  start: random\n"))
    with pytest.warns(FormerNameWarning):
        assert load_recipe(path, ["condense.initialisation=kmeans"]).condense.initialisation == "kmeans"


@pytest.mark.filterwarnings("ignore::hmdc_hub.errors.FormerNameWarning")
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (IPC, IPC + "  start: kmean\n", "line 16: condense.start = kmean: Input should be"),
        (IPC, IPC + "  start: kmean\n", "for example  initialisation: kmeans"),
        (SEEDS, SEEDS + "  against: random\n", "line 18: evaluate.against = random: Input should be a valid"),
        (SEEDS, SEEDS + "  against: [random, begin]\n", "line 18: evaluate.baselines.1 = begin: Input should be"),
        (SEEDS, SEEDS + "  against: [start, initialisation]\n", "18: evaluate.against: names a training set twice"),
        (IPC, IPC + "  start: random\n  initialisation: random\n", "16: condense.start: is what condense.initiali"),
    ],
)
def test_problems_stand_where_the_former_name_stands(write: WriteRecipe, old: str, new: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write((old, new)))
    assert words in caught.value.message


def test_former_names_in_protocols(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seeds: 2\nagainst: [random, start]\n")
    with pytest.warns(FormerNameWarning) as caught:
        assert protocol_overrides(str(path)) == ["evaluate.seeds=2", 'evaluate.baselines=["random", "initialisation"]']
    assert [str(one.message).partition("mine.yaml: ")[2].partition(";")[0] for one in caught] == [
        "line 2: against is now baselines",
        "line 2: baseline start is now initialisation",
    ]
    scores = shutil.copy(FORMER / "format2" / "scores.json", tmp_path / "scores.json")
    with warnings.catch_warnings(action="error"):
        assert 'evaluate.baselines=["random", "initialisation"]' in protocol_overrides(str(scores))


def test_the_command_line_says_it_once_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["recipes", "show", "--resolved", str(FORMER / "tiny.yaml")],) * 2:
        assert run(arguments) == 0
        out, err = capsys.readouterr()
        assert "initialisation: random" in out
        assert err.count("note: ") == 4
        assert err.count("line 21: evaluate.against is now evaluate.baselines") == 1
