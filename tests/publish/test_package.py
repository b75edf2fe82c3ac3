"""Packages as the real client reads them."""

from __future__ import annotations

import getpass
import json
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from hmdc_hub.catalog import stored_recipe_text
from hmdc_hub.errors import FormatError, HmdcError
from hmdc_hub.pipeline.job import package_is_current
from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import read_facts
from hmdc_hub.publish.croissant import CROISSANT, croissant
from hmdc_hub.schema import PARQUET
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.dataset import load
from hmdc_hub.store.files import read_scores, write_json_atomic
from hmdc_hub.store.parquet import read_parquet
from hmdc_hub.store.rundir import RunDir
from tests.builders import CONVNET, MLP, RESNET, make_recipe, make_run, make_source_info


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def load_dataset(*args: Any, cache: Path, **kwargs: Any) -> Any:
    import datasets

    return datasets.load_dataset(*args, cache_dir=str(cache), **kwargs)


@pytest.mark.slow
def test_load_dataset_reads_what_was_packed(run: RunDir, tmp_path: Path) -> None:
    folder = package(run)
    train = load_dataset(str(folder), split="train", cache=tmp_path / "cache")
    pixels, labels = read_parquet(run.parquet)
    assert type(train.features["image"]).__name__ == "Image"
    assert type(train.features["label"]).__name__ == "ClassLabel"
    assert train.features["label"].names == read_condensed(run.condensed)[2].class_names
    assert train["label"][:] == labels.tolist()
    import numpy as np

    assert np.array_equal(np.asarray(train[0]["image"]), pixels[0].permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_every_config_loads_by_name(run: RunDir, tmp_path: Path) -> None:
    folder = package(run)
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    names = [config["config_name"] for config in front["configs"]]
    assert "scores" in names and [c["config_name"] for c in front["configs"] if c.get("default")] == names[:1]
    for name in names:
        assert load_dataset(str(folder), name, split="train", cache=tmp_path / "cache").num_rows > 0


@pytest.mark.slow
def test_packaging_twice_gives_the_same_bytes(run: RunDir) -> None:
    first = files(package(run))
    assert files(package(run)) == first


@pytest.mark.slow
def test_the_package_holds_the_exact_tensors(run: RunDir) -> None:
    images, _, _ = read_condensed(run.condensed)
    loaded = load(package(run))
    assert torch.equal(loaded.synthetic_images, images)


@pytest.mark.slow
def test_a_run_with_local_weights_is_packaged_once(tmp_path: Path) -> None:
    model = {"name": "mine", "source": "timm", "id": "resnet18", "weights": "/home/alice/w.safetensors"}
    recipe = make_recipe(evaluate={"models": [model], "seeds": 2, "random_draws": 1, "epochs": 3})
    run = make_run(tmp_path / "run", recipe=recipe)
    assert run.state() == "scored" and not package_is_current(recipe, run)
    folder = package(run)
    assert b"alice" not in b"".join(files(folder).values())
    assert run.state() == "finished" and package_is_current(recipe, run)
    write_json_atomic(run.scores, read_scores(run.scores).model_copy(update={"device": "another"}))
    assert run.state() == "scored" and not package_is_current(recipe, run)


def test_without_scores_the_rest_is_packed(tmp_path: Path) -> None:
    folder = package(make_run(tmp_path / "run", scored=False))
    assert not [name for name in files(folder) if "scores" in name]
    assert load_dataset(str(folder), split="train", cache=tmp_path / "cache").num_rows > 0


def test_pixels_other_than_the_scored_ones_are_refused(run: RunDir) -> None:
    data = bytearray(run.parquet.read_bytes())
    data[-5] ^= 1
    run.parquet.write_bytes(data)
    with pytest.raises(HmdcError, match=r"train\.parquet"):
        package(run)


def test_another_recipe_than_the_one_that_condensed_is_refused(run: RunDir) -> None:
    other = make_recipe(pool=[CONVNET, MLP, RESNET])
    run.recipe.write_text(stored_recipe_text(other))
    with pytest.raises(FormatError, match="recipe: the models") as caught:
        package(run)
    assert "--force" in caught.value.hint and not run.package.exists()


@pytest.mark.slow
def test_no_path_user_or_host_name_is_packed(run: RunDir, tmp_path: Path) -> None:
    secrets = [str(tmp_path), str(Path.home())]
    # Short words stand anywhere by chance, in compressed pixels most of all.
    secrets += [word for word in (getpass.getuser(), socket.gethostname()) if len(word) > 6]
    for name, data in files(package(run)).items():
        for secret in secrets:
            assert secret.encode() not in data, f"{secret} in {name}"


@pytest.mark.slow
@pytest.mark.parametrize(("license", "shown"), [(None, "unknown"), ("cc-by-4.0", "cc-by-4.0")])
def test_the_licence_is_the_sources(tmp_path: Path, license: str | None, shown: str) -> None:
    recipe = make_recipe()
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, license=license))
    front = yaml.safe_load((package(run) / "README.md").read_text().split("---")[1])
    assert front["license"] == shown


