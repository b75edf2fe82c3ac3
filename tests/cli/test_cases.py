"""Inputs after public bug reports, from the recipe to the package: what is in it is what the data say, or status 2."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from tests.cli import tiny
from tests.cli.conftest import Call, Done
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import BLUE, COLOURS, GREEN, RED, YELLOW, conversion, tree, write
from tests.sources.test_levels import big_endian, floats, pgm, png16

COLOUR_OF = dict(zip(("red", "green", "blue", "yellow"), COLOURS, strict=True))


def condense(call: Call, source: str, *options: str) -> Done:
    """Run the real command on a source with a tiny recipe."""
    text = f"source: {{id: {json.dumps(source)}, size: 8, channels: 3}}"
    tiny.write(Path("case.yaml"), source=text)
    return call("condense", "case.yaml", "--run-dir", "run", "--no-evaluate", *options)


def packaged() -> tuple[dict[str, list[tuple[int, ...]]], dict[str, Any]]:
    """Read the package as its users do: the colours of each class's images (30 or 200 per channel), and info.json."""
    rows = datasets.load_dataset("parquet", data_files="run/package/ipc1/train-*.parquet", split="train")
    names = rows.features["label"].names
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    for row in rows:
        means = np.asarray(row["image"]).reshape(-1, 3).mean(0)
        found[names[row["label"]]].append(tuple(30 if mean < 110 else 200 for mean in means))
    return found, json.loads(Path("run/package/ipc1/info.json").read_text())["source"]


def shows(classes: Mapping[str, tuple[int, int, int]], train: Sequence[int], test: int) -> dict[str, Any]:
    """Check that the package has four images of each class in the class's colour, and give its info on the source."""
    found, source = packaged()
    assert found == {name: [colour] * 4 for name, colour in classes.items()}
    assert (source["train_counts"], source["test_count"]) == (list(train), test)
    assert source["class_names"] == list(classes)
    return source


@pytest.mark.slow
def test_01_classes_that_are_called_like_a_split(call: Call, folder: Path) -> None:
    names = ("bus", "train", "bullet_train", "test-tube")
    tree(Path("data"), {f"{split}/{name}": n for split, n in (("train", 12), ("test", 4)) for name in names})
    Path("data/passwords.txt").write_text("hello")
    done = condense(call, "data")
    assert done.status == 0
    source = shows({"bullet_train": BLUE, "bus": RED, "test-tube": YELLOW, "train": GREEN}, [12] * 4, 16)
    assert "48 images of train to condense, 12 in each of 4 classes: bullet_train, bus, test-tube, train" in done.err
    assert "16 to score on, test; columns image and label" in done.err
    assert "left out, no images: 1 (passwords.txt)" in done.err
    left_out = {"reason": "no images", "count": 1, "examples": ["passwords.txt"]}
    assert json.loads(Path("run/info.json").read_text())["source"]["left_out"] == [left_out]
    assert source["left_out"] == [left_out | {"examples": []}], "names of files are nobody's business"


@pytest.mark.slow
def test_02_file_names_with_words_of_splits(call: Call, folder: Path) -> None:
    stems = {3: "taste-test-3", 4: "taste-test-4", 5: "from train 5", 6: "from train 6"}
    for c, name in enumerate(("rose", "tulip", "daisy")):
        for k in range(20):
            write(Path("data", name, f"{stems.get(k, f'{name}-{k:02}')}.png"), COLOURS[c], 100 * c + k)
    done = condense(call, "data")
    assert done.status == 2 and "test_fraction: 0.2" in done.err and not Path("run").exists()
    assert condense(call, "data", "-o", "source.test_fraction=0.2").status == 0
    shows({"daisy": BLUE, "rose": RED, "tulip": GREEN}, [16] * 3, 12)


