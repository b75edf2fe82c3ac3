"""Atomic writes of files and folders, hashes, and the small files of a run: JSON, and confusion.safetensors."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, RunError, RunExistsError
from hmdc_hub.schema import (
    CHECKSUM,
    FORMAT_VERSION,
    FORMER_BASELINES,
    ArtifactInfo,
    Scores,
    is_intact,
    sealed,
    unsealed,
)
from hmdc_hub.temporary import lock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.integer[Any]]

TEMPORARY = ".hmdc-tmp"  # suffix of what is being written; of a killed process, it is worth nothing
# Most bytes, keys, and entries of lists and objects, of a JSON file of ours. Scores of a thousand classes have two
# million bytes and 80,000 numbers, and cells by the thousand have seven keys each.
MAX_RECORD, MAX_KEYS, MAX_ENTRIES = 16 * 1024 * 1024, 200_000, 500_000

_Record = TypeVar("_Record", bound=BaseModel)


def cache_folder(name: str) -> Path:
    """Name a folder, which may not exist, for what can be had again: in `$HMDC_HUB_CACHE` or `~/.cache/hmdc-hub`."""
    return Path(os.environ.get("HMDC_HUB_CACHE") or "~/.cache/hmdc-hub").expanduser() / name


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder to write to, and put it in the place of `path` when the block ends.

    Other processes see the old file or the whole new one, never a part. If the block raises, the temporary file goes
    away and `path` is untouched; a failure of the file system is a RunError. Its folder is made if missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # some file systems cannot flush a folder; the file itself is safe
            _flush(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"No space is left to write {path}; what was there before is unchanged.",
                hint="Free some space, then run the same command again.",
            ) from error
        text = f"Cannot write {path}: {error.strerror or error}; what was there before is unchanged."
        raise RunError(text) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file in one step; see `atomic`."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text with the line ends it has, in one step; see `atomic`."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `json_text` in one step; see `atomic`."""
    write_text_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Serialise as readable JSON: two spaces, keys in their own order, final newline; no NaN or infinity.

    A pydantic model such as `ArtifactInfo` or `Scores` gets a checksum that `read_record` compares.
    """
    plain = sealed(value.model_dump(mode="json")) if isinstance(value, BaseModel) else value
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hash a file's bytes; hex digits. Errors are those of `opened`."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file to read: a NotFoundError if there is none, a FormatError if it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_info(path: Path) -> ArtifactInfo:
    """Read an info.json, as `read_record`."""
    return read_record(path, ArtifactInfo)


def read_scores(path: Path) -> Scores:
    """Read a scores.json, as `read_record`."""
    return read_record(path, Scores)


def read_record(path: Path, kind: type[_Record], where: str = "") -> _Record:
    """Read a JSON file of ours, which messages call `where`, into its pydantic model; errors of `opened` and below."""
    with opened(path) as file:
        return parse_record(file.read(MAX_RECORD + 1), kind, where or str(path))


def refuse_newer(plain: Any, where: str) -> None:
    """Refuse data of a newer format version than this program reads, with a NewerFormatError."""
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{where} has format version {version}; this hmdc-hub reads versions up to {FORMAT_VERSION}.",
            hint="In your clone of hmdc-hub run `git pull && pip install -U .`, then try again.",
        )


def parse_record(text: str | bytes, kind: type[_Record], where: str) -> _Record:
    """Parse JSON of ours, which messages call `where`, into its model; a FormatError if it is damaged.

    The version comes first (NewerFormatError): a newer file may have keys unknown here. A checksum is compared; an
    older program's file has none.
    """
    data = text.encode() if isinstance(text, str) else text
    if len(data) > MAX_RECORD or data.count(b":") > MAX_KEYS or data.count(b",") > MAX_ENTRIES:
        raise FormatError(
            f"{where} is damaged: it is larger than any of ours, which have at most {MAX_RECORD:,} bytes, {MAX_KEYS:,} "
            f"keys and {MAX_ENTRIES:,} entries."
        )
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON ({error})"
        raise FormatError(f"{where} is damaged: {what}.") from error
    refuse_newer(plain, where)
    # Here and not by pydantic, which keeps a copy of the whole file for each key that is missing.
    former = getattr(kind, "renamed", {})
    present = {former.get(key, key) for key in plain} if isinstance(plain, dict) else set()
    for name, field in kind.model_fields.items():
        if isinstance(plain, dict) and field.is_required() and name not in present:
            raise FormatError(f"{where} is damaged: {name}: Field required.")
    checked = isinstance(plain, dict) and CHECKSUM in plain
    try:
        intact = not checked or is_intact(plain)
        body = json.dumps(unsealed(plain)) if checked else data
        del plain
        record = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{where} is damaged: {key}: {first['msg']}.") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is damaged: not JSON ({error}).") from error
    if not intact:
        raise FormatError(f"{where} was changed or damaged since it was written: its checksum is another.")
    return record


def write_confusion(path: Path, matrices: Mapping[tuple[str, str], Matrix]) -> None:
    """Write confusion matrices, C x C whole numbers by training set and model: row true, column predicted class."""
    from safetensors.numpy import save

    tensors = {f"{name}/{model}": matrix.astype("int64") for (name, model), matrix in matrices.items()}
    write_bytes_atomic(path, save(tensors))


def read_confusion(path: Path) -> dict[tuple[str, str], Matrix]:
    """Read confusion matrices: int64 C x C by training set and model; a FormatError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        tensors = load_file(path)
        keys = {key: key.partition("/") for key in tensors}
        return {(FORMER_BASELINES.get(name, name), model): tensors[key] for key, (name, _, model) in keys.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}.", hint="`hmdc-hub evaluate` writes it again.") from error


@contextmanager
def workplace(place: Path) -> Iterator[Path]:
    """Give an empty folder beside `place`, on the same disk, in which to build what will be moved there.

    It is locked, and the kernel frees the lock however the process ends: what is in it without a lock belongs to a
    process that was killed. `put` moves an earlier `place` aside into it; a kill in that moment is mended here. The
    parent of `place` is made if missing. A RunExistsError if another process is building it, an OSError of the disk.
    """
    folder = place.absolute().with_name(f".{place.name}{TEMPORARY}")
    descriptor = _locked(folder, place)
    try:
        if (folder / "old").exists() and not place.exists():
            (folder / "old").rename(place)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield folder
    finally:
        # With the lock still held: whoever has opened the folder meanwhile finds that it is gone. What cannot be
        # removed is the next one's to clear.
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def put(new: Path, place: Path) -> None:
    """Move a folder that was built in the workplace of `place` there; if the disk fails, what was there is there."""
    old = new.with_name("old")
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise


def _locked(folder: Path, place: Path) -> int | None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if os.name == "nt":  # there, two processes that build one folder are not told apart
            return None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # whoever had it has just finished
        if not lock(descriptor):
            os.close(descriptor)
            raise RunExistsError(
                f"Another process is writing {place}.", hint="Wait until it ends, or write another folder."
            )
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)  # it was removed between the two lines, and another may be there
