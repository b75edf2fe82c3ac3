"""Recipes that came from the Hub are data: nothing in them names a file of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmdc_hub.catalog import dump_recipe, read_published_recipe
from hmdc_hub.errors import FormatError, NotFoundError, SourceError
from hmdc_hub.schema import ModelSpec
from hmdc_hub.sources import load_source
from tests.builders import make_recipe


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "source", ["uoft-cs/cifar10", "mnist", "builtin:digits", "torchvision:CIFAR10", "local:cats@0123456789abcdef"]
)
def test_public_sources_are_read(tmp_path: Path, source: str) -> None:
    recipe = make_recipe(source_id=source)
    assert read_published_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    "source",
    ["/etc", "~/data", "./data", "../data", "..", "a/b/c", "C:\\data", "C:/data", "file:///etc", "a\\b", "data/", "//x",
     "builtin:../x", "torchvision:a/b", "https://evil.example/x", "s3://b/x"],
)  # fmt: skip
def test_local_paths_are_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(FormatError, match=r"source\.id.*local path"):
        read_published_recipe(written(tmp_path, dump_recipe(make_recipe(source_id=source))))


def test_a_hub_id_that_exists_here_as_a_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, dump_recipe(make_recipe(source_id="mine/photos")))
    assert read_published_recipe(path).source.id == "mine/photos"
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="local path"):
        read_published_recipe(path)


@pytest.mark.parametrize("model", ["/models/x", "../x", "~/x.safetensors", "a/b/c", "x\\y"])
@pytest.mark.parametrize("where", ["pool", "evaluate"])
def test_local_models_are_refused_all_at_once(tmp_path: Path, model: str, where: str) -> None:
    recipe = make_recipe(source_id="/data")
    bad = [spec.model_copy(update={"id": model}) for spec in recipe.pool]
    if where == "pool":
        recipe = recipe.model_copy(update={"pool": bad})
    else:
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"models": bad})})
    with pytest.raises(FormatError) as caught:
        read_published_recipe(written(tmp_path, dump_recipe(recipe)))
    for number in range(2):
        assert f"{'pool' if where == 'pool' else 'evaluate.models'}.{number}.id" in str(caught.value)
    assert "source.id" in str(caught.value)


def test_weights_on_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = dump_recipe(make_recipe()).replace("weights: none", "weights: ./x.safetensors")
    with pytest.raises(FormatError, match="weights"):
        read_published_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    "extra", ["hook: rm -rf /\n", "trust_remote_code: true\n", "code: !!python/object:os.system x\n"]
)
def test_unknown_keys_and_tags_are_refused(tmp_path: Path, extra: str) -> None:
    with pytest.raises(FormatError):
        read_published_recipe(written(tmp_path, dump_recipe(make_recipe()) + extra))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_published_recipe(tmp_path / "recipe.yaml")


def test_a_placeholder_says_what_to_do() -> None:
    recipe = make_recipe(source_id="local:cats@0123456789abcdef")
    with pytest.raises(SourceError, match="cats.*\n.*source.id.*0123456789abcdef"):
        load_source(recipe.source)


def with_model(**fields: object) -> str:
    """Write a recipe whose pool begins with a network of transformers."""
    recipe = make_recipe()
    model = ModelSpec(**{"name": "v", "source": "transformers", "id": "vit", **fields})  # type: ignore[arg-type]
    return dump_recipe(recipe.model_copy(update={"pool": [model, *recipe.pool]}))


@pytest.mark.parametrize(
    "fields",
    [
        {"args": {"hidden_act": "gelu_new", "layer_types": ["a", ""]}, "taps": ["_blocks.0"]},
        {"weights": "someone/model", "revision": "refs/pr/3"},
        {"weights": "someone/model", "revision": "0" * 40, "id": "someone/model"},
        {"weights": "local:mine.safetensors", "revision": "0123456789abcdef"},
        {"source": "torchvision", "id": "resnet18", "weights": "IMAGENET1K_V1"},
    ],
)
def test_models_that_name_nothing_here_are_read(tmp_path: Path, fields: dict[str, object]) -> None:
    assert read_published_recipe(written(tmp_path, with_model(**fields))).pool[0].name == "v"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weights: none", "weights: 'local:..'"),
        ("weights: none", "weights: 'local:~'"),
        ("weights: none", "weights: 'local:a/b'"),
        ("weights: none", "weights: D:/alice/x"),
        ("id: vit", "id: ./vit"),
        ("args: {}", "args: {../x: 1}"),
        ("args: {}", "args: {a: /home/alice}"),
        ("taps: null", "taps: [../x]"),
    ],
)
def test_paths_in_any_key_of_a_model_are_refused(tmp_path: Path, old: str, new: str) -> None:
    text = with_model()
    assert old in text
    with pytest.raises(FormatError):
        read_published_recipe(written(tmp_path, text.replace(old, new, 1)))