@pytest.mark.slow
def test_a_run_with_another_test_part_is_another_run(call: Call, folder: Path) -> None:
    tree(Path("data"), {f"{split}/{name}": n for split, n in (("train", 10), ("test", 4)) for name in ("ant", "bee")})
    assert condense(call, "data", "-o", "source.test_fraction=0.2").status == 0
    for options in ([], ["-o", "source.test_split=test"], ["-o", "source.test_fraction=0.3"]):
        done = condense(call, "data", *options, "--resume")
        assert done.status == 2 and "holds a run of another recipe" in done.err and "source.test_" in done.err
    assert condense(call, "data", "-o", "source.test_fraction=0.2").status == 0
    assert condense(call, "data", "--force").status == 0
    done = condense(call, "data", "-o", "source.test_fraction=0.2", "--resume")
    assert done.status == 2 and "source.test_fraction: None there, 0.2 here" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "encode", "bits"),
    [
        (".png", png16, None),
        (".pgm", pgm, None),
        (".tif", big_endian, None),
        (".png", lambda x: png16(x, 4095), 12),
        (".tif", floats, None),
    ],
    ids=["png", "pgm", "tiff", "12 bits", "float"],
)
def test_04_more_than_eight_bits(
    call: Call, folder: Path, suffix: str, encode: Callable[[Any], bytes], bits: int | None
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("dark", 0.2), ("bright", 0.8)):
            place = Path("data", split, name)
            place.mkdir(parents=True)
            for k in range(count):
                (place / f"{k}{suffix}").write_bytes(encode(np.clip(level + rng.normal(0, 0.05, (16, 16)), 0, 1)))
    done = condense(call, "data")
    assert done.status == 0
    rows = datasets.load_dataset("parquet", data_files="run/package/ipc1/train-*.parquet", split="train")
    assert rows.features["label"].names == ["bright", "dark"] and len(rows) == 8
    for row in rows:
        assert np.asarray(row["image"]).mean() == pytest.approx((204, 51)[row["label"]], abs=6)
    _, source = packaged()
    assert (source["train_counts"], source["test_count"], source["bits"]) == ([12, 12], 8, bits)
    assert ("taken for images of 12 bits" in done.err) == (bits == 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "names"),
    [
        (("01", "02", "10"), ("01", "02", "10")),
        (("EU", "NA", "AP"), ("AP", "EU", "NA")),
        (("yes", "no", "null"), ("no", "null", "yes")),
        (("true", "false"), ("false", "true")),
    ],
)
def test_07_labels_in_metadata(call: Call, folder: Path, codes: Sequence[str], names: Sequence[str]) -> None:
    metadata(Path("data"), codes)
    assert condense(call, "data").status == 0
    shows({name: COLOURS[codes.index(name)] for name in names}, [12] * len(codes), 4 * len(codes))


