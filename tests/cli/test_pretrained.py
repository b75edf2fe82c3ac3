"""The whole job with pretrained networks: from a Hub id and from a file here, to a package that names neither path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from hmdc_hub.catalog import load_recipe, read_published_recipe, read_recipe_file
from hmdc_hub.store.files import read_info, read_scores
from hmdc_hub.store.rundir import RunDir
from tests.cli import tiny
from tests.cli.conftest import Call
from tests.hub import LocalHub
from tests.models.builders import TINY_VIT
from tests.models.checkpoints import put, written_timm, written_vit

FIELDS = ", ".join(f"{key}: {value}" for key, value in {**TINY_VIT, "patch_size": 4}.items())
VIT = "{{name: vit_a, source: transformers, id: vit, args: {{{fields}}}, weights: {weights}}}"


def entry(weights: str) -> str:
    return VIT.format(fields=FIELDS, weights=weights)


def write_recipe(path: Path, weights: str) -> Path:
    """Put a pretrained ViT into the pool and the evaluation of the tiny recipe."""
    text = tiny.write(path).read_text()
    text = text.replace("models: [", f"models: [{entry(weights)}, ").replace(
        "pool:\n", f"pool:\n  - {entry(weights)}\n"
    )
    path.write_text(text)
    return path


@pytest.fixture
def weights(folder: Path) -> Path:
    return written_vit(folder / "upload", patch_size=4, image_size=8)


@pytest.mark.slow
def test_from_the_hub(call: Call, folder: Path, hub: LocalHub, weights: Path) -> None:
    repo = put(hub, "someone/tiny-vit", {path.name: path.read_bytes() for path in weights.iterdir()})
    write_recipe(Path("tiny.yaml"), repo)
    done = call("condense", "tiny.yaml", "--workers", "1")
    assert done.status == 0, done.err
    run = RunDir(Path("runs/tiny"))
    commit = hub._repo(repo, "model").branches["main"]
    assert read_info(run.info).models[0].revision == commit == read_recipe_file(run.recipe).pool[0].revision
    card = (run.package / "README.md").read_text()
    assert f"weights `{repo}` at `{commit}`" in card
    assert read_published_recipe(run.package / "ipc1" / "recipe.yaml").pool[0].weights == repo
    # Somebody pushes other weights: the same command still speaks of the commit it began with.
    hub.commit(repo, {"model.safetensors": b"others"}, repo_type="model")
    again = call("condense", "tiny.yaml", "--workers", "1")
    assert again.status == 0 and "has it all already" in again.err


@pytest.mark.slow
def test_from_a_file_here(call: Call, folder: Path, weights: Path) -> None:
    write_recipe(Path("tiny.yaml"), "./upload/model.safetensors")
    done = call("condense", "tiny.yaml", "--workers", "1")
    assert done.status == 0, done.err
    run = RunDir(Path("runs/tiny"))
    stored = read_recipe_file(run.recipe)
    assert stored.pool[0].weights == "./upload/model.safetensors" and len(stored.pool[0].revision or "") == 16
    packed = [path for path in run.package.rglob("*") if path.suffix in (".yaml", ".json", ".md")]
    assert not [path for path in packed if "upload" in path.read_text()]
    published = read_published_recipe(run.package / "ipc1" / "recipe.yaml")
    assert published.pool[0].weights == "local:model.safetensors" == published.evaluate.models[0].weights
    assert published.pool[0].revision == stored.pool[0].revision
    assert published.condense_hash() == stored.condense_hash() and published.protocol_hash() == stored.protocol_hash()
    assert read_scores(run.package / "ipc1" / "scores.json").protocol == published.evaluate
    verified = call("verify", str(run.package))
    assert verified.status == 0, verified.err
    # Whoever pulls it is told what is missing.
    Path("theirs.yaml").write_text((run.package / "ipc1" / "recipe.yaml").read_text())
    theirs = call("condense", "theirs.yaml", "--run-dir", "theirs")
    assert theirs.status == 2 and "local:model.safetensors stands for a file of whoever published" in theirs.err


@pytest.mark.slow
def test_a_file_that_changes_under_an_unfinished_run(call: Call, folder: Path, weights: Path) -> None:
    write_recipe(Path("tiny.yaml"), "./upload")
    assert call("condense", "tiny.yaml", "--no-evaluate").status == 0
    info = RunDir(Path("runs/tiny")).info
    info.unlink()
    written_vit(weights, patch_size=4, image_size=8, hidden_act="relu", qkv_bias=False)
    done = call("condense", "tiny.yaml", "--no-evaluate", "--resume")
    assert done.status == 2 and "no longer what revision" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("./nothing.safetensors", "there is no file ./nothing.safetensors"),
        ("someone/nothing", "no Hub model someone/nothing"),
        ("./other.safetensors", "./other.safetensors lack vit"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    call: Call, folder: Path, hub: LocalHub, weights: str, words: str
) -> None:
    save_file({}, "other.safetensors")
    write_recipe(Path("tiny.yaml"), weights)
    done = call("condense", "tiny.yaml")
    assert done.status == 2 and words in done.err and "Traceback" not in done.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_dry_run_settles_and_builds_too(call: Call, folder: Path, weights: Path) -> None:
    write_recipe(Path("tiny.yaml"), "./upload")
    done = call("condense", "tiny.yaml", "--dry-run", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["condense"]["at_once"] is None


def test_hashes_know_the_weights_and_not_where_they_lie(folder: Path) -> None:
    from hmdc_hub.models import settle

    hashes = set()
    for place in ("a", "b"):
        Path(place).mkdir()
        written_timm(Path(place) / "w.safetensors")
        write_recipe(Path("tiny.yaml"), f"./{place}/w.safetensors")
        recipe = load_recipe("tiny.yaml")
        recipe = recipe.model_copy(update={"pool": [settle(model) for model in recipe.pool]})
        hashes.add(recipe.condense_hash())
    assert len(hashes) == 1
    written_timm(Path("a/w.safetensors"), qkv_bias=False)
    write_recipe(Path("tiny.yaml"), "./a/w.safetensors")
    recipe = load_recipe("tiny.yaml")
    changed = recipe.model_copy(update={"pool": [settle(model) for model in recipe.pool]})
    assert changed.condense_hash() not in hashes
