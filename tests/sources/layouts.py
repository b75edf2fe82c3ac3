"""The table of layouts in docs/your-data-and-model.md, written by `python -m tests.sources.layouts`.

Every row is made as real files and read by the real readers; a test holds the page equal to what comes out.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import index_source, left_out_notes
from tests.sources.files import COLOURS, PAGE, png, rows, write, write_parquet

BEGIN, END = "<!-- layouts -->\n", "<!-- end of layouts -->"
EACH = 4
"""Images that a `*` stands for."""


def files(*patterns: str) -> list[str]:
    """Write out patterns: `{a,b}` is each of them, `*` is images 0 to 3."""
    found = []
    for pattern in patterns:
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        # Outside of braces a comma is nothing special, but none is used.
        for choice in itertools.product(*parts):
            name = "".join(choice)
            found += [name.replace("*", str(k)) for k in range(EACH)] if "*" in name else [name]
    return found


def folder(*patterns: str) -> Callable[[Path], None]:
    """Write files; images by their suffix, other names as text."""

    def make(root: Path) -> None:
        for number, name in enumerate(files(*patterns)):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in (".txt", ".db", ".zip", ".mp4"):
                file.write_text("no image")
            else:
                write(file, COLOURS[number % 4], number)

    return make


def metadata(name: str, text: str, *patterns: str) -> Callable[[Path], None]:
    """Write images, and a metadata file with a line for each `{number}` below 4."""

    def make(root: Path) -> None:
        folder(*patterns)(root)
        head, line = text.split("\n")
        cells = [{"k": k, "label": ("NA", "yes")[k % 2], "split": ("train", "test")[k // 2]} for k in range(EACH)]
        lines = [line.format(**values) for values in cells]
        (root / name).write_text("\n".join([head, *lines]) + "\n")

    return make


def tables(*names: str, readme: str = "") -> Callable[[Path], None]:
    """Write parquet files of 9 rows."""
    import datasets

    def make(root: Path) -> None:
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
        for number, name in enumerate(names):
            write_parquet(root / name, dict(zip(("image", "label"), rows(9, 20 * number), strict=True)), features)
        if readme:
            (root / "README.md").write_text(readme)

    return make


def both(one: Callable[[Path], None], other: Callable[[Path], None]) -> Callable[[Path], None]:
    """Write one layout and then another."""

    def make(root: Path) -> None:
        one(root)
        other(root)

    return make


def saved(root: Path) -> None:
    """Write with save_to_disk."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    splits = {
        split: datasets.Dataset.from_dict(dict(zip(("image", "label"), rows(9, first), strict=True)), features=features)
        for split, first in (("train", 0), ("test", 100))
    }
    datasets.DatasetDict(splits).save_to_disk(root)


def shards(root: Path) -> None:
    """Write a webdataset."""
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}-000.tar", "w") as tar:
            for k in range(4):
                for suffix, content in (("png", png(k)), ("cls", b"%d" % (k % 2))):
                    file = root / f"{k:04}.{suffix}"
                    file.write_bytes(content)
                    tar.add(file, file.name)
                    file.unlink()


def linked(root: Path) -> None:
    """Write class folders that are links."""
    folder("elsewhere/{ant,bee}/*.png", "data/test/{ant,bee}/*.png")(root)
    (root / "data/train").mkdir()
    for name in ("ant", "bee"):
        (root / "data/train" / name).symlink_to((root / "elsewhere" / name).absolute())


CONFIGS = """---
configs:
- config_name: big
  data_files: [{split: train, path: a.parquet}, {split: test, path: b.parquet}]
---
"""

