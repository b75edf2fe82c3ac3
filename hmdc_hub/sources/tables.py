"""Read what the `datasets` library reads: a dataset of the Hub at one commit, or its files on this machine.

No code of a dataset is ever run, and tokens are huggingface_hub's business alone (`hf auth login`, HF_TOKEN).
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from hmdc_hub.errors import HmdcError, NetworkError, RunError, SourceError
from hmdc_hub.sources.folder import TABLES, Listing, counted, list_folder, open_images
from hmdc_hub.sources.reader import Reader, SourceFacts, Split, kind_of
from hmdc_hub.store.configs import read_card_text, split_card
from hmdc_hub.store.files import cache_folder, write_json_atomic
from hmdc_hub.store.hub import Client, translated

MANY = 20  # so many images to a table or more are the dataset, and the table is something beside them

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BATCH = 256


def table_split(table: Any) -> Split:
    """Read one `datasets.Dataset`; images are given as bytes or paths and never decoded."""

    def read(column: str, start: int, stop: int) -> Iterator[object]:
        rows = table.select_columns([column]).select(range(start, stop)).with_format("arrow")
        for batch in rows.iter(batch_size=_BATCH):
            for value in batch[column].to_pylist():
                if column in files and isinstance(value, Mapping):
                    yield value.get("path") if value.get("bytes") is None else value["bytes"]
                else:
                    yield value

    names = {name: list(feature.names) for name, feature in table.features.items() if getattr(feature, "names", None)}
    files = [name for name, feature in table.features.items() if kind_of(feature) in ("image", "image file")]
    return Split(len(table), table.features, read, names)


# The Hub


def open_hub(source: str, revision: str | None, config: str | None) -> Reader:
    """Open a Hub dataset; downloads what is not in the cache.

    Without a network (HF_HUB_OFFLINE=1, or the Hub cannot be reached) a revision that is a full commit is read from
    what an earlier call prepared, and only that very commit is.
    """
    from huggingface_hub import constants

    pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    if constants.HF_HUB_OFFLINE:
        if not pinned:
            raise NetworkError(
                f"source.revision: HF_HUB_OFFLINE is set, and offline {source} can only be read from the cache at a "
                f"full commit, not {revision or 'main'!r}",
                hint="Unset HF_HUB_OFFLINE, or copy  revision: <40 hex digits>  from an earlier run's recipe.yaml.",
            )
        return _from_cache(source, str(revision), config, "HF_HUB_OFFLINE is set")
    try:
        info = Client().info(source, revision)
    except NetworkError as error:
        if not pinned:
            raise
        return _from_cache(source, str(revision), config, error.message)
    # Its full id: a bare name such as parquet would mean a file format to datasets.
    builder = _builder(source, info.id, config=config, revision=info.sha)
    if builder.hash != info.sha:
        # When a download fails, datasets falls back to whatever commit it prepared last, with a warning only.
        raise NetworkError(
            f"{source} could not be read at commit {info.sha}: the download failed, and the cache holds "
            f"{str(builder.hash)[:12]} instead",
            hint="Check the network and run the command again.",
        )
    facts = SourceFacts(
        source,
        "hub",
        revision=info.sha,
        config=builder.config.name,
        license=_license(getattr(info.card_data, "license", None)),
        gated=bool(info.gated),
        private=bool(info.private),
    )
    tables = _prepared(source, builder)
    files = {name: [file["filename"] for file in table.cache_files] for name, table in tables.items()}
    with suppress(RunError):  # it only serves those who are offline later
        write_json_atomic(_record(source, info.sha, builder.config.name), {"facts": asdict(facts), "files": files})
    return _reader(facts, tables)


def _record(source: str, commit: str | None, config: str) -> Path:
    """Name the file that says where `datasets` keeps what it prepared of a commit."""
    return cache_folder("hub") / quote(source, safe="") / str(commit) / f"{quote(config, safe='')}.json"


def _from_cache(source: str, commit: str, config: str | None, why: str) -> Reader:
    from datasets import Dataset, concatenate_datasets

    found = {unquote(path.stem): path for path in sorted(_record(source, commit, "").parent.glob("*.json"))}
    if config is None and len(found) > 1:
        raise _wrong_config(source, None, list(found))
    chosen = config or next(iter(found), "")
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(found[chosen].read_text(encoding="utf-8"))
        files = record["files"].items()
        tables = {name: concatenate_datasets([Dataset.from_file(file) for file in some]) for name, some in files}
        return _reader(SourceFacts(**record["facts"] | {"left_out": ()}), tables)
    raise NetworkError(
        f"{source} at commit {commit}{f' ({config})' if config else ''} is not in the cache, and {why}",
        hint="Run the command once with a network; the caches are kept in HF_HOME and HMDC_HUB_CACHE.",
    )


# Files on this machine


def local_path(source: str) -> Path | None:
    """Give an id as the absolute path of what is there; None if it can only be a dataset of the Hub.

    What exists here wins over a dataset of the same name there; what is written like a path has to. `~` is the home
    folder.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path.absolute()
    if source.startswith(("/", ".", "~")) or "\\" in source or source.count("/") > 1 or path.suffix == ".parquet":
        raise SourceError(
            f"source.id: {source!r} was taken for a folder or file, since a Hub id is <name> or <owner>/<name>, and "
            "nothing is there",
            hint="Paths are relative to the folder the command runs in; check the spelling, or name a Hub dataset such "
            "as  id: uoft-cs/cifar10",
        )
    return None