def metadata(root: Path, codes: Sequence[str]) -> None:
    for s, (split, count) in enumerate((("train", 12), ("test", 4))):
        lines = ["file_name,label"]
        for c, code in enumerate(codes):
            for k in range(count):
                write(root / split / f"{c}_{k}.png", COLOURS[c], 100 * s + 20 * c + k)
                lines.append(f"{c}_{k}.png,{code}")
        (root / split / "metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_07_an_empty_cell_has_a_file_and_a_line(call: Call, folder: Path) -> None:
    metadata(Path("data"), ("0", "1", "2"))
    file = Path("data/train/metadata.csv")
    file.write_text(file.read_text().replace("0_1.png,0\n", "0_1.png,\n"))
    done = condense(call, "data")
    assert done.status == 2 and "train/metadata.csv, line 3 (0_1.png): the label is empty" in done.err
    file.write_text(file.read_text().replace("0_1.png,\n", "0_1.png,0\n"))
    assert condense(call, "data").status == 0
    shows({"0": RED, "1": GREEN, "2": BLUE}, [12] * 3, 12)


def cell(colour: tuple[int, int, int], seed: int) -> dict[str, bytes | None]:
    noise = np.random.RandomState(seed).randint(-20, 21, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


NAMES = ["red", "green", "blue"]
CODES = [k % 3 for k in range(60)]
IMAGES = [cell(COLOURS[code], k) for k, code in enumerate(CODES)]
TEXTS = [NAMES[code] for code in CODES]


def two_levels(file: str) -> None:
    fine = ["ant", "bee", "cat", "dog", "elk", "fox"]
    columns = {"img": IMAGES, "coarse_label": CODES, "fine_label": [k % 6 for k in range(60)]}
    types = {"img": datasets.Image(), "coarse_label": ClassLabel(names=NAMES), "fine_label": ClassLabel(names=fine)}
    Dataset.from_dict(columns, features=Features(types)).to_parquet(file)


def with_camera(file: str) -> None:
    columns = {"image": IMAGES, "label": TEXTS, "camera": [k // 2 % 2 for k in range(60)]}
    types = {"image": datasets.Image(), "label": Value("string"), "camera": ClassLabel(names=["left", "right"])}
    Dataset.from_dict(columns, features=Features(types)).to_parquet(file)


def with_mask(file: str) -> None:
    pd.DataFrame({"image": IMAGES, "mask": IMAGES[::-1], "label": pd.Categorical(TEXTS)}).to_parquet(file)


def capital(file: str) -> None:
    pd.DataFrame({"image": IMAGES, "Label": TEXTS}).to_parquet(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "columns", "classes"),
    [
        (two_levels, ("img", "fine_label"), {n: COLOURS[c % 3] for c, n in enumerate(("ant", "bee", "cat", "dog"))}),
        (with_camera, ("image", "label"), {name: COLOUR_OF[name] for name in sorted(NAMES)}),
        (with_mask, ("image", "label"), {name: COLOUR_OF[name] for name in sorted(NAMES)}),
        (capital, ("image", "Label"), {name: COLOUR_OF[name] for name in sorted(NAMES)}),
    ],
)
def test_11_the_column_of_labels(
    call: Call, folder: Path, make: Callable[[str], None], columns: tuple[str, str], classes: dict[str, Any]
) -> None:
    make("data.parquet")
    done = condense(call, "data.parquet", "-o", "source.test_fraction=0.2")
    assert done.status == 0 and f"columns {columns[0]} and {columns[1]}" in done.err
    classes |= {"elk": GREEN, "fox": BLUE} if columns[1] == "fine_label" else {}
    source = shows(classes, [8] * 6 if len(classes) == 6 else [16] * 3, 12)
    assert (source["image_column"], source["label_column"]) == columns
    assert f"label_column: {columns[1]}" in Path("run/recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lists", "floats"])
def test_11_labels_that_are_none_and_the_step_that_mends_them(call: Call, folder: Path, kind: str) -> None:
    if kind == "lists":
        types = {"image": datasets.Image(), "label": datasets.List(Value("int64"))}
        Dataset.from_dict({"image": IMAGES, "label": [[c] for c in CODES]}, features=Features(types)).to_parquet(
            "d.parquet"
        )
    else:
        pd.DataFrame({"image": IMAGES, "label": [float(c) for c in CODES]}).to_parquet("d.parquet")
    done = condense(call, "d.parquet", "-o", "source.test_fraction=0.2")
    assert done.status == 2 and "label" in done.err and not Path("run").exists()
    assert 'docs/your-data-and-model.md, "Columns of other types"' in done.err
    exec(conversion(kind).replace("mine.parquet", "d.parquet"), {})
    assert condense(call, "converted.parquet", "-o", "source.test_fraction=0.2").status == 0
    shows({"0": RED, "1": GREEN, "2": BLUE}, [16] * 3, 12)


@pytest.mark.slow
def test_14_classes_in_two_levels(call: Call, folder: Path) -> None:
    names = ("airport/indoor", "airport/outdoor", "hotel/indoor", "hotel/outdoor")
    tree(Path("data"), {f"{split}/{name}": n for split, n in (("train", 12), ("test", 4)) for name in names})
    assert condense(call, "data").status == 0
    shows(dict(zip(names, COLOURS, strict=True)), [12] * 4, 16)


def test_14_mixed_depth_and_the_step_that_mends_it(call: Call, folder: Path) -> None:
    names = ("cat", "dog/spaniel", "dog/boxer")
    tree(Path("data"), {f"{split}/{name}": n for split, n in (("train", 12), ("test", 4)) for name in names})
    done = condense(call, "data")
    assert done.status == 2 and "train/cat/00.png and train/dog/" in done.err
    for split in ("train", "test"):
        for name in ("boxer", "spaniel"):
            Path("data", split, "dog", name).rename(Path("data", split, f"dog-{name}"))
    assert condense(call, "data").status == 0
    shows({"cat": RED, "dog-boxer": BLUE, "dog-spaniel": GREEN}, [12] * 3, 12)


@pytest.mark.slow
@pytest.mark.parametrize("root", ["my [v2] data", "a*b", "test run/set", "train"])
def test_21_characters_and_words_in_the_path(call: Call, folder: Path, root: str) -> None:
    tree(Path(root), {f"{split}/{name}": n for split, n in (("train", 12), ("test", 4)) for name in ("ant", "bee")})
    assert condense(call, root).status == 0
    shows({"ant": RED, "bee": GREEN}, [12, 12], 8)
