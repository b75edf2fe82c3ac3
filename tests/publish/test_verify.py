"""Every check of `verify` has a package that only looks right, and that it catches."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from hmdc_hub.errors import NewerFormatError
from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import BEGIN, read_facts, render
from hmdc_hub.publish.croissant import CROISSANT, croissant
from hmdc_hub.publish.verify import Finding, verify
from hmdc_hub.schema import FORMAT_VERSION
from hmdc_hub.store.condensed import read_condensed, write_condensed
from hmdc_hub.store.parquet import read_parquet, write_parquet
from tests.builders import edit_json, make_recipe, make_run, make_source_info

DATA = "ipc2/train-00000-of-00001.parquet"
TENSORS = "ipc2/condensed.safetensors"


@pytest.fixture
def folder(sound_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_package, tmp_path / "package"))


def failed(found: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.detail for finding in found if not finding.ok}


def edit_recipe(folder: Path, old: str, new: str) -> None:
    """Change a recipe, and its checksum with it."""
    path = folder / "ipc2/recipe.yaml"
    text = "".join(path.read_text().splitlines(keepends=True)[:-1])
    assert old in text
    text = text.replace(old, new, 1)
    path.write_text(f"{text}# SHA-256 of the lines above: {hashlib.sha256(text.encode()).hexdigest()}\n")


def settle(folder: Path) -> None:
    """Make manifest and info.json follow the files, as a careful forger would."""
    sha = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in (DATA, TENSORS)}
    edit_json(folder / "ipc2/info.json", lambda i: i | {"parquet_sha256": sha[DATA], "tensors_sha256": sha[TENSORS]})
    if (folder / "ipc2/scores.json").is_file():
        edit_json(folder / "ipc2/scores.json", lambda s: s | {"parquet_sha256": sha[DATA]})

    footer = pq.read_metadata(folder / DATA)
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))

    def listed(manifest: Any) -> Any:
        manifest |= {"rows": footer.num_rows, "data_bytes": size}
        for file in manifest["files"]:
            data = (folder / file["path"]).read_bytes()
            file["size"], file["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        return manifest

    edit_json(folder / "ipc2/manifest.json", listed)
    previous = (folder / "README.md").read_text()
    (folder / "README.md").write_text(render(folder, previous=previous))
    (folder / CROISSANT).write_text(croissant(read_facts(folder), "ipc2"))


def test_a_sound_package_passes_every_check(folder: Path) -> None:
    found = verify(folder)
    assert failed(found) == {}
    assert [f.check for f in found] == [
        "files", "provenance", "recipe", "tensors", "images", "scores", "pictures", "card", "croissant"
    ]  # fmt: skip


def test_a_folder_without_a_configuration(folder: Path) -> None:
    (folder / "ipc2/manifest.json").unlink()
    assert "has no configuration" in failed(verify(folder))["card"]


def test_without_scores_and_from_a_local_source(tmp_path: Path) -> None:
    recipe = make_recipe(source_id="/data/cats")
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, kind="local"), scored=False)
    found = verify(package(run))
    assert failed(found) == {} and any("local" in finding.detail for finding in found)


def test_a_local_source_that_is_called_by_another_fingerprint(tmp_path: Path) -> None:
    recipe = make_recipe(source_id="/data/cats")
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, kind="local"), scored=False)
    folder = package(run)
    edit_recipe(folder, "local:cats@ab", "local:cats@cd")
    edit_json(
        folder / "ipc2/info.json", lambda i: i | {"source": i["source"] | {"id": "local:cats@cd" + "12ab" * 3 + "12"}}
    )
    settle(folder)
    assert "fingerprint" in failed(verify(folder))["recipe"]


def test_an_empty_folder_is_not_in_order(tmp_path: Path) -> None:
    assert failed(verify(tmp_path))


@pytest.mark.parametrize("path", [DATA, TENSORS, "ipc2/info.json", "assets/ipc2/preview.png", "scores/ipc2.parquet"])
def test_a_flipped_byte_is_found(folder: Path, path: str) -> None:
    data = bytearray((folder / path).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / path).write_bytes(data)
    assert path in failed(verify(folder))["files"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [DATA, TENSORS, "ipc2/recipe.yaml", "assets/ipc2/scores.png", "scores/ipc2.parquet"])
def test_a_missing_file_is_found(folder: Path, path: str) -> None:
    (folder / path).unlink()
    assert f"{path} is missing" in failed(verify(folder))["files"]


@pytest.mark.parametrize("path", ["ipc2/extra.txt", "assets/ipc2/more/x.png"])
def test_a_file_too_many_is_found(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text("x")
    assert path in failed(verify(folder))["files"]


def test_files_of_others_are_none_of_our_business(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "x.txt").write_text("x")
    assert failed(verify(folder)) == {}


def test_croissant_names_the_very_images_and_an_older_package_has_none(folder: Path) -> None:
    path = folder / CROISSANT
    plain = json.loads(path.read_text())
    for damage in ("{", "[" * 10**5, "{}", '{"distribution": [1]}', '{"distribution": []}'):
        path.write_text(damage)
        assert set(failed(verify(folder))) == {"croissant"}
    plain["distribution"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(plain))
    assert "SHA-256" in failed(verify(folder))["croissant"]
    path.unlink()
    assert failed(verify(folder)) == {} and "croissant" not in {one.check for one in verify(folder)}


def test_other_pixels_than_the_tensors_decode_to(folder: Path) -> None:
    images, labels = read_parquet(folder / DATA)
    write_parquet(folder / DATA, 255 - images, labels, ["cat", "dog", "ship"])
    settle(folder)
    assert "decoded tensors" in failed(verify(folder)).pop("images")
    assert set(failed(verify(folder))) == {"images"}


def test_other_labels_than_the_tensors(folder: Path) -> None:
    images, labels = read_parquet(folder / DATA)
    write_parquet(folder / DATA, images, labels.flip(0), ["cat", "dog", "ship"])
    settle(folder)
    assert set(failed(verify(folder))) == {"images"}


def test_class_names_in_another_order(folder: Path) -> None:
    images, labels = read_parquet(folder / DATA)
    write_parquet(folder / DATA, images, labels, ["dog", "cat", "ship"])
    settle(folder)
    assert "class names" in failed(verify(folder))["images"]


@pytest.mark.parametrize("change", [{"class_names": ["a", "b", "c"]}, {"mean": [0.0] * 3}, {"condense_hash": "f" * 64}])
def test_a_header_of_another_set(folder: Path, change: dict[str, Any]) -> None:
    images, labels, header = read_condensed(folder / TENSORS)
    write_condensed(folder / TENSORS, images, labels, header.model_copy(update=change))
    settle(folder)
    assert set(failed(verify(folder))) == {"tensors"}


def test_pixels_out_of_range(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / TENSORS)
    from safetensors import safe_open

    with safe_open(folder / TENSORS, framework="pt") as file:
        header = json.loads(file.metadata()["hmdc"])
    del header["sha256"]  # as an older program wrote it
    tensors["images"] = tensors["images"] + torch.tensor(1.0)
    save_file(tensors, folder / TENSORS, metadata={"hmdc": json.dumps(header)})
    settle(folder)
    assert "[0, 1]" in failed(verify(folder))["tensors"]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("synthetic_images", 7), ("training_images", 7), ("ipc", 3), ("factor", 1)])
def test_counts_that_do_not_follow(folder: Path, key: str, value: int) -> None:
    edit_json(folder / "ipc2/info.json", lambda info: info | {key: value})
    settle(folder)
    assert "provenance" in failed(verify(folder))


def test_a_recipe_of_another_set(folder: Path) -> None:
    edit_recipe(folder, "seed: 0", "seed: 1")
    edit_json(folder / "ipc2/info.json", lambda info: info | {"seed": 1})
    settle(folder)
    assert "condense hash" in failed(verify(folder))["recipe"]


def test_a_recipe_with_a_local_path(folder: Path) -> None:
    edit_recipe(folder, "id: someone/tiny", "id: ../secrets")
    edit_json(folder / "ipc2/info.json", lambda info: info | {"source": info["source"] | {"id": "../secrets"}})
    settle(folder)
    assert "local path" in failed(verify(folder))["recipe"]


def test_scores_of_other_images(folder: Path) -> None:
    edit_json(folder / "ipc2/scores.json", lambda scores: scores | {"parquet_sha256": "0" * 64})
    assert "scored" in failed(verify(folder))["scores"]


def test_a_mean_that_does_not_follow_from_its_trainings(folder: Path) -> None:
    def better(scores: Any) -> None:
        scores["table"]["condensed"]["mean"]["mean"] += 0.001

    edit_json(folder / "ipc2/scores.json", better)
    settle(folder)
    assert set(failed(verify(folder))) == {"scores"} and "table.condensed.mean" in failed(verify(folder))["scores"]


def test_an_interval_that_does_not_follow(folder: Path) -> None:
    def surer(scores: Any) -> None:
        scores["gain"]["random"]["mean"]["low"] = scores["gain"]["random"]["mean"]["mean"]

    edit_json(folder / "ipc2/scores.json", surer)
    settle(folder)
    assert "gain.random.mean" in failed(verify(folder))["scores"]


def test_a_training_that_the_viewer_shows_otherwise(folder: Path) -> None:
    import pyarrow as pa

    path = folder / "scores/ipc2.parquet"
    rows = pq.read_table(path)
    column = rows.column("accuracy").to_pylist()
    column[0] += 0.1
    pq.write_table(rows.set_column(rows.schema.get_field_index("accuracy"), "accuracy", pa.array(column)), path)
    settle(folder)
    assert "scores/ipc2.parquet" in failed(verify(folder))["scores"]
    path.write_bytes(b"no parquet")
    settle(folder)
    assert "scores/ipc2.parquet" in failed(verify(folder))["scores"]


def test_a_protocol_other_than_the_recipes(folder: Path) -> None:
    edit_json(folder / "ipc2/scores.json", lambda s: s | {"protocol": s["protocol"] | {"epochs": 9999}})
    settle(folder)
    assert "protocol" in failed(verify(folder))["scores"]


def test_a_picture_that_is_none(folder: Path) -> None:
    (folder / "assets/ipc2/preview.png").write_bytes(b"<svg onload=alert(1)>")
    settle(folder)
    assert set(failed(verify(folder))) == {"pictures"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"1": "dog"', '"1": "fox"'),
        ("num_examples: 24", "num_examples: 25"),
        ("  default: true\n", ""),
        ("- config_name: scores\n", "- config_name: scores\n  default: true\n"),
        ("- config_name: scores\n", "- config_name: [scores]\n"),
        ("dataset_info:\n- config_name", "dataset_info:\n  config_name"),
        ("path: ipc2/train", "path: ipc3/train"),
        ("ipc: 2", "ipc: 3"),
        ("hmdc:\n", "other:\n"),
        ("---\n\n#", "--\n\n#"),
        ("scores/*.parquet", "scores/x.parquet"),
        ("license: cc-by-4.0", "license: mit"),
        ("n<1K", "1K<n<10K"),
        ("arxiv:2409.14538", "arxiv:2409.14539"),
        ('- "someone/tiny"', '- "someone/tony"'),
        (f"format_version: {FORMAT_VERSION}", "format_version: 0"),
        ('hmdc_hub_version: "0', 'hmdc_hub_version: "9'),
        ('text_sha256: "', 'text_sha256: "0'),
        ("24 training", "25 training"),
        ("<!-- End of yours. -->", ""),
    ],
)
def test_a_card_that_says_something_else(folder: Path, old: str, new: str) -> None:
    card = (folder / "README.md").read_text()
    assert old in card
    (folder / "README.md").write_text(card.replace(old, new, 1))
    assert set(failed(verify(folder))) == {"card"}


def test_of_many_facts_those_that_differ_are_named(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("ipc: 2", "ipc: 3", 1))
    assert failed(verify(folder))["card"] == "hmdc.configs.ipc2 in the card is {'ipc': 3}, not {'ipc': 2}"


def test_what_people_write_into_a_card_is_theirs(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for old, new in (
        ("license: cc-by-4.0", "license: [cc-by-4.0]\nlanguage: [en]"),
        ("- hmdc-hub\n", "- mine\n- hmdc-hub\n"),
        ("pretty_name: ", "pretty_name: My  own # "),
        (BEGIN, f"{BEGIN}\n## 99 words of mine\n"),
        ("\n", "\r\n"),
    ):
        assert old in card
        card = card.replace(old, new)
    (folder / "README.md").write_bytes(card.encode())
    assert failed(verify(folder)) == {}


def test_a_card_of_an_older_program_says_nothing_of_its_text(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    lines = [line for line in card.splitlines() if "text_sha256" not in line]
    (folder / "README.md").write_text("\n".join(lines).replace("training images", "images") + "\n")
    assert failed(verify(folder)) == {}


def test_no_card(folder: Path) -> None:
    (folder / "README.md").unlink()
    assert set(failed(verify(folder))) == {"card"}


def test_a_newer_format_is_no_damage(folder: Path) -> None:
    edit_json(folder / "ipc2/info.json", lambda info: info | {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(NewerFormatError, match="pip install -U"):
        verify(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "ipc3/x", "ipc2/../x", "ipc2/a/b", "scores/ipc3.parquet", "ipc2/manifest.json", "x"]
)
def test_a_manifest_lists_only_its_own_files(folder: Path, path: str) -> None:
    def stray(manifest: Any) -> None:
        manifest["files"][0]["path"] = path

    edit_json(folder / "ipc2/manifest.json", stray)
    found = failed(verify(folder))
    assert "no file of the configuration" in found["files"]


def drop_a_seed(scores: Any) -> Any:
    return scores | {"cells": [cell for cell in scores["cells"] if cell["seed"]]}


def drop_a_baseline(scores: Any) -> Any:
    return scores | {"cells": [cell for cell in scores["cells"] if cell["training_set"] != "initialisation"]}


def other_seeds(scores: Any) -> Any:
    return scores | {"cells": [cell | {"seed": cell["seed"] + 7} for cell in scores["cells"]]}


def impossible_accuracy(scores: Any) -> Any:
    first, *others = scores["cells"]
    return scores | {"cells": [first | {"accuracy": 0.5001}, *others]}


def best_of_nothing(scores: Any) -> Any:
    return scores | {"cells": [cell | {"best": 1.0} for cell in scores["cells"]]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_a_seed, "trainings are not the"),
        (drop_a_baseline, "trainings are not the"),
        (other_seeds, "trainings are not the"),
        (impossible_accuracy, "no share of 300 images"),
        (best_of_nothing, "a best look of 1.0"),
        (lambda scores: scores | {"name": "somebody"}, "name of scores.json"),
        (lambda scores: scores | {"condense_seed": 77}, "seed of scores.json"),
        (lambda scores: scores | {"family_hash": "0" * 64}, "family hash"),
        (lambda scores: scores | {"budgets": {}}, "budgets"),
        (
            lambda scores: (
                scores | {"per_class": {n: {m: [1.0] * 3 for m in r} for n, r in scores["per_class"].items()}}
            ),
            "single classes",
        ),
    ],
)
def test_scores_that_cannot_be_of_this_protocol(folder: Path, change: Any, words: str) -> None:
    edit_json(folder / "ipc2/scores.json", change)
    assert words in failed(verify(folder))["scores"]