def open_local(source: str, path: Path, config: str | None) -> Reader:
    """Open a folder, or one file: parquet, or the tar of a webdataset.

    A folder is one of images in class folders or beside metadata files, or laid out for `datasets` (parquet files, a
    README with configurations), or written by its `save_to_disk`.
    """
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if path.is_dir() and not saved:
        return _open_folder(source, path, config)
    format_ = {".parquet": "parquet", ".tar": "webdataset"}.get(path.suffix)
    if not saved and format_ is None:
        raise SourceError(
            f"source.id: {source!r} is a file, and of files only .parquet and .tar (webdataset) can be read",
            hint="Give the folder it is in, or convert it with  datasets.load_dataset(...).to_parquet(...)",
        )
    _refuse_config(source, config)
    facts = SourceFacts(source, "local")
    if not saved:
        builder = _builder(source, str(format_), data_files={"train": glob.escape(str(path))})
        return _reader(facts, _prepared(source, builder))
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # Arrow's and datasets' readers share no base class
        raise SourceError(
            f"source.id: {source!r} looks like a folder of save_to_disk and cannot be read: {error}",
            hint="Write it again with save_to_disk, or as parquet with to_parquet.",
        ) from error
    return _reader(facts, loaded if isinstance(loaded, DatasetDict) else {str(loaded.split or "train"): loaded})


def _open_folder(source: str, path: Path, config: str | None) -> Reader:
    found, readme = list_folder(path), path / "README.md"
    card = split_card(read_card_text(readme))[0] if readme.is_file() else {}
    facts = SourceFacts(source, "local", config="default", license=_license(card.get("license")))
    if not card.get("configs") and _is_of_images(source, found):
        if config != "default":
            _refuse_config(source, config)
        return open_images(source, path, found, facts)
    path = path.resolve()  # as `datasets` does
    if (escaped := glob.escape(str(path))) == str(path):
        builder = _builder(source, str(path), config=config)
    else:  # to `datasets` a path is a pattern; an escaped one it takes where the one format of the tables is said
        formats = {TABLES[Path(names[-1]).suffix.lower()] for names in found.tables}
        if len(formats) != 1 or found.images or {"configs", "dataset_info"} & card.keys():
            raise SourceError(
                f"source.id: *, ? and [ in {str(path)!r} are patterns to the library that reads this folder",
                hint="Rename the folder, or give a single file of it as the source.",
            )
        if config != "default":
            _refuse_config(source, config)
        builder = _builder(source, formats.pop(), data_dir=escaped)
    facts = replace(facts, config=builder.config.name)
    if not card.get("configs"):
        used = {str(file) for files in builder.config.data_files.values() for file in files}
        there = (*found.tables, *found.images)
        unused = {"in no split": [names for names in there if str(path.joinpath(*names)) not in used]}
        facts = replace(facts, left_out=counted(unused))
    return _reader(facts, _prepared(source, builder))


