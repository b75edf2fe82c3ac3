"""A folder to build another one in: one process at a time, and nothing of a killed one is in the way of the next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmdc_hub.errors import RunExistsError
from hmdc_hub.store.files import TEMPORARY

try:
    import fcntl
except ImportError:  # Windows has no flock: there, two processes that build one folder are not told apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def workplace(place: Path) -> Iterator[Path]:
    """Give an empty folder beside `place`, on the same disk, in which to build what will be moved there.

    It is locked, and the kernel frees the lock however the process ends: what is in it without a lock belongs to a
    process that was killed. `put` moves an earlier `place` aside into it; a kill in that moment is mended here.

    Args:
        place: The folder to be made; its parent is made if missing.

    Raises:
        RunExistsError: Another process is building it.
        OSError: The file system failed.
    """
    folder = place.absolute().with_name(f".{place.name}{TEMPORARY}")
    descriptor = _locked(folder, place)
    try:
        if (folder / "old").exists() and not place.exists():
            (folder / "old").rename(place)
        _clear(folder)
        yield folder
    finally:
        # With the lock still held: whoever has opened the folder meanwhile finds that it is gone. What cannot be
        # removed is the next one's to clear.
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def put(new: Path, place: Path) -> None:
    """Move a folder that was built in the workplace of `place` there, and what is there before it out of the way.

    Raises:
        OSError: The file system failed; what was there is there.
    """
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
        if fcntl is None:
            return None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # whoever had it has just finished
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunExistsError(
                f"Another process is writing {place}.", hint="Wait until it ends, or write another folder."
            ) from error
        except OSError:
            return descriptor  # some network file systems have no locks; refusing to work there would be worse
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)  # it was removed between the two lines, and another may be there


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
