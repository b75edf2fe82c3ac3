"""Atomic writes, hashes and the JSON files of a run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, RunError
from hmdc_hub.schema import FORMAT_VERSION, ArtifactInfo, Scores, is_intact, sealed, unsealed
from hmdc_hub.schema.base import CHECKSUM

UPGRADE = "Run `pip install -U hmdc-hub`, then try again."
TEMPORARY = ".hmdc-tmp"
"""Suffix of files that are being written; one left behind by a killed process is worth nothing."""

MAX_RECORD, MAX_KEYS, MAX_ENTRIES = 16 * 1024 * 1024, 200_000, 500_000
"""Most bytes, keys, and entries of lists and objects, of a JSON file of ours. Scores of a thousand classes have two
million bytes and 80,000 numbers, and cells by the thousand have seven keys each."""

_Record = TypeVar("_Record", bound=BaseModel)


def cache_folder(name: str) -> Path:
    """Name a folder, which may not exist, for what can be had again: in `$HMDC_HUB_CACHE` or `~/.cache/hmdc-hub`."""
    return Path(os.environ.get("HMDC_HUB_CACHE") or "~/.cache/hmdc-hub").expanduser() / name


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder to write to, and put it in the place of `path` when the block ends.

    Other processes see the old file or the whole new one, never a part. If the block raises, the temporary file goes
    away and `path` is untouched.

    Args:
        path: The file to write; its folder is made if missing.

    Raises:
        RunError: The disk is full, the folder cannot be written, or another failure of the file system.
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
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError) -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"No space is left to write {path}; what was there before is unchanged.",
            hint="Free some space, then run the same command again.",
        )
    return RunError(f"Cannot write {path}: {error.strerror or error}; what was there before is unchanged.")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file in one step; see `atomic`."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text with the line ends it has, in one step; see `atomic`."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Write readable JSON (two spaces, keys in their own order, final newline) in one step; see `atomic`.

    Args:
        path: The file to write.
        value: Plain data, or a pydantic model such as `ArtifactInfo` or `Scores`, which gets a checksum that
            `read_record` compares. NaN and infinity are refused.
    """
    write_text_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Serialise as `write_json_atomic` writes it."""
    plain = sealed(value.model_dump(mode="json")) if isinstance(value, BaseModel) else value
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hash a file's bytes; hex digits.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_info(path: Path) -> ArtifactInfo:
    """Read an info.json; errors as `read_record`."""
    return read_record(path, ArtifactInfo)


def read_scores(path: Path) -> Scores:
    """Read a scores.json; errors as `read_record`."""
    return read_record(path, Scores)


def read_record(path: Path, kind: type[_Record]) -> _Record:
    """Read a JSON file of ours into its pydantic model.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is damaged or cannot be read.
        NewerFormatError: It is of a newer format version than this program reads.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_RECORD + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_record(text, kind, str(path))


def parse_record(text: str | bytes, kind: type[_Record], where: str) -> _Record:
    """Parse JSON of ours into its pydantic model, the version first: a newer file may have keys unknown here.

    A checksum is compared; an older program's file has none.

    Args:
        text: The JSON.
        kind: The model.
        where: What the text is, for messages.

    Raises:
        FormatError: It is damaged.
        NewerFormatError: It is of a newer format version than this program reads.
    """
    data = text.encode() if isinstance(text, str) else text
    if len(data) > MAX_RECORD or data.count(b":") > MAX_KEYS or data.count(b",") > MAX_ENTRIES:
        raise FormatError(
            f"{where} is damaged: it is larger than any of ours, which have at most {MAX_RECORD:,} bytes, {MAX_KEYS:,} "
            f"keys and {MAX_ENTRIES:,} entries."
        )
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where} is damaged: not JSON ({error}).") from error
    except RecursionError as error:
        raise FormatError(f"{where} is damaged: nested too deeply.") from error
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{where} has format version {version}; this hmdc-hub reads versions up to {FORMAT_VERSION}.", hint=UPGRADE
        )
    # Here and not by pydantic, which keeps a copy of the whole file for each key that is missing.
    for name, field in kind.model_fields.items():
        if isinstance(plain, dict) and field.is_required() and name not in plain:
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
