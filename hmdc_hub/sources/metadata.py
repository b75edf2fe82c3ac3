"""Read metadata.csv and metadata.jsonl beside images, whose cells are text: `01`, `true` and `NA` are class names.

The layout is that of the `datasets` library, which however guesses the type of a cell from what it looks like.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.folder import SPLITS, FolderReader, Listing, Names, Rows, counted, paths_of, split_folders
from hmdc_hub.sources.reader import Facts

_EXAMPLE = "Its first line is for example  file_name,label  and the others  ant-1.png,ant"


@dataclass(frozen=True)
class _Row:
    """One line of a metadata file: the image it names, its cells by column, and where it stands."""

    image: str
    cells: Mapping[str, object]
    place: str


def open_metadata(source: str, root: Path, found: Listing, facts: Facts) -> FolderReader:
    """Read a folder of images whose columns are in metadata files.

    A row names an image by its path from the metadata file's folder, under `file_name`. The split is the top-level
    folder of the image; without such folders, a column `split` that holds nothing but names of splits.

    Args:
        source: Id as the user wrote it.
        root: The same as a path.
        found: What is in it, metadata files among it.
        facts: What is known of it.

    Raises:
        SourceError: A metadata file cannot be read, or names an image that is not there, or twice.
    """
    folders = split_folders(source, found)
    images = paths_of(found.images)
    rows: dict[str, list[_Row]] = {}
    seen: dict[str, str] = {}
    every = [row for names in sorted(found.metadata) for row in _read(root, names)]
    column = None if folders else _split_column(every)
    for row in every:
        if row.image not in images:
            raise SourceError(
                f"{row.place}: there is no image {row.image!r} in {source}",
                hint="Correct the line's file_name, a path from the folder of the metadata file, or remove the line.",
            )
        if row.image in seen:
            raise SourceError(f"{row.place} and {seen[row.image]} are about the same image", hint="Remove one of them.")
        seen[row.image] = row.place
        top = images[row.image][0]
        if column is not None:
            rows.setdefault(SPLITS[str(row.cells[column]).lower()], []).append(row)
        elif not folders or top in folders:
            rows.setdefault(folders.get(top, "train"), []).append(row)
    left_out = defaultdict(list, {reason: list(paths) for reason, paths in found.left_out.items()})
    left_out["no images"] += found.tables
    left_out["beside the splits"] += [images[name] for name in seen if folders and images[name][0] not in folders]
    left_out["in no metadata file"] += [images[name] for name in images if name not in seen]
    splits = {split: _table(rows[split]) for split in dict.fromkeys(SPLITS.values()) if split in rows}
    if not splits:
        names = ", ".join("/".join(path) for path in found.metadata)
        raise SourceError(f"source.id: {names} of {source} name no image of a split", hint=_EXAMPLE)
    return FolderReader(replace(facts, left_out=counted(left_out)), root, _numbered(splits))


def _split_column(rows: Sequence[_Row]) -> str | None:
    columns = dict.fromkeys(name for row in rows for name in row.cells if name.lower() == "split")
    for name in columns:
        if all(str(row.cells.get(name)).lower() in SPLITS for row in rows):
            return name
    return None


def _table(rows: Sequence[_Row]) -> Rows:
    names = dict.fromkeys(name for row in rows for name in row.cells)
    columns = {name: [row.cells.get(name) for row in rows] for name in names}
    return Rows([row.image for row in rows], columns, [row.place for row in rows])


def _numbered(splits: Mapping[str, Rows]) -> dict[str, Rows]:
    """Turn columns that hold nothing but whole numbers, as Python writes them, into numbers: 2 comes before 10."""
    numbers = {
        name
        for table in splits.values()
        for name in table.columns
        if all(value is None or _is_number(value) for other in splits.values() for value in other.columns.get(name, ()))
    }
    return {
        split: replace(
            table,
            columns={
                name: [None if value is None else int(str(value)) for value in values] if name in numbers else values
                for name, values in table.columns.items()
            },
        )
        for split, table in splits.items()
    }


def _is_number(value: object) -> bool:
    # The length first: Python refuses to turn thousands of digits into a number.
    text = str(value)
    return isinstance(value, str) and len(text) < 19 and text.removeprefix("-").isdecimal() and str(int(text)) == text


def _read(root: Path, names: Names) -> Iterator[_Row]:
    name = "/".join(names)
    cells = _csv_cells if names[-1].endswith(".csv") else _json_cells
    try:
        with root.joinpath(*names).open(encoding="utf-8-sig", newline="") as file:
            for line, row in cells(name, file):
                image = row.pop("file_name", None)
                if not isinstance(image, str):
                    raise SourceError(f"{name}, line {line}: file_name is empty; it names the line's image")
                yield _Row(_joined(names[:-1], image), row, f"{name}, line {line} ({image})")
    except UnicodeDecodeError as error:
        raise SourceError(f"{name} is no text in UTF-8: {error.reason}", hint="Save it as UTF-8.") from error
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror or error}") from error


def _joined(folder: Names, image: str) -> str:
    """Give the path below the source's folder; one that leads out of it is left as it is, and names no image."""
    parts = list(folder)
    for part in PurePosixPath(image.replace("\\", "/")).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _csv_cells(name: str, file: Iterator[str]) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(file, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
                _check_header(name, header)
            elif cells:
                if len(cells) != len(header):
                    raise SourceError(
                        f"{name}, line {reader.line_num} has {len(cells)} cells, its first line has {len(header)}",
                        hint='A comma within a cell needs quotes around the cell: "one, two".',
                    )
                yield reader.line_num, {key: cell or None for key, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise SourceError(f"{name}, line {reader.line_num} cannot be read: {error}") from error


def _check_header(name: str, header: Sequence[str]) -> None:
    if "file_name" not in header:
        raise SourceError(
            f"{name} has no column file_name; its first line is {','.join(header)[:80]!r}", hint=f"{_EXAMPLE}."
        )
    if twice := [column for column in header if header.count(column) > 1]:
        raise SourceError(f"{name} has two columns {twice[0]!r}", hint="Rename one of them.")


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
