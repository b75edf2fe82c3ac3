"""`init`: datasets in, recipes out that are valid and run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hmdc_hub.catalog import load_recipe
from hmdc_hub.pipeline import proposal
from hmdc_hub.pipeline.proposal import PRESETS, SIZES, propose, render
from hmdc_hub.sources import describe, load_source
from tests.cli.conftest import Call
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import parquet_folder, picture, write_idx

QUICK = ("-o", "condense.resets=1", "-o", "condense.networks.reset_every=1", "-o", "condense.batch=4",
         "-o", "condense.networks.batches_per_step=1", "-o", "condense.projection.batches_per_step=1",
         "-o", "evaluate.steps=1", "-o", "evaluate.seeds=1", "--workers", "1", "--device", "cpu")  # fmt: skip


def noise_folder(root: Path, classes: Mapping[str, int]) -> None:
    """Write `<class>/<k>.png`, so many of each, no two alike."""
    gen = np.random.RandomState(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(gen.randint(0, 256, (9, 11, 3)).astype(np.uint8)).save(root / name / f"{k}.png")


@pytest.mark.slow
def test_digits_on_stdout(call: Call, folder: Path) -> None:
    done = call("init", "builtin:digits", "--ipc", "1", "--preset", "cpu")
    assert done.status == 0
    assert done.out.startswith(
        "# yaml-language-server: $schema=hmdc-recipe.schema.json\n#\n# builtin:digits: 10 classes"
    )
    assert "hmdc-hub condense digits_ipc1.yaml --dry-run" in done.out
    for words in ("1438 images of train to condense, 139 to 146 in each of 10 classes: 0, 1,", "359 to score on, test",
                  "shorter side 8 pixels, grey", "licence cc-by-4.0", "next: save it"):  # fmt: skip
        assert words in done.err
    (folder / "digits_ipc1.yaml").write_text(done.out)
    assert call("recipes", "validate", "digits_ipc1.yaml").status == 0
    recipe = load_recipe("digits_ipc1.yaml")
    assert recipe.name == "digits_ipc1" and recipe.source.size == 32 and recipe.source.channels == 1
    assert not recipe.condense.augment.flip and not recipe.evaluate.augment.flip
    assert (recipe.publish.name, recipe.publish.config, recipe.publish.license) == ("digits-hmdc", "ipc1", "cc-by-4.0")
    assert list(folder.iterdir()) == [folder / "digits_ipc1.yaml"]


@pytest.mark.slow
def test_into_a_file_and_run(call: Call, folder: Path) -> None:
    parquet_folder(folder / "data", names=("img", "kind"))
    done = call("init", "./data", "--ipc", "2", "--preset", "cpu", "-O", "my recipe.yaml")
    assert done.status == 0 and done.out == "" and "wrote my recipe.yaml" in done.err
    assert done.err.endswith("next: hmdc-hub condense 'my recipe.yaml' --dry-run\n")
    assert (folder / "hmdc-recipe.schema.json").is_file()
    recipe = load_recipe("my recipe.yaml")
    assert (recipe.source.image_column, recipe.source.label_column) == ("img", "kind")
    assert "shows 8 of each class" in done.err and "names no licence" in done.err
    text = (folder / "my recipe.yaml").read_text()
    assert "hmdc-hub condense 'my recipe.yaml' --dry-run" in text
    done = call("recipes", "validate", "my recipe.yaml")
    assert done.status == 0 and done.err == "next: hmdc-hub condense 'my recipe.yaml'\n"
    done = call("condense", "my recipe.yaml", *QUICK)
    assert done.status == 0 and "next: hmdc-hub runs show" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", SIZES)
def test_models_fit_every_size_and_some_are_not_in_the_pool(preset: proposal.Preset, size: int, folder: Path) -> None:
    from hmdc_hub.pipeline.validation import validate_recipe

    found = describe("builtin:digits")
    text = render(found, propose(found, 10, preset, size), Path("mine.yaml"))
    assert all(len(line) <= 100 for line in text.splitlines())
    Path("mine.yaml").write_text(text)
    recipe = load_recipe("mine.yaml")
    pool = {model.name for model in recipe.pool}
    assert 1 <= len([model for model in recipe.evaluate.models if model.name not in pool]) <= 2
    assert validate_recipe(recipe).problems == ()


@pytest.mark.parametrize(
    ("side", "cpu", "gpu"), [(8, 32, 32), (28, 32, 32), (62, 32, 64), (96, 32, 64), (136, 32, 128), (500, 32, 224)]
)
def test_no_size_is_larger_than_needed(folder: Path, side: int, cpu: int, gpu: int) -> None:
    for c, name in enumerate(("a", "b")):
        (folder / "set" / name).mkdir(parents=True)
        for k in range(2):
            picture(40 * c + k, (side + 7, side)).save(folder / "set" / name / f"{k}.png")
    found = describe("set")
    assert [propose(found, 1, preset).source.size for preset in ("cpu", "gpu", "paper")] == [cpu, gpu, gpu]
    assert propose(found, 1, "cpu", 128).source.size == 128


def test_the_preset_is_for_what_is_there(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for there, preset in ((False, "cpu"), (True, "gpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert f"--preset {preset}: " in call("init", "builtin:digits").out
    assert "--preset paper: " in call("init", "builtin:digits", "--preset", "paper").out


def test_many_classes_without_a_test_split(call: Call, folder: Path) -> None:
    noise_folder(folder / "zoo", dict.fromkeys((f"class {k:02}" for k in range(60)), 6))
    done = call("init", "zoo", "--ipc", "1", "--preset", "cpu", "-O", "zoo.yaml")
    assert done.status == 0 and "a fifth of every class of train is kept apart" in done.err
    assert call("recipes", "validate", "zoo.yaml").out.splitlines()[1:] == [
        "  300 images of train to condense, 5 in each of 60 classes: class 00, class 01, class 02, class 03, "
        "class 04, class 05, class 06, class 07, ...",
        "  60 to score on, 20% of each class of train; columns image and label",
    ]
    recipe = load_recipe("zoo.yaml")
    assert recipe.source.test_fraction == 0.2 and recipe.condense.classes_per_step == 10
    source = load_source(recipe.source)
    assert source.train.counts == (5,) * 60 and source.test_labels.bincount().tolist() == [1] * 60


@pytest.mark.slow
def test_two_images_in_each_class_run_to_the_package(call: Call, folder: Path) -> None:
    noise_folder(folder / "pairs", dict.fromkeys(map(str, range(12)), 2))
    done = call("init", "pairs", "--preset", "cpu", "-O", "pairs.yaml")
    assert done.status == 0 and "ipc 10 is more than any class has to condense, 1: the recipe says 1" in done.err
    recipe = load_recipe("pairs.yaml")
    assert (recipe.name, recipe.condense.ipc, recipe.publish.config) == ("pairs_ipc1", 1, "ipc1")
    done = call("condense", "pairs.yaml", *QUICK)
    assert done.status == 0 and "next: hmdc-hub runs show" in done.err


def test_drawings_that_vanish_on_white_are_laid_over_black(call: Call, folder: Path) -> None:
    for k in range(8):
        drawing = Image.new("RGBA", (16, 16))
        drawing.paste((255, 255, 255, 255), (k, 2, k + 5, 9))
        place = folder / "logos" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        drawing.save(place / f"{k}.png")
    done = call("init", "logos", "-O", "logos.yaml")
    assert done.status == 0 and "they are laid over black (source.background)" in done.err
    assert load_source(load_recipe("logos.yaml").source).train.images.float().mean() < 100


def test_a_single_image_cannot_be_divided(call: Call, folder: Path) -> None:
    noise_folder(folder / "zoo", {"ape": 5, "bat": 1})
    done = call("init", "zoo")
    assert done.status == 2 and "bat" in done.err and "--test-split <name>" in done.err


def test_options_go_before_what_is_found(call: Call, folder: Path) -> None:
    parquet_folder(folder / "data", names=("img", "kind"))
    done = call("init", "data", "--train-split", "train[:6]", "--image-column", "img", "--label-column", "kind",
                "--test-fraction", "0.4", "--ipc", "1", "--size", "64", "-O", "d.yaml")  # fmt: skip
    assert done.status == 0, done.err
    source = load_recipe("d.yaml").source
    assert (source.test_split, source.test_fraction, source.size) == (None, 0.4, 64)
    assert (source.image_column, source.label_column) == ("img", "kind")
    assert sum(load_source(source).train.counts) == 3
    done = call("init", "data", "--train-split", "train[:6]", "--test-split", "train[6:]", "-O", "e.yaml")
    source = load_recipe("e.yaml").source
    assert (source.train_split, source.test_split, source.test_fraction) == ("train[:6]", "train[6:]", None)


def test_errors_name_options(call: Call, folder: Path) -> None:
    data = parquet_folder(folder / "data", names=("img", "what"))
    done = call("init", "data", "--label-column", "wat")
    assert done.status == 2 and "no column 'wat'" in done.err
    for split in ("train", "test"):
        (data / f"data/{split}-00000-of-00001.parquet").rename(data / f"data/validation-0000{len(split)}.parquet")
    done = call("init", "data")
    assert done.status == 2 and re.search(r"--train-split validation", done.err), done.err


def test_images_without_labels_get_a_step(call: Call, folder: Path) -> None:
    (folder / "flat").mkdir()
    for k in range(3):
        picture(k, (9, 9)).save(folder / "flat" / f"{k}.png")
    done = call("init", "flat")
    assert done.status == 2 and "metadata.csv" in done.err and "train/<class>/<image>" in done.err
    rows = "".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(4))
    picture(3, (9, 9)).save(folder / "flat" / "3.png")
    (folder / "flat/metadata.csv").write_text(f"file_name,label\n{rows}")
    assert call("init", "flat", "-O", "flat.yaml").status == 0 and call("recipes", "validate", "flat.yaml").status == 0


def test_validate_finds_classes_of_equal_files(call: Call, folder: Path) -> None:
    noise_folder(folder / "zoo", {"ape": 3, "bat": 2})
    (folder / "zoo/bat/1.png").write_bytes((folder / "zoo/bat/0.png").read_bytes())
    assert call("init", "zoo", "--ipc", "1", "-O", "zoo.yaml").status == 0
    said = [call(*command, "zoo.yaml") for command in (("recipes", "validate"), ("condense",))]
    assert [done.status for done in said] == [2, 2]
    assert all("1 classes have no two different images" in done.err and "'bat'" in done.err for done in said)


ROWS, PLACES = np.random.RandomState(0).randint(0, 256, (6, 8, 8)).astype(np.uint8), np.arange(6) % 3
DOCUMENTED = Path(__file__).parents[2] / "docs/your-data-and-model.md"


def reading(folder: Path, kind: str) -> str:
    """Write images and labels as older programs do; gives the call of the documented function that reads both."""
    if kind == "pt":
        torch.save(torch.from_numpy(ROWS[:, None].repeat(3, 1) / np.float32(255)), folder / "images_best.pt")
        torch.save(torch.from_numpy(PLACES), folder / "labels_best.pt")
        return 'array("images_best.pt"), array("labels_best.pt")'
    if kind == "npy":
        np.save(folder / "images.npy", ROWS)
        np.save(folder / "labels.npy", PLACES)
        return 'array("images.npy"), array("labels.npy")'
    if kind == "npz":
        np.savez(folder / "set.npz", train_images=ROWS, train_labels=PLACES[:, None])
        return 'array("set.npz", "train_images"), array("set.npz", "train_labels")'
    write_idx(folder / "mnist/raw/train-images-idx3-ubyte", ROWS)
    write_idx(folder / "mnist/raw/train-labels-idx1-ubyte", PLACES.astype(np.uint8))
    return 'array("mnist/raw/train-images-idx3-ubyte"), array("mnist/raw/train-labels-idx1-ubyte")'


def arrays_chapter() -> list[str]:
    """The three programs: reading arrays, a folder of images of them, a safetensors file of them."""
    chapter = DOCUMENTED.read_text().split("## Arrays\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", chapter, flags=re.DOTALL)


def holds_the_rows(data: str) -> bool:
    found = describe(data)
    assert found.class_names == ("0", "1", "2") and found.train_counts == (2, 2, 2)
    source = load_source(propose(found, 1, "cpu").source.model_copy(update={"size": 8, "channels": 1}))
    seen = [*source.train.images, *source.test_images]
    return sorted(image.numpy().tobytes() for image in seen) == sorted(row.tobytes() for row in ROWS)


@pytest.mark.parametrize("kind", ["pt", "npy", "npz", "idx"])
def test_arrays_of_older_programs_are_refused_and_the_documented_lines_convert_them(
    call: Call, folder: Path, kind: str
) -> None:
    load = reading(folder, kind)
    for target in (folder, next(path for path in sorted(folder.rglob("*")) if path.is_file())):
        done = call("init", target)
        assert done.status == 2 and "files of arrays can hold a pickle" in done.err and done.out == ""
        assert "docs/your-data-and-model.md" in done.err
    read, as_folder, as_tensors = arrays_chapter()
    names: dict[str, object] = {}
    exec(read.replace('array("images.npy"), array("labels.npy")', load), names)
    exec(as_folder, names)
    assert holds_the_rows("my_images")
    exec(as_tensors, names)
    written = load_file("set.safetensors")
    assert written["labels"].tolist() == PLACES.tolist() and len(written["images"]) == 6


def test_the_lines_of_the_hint_make_a_folder_of_images(call: Call, folder: Path) -> None:
    reading(folder, "npy")
    lines = call("init", "images.npy").err.splitlines()
    exec("\n".join(line.removeprefix("  ") for line in lines if line.startswith("  ")), {})
    assert holds_the_rows("my_images")


def test_the_documented_lines_refuse_what_is_no_pixels() -> None:
    with pytest.raises(AssertionError, match="undo their normalisation"):
        exec(arrays_chapter()[1], {"images": np.random.RandomState(0).randn(6, 3, 8, 8), "labels": PLACES, "np": np})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["builtin:digits", "--size", "136"], "'136' is not one of"),
        (["builtin:digits", "--test-fraction", "1"], "--test-fraction"),
        (["builtin:digits", "--test-split", "test", "--test-fraction", "0.1"], "both say what is scored on"),
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
