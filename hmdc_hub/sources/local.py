"""Open a folder or a parquet file on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.loading import card_facts, load_builder, prepared_splits
from hmdc_hub.sources.reader import Facts
from hmdc_hub.sources.table import TableReader


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


def open_local(source: str, path: Path, config: str | None) -> TableReader:
    """Open a folder or one parquet file.

    A folder is anything that `datasets` can read (class folders of images, parquet files, a README with
    configurations), or was written by its `save_to_disk`.

    Args:
        source: Id as the user wrote it.
        path: The same as a path that exists.
        config: Configuration, where a README defines several.

    Raises:
        SourceError: `datasets` cannot read it, or the configuration must be named.
    """
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            _no_config(source, config)
            return TableReader(Facts(source, "local"), _saved_to_disk(source, path))
        builder = load_builder(source, str(path), config=config)
        facts = Facts(source, "local", config=builder.config.name, license=card_facts(path / "README.md")[0])
        return TableReader(facts, prepared_splits(source, builder))
    if path.suffix != ".parquet":
        raise SourceError(
            f"source.id: {source!r} is a file, and of files only .parquet can be read",
            hint="Give the folder it is in, or convert it with  datasets.load_dataset(...).to_parquet(...)",
        )
    _no_config(source, config)
    builder = load_builder(source, "parquet", data_files={"train": str(path)})
    return TableReader(Facts(source, "local"), prepared_splits(source, builder))


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