def test_strange_class_names_stay_names(tmp_path: Path) -> None:
    names = ["a: 'b'", "| c |", '"d" # e\n- f', "![x](y)"]
    recipe = make_recipe()
    source = make_source_info(recipe, class_names=names[:3])
    folder = package(make_run(tmp_path / "run", recipe=recipe, source=source))
    train = load_dataset(str(folder), split="train", cache=tmp_path / "cache")
    assert train.features["label"].names == names[:3]


def test_the_manifest_lists_what_is_there(run: RunDir) -> None:
    import hashlib

    folder = package(run)
    (path,) = folder.glob("*/manifest.json")
    listed = json.loads(path.read_text())["files"]
    entries = listed.items() if isinstance(listed, dict) else [(entry["path"], entry) for entry in listed]
    assert entries
    for name, entry in entries:
        data = (folder / name).read_bytes()
        assert len(data) == entry["size"] and hashlib.sha256(data).hexdigest() == entry["sha256"]


@pytest.mark.slow
def test_the_cards_training_loop_runs_as_printed_in_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"models": [CONVNET], "seeds": 3, "random_draws": 1, "epochs": 3, "baselines": ["random"]}
    recipe = make_recipe(source_id="builtin:digits", channels=1, evaluate=plain)
    source = make_source_info(recipe, class_names=[str(n) for n in range(10)], kind="builtin")
    folder = package(make_run(tmp_path / "run", recipe=recipe, source=source))
    monkeypatch.chdir(folder)
    card = Path("README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "optimizer.step()" in block)
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102
    assert re.search(r"test accuracy \d+\.\d %\n$", capsys.readouterr().out)
    assert scope["images"].shape == (80, 1, 8, 8) and len(scope["test"].test_labels) == 359
    assert code.rstrip().splitlines()[-1].startswith("# convnet_tiny came to ")


def test_croissant_describes_every_file_of_images_and_says_what_they_are(run: RunDir) -> None:
    folder = package(run)
    plain, (facts,) = json.loads((folder / CROISSANT).read_text()), read_facts(folder)
    (file,), images = plain["distribution"], folder / "ipc2" / PARQUET
    assert (file["contentUrl"], file["sha256"]) == (f"ipc2/{PARQUET}", facts.info.parquet_sha256)
    assert file["contentSize"] == f"{images.stat().st_size} B" and "url" not in plain
    classes, rows = plain["recordSet"]
    assert [one["ipc2/classes/name"] for one in classes["data"]] == facts.info.source.class_names
    assert [one["source"]["extract"]["column"] for one in rows["field"]] == pq.read_schema(images).names
    assert plain["conformsTo"] == ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
    # Words of the vocabulary, of which a validator accepts any others in silence.
    assert {key.removeprefix("rai:") for key in plain if key.startswith("rai:")} == {
        "dataCollection", "dataCollectionType", "dataCollectionRawData", "dataPreprocessingProtocol",
        "dataAnnotationProtocol", "dataUseCases", "dataLimitations", "dataBiases", "personalSensitiveInformation",
    }  # fmt: skip
    assert "synthetic" in plain["keywords"] and "synthetic" in plain["rai:dataLimitations"][0]
    there = json.loads(croissant([facts], "ipc2", "ann/tiny"))
    assert there["url"] == "https://huggingface.co/datasets/ann/tiny"
    assert there["distribution"][0]["contentUrl"] == f"{there['url']}/resolve/main/ipc2/{PARQUET}"


def test_the_format_pages_decoding_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", recipe=make_recipe(ipc=3, factor=2))
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(run.path)
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102
    ours = load(run.path)
    for i in range(len(ours)):
        torch.testing.assert_close(scope["decoded"][i], ours[i][0], rtol=0, atol=1e-6)
        assert int(scope["labels"][i]) == ours[i][1]