def _is_of_images(source: str, found: Listing) -> bool:
    """Tell a folder of image files from one of tables, which `datasets` reads; SourceError if it may be either."""
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


def _refuse_config(source: str, config: str | None) -> None:
    if config is not None:
        raise SourceError(
            f"source.config: {source!r} has no configurations, so {config!r} is none of it", hint="Leave config out."
        )


# The library


def _reader(facts: SourceFacts, tables: Mapping[str, Any]) -> Reader:
    return Reader(facts, {name: table_split(table) for name, table in tables.items()})


def _builder(source: str, path: str, *, config: str | None = None, **keys: Any) -> Any:
    import datasets

    with _explained(source, config):
        return datasets.load_dataset_builder(path, name=config, **keys)


def _prepared(source: str, builder: Any) -> Mapping[str, Any]:
    """Download and prepare all splits: split name to `datasets.Dataset`, memory-mapped from the library's cache."""
    with _explained(source):
        builder.download_and_prepare()
        return dict(builder.as_dataset())


@contextmanager
def _explained(source: str, config: str | None = None) -> Iterator[None]:
    """Turn what `datasets` raises into an error of ours."""
    from datasets.exceptions import DatasetNotFoundError, SplitsVerificationError
    from huggingface_hub import errors as hub

    try:
        yield
    except HmdcError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__):
            chain.append(cause)  # what was raised, back to the first cause
        text = str(chain[-1]) or str(error)
        if isinstance(error, ValueError) and ("Config name is missing" in str(error) or "BuilderConfig" in str(error)):
            # datasets lists the configurations in its message: asking for them again would take six requests more.
            bracket = re.search(r"\[(.*?)\]", str(error), re.DOTALL)
            if names := re.findall(r"'([^']+)'", bracket[1]) if bracket else []:
                raise _wrong_config(source, config, names) from error
            raise SourceError(f"source.config: {error}", hint="Choose one, for example  config: default") from error
        for one in chain:
            # A file that the Hub does not have is no failure: datasets asks for optional ones and goes on.
            missing = isinstance(one, hub.EntryNotFoundError) and not isinstance(one, hub.LocalEntryNotFoundError)
            failures = (hub.HTTPError, ConnectionError, TimeoutError, hub.LocalEntryNotFoundError)  # type: ignore[attr-defined]
            if isinstance(one, failures) and not missing:
                raise translated(one, f"downloading {source}", source) from error
        message, hint = f"cannot be read: {text}", "Check its files with  datasets.load_dataset"
        if "Dataset scripts are no longer supported" in text:
            message = "is a program (a dataset script), and no code of a dataset is ever run"
            hint = "Many such datasets have a converted copy:  revision: refs/convert/parquet"
        elif isinstance(error, SplitsVerificationError):
            message = f"has other sizes in its README than its files: {text}"
            hint = "Correct dataset_info in the README, or remove it."
        elif "BatchSize must be greater than 0" in text:
            message, hint = "has a parquet file without rows", "Remove the empty file, or fill it."
        elif isinstance(error, DatasetNotFoundError):
            message, hint = f"cannot be had: {text}", "Accept its terms on its page, then log in with  hf auth login"
        elif isinstance(error, FileNotFoundError):
            message = f"holds no files that can be read: {text}"
            hint = "It needs train/<class>/<image> folders, parquet files, or a README that says where they are."
        raise SourceError(f"source.id: {source} {message}", hint=hint) from error


def _wrong_config(source: str, config: str | None, names: list[str]) -> SourceError:
    what = "several configurations and no default:" if config is None else f"no configuration {config!r}; it has"
    return SourceError(
        f"source.config: {source} has {what} {', '.join(names)}", hint=f"Write for example  config: {names[0]}"
    )


def _license(value: object) -> str | None:
    """Turn the licence of a card, one id or a list of them, into text."""
    return ", ".join(map(str, value)) or None if isinstance(value, list) else str(value) if value else None