LAYOUTS: dict[str, Callable[[Path], None]] = {
    "`{train,test}/{ant,bee}/*.png`": folder("{train,test}/{ant,bee}/*.png"),
    "`{Training,VAL,eval}/{ant,bee}/*.png`": folder("{Training,VAL,eval}/{ant,bee}/*.png"),
    "`{train,val}/{ant,bee}/*.png`": folder("{train,val}/{ant,bee}/*.png"),
    "`{ant,bee}/*.png`": folder("{ant,bee}/*.png"),
    "`{train,test}/{bus,train,test-tube}/*.png`": folder("{train,test}/{bus,train,test-tube}/*.png"),
    "`{rose,tulip}/taste-test-*.png`": folder("{rose,tulip}/taste-test-*.png"),
    "`{train,test}/{airport,hotel}/{in,out}/*.png`": folder("{train,test}/{airport,hotel}/{in,out}/*.png"),
    "`train/{cat,dog/boxer}/*.png`": folder("train/{cat,dog/boxer}/*.png"),
    "`{train,test}/{ant,bee}/*{.JPG,.avif,.jfif,}`": folder("{train,test}/{ant,bee}/*{.JPG,.avif,.jfif,}"),
    "`train/{ant,bee} -> elsewhere/{ant,bee}`, `test/{ant,bee}/*.png`": linked,
    "`{train,test,old}/{ant,bee}/*.png`, `notes.txt`, `train/ant/{Thumbs.db,._1.png}`, `cover.png`": folder(
        "{train,test,old}/{ant,bee}/*.png", "notes.txt", "train/ant/Thumbs.db", "train/ant/._1.png", "cover.png"
    ),
    "`train/{ant,bee}/*.png`, `test/*.png`": folder("train/{ant,bee}/*.png", "test/*.png"),
    "`{train,Train,test}/{ant,bee}/*.png`": folder("{train,Train,test}/{ant,bee}/*.png"),
    "`pets/{train,test}/{ant,bee}/*.png`": folder("pets/{train,test}/{ant,bee}/*.png"),
    "`{ant,bee}/{train,test}/*.png`": folder("{ant,bee}/{train,test}/*.png"),
    "`{train_images,test_images}/{ant,bee}/*.png`": folder("{train_images,test_images}/{ant,bee}/*.png"),
    "`{test,ant,bee}/x/*.png`": folder("{test,ant,bee}/x/*.png"),
    "`{bus,train,tram}/*.png`": folder("{bus,train,tram}/*.png"),
    "`*.png`": folder("*.png"),
    "`*.png`, `metadata.csv` with `file_name,label` and labels `NA`, `yes`": metadata(
        "metadata.csv", "file_name,label\n{k}.png,{label}", "*.png"
    ),
    "the same with a column `split`": metadata(
        "metadata.csv", "file_name,label,split\n{k}.png,{label},{split}", "*.png"
    ),
    "`{train,test}/*.png`, `metadata.csv` with `train/0.png,NA` ...": metadata(
        "metadata.csv", "file_name,label\ntrain/{k}.png,{label}", "{train,test}/*.png"
    ),
    "`data/{train,test}-00000-of-00001.parquet`": tables(
        "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    ),
    "`{train,test,more}.parquet`": tables("train.parquet", "test.parquet", "more.parquet"),
    "`{a,b}.parquet`, `README.md` with `configs`": tables("a.parquet", "b.parquet", readme=CONFIGS),
    "`train.parquet`, `{x,y}/*.png`": lambda root: (tables("train.parquet")(root), folder("{x,y}/*.png")(root), None)[
        2
    ],
    "a folder of `save_to_disk`": saved,
    "`{train,test}-000.tar` of `0000.png`, `0000.cls` ... (webdataset)": shards,
    "`photos.zip`": folder("photos.zip"),
}


def row(title: str, make: Callable[[Path], None]) -> str:
    """Make the layout in a folder called pets and write what comes of it as a row of the table."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            make(Path("pets"))
            name = "pets/data" if make is linked else "pets"
            read, classes, said = _looked_at(name)
        finally:
            os.chdir(before)
    return f"| {title} | {read} | {classes} | {said} |"


def _looked_at(name: str) -> tuple[str, str, str]:
    spec = SourceSpec(id=name, size=8)
    try:
        index = index_source(spec, require_test=False)
    except SourceError as error:
        return "refused", "", _cell(f"{error.message} → {error.hint}")
    found = index.summary()
    test, said = f", {found.spec.test_split} {found.test_count}", [*left_out_notes(found.facts.left_out)]
    try:
        index_source(spec)
    except SourceError as none:
        test = ""
        said.append(f"{none.message.partition(':')[0]} → {none.hint}")
    return (
        f"{found.spec.train_split} {sum(found.train_counts)}{test}",
        ", ".join(f"`{name}`" for name in found.class_names),
        _cell("; ".join(said)),
    )


def _cell(text: str) -> str:
    text = " ".join(text.replace("source.id: ", "").split())
    return re.sub(r"(<[a-z]+>[^ ;]*)", r"`\1`", text.replace("|", "\\|"))


def table() -> str:
    """Write the whole table."""
    head = "| on disk | images read | classes | what is said |\n|---|---|---|---|\n"
    return head + "".join(row(title, make) + "\n" for title, make in LAYOUTS.items())


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:start] + table() + text[stop:], encoding="utf-8")


if __name__ == "__main__":
    main()
