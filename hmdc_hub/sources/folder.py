"""Read a local folder of images by its folders, as torchvision's `ImageFolder` does, or by metadata files in it.

A top-level folder that is called like a split is one; nothing else in a path or file name says anything about splits.
The class is the path of folders below it, down to the image. Links are followed, and no character of a name means
anything but itself.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import LeftOut
from hmdc_hub.sources import detect
from hmdc_hub.sources.reader import Encoded, Facts, Part

SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "holdout"), "test"),
}
"""Names of a top-level folder, in any case, that make it a split."""

METADATA = ("metadata.csv", "metadata.jsonl")
TABLES = (".parquet", ".arrow", ".tar")
ARCHIVES = (".zip", ".tgz", ".7z", ".rar")
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognises but opens with the help of other programs, or not at all."""

_SHOWN = 3

Names = tuple[str, ...]
"""A path below the source's folder, name by name."""


@dataclass
class Listing:
    """What is in a folder.

    Attributes:
        images: In the order of their paths.
        metadata: Files of `METADATA`; `tables` those that `datasets` reads, `archives` what would have to be unpacked.
        left_out: The rest, by reason.
    """

    images: list[Names] = field(default_factory=list)
    metadata: list[Names] = field(default_factory=list)
    tables: list[Names] = field(default_factory=list)
    archives: list[Names] = field(default_factory=list)
    left_out: dict[str, list[Names]] = field(default_factory=lambda: defaultdict(list))

    @property
    def files(self) -> list[Names]:
        """All files but hidden ones."""
        return [*self.images, *self.metadata, *self.tables, *self.left_out["no images"]]


def list_folder(root: Path) -> Listing:
    """List a folder and everything below it, links followed.

    An image is what the installed Pillow can open: by its suffix, and where that says nothing by its content. A file
    whose suffix says that it is an image counts as one even if it is damaged, so that it is named when it is decoded.

    Raises:
        SourceError: A link leads in a circle, or a folder cannot be read.
    """
    found = Listing()
    _list(root, (), (), found)
    found.images.sort(key="/".join)
    return found


def _list(folder: Path, names: Names, above: tuple[tuple[int, int], ...], found: Listing) -> None:
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
        path = (*names, entry.name)
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            found.left_out["hidden"].append(path)
        elif entry.is_dir():
            _list(folder / entry.name, path, (*above, here), found)
        elif not entry.is_file():
            found.left_out["links to nothing" if entry.is_symlink() else "no files"].append(path)
        else:
            _sort_in(Path(entry.path), path, found)


def _sort_in(file: Path, path: Names, found: Listing) -> None:
    suffix = file.suffix.lower()
    if path[-1] in METADATA:
        found.metadata.append(path)
    elif suffix in TABLES:
        found.tables.append(path)
    elif suffix in _image_suffixes() or _pillow_opens(file):
        found.images.append(path)
    else:
        if suffix in ARCHIVES:
            found.archives.append(path)
        found.left_out["no images"].append(path)


@cache
def _image_suffixes() -> frozenset[str]:
    formats = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in formats if name in Image.OPEN and name not in _NO_PICTURES)


