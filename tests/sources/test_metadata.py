from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, load_source
from tests.sources.files import COLOURS, image_folder, write
from tests.sources.test_folder import colours, left_out


def load(path: Path, **keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": str(path), "size": 8} | keys))


def labelled(root: Path, codes: Sequence[object], kind: str = "csv", column: str = "label") -> Path:
    """Write flat train and test folders with 3 and 2 images of each label, and their metadata as this kind of file."""
    for s, (split, count) in enumerate((("train", 3), ("test", 2))):
        rows: list[dict[str, object]] = []
        for c, code in enumerate(codes):
            for k in range(count):
                write(root / split / f"{c}_{k}.png", COLOURS[c], 100 * s + 10 * c + k)
                rows.append({"file_name": f"{c}_{k}.png", column: code})
        write_rows(root / split / f"metadata.{kind}", rows)
    return root


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("codes", "names"),
    [
        (("01", "02", "10"), ["01", "02", "10"]),
        (("EU", "NA", "AP"), ["AP", "EU", "NA"]),
        (("yes", "no", "null"), ["no", "null", "yes"]),
        (("true", "false"), ["false", "true"]),
        (("1e3", "1000", "NaN"), ["1000", "1e3", "NaN"]),
        (("None", "-", " "), [" ", "-", "None"]),
        (("10", "9", "8"), ["8", "9", "10"]),
        (("one, two", 'say "x"', "ü"), ["one, two", 'say "x"', "ü"]),
        (("9" * 5000, "1", "2"), ["1", "2", "9" * 5000]),
    ],
)
def test_labels_are_what_is_written(tmp_path: Path, kind: str, codes: tuple[str, ...], names: list[str]) -> None:
    source = load(labelled(tmp_path, codes, kind))
    assert source.info.class_names == names
    assert source.train.counts == (3,) * len(codes)
    assert source.test_labels.bincount().tolist() == [2] * len(codes)
    assert colours(source) == [COLOURS[codes.index(name)] for name in names]
    assert left_out(source) == {}


