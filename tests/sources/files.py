"""Write small datasets as the real files that users have."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/your-data-and-model.md"
CLASSES = ("ant", "bee", "cat")
RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)
COLOURS = (RED, GREEN, BLUE, YELLOW)


def picture(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Make an image of one colour, so that whoever reads it can be told by its grey value which one it is."""
    return Image.new("L", size, value).convert(mode)


def png(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    return encoded(picture(value, size, mode))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def cells(images: Sequence[bytes | None]) -> list[dict[str, bytes | str | None] | None]:
    """Make the values of an image column."""
    return [None if data is None else {"bytes": data, "path": None} for data in images]


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> Path:
    """Write one parquet file with feature types in its metadata, as `datasets` does, but without its checks."""
    import datasets

    types = datasets.Features(dict(features))
    table = pa.table({name: pa.array(values, types.arrow_schema.field(name).type) for name, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(types.arrow_schema.metadata), path)
    return path


def rows(count: int, first: int = 0) -> tuple[list[Any], list[int]]:
    """Make images with grey values first, first + 1, ... and labels 2, 1, 0, 2, ..., so that order matters."""
    return cells([png(first + k) for k in range(count)]), [2 - k % 3 for k in range(count)]


def parquet_folder(
    root: Path,
    train: tuple[Sequence[Any], Sequence[Any]] | None = None,
    test: tuple[Sequence[Any], Sequence[Any]] | None = None,
    label: Any = None,
    names: tuple[str, str] = ("image", "label"),
) -> Path:
    """Write `data/train-*` and `data/test-*` with 9 and 4 rows unless others are given."""
    import datasets

    features = {names[0]: datasets.Image(), names[1]: label or datasets.ClassLabel(names=list(CLASSES))}
    for split, (images, labels) in {"train": train or rows(9), "test": test or rows(4, 100)}.items():
        name = f"{split}-00000-of-00001.parquet"
        write_parquet(root / "data" / name, {names[0]: images, names[1]: labels}, features)
    return root


def conversion(kind: str) -> str:
    """Give the lines of docs/your-data-and-model.md that convert a column of mine.parquet to converted.parquet."""
    section = PAGE.read_text(encoding="utf-8").partition("## Columns of other types")[2]
    first, *blocks = section.partition("```python\n")[2].partition("```")[0].split("\n# ")
    fitting = [
        block for block in blocks if block.startswith((f"images are {kind}", f"labels are {kind}", "in the end"))
    ]
    assert len(fitting) == 2
    return "\n".join([first, *(f"# {block}" for block in fitting)])


def image_folder(root: Path, splits: Mapping[str, Mapping[str, int]], kind: str = "PNG") -> Path:
    """Write `<split>/<class>/<k>.<kind>`: so many images per class, no two of them alike."""
    for s, (split, classes) in enumerate(splits.items()):
        for c, (name, count) in enumerate(classes.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                picture(40 * c + 15 * s + k, (10, 6)).save(folder / f"{k}.{kind.lower()}")
    return root


def write_idx(path: Path, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write the format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.tobytes())


def write(file: Path, colour: tuple[int, int, int], seed: int) -> Path:
    """Write an image of about one colour that no other seed gives; the format is the suffix's, else PNG."""
    noise = np.random.RandomState(seed).randint(-25, 26, (8, 8, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
    kind = Image.registered_extensions().get(file.suffix.lower(), "PNG")
    file.write_bytes(encoded(image, kind))
    return file


def tree(root: Path, classes: Mapping[str, int], kind: str = "png") -> Path:
    """Write so many images below each folder; a name's colour is that of its place among the last names."""
    lasts = list(dict.fromkeys(name.split("/", 1)[-1] for name in classes))
    for number, (name, count) in enumerate(classes.items()):
        for k in range(count):
            colour = COLOURS[lasts.index(name.split("/", 1)[-1]) % 4]
            write(root / name / f"{k:02}.{kind}", colour, 100 * number + k)
    return root