def _pillow_opens(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.format not in _NO_PICTURES
    except Exception:  # Pillow's decoders raise whatever a foreign file leads them into
        return False


@dataclass(frozen=True)
class Rows:
    """The images of one split.

    Attributes:
        files: Paths of N images below the folder, with forward slashes.
        columns: Column to N texts; None is an empty cell. Whole numbers only where a metadata file has nothing else.
        places: Where the N rows stand, for errors.
    """

    files: Sequence[str]
    columns: Mapping[str, Sequence[object]]
    places: Sequence[str]


class FolderReader:
    """A `Reader` of a folder of images. The images' column is called `image`, the classes' of folders `label`.

    Args:
        facts: Where the dataset comes from.
        root: The folder.
        splits: Split name to its images.
    """

    def __init__(self, facts: Facts, root: Path, splits: Mapping[str, Rows]) -> None:
        self.facts = facts
        self._root = root
        self._splits = dict(splits)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, of train, validation and test."""
        return tuple(self._splits)

    def rows(self, split: str) -> int:
        """Count the rows of a split."""
        return len(self._splits[split].files)

    def columns(self, split: str, image: str | None, label: str | None) -> tuple[str, str]:
        """Check the columns of a split, or find those that are None."""
        texts = self._splits[split].columns
        kinds = {name: "string" if all(map(_is_text, values)) else "other" for name, values in texts.items()}
        # A column of that name in a metadata file is not it.
        features = {"image": "image"} | kinds | {"image": "image"}
        where = f"split {split!r} of {self.facts.id}"
        return detect.image_column(features, image, where), detect.label_column(features, label, where)

    def class_names(self, split: str, label: str) -> list[str] | None:
        """Give None: the texts are the classes."""
        return None

    def labels(self, part: Part, label: str) -> list[object]:
        """Read the labels of some rows."""
        return list(self._splits[part.split].columns[label][part.start : part.stop])

    def images(self, part: Part, image: str) -> Iterator[Encoded]:
        """Give the paths of the images of some rows."""
        for name in self._splits[part.split].files[part.start : part.stop]:
            yield str(self._root / name)

    def where(self, split: str, column: str, row: int) -> str:
        """Name the file, and its line in a metadata file, that a row is."""
        return self._splits[split].places[row]


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def open_class_folders(source: str, root: Path, found: Listing, facts: Facts) -> FolderReader:
    """Read classes from the names of folders.

    Args:
        source: Id as the user wrote it.
        root: The same as a path.
        found: What is in it, images among it.
        facts: What is known of it.

    Raises:
        SourceError: Splits or classes cannot be told from the folders.
    """
    folders = split_folders(source, found)
    left_out = defaultdict(list, {reason: list(paths) for reason, paths in found.left_out.items()})
    left_out["no images"] += found.tables
    if not folders:
        _refuse_near_splits(source, found.images)
        _refuse_splits_below(source, found.images)
    classes: dict[str, dict[Names, list[Names]]] = {}
    for path in found.images:
        if folders and path[0] not in folders:
            left_out["beside the splits"].append(path)
            continue
        split, below = (folders[path[0]], path[1:-1]) if folders else ("train", path[:-1])
        if below:
            classes.setdefault(split, {}).setdefault(below, []).append(path)
        else:
            left_out["in no class folder"].append(path)
    beside = left_out["beside the splits"]
    if not classes or ("train" not in classes and beside):
        raise _no_classes(source, found, folders, beside)
    _refuse_mixed_depth(source, classes)
    splits = {}
    for split in sorted(classes, key=list(dict.fromkeys(SPLITS.values())).index):
        rows = sorted(("/".join(path), "/".join(name)) for name, paths in classes[split].items() for path in paths)
        files = [file for file, _ in rows]
        splits[split] = Rows(files, {"label": [name for _, name in rows]}, files)
    return FolderReader(replace(facts, left_out=counted(left_out)), root, splits)


def counted(left_out: Mapping[str, Sequence[Names]]) -> tuple[LeftOut, ...]:
    """Count what was left out, with a few examples of each reason."""
    return tuple(
        LeftOut(reason=reason, count=len(paths), examples=["/".join(path) for path in sorted(paths)[:_SHOWN]])
        for reason, paths in left_out.items()
        if paths
    )


def split_folders(source: str, found: Listing) -> dict[str, str]:
    """Find the top-level folders with images that are splits, with the split that each is.

    Raises:
        SourceError: Two of them are the same split.
    """
    tops = dict.fromkeys(path[0] for path in found.images if len(path) > 1)
    folders = {name: SPLITS[name.lower()] for name in tops if name.lower() in SPLITS}
    for split in SPLITS.values():
        if len(same := [name for name, other in folders.items() if other == split]) > 1:
            raise SourceError(
                f"source.id: the folders {' and '.join(same)} of {source} are both a {split} split by their names",
                hint=f"Merge them, or rename the one that is not meant, for example  mv {same[-1]} unused-{same[-1]}",
            )
    return folders


def _refuse_near_splits(source: str, images: Sequence[Names]) -> None:
    """Refuse top-level folders of which every one is called somewhat like a split, train among them."""
    tops = list(dict.fromkeys(path[0] for path in images if len(path) > 1))
    splits = [{SPLITS[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in SPLITS} for name in tops]
    if all(len(found) == 1 for found in splits) and {"train"} < set().union(*splits):
        raise SourceError(
            f"source.id: the folders {', '.join(tops)} of {source} look like splits, but a split is a top-level folder "
            "whose whole name is that of one: they would all be classes",
            hint=f"Rename them, for example  mv {shlex.quote(tops[0])} {splits[0].pop()} ; or if they are classes, put "
            "them into one folder called train.",
        )


def _refuse_splits_below(source: str, images: Sequence[Names]) -> None:
    """Refuse folders that are called like splits, but are not at the top: every one of them would become a class."""
    for level in range(1, min(map(len, images)) - 1):
        if all(path[level].lower() in SPLITS for path in images):
            tops = list(dict.fromkeys("/".join(path[:level]) for path in images))
            found = f"source.id: {source} has its splits below other folders, as in {'/'.join(images[0])}"
            if len(tops) == 1:
                raise SourceError(found, hint=f"Give the folder that they are in:  id: {source.rstrip('/')}/{tops[0]}")
            raise SourceError(
                f"{found}; splits are the top-level folders",
                hint="Move them to the top:  train/<class>/<image>  and  test/<class>/<image>",
            )


def _no_classes(source: str, found: Listing, folders: Mapping[str, str], beside: Sequence[Names]) -> SourceError:
    """Say why no class was found among the images that are condensed."""
    images = found.images
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
        f"source.id: {source} has images without labels: {where} has {'/'.join(images[0])} and {len(images) - 1} more, "
        "but no folder for each class",
        hint="Make a folder for each class, as in  train/<class>/<image> ; or write the labels into a file "
        f"metadata.csv beside the images:\n  file_name,label\n  {images[0][-1]},<class>\n{known}".rstrip(),
    )


def _refuse_mixed_depth(source: str, classes: Mapping[str, Mapping[Names, Sequence[Names]]]) -> None:
    names = {name: paths[0] for of_split in classes.values() for name, paths in of_split.items()}
    shallow, deep = min(names, key=len), max(names, key=len)
    if len(shallow) != len(deep):
        raise SourceError(
            f"source.id: the class folders of {source} are of different depth, as in {'/'.join(names[shallow])} and "
            f"{'/'.join(names[deep])}: is {deep[0]!r} the class, or {'/'.join(deep)!r}?",
            hint=f"Bring all images to the same depth: rename  {'/'.join(deep)}  to  {'-'.join(deep)}  and the like, "
            f"or move the images of {'/'.join(deep)} up.",
        )


def paths_of(names: Iterable[Names]) -> dict[str, Names]:
    """Key paths by their text with forward slashes."""
    return {"/".join(path): path for path in names}
