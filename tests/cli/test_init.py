"""`init`: datasets in, recipes out that are valid and run."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from PIL import Image

from hmdc_hub.catalog import load_recipe
from hmdc_hub.sources import load_source
from tests.cli.conftest import Call
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import image_folder, parquet_folder, write_parquet

QUICK = ("-o", "condense.resets=1", "-o", "condense.networks.reset_every=1", "-o", "condense.batch=4",
         "-o", "condense.networks.batches_per_step=1", "-o", "evaluate.epochs=1", "-o", "evaluate.seeds=1",
         "-o", "evaluate.random_draws=1", "--workers", "1")  # fmt: skip


def test_digits_on_stdout(call: Call, folder: Path) -> None:
    done = call("init", "builtin:digits", "--ipc", "1")
    assert done.status == 0
    assert done.out.startswith(
        "# yaml-language-server: $schema=hmdc-recipe.schema.json\n#\n# builtin:digits: 10 classes"
    )
    assert "hmdc-hub condense digits_ipc1.yaml --dry-run" in done.out
    for words in (
        "classes   10 (0, 1,",
        "train: 1438 images",
        "test: 359 images",
        "grey",
        "cc-by-4.0",
        "next: save it",
    ):
        assert words in done.err
    (folder / "digits_ipc1.yaml").write_text(done.out)
    assert call("recipes", "validate", "digits_ipc1.yaml").status == 0
    recipe = load_recipe("digits_ipc1.yaml")
    assert recipe.name == "digits_ipc1" and recipe.source.size == 16 and recipe.source.channels == 1
    assert not recipe.condense.augment.flip and not recipe.evaluate.augment.flip
    assert (recipe.publish.name, recipe.publish.config, recipe.publish.license) == ("digits-hmdc", "ipc1", "cc-by-4.0")
    assert list(folder.iterdir()) == [folder / "digits_ipc1.yaml"]


def test_into_a_file_and_run(call: Call, folder: Path) -> None:
    parquet_folder(folder / "data", names=("img", "kind"))
    done = call("init", "./data", "--ipc", "2", "-O", "mine.yaml")
    assert done.status == 0 and done.out == "" and "wrote mine.yaml" in done.err
    assert done.err.endswith("next: hmdc-hub condense mine.yaml --dry-run\n")
    assert (folder / "hmdc-recipe.schema.json").is_file()
    recipe = load_recipe("mine.yaml")
    assert (recipe.source.image_column, recipe.source.label_column) == ("img", "kind")
    assert "shows 8 of each class" in done.err and "names no licence" in done.err
    done = call("condense", "mine.yaml", *QUICK)
    assert done.status == 0 and "next: load_dataset(" in done.err


def test_an_image_folder_without_a_test_split_is_divided(call: Call, folder: Path) -> None:
    image_folder(folder / "zoo", {"train": {"ape": 5, "bat": 2, "cow": 10}})
    done = call("init", "zoo", "--ipc", "1", "-O", "zoo.yaml")
    assert done.status == 0 and "a fifth of train is kept apart" in done.err
    source = load_source(load_recipe("zoo.yaml").source)
    assert list(source.train.counts) == [4, 1, 8] and source.test_labels.tolist() == [0, 1, 2, 2]


def test_mixed_rows_without_a_test_split_are_cut_in_two(call: Call, folder: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    cell = {"bytes": buffer.getvalue(), "path": None}
    write_parquet(
        folder / "d/data/train-00000-of-00001.parquet", {"image": [cell] * 20, "label": [0, 1] * 10}, features
    )
    assert call("init", "d", "--ipc", "1", "-O", "d.yaml").status == 0
    recipe = load_recipe("d.yaml")
    assert (recipe.source.train_split, recipe.source.test_split) == ("train[:16]", "train[16:]")


def test_rows_that_no_slice_divides_are_said_to_be(call: Call, folder: Path) -> None:
    image_folder(folder / "zoo", {"train": {f"class{k:02}": 2 for k in range(25)}})
    done = call("init", "zoo", "--ipc", "1", "-O", "zoo.yaml")
    assert done.status == 0 and "does not run before source.test_split names one" in done.err
    assert call("recipes", "validate", "zoo.yaml").status == 0
    done = call("condense", "zoo.yaml")
    assert done.status == 2 and "test_split" in done.err


def test_large_images_get_large_networks(call: Call, folder: Path) -> None:
    for name in ("a", "b"):
        for split in ("train", "test"):
            (folder / "big" / split / name).mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (131, 150), (k, 2, 3)).save(folder / "big" / split / name / f"{k}.png")
    assert call("init", "big", "--ipc", "1", "-O", "big.yaml").status == 0
    recipe = load_recipe("big.yaml")
    assert [model.name for model in recipe.pool] == ["resnet18", "vit_tiny"] and recipe.source.size == 132
    assert recipe.condense.augment.flip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["builtin:digits"], "Missing option '--ipc'"),
        (["builtin:digits", "--ipc", "0"], "--ipc"),
        (["builtin:digitz", "--ipc", "1"], "builtin:digits"),
        (["./nowhere", "--ipc", "1"], "nothing is there"),
        (["builtin:digits", "--ipc", "1", "-O", "x.json"], "ends in .yaml"),
        (["builtin:digits", "--ipc", "1", "-O", "there.yaml"], "exists already"),
        (["builtin:digits", "--ipc", "1", "-O", "no/x.yaml"], "no folder"),
        (["builtin:digits", "--ipc", "1", "--revision", "main"], "revision"),
    ],
)
def test_refused(call: Call, folder: Path, arguments: list[str], words: str) -> None:
    (folder / "there.yaml").write_text("precious")
    done = call("init", *arguments)
    assert done.status == 2 and done.out == "" and words in done.err and "Traceback" not in done.err
    assert [path.read_text() for path in folder.iterdir()] == ["precious"]