def test_values_of_json_are_what_is_written(tmp_path: Path) -> None:
    source = load(labelled(tmp_path, (1, True, 1.50), "jsonl"))
    assert source.info.class_names == ["1", "1.5", "true"]
    (tmp_path / "train/metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{c}_{k}.png", "label": 1e{c}}}\n' for c in range(3) for k in range(3))
    )
    assert load(tmp_path, test_fraction=0.4).info.class_names == ["1e0", "1e1", "1e2"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_cell_is_named_with_file_and_line(tmp_path: Path, kind: str, empty: object) -> None:
    root = labelled(tmp_path, ("0", "1", "2"), kind)
    rows = [{"file_name": f"{c}_{k}.png", "label": str(c)} for c in range(3) for k in range(3)]
    write_rows(root / f"train/metadata.{kind}", [*rows[:4], rows[4] | {"label": empty}, *rows[5:]])
    line = 6 if kind == "csv" else 5
    with pytest.raises(SourceError, match=rf"^metadata\.{kind}|train/metadata\.{kind}, line {line} \(1_1\.png\): the"):
        load(root)


def test_a_label_of_minus_one_is_none(tmp_path: Path) -> None:
    root = labelled(tmp_path, ("0", "1"))
    write_rows(
        root / "train/metadata.csv", [{"file_name": f"{c}_{k}.png", "label": c - k} for c in (0, 1) for k in (0, 1)]
    )
    with pytest.raises(SourceError, match=r"line 3 \(0_1\.png\): the label is -1; labels are text or whole numbers"):
        load(root)


def test_one_file_for_all_splits(tmp_path: Path) -> None:
    image_folder(tmp_path, {"Train": {"x": 4}, "Test": {"x": 4}, "spare": {"x": 2}})
    rows = [{"file_name": f"{s}/x/{k}.png", "label": "ab"[k % 2]} for s in ("Train", "Test", "spare") for k in range(2)]
    write_rows(tmp_path / "metadata.csv", rows)
    source = load(tmp_path)
    assert source.train.counts == (1, 1)
    assert source.test_labels.tolist() == [0, 1]
    assert left_out(source) == {
        "beside the splits": (2, ["spare/x/0.png", "spare/x/1.png"]),
        "in no metadata file": (4, ["Test/x/2.png", "Test/x/3.png", "Train/x/2.png"]),
    }


def test_a_column_may_say_the_split(tmp_path: Path) -> None:
    for k in range(8):
        write(tmp_path / f"{k}-test.png", COLOURS[k % 2], k)
    splits = ["Train"] * 4 + ["VAL"] * 2 + ["test"] * 2
    rows: list[dict[str, object]] = [
        {"file_name": f"{k}-test.png", "label": "ab"[k % 2], "Split": splits[k]} for k in range(8)
    ]
    write_rows(tmp_path / "metadata.csv", rows)
    source = load(tmp_path)
    assert (source.train.counts, source.test_labels.tolist()) == ((2, 2), [0, 1])
    assert left_out(source) == {"split 'validation' is not used": (2, [])}
    write_rows(tmp_path / "metadata.csv", [row | {"Split": "fold 1"} for row in rows])
    assert load(tmp_path, test_fraction=0.25).train.counts == (3, 3), "what is no split's name says nothing"


def test_paths_in_a_metadata_file_are_from_its_folder(tmp_path: Path) -> None:
    for k in range(4):
        write(tmp_path / "images" / f"{k}.png", COLOURS[k % 2], k)
    rows = [{"file_name": f"..\\images\\{k}.png", "kind": "ab"[k % 2], "label": "ab"[k % 2]} for k in range(4)]
    write_rows(tmp_path / "labels/metadata.csv", rows)
    assert load(tmp_path, test_fraction=0.5).train.counts == (1, 1)


@pytest.mark.parametrize("name", ["gone.png", "../secret.png", "/etc/passwd", "train/0_0.png", "file:///x.png", ""])
def test_images_that_are_not_there(tmp_path: Path, name: str) -> None:
    root = labelled(tmp_path / "data", ("a", "b"))
    write(tmp_path / "secret.png", COLOURS[0], 99)
    write_rows(root / "train/metadata.csv", [{"file_name": name, "label": "a"}, {"file_name": "0_0.png", "label": "b"}])
    words = "there is no image" if name else "file_name is empty"
    with pytest.raises(SourceError, match=rf"train/metadata\.csv, line 2.*: .*{words}|line 2: {words}"):
        load(root)


@pytest.mark.parametrize(
    ("text", "words", "step"),
    [
        ("file;label\na.png;x\n", "has no column file_name; its first line is 'file;label'", "file_name,label"),
        ("file_name,label,label\na.png,x,y\n", "has two columns 'label'", "Rename"),
        ("file_name,label\n0_0.png,x,y\n", "line 2 has 3 cells, its first line has 2", "quotes"),
        ("file_name,label\n0_0.png\n", "line 2 has 1 cells, its first line has 2", "quotes"),
        ('file_name,label\n0_0.png,"x\n', "line 2 cannot be read: unexpected end of data", ""),
        ("file_name,label\n0_0.png,a\n0_0.png,b\n", "line 3 .* line 2 .* are about the same image", "Remove one"),
        ("", "name no image of a split", "file_name,label"),
        ("file_name,label\n", "name no image of a split", "file_name,label"),
        ("file_name,species,genus\n0_0.png,a,b\n", "has no label column; its columns: image", "label_column: species"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, text: str, words: str, step: str) -> None:
    root = labelled(tmp_path, ("a", "b"))
    for split in ("train", "test"):
        (root / split / "metadata.csv").write_text(text)
    with pytest.raises(SourceError, match=words) as caught:
        load(root)
    assert step in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]\n", "line 1 is no object with file_name"),
        ('{"file_name": "0_0.png", "label": "a"}\n\n{"label": "a"}\n', "line 3 is no object with file_name"),
        ("{\n", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        (
            '{"file_name": "0_0.png", "label": ["a", "b"]}\n',
            "column 'label' of .* holds other|has no label column|holds",
        ),
    ],
)
def test_jsonl_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    root = labelled(tmp_path, ("a", "b"), "jsonl")
    (root / "train/metadata.jsonl").write_text(text)
    with pytest.raises(SourceError, match=words):
        load(root)


def test_text_of_other_encodings(tmp_path: Path) -> None:
    root = labelled(tmp_path, ("a", "b"))
    file = root / "train/metadata.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load(root).info.class_names == ["a", "b"]
    file.write_bytes(file.read_bytes() + "2.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"train/metadata\.csv is no text in UTF-8") as caught:
        load(root)
    assert caught.value.hint == "Save it as UTF-8."


def test_a_column_of_metadata_called_image_is_not_the_images(tmp_path: Path) -> None:
    root = labelled(tmp_path, ("a", "b"))
    for split in ("train", "test"):
        file = root / split / "metadata.csv"
        file.write_text(
            "".join(f"{line},{'image' if k == 0 else k}\n" for k, line in enumerate(file.read_text().split()))
        )
    source = load(root)
    assert (source.info.image_column, source.info.class_names, source.train.counts) == ("image", ["a", "b"], (3, 3))


def test_another_column_than_the_one_that_is_called_label(tmp_path: Path) -> None:
    root = labelled(tmp_path, ("a", "b"), column="shade")
    with pytest.raises(SourceError, match="no label column") as caught:
        load(root)
    assert "label_column: shade" in caught.value.hint
    source = load(root, label_column="shade")
    assert (source.info.label_column, source.info.class_names) == ("shade", ["a", "b"])
