"""Open a folder or a parquet file on this machine."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.folder import TABLES, FolderReader, Listing, Names, counted, list_folder, open_class_folders
from hmdc_hub.sources.loading import card_facts, load_builder, prepared_splits
from hmdc_hub.sources.metadata import open_metadata
from hmdc_hub.sources.reader import Facts
from hmdc_hub.sources.table import TableReader
from hmdc_hub.store.configs import read_card_text, split_card
from hmdc_hub.store.files import cache_folder

MANY = 20
"""So many images to a table or more are the dataset, and the table is something beside them."""


def local_path(source: str) -> Path | None:
    """Decide whether an id is a path of this machine.

    Args:
        source: Id in a recipe, relative to the current folder; `~` is the home folder.

    Returns:
        The absolute path if something is there; None if the id can only be a dataset of the Hub. What exists here wins
        over a dataset of the same name there.

    Raises:
        SourceError: It is written like a path, and nothing is there.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path.absolute()  # a bare name such as parquet would mean a file format to datasets
    looks_like_a_path = (
        source.startswith(("/", ".", "~")) or "\\" in source or source.count("/") > 1 or path.suffix == ".parquet"
    )
    if looks_like_a_path:
        raise SourceError(
            f"source.id: {source!r} was taken for a folder or file, since a Hub id is <name> or <owner>/<name>, and "
            "nothing is there",
            hint="Paths are relative to the folder the command runs in; check the spelling, or name a Hub dataset such "
            "as  id: uoft-cs/cifar10",
        )
    return None


def open_local(source: str, path: Path, config: str | None) -> TableReader | FolderReader:
    """Open a folder, or one file: parquet, or the tar of a webdataset.

    A folder is one of images in class folders or beside metadata files, or laid out for `datasets` (parquet files, a
    README with configurations), or written by its `save_to_disk`.

    Args:
        source: Id as the user wrote it.
        path: The same as a path that exists.
        config: Configuration, where a README defines several.

    Raises:
        SourceError: It cannot be read, splits or classes cannot be told, or the configuration must be named.
    """
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            _no_config(source, config)
            return TableReader(Facts(source, "local"), _saved_to_disk(source, path))
        return _open_folder(source, path, config)
    reader = {".parquet": "parquet", ".tar": "webdataset"}.get(path.suffix)
    if reader is None:
        raise SourceError(
            f"source.id: {source!r} is a file, and of files only .parquet and .tar (webdataset) can be read",
            hint="Give the folder it is in, or convert it with  datasets.load_dataset(...).to_parquet(...)",
        )
    _no_config(source, config)
    builder = load_builder(source, reader, data_files={"train": glob.escape(str(path))})
    return TableReader(Facts(source, "local"), prepared_splits(source, builder))


def _open_folder(source: str, path: Path, config: str | None) -> TableReader | FolderReader:
    found = list_folder(path)
    configured = _names_configurations(path)
    license_id = card_facts(path / "README.md")[0]
    if not configured and _is_of_images(source, found):
        if config not in (None, "default"):
            _no_config(source, config)
        facts = Facts(source, "local", config="default", license=license_id)
        return (open_metadata if found.metadata else open_class_folders)(source, path, found, facts)
    plain = _plain_path(path, found.files)
    builder = load_builder(source, str(plain), config=config)
    facts = Facts(source, "local", config=builder.config.name, license=license_id)
    if not configured:
        used = {str(file) for files in builder.config.data_files.values() for file in files}
        there = (*found.tables, *found.images)
        unused = {"in no split": [names for names in there if str(plain.joinpath(*names)) not in used]}
        facts = replace(facts, left_out=counted(unused))
    return TableReader(facts, prepared_splits(source, builder))


def _names_configurations(path: Path) -> bool:
    """Tell whether a folder's README says where its data are, as `datasets` reads it."""
    readme = path / "README.md"
    block = split_card(read_card_text(readme))[0] if readme.is_file() else None
    return bool(block and block.get("configs"))


def _is_of_images(source: str, found: Listing) -> bool:
    """Tell a folder of image files from one of tables, which `datasets` reads.

    Raises:
        SourceError: It may be either, or has to be unpacked.
    """
    tables, images = len(found.tables), len(found.images)
    if any(names[-1] == "metadata.parquet" for names in found.tables):
        return False
    if not images and not tables and found.archives:
        raise SourceError(
            f"source.id: {source} holds archives and no images: {', '.join('/'.join(n) for n in found.archives[:3])}",
            hint=f"Unpack them first, for example  python -m zipfile -e {found.archives[0][-1]} images",
        )
    if tables and tables < images < MANY * tables:
        raise SourceError(
            f"source.id: {source} holds {images} images and {tables} of {', '.join(TABLES)}: which of them is the "
            "dataset cannot be told",
            hint=f"Give a folder with one kind only, or the file itself:  id: {source}/{'/'.join(found.tables[0])}",
        )
    return images > tables


def _plain_path(path: Path, files: Sequence[Names]) -> Path:
    """Give a path to the same files in which no character means a pattern to `datasets`: a folder of links if need be.

    Args:
        path: The folder.
        files: Those in it that matter.
    """
    if glob.escape(str(path)) == str(path):
        return path
    digest = hashlib.sha256("\0".join([str(path), *map("/".join, files)]).encode(errors="surrogateescape"))
    plain = cache_folder("folders") / digest.hexdigest()[:32]
    try:
        for names in files:
            link = plain.joinpath(*names)
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(path.joinpath(*names))
    except OSError as error:
        raise SourceError(
            f"source.id: *, ? and [ in {str(path)!r} are patterns to the library that reads this folder, and no links "
            f"to its files could be made in {plain}: {error.strerror or error}",
            hint="Rename the folder.",
        ) from error
    return plain


def _saved_to_disk(source: str, path: Path) -> Mapping[str, Any]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # Arrow's and datasets' readers share no base class
        raise SourceError(
            f"source.id: {source!r} looks like a folder of save_to_disk and cannot be read: {error}",
            hint="Write it again with save_to_disk, or as parquet with to_parquet.",
        ) from error
    if isinstance(loaded, DatasetDict):
        return dict(loaded)
    return {str(loaded.split or "train"): loaded}


def _no_config(source: str, config: str | None) -> None:
    if config is not None:
        raise SourceError(
            f"source.config: {source!r} has no configurations, so {config!r} is none of it", hint="Leave config out."
        )
