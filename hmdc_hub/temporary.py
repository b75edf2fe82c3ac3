"""Folders for temporary files that do not outlive their owner, however it ends.

A process that ends by itself removes what it made; one that is killed cannot. Each of our folders is locked by its
owner, the kernel frees the lock with the process, and whoever makes the next folder removes those that nobody holds.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: there, what a killed process left stays
    fcntl = None  # type: ignore[assignment]

# Names this machine shortly: on a disk that several share, a lock may be seen by one alone.
MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


class TemporaryFolder:
    """A folder below TMPDIR, removed by `cleanup`, at the end of a `with` block, or else when the process ends.

    Its `path` is `hmdc-hub-<process id>-<random>-<machine>`, which only its owner may enter. Making one removes those
    of earlier processes that were killed; an OSError says that it cannot be made.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self.path, descriptor = _make()
        self._end = weakref.finalize(self, _remove, self.path, descriptor, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove it with everything in it; a second time does nothing."""
        self._end()


def lock(descriptor: int) -> bool:
    """Lock an open file or folder without waiting; the kernel frees the lock however this process ends.

    False if another process has locked it. True also where there are no locks, as on some network file systems:
    refusing to work there would be worse.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def claim(folder: Path) -> None:
    """Let later processes remove a `pymp-*` folder of multiprocessing in this one, should this be killed before."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # open, and with it the lock, to the very end
        if lock(descriptor):
            (folder / f"hmdc-hub-{MACHINE}").touch()
        else:  # in a worker, whose folder is its parent's
            os.close(descriptor)


def remove_abandoned() -> None:
    """Remove the folders of this user's processes on this machine that do not run any more.

    That nobody holds a folder's lock is the only proof: process ids come again, and other containers have others. A
    folder that is not surely ours, or cannot be locked at all, as on some network file systems, stays.
    """
    if fcntl is None:
        return
    ours = re.compile(rf"hmdc-hub-\d+-\w+-{MACHINE}")
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).iterdir():
            claimed = path.name.startswith("pymp-") and os.path.isfile(path / f"hmdc-hub-{MACHINE}")
            if not claimed and not ours.fullmatch(path.name):
                continue
            with suppress(OSError):  # a link, a file, another user's, or just removed
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    found = os.fstat(descriptor)
                    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == stat.S_IRWXU:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails: its owner lives, or no locks
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _make() -> tuple[Path, int | None]:
    """Make a folder and lock it; a process that removes it in between makes us try again."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"hmdc-hub-{os.getpid()}-", suffix=f"-{MACHINE}"))
        if fcntl is None:
            return path, None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        if lock(descriptor) and path.is_dir():
            return path, descriptor
        os.close(descriptor)


def _remove(path: Path, descriptor: int | None, owner: int) -> None:
    if os.getpid() == owner:  # a fork of that process that ends must remove nothing
        shutil.rmtree(path, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)
