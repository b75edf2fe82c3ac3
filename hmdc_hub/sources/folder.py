"""Read a local folder of images by its folders, as torchvision's `ImageFolder` does, or by metadata files in it.

A top-level folder that is called like a split is one; nothing else in a path or file name says anything about splits.
The class is the path of folders below it, down to the image. Links are followed, and no character of a name means
anything but itself. Cells of metadata files are text: `01`, `true` and `NA` are class names. (The `datasets` library,
whose layout it is, guesses the type of a cell from what it looks like.)
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import LeftOut
from hmdc_hub.sources.reader import Reader, SourceFacts, Split

SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "holdout"), "test"),
}  # names of a top-level folder, in any case, that make it a split

METADATA = ("metadata.csv", "metadata.jsonl")
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # what reads them, in `datasets`
ARCHIVES = (".zip", ".tgz", ".7z", ".rar")
# Formats that Pillow recognises but opens with the help of other programs, or not at all.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}

_SHOWN = 3
_EXAMPLE = "Its first line is for example  file_name,label  and the others  ant-1.png,ant"

Names = tuple[str, ...]  # a path below the source's folder, name by name


@dataclass
class Listing:
    """What is in a folder."""

    images: list[Names] = field(default_factory=list)  # in the order of their paths
    metadata: list[Names] = field(default_factory=list)  # files of `METADATA`
    tables: list[Names] = field(default_factory=list)  # those that `datasets` reads
    archives: list[Names] = field(default_factory=list)  # what would have to be unpacked
    left_out: dict[str, list[Names]] = field(default_factory=lambda: defaultdict(list))  # the rest, by reason


def list_folder(root: Path) -> Listing:
    """List a folder and everything below it, links followed.

    An image is what the installed Pillow can open: by its suffix, and where that says nothing by its content. A file
    whose suffix says that it is an image counts as one even if it is damaged, so that it is named when it is decoded.
    """
    found = Listing()
    formats = Image.registered_extensions().items()
    suffixes = {suffix for suffix, name in formats if name in Image.OPEN and name not in _NO_PICTURES}

    def look(folder: Path, names: Names, above: tuple[tuple[int, int], ...]) -> None:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(
                f"source.id: the folder {str(folder)!r} cannot be read: {error.strerror or error}",
                hint="Give yourself permission to read it, or move it out of the source's folder.",
            ) from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise SourceError(
                f"source.id: {str(folder)!r} is a link to a folder that it is in: it would be read without end",
                hint="Remove the link.",
            )
        if not entries and names:
            found.left_out["empty folders"].append(names)
        for entry in entries:
            path, suffix = (*names, entry.name), Path(entry.name).suffix.lower()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                found.left_out["hidden"].append(path)
            elif entry.is_dir():
                look(folder / entry.name, path, (*above, here))
            elif not entry.is_file():
                found.left_out["links to nothing" if entry.is_symlink() else "no files"].append(path)
            elif entry.name in METADATA:
                found.metadata.append(path)
            elif suffix in TABLES:
                found.tables.append(path)
            elif suffix in suffixes or _pillow_opens(entry.path):
                found.images.append(path)
            else:
                found.left_out["no images"].append(path)
                if suffix in ARCHIVES:
                    found.archives.append(path)

    look(root, (), ())
    found.images.sort(key="/".join)
    return found


def _pillow_opens(file: str) -> bool:
    try:
        with Image.open(file) as image:
            return image.format not in _NO_PICTURES
    except Exception:  # Pillow's decoders raise whatever a foreign file leads them into
        return False


def counted(left_out: Mapping[str, Sequence[Names]]) -> tuple[LeftOut, ...]:
    """Count what was left out, with a few examples of each reason."""
    return tuple(
        LeftOut(reason=reason, count=len(paths), examples=["/".join(path) for path in sorted(paths)[:_SHOWN]])
        for reason, paths in left_out.items()
        if paths
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """An image below the folder, with forward slashes; its columns, of which None is an empty cell; where it stands."""

    image: str
    cells: Mapping[str, object]
    place: str


def open_images(source: str, root: Path, found: Listing, facts: SourceFacts) -> Reader:
    """Open a folder of images: the column of images is called `image`, that of class folders `label`.

    In metadata files a row names an image by its path from the file's folder, under `file_name`. The split is the
    top-level folder of the image; without such folders, a column `split` that holds nothing but names of splits.
    """
    tops = dict.fromkeys(path[0] for path in found.images if len(path) > 1)
    folders = {name: SPLITS[name.lower()] for name in tops if name.lower() in SPLITS}
    for split in SPLITS.values():
        if len(same := [name for name, other in folders.items() if other == split]) > 1:
            raise SourceError(
                f"source.id: the folders {' and '.join(same)} of {source} are both a {split} split by their names",
                hint=f"Merge them, or rename the one that is not meant, for example  mv {same[-1]} unused-{same[-1]}",
            )
    left_out = defaultdict(list, {reason: list(paths) for reason, paths in found.left_out.items()})
    left_out["no images"] += found.tables
    rows = (_by_metadata if found.metadata else _by_folders)(source, root, found, folders, left_out)
    numbers = _numbers(row for some in rows.values() for row in some) if found.metadata else set()
    splits = {name: _split(root, rows[name], numbers) for name in dict.fromkeys(SPLITS.values()) if name in rows}
    return Reader(replace(facts, left_out=counted(left_out)), splits)


def _split(root: Path, rows: Sequence[_Row], numbers: set[str]) -> Split:
    columns: dict[str, list[object]] = {}
    features = {"image": "image"}
    for name in dict.fromkeys(name for row in rows for name in row.cells):
        values = [row.cells.get(name) for row in rows]
        columns[name] = [int(str(value)) if name in numbers and value is not None else value for value in values]
        if name != "image":  # a column of that name in a metadata file is not it
            plain = all(isinstance(value, str | int | None) for value in columns[name])
            features[name] = "string" if plain else "other"

    def read(column: str, start: int, stop: int) -> Iterable[object]:
        return (str(root / row.image) for row in rows[start:stop]) if column == "image" else columns[column][start:stop]

    return Split(len(rows), features, read, where=lambda row: rows[row].place)


# Class folders


def _by_folders(
    source: str, root: Path, found: Listing, folders: Mapping[str, str], left_out: dict[str, list[Names]]
) -> dict[str, list[_Row]]:
    if not folders:
        _refuse_splits_elsewhere(source, found.images)
    found_in: dict[tuple[str, Names], Names] = {}
    labels: dict[Names, dict[str, object]] = {}
    rows: dict[str, list[_Row]] = {}
    for path in found.images:
        split, below = (folders.get(path[0], ""), path[1:-1]) if folders else ("train", path[:-1])
        if not split:
            left_out["beside the splits"].append(path)
        elif not below:
            left_out["in no class folder"].append(path)
        else:
            found_in.setdefault((split, below), path)
            name = "/".join(path)
            cells = labels.setdefault(below, {"label": "/".join(below)})  # one for all, as there may be millions
            rows.setdefault(split, []).append(_Row(name, cells, name))
    beside = left_out["beside the splits"]
    if not rows or ("train" not in rows and beside):
        raise _no_classes(source, found, folders, beside)
    first = {below: path for (_, below), path in found_in.items()}  # of the last split, usually train
    shallow, deep = min(first, key=len), max(first, key=len)
    if len(shallow) != len(deep):
        raise SourceError(
            f"source.id: the class folders of {source} are of different depth, as in {'/'.join(first[shallow])} and "
            f"{'/'.join(first[deep])}: is {deep[0]!r} the class, or {'/'.join(deep)!r}?",
            hint=f"Bring all images to the same depth: rename  {'/'.join(deep)}  to  {'-'.join(deep)}  and the like, "
            f"or move the images of {'/'.join(deep)} up.",
        )
    return rows


def _refuse_splits_elsewhere(source: str, images: Sequence[Names]) -> None:
    """Refuse folders that are called somewhat like splits, or like them but below others: they would become classes."""
    tops = list(dict.fromkeys(path[0] for path in images if len(path) > 1))
    splits = [{SPLITS[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in SPLITS} for name in tops]
    if all(len(found) == 1 for found in splits) and {"train"} < set().union(*splits):
        raise SourceError(
            f"source.id: the folders {', '.join(tops)} of {source} look like splits, but a split is a top-level folder "
            "whose whole name is that of one: they would all be classes",
            hint=f"Rename them, for example  mv {shlex.quote(tops[0])} {splits[0].pop()} ; or if they are classes, put "
            "them into one folder called train.",
        )
    for level in range(1, min(map(len, images)) - 1):
        if all(path[level].lower() in SPLITS for path in images):
            above = {"/".join(path[:level]) for path in images}
            raise SourceError(
                f"source.id: {source} has its splits below other folders, as in {'/'.join(images[0])}; splits are the "
                "top-level folders",
                hint=f"Give the folder that they are in:  id: {source.rstrip('/')}/{above.pop()}"
                if len(above) == 1
                else "Move them to the top:  train/<class>/<image>  and  test/<class>/<image>",
            )


def _no_classes(source: str, found: Listing, folders: Mapping[str, str], beside: Sequence[Names]) -> SourceError:
    """Say why no class was found among the images that are condensed."""
    where = " and ".join(f"{name}/" for name in folders) or "the folder"
    if beside:
        return SourceError(
            f"source.id: {source} has no classes to condense: {where} is a split by its name, and "
            f"{'/'.join(beside[0])} and whatever else is beside it is left out",
            hint=f"If {where} is a class, put all class folders into one folder called train; if it is a split, put "
            "those to condense into  train/<class>/",
        )
    lists = ["/".join(names) for names in found.left_out["no images"] if names[-1].lower().endswith(".csv")]
    known = f" If {lists[0]} has them, call it so, and its column of names file_name." if lists else ""
    return SourceError(
        f"source.id: {source} has images without labels: {where} has {'/'.join(found.images[0])} and "
        f"{len(found.images) - 1} more, but no folder for each class",
        hint="Make a folder for each class, as in  train/<class>/<image> ; or write the labels into a file "
        f"metadata.csv beside the images:\n  file_name,label\n  {found.images[0][-1]},<class>\n{known}".rstrip(),
    )


# Metadata files


def _by_metadata(
    source: str, root: Path, found: Listing, folders: Mapping[str, str], left_out: dict[str, list[Names]]
) -> dict[str, list[_Row]]:
    images = {"/".join(path): path for path in found.images}
    every = [row for names in sorted(found.metadata) for row in _read_metadata(root, names)]
    columns = dict.fromkeys(name for row in every for name in row.cells if name.lower() == "split")
    said = [name for name in columns if all(str(row.cells.get(name)).lower() in SPLITS for row in every)]
    rows: dict[str, list[_Row]] = {}
    seen: dict[str, str] = {}
    for row in every:
        if row.image not in images:
            raise SourceError(
                f"{row.place}: there is no image {row.image!r} in {source}",
                hint="Correct the line's file_name, a path from the folder of the metadata file, or remove the line.",
            )
        if row.image in seen:
            raise SourceError(f"{row.place} and {seen[row.image]} are about the same image", hint="Remove one of them.")
        seen[row.image] = row.place
        split: str | None = SPLITS[str(row.cells[said[0]]).lower()] if said else "train"
        if folders:
            split = folders.get(images[row.image][0])
        if split is None:
            left_out["beside the splits"].append(images[row.image])
        else:
            rows.setdefault(split, []).append(row)
    left_out["in no metadata file"] += [path for name, path in images.items() if name not in seen]
    if not rows:
        names = ", ".join("/".join(path) for path in found.metadata)
        raise SourceError(f"source.id: {names} of {source} name no image of a split", hint=_EXAMPLE)
    return rows


def _numbers(rows: Iterable[_Row]) -> set[str]:
    """Find the columns of nothing but whole numbers, as Python writes them, which are numbers: 2 comes before 10."""

    def is_number(text: str) -> bool:  # the length first: Python refuses to turn thousands of digits into a number
        return len(text) < 19 and text.removeprefix("-").isdecimal() and str(int(text)) == text

    numbers, others = set[str](), set[str]()
    for row in rows:
        for name, value in row.cells.items():
            if value is not None:
                (numbers if isinstance(value, str) and is_number(value) else others).add(name)
    return numbers - others


def _read_metadata(root: Path, names: Names) -> Iterator[_Row]:
    name = "/".join(names)
    cells = _csv_cells if names[-1].endswith(".csv") else _json_cells
    try:
        with root.joinpath(*names).open(encoding="utf-8-sig", newline="") as file:
            for line, row in cells(name, file):
                image = row.pop("file_name", None)
                if not isinstance(image, str):
                    raise SourceError(f"{name}, line {line}: file_name is empty; it names the line's image")
                # A path that leads out of the source's folder stays one, and names no image.
                below = posixpath.normpath(posixpath.join(*names[:-1], image.replace("\\", "/")))
                yield _Row(below, row, f"{name}, line {line} ({image})")
    except UnicodeDecodeError as error:
        raise SourceError(f"{name} is no text in UTF-8: {error.reason}", hint="Save it as UTF-8.") from error
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror or error}") from error


def _csv_cells(name: str, file: Iterator[str]) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if "file_name" not in header:
            raise SourceError(
                f"{name} has no column file_name; its first line is {','.join(header)[:80]!r}", hint=f"{_EXAMPLE}."
            )
        if twice := [column for column in header if header.count(column) > 1]:
            raise SourceError(f"{name} has two columns {twice[0]!r}", hint="Rename one of them.")
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise SourceError(
                    f"{name}, line {reader.line_num} has {len(cells)} cells, its first line has {len(header)}",
                    hint='A comma within a cell needs quotes around the cell: "one, two".',
                )
            yield reader.line_num, {key: cell or None for key, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise SourceError(f"{name}, line {reader.line_num} cannot be read: {error}") from error


def _json_cells(name: str, file: Iterator[str]) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            # Numbers stay as they are written.
            row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{name}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or "file_name" not in row:
            raise SourceError(
                f"{name}, line {number} is no object with file_name",
                hint='Each line is for example  {"file_name": "ant-1.png", "label": "ant"}',
            )
        yield number, {key: json.dumps(cell) if isinstance(cell, bool) else cell or None for key, cell in row.items()}
