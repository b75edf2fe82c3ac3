"""Temporary folders of ours: gone with their owner or cleared by the next; nothing else is touched."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmdc_hub.temporary import TemporaryFolder, claim, remove_abandoned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks, nothing to clear")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, with a name that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_folder_is_ours_alone_and_gone_at_the_end(place: Path) -> None:
    with TemporaryFolder() as folder:
        (folder / "a" / "b").mkdir(parents=True)
        assert folder.parent == place and stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.name.startswith(f"hmdc-hub-{os.getpid()}-")
    assert list(place.iterdir()) == []
    made = TemporaryFolder()
    made.cleanup()
    made.cleanup()
    assert list(place.iterdir()) == []
    made = TemporaryFolder()
    del made
    assert list(place.iterdir()) == []


def test_it_is_gone_when_the_process_ends_and_cleared_when_it_was_killed(place: Path) -> None:
    work = "from hmdc_hub.temporary import TemporaryFolder; f = TemporaryFolder(); (f.path / 'x').touch()"
    environment = os.environ | {"TMPDIR": str(place)}
    subprocess.run([sys.executable, "-c", work], env=environment, check=True)
    assert list(place.iterdir()) == []
    subprocess.run([sys.executable, "-c", f"{work}; import os; os.kill(os.getpid(), 9)"], env=environment, check=False)
    (left,) = place.iterdir()
    assert (left / "x").is_file()
    with TemporaryFolder() as folder:
        assert list(place.iterdir()) == [folder]


FORKED = """
import os, sys
from hmdc_hub.temporary import TemporaryFolder
folder = TemporaryFolder()
if (child := os.fork()) == 0:
    sys.exit()  # with all that a process does at its end
os.waitpid(child, 0)
print(folder.path.is_dir())
"""
WORKER = """
import multiprocessing
from hmdc_hub.processes import starting_workers
from hmdc_hub.temporary import TemporaryFolder
folder = TemporaryFolder()
with starting_workers():
    child = multiprocessing.get_context("{start}").Process(target=TemporaryFolder)
    child.start()
child.join()
print(folder.path.is_dir())
"""


@pytest.mark.parametrize(
    "program", [FORKED, *(WORKER.format(start=start) for start in ("fork", "spawn", "forkserver"))],
    ids=["os.fork", "fork", "spawn", "forkserver"],
)  # fmt: skip
def test_a_process_that_is_started_removes_its_own_and_no_other(short: Path, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(short)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert list(short.iterdir()) == []


@pytest.mark.parametrize("end", ["", "import os; os.kill(os.getpid(), 9)"], ids=["ends", "is killed"])
def test_the_folder_of_sockets_goes_with_the_process_or_with_the_next(short: Path, end: str) -> None:
    work = f"from hmdc_hub.processes import worker_context; worker_context(); {end}"
    done = subprocess.run(
        [sys.executable, "-c", work], env=os.environ | {"TMPDIR": str(short)}, capture_output=True, text=True
    )
    assert done.stderr == "" and len(list(short.iterdir())) == bool(end)
    other = short / "pymp-of-another-program"
    other.mkdir(mode=0o700)
    (mine := short / "pymp-mine").mkdir(mode=0o700)
    claim(mine)
    remove_abandoned()
    assert set(short.iterdir()) == {other, mine}


def test_one_that_is_in_use_stays(place: Path) -> None:
    with TemporaryFolder() as one, TemporaryFolder() as two:
        remove_abandoned()
        assert set(place.iterdir()) == {one, two}


def abandoned(place: Path, name: str = "") -> Path:
    """Make a folder as a killed process of ours leaves it."""
    with TemporaryFolder() as folder:
        left = place / (name or folder.name)
    left.mkdir(mode=0o700)
    (left / "data").touch()
    return left


def test_what_is_not_surely_ours_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers = [
        abandoned(place, name) for name in ("pymp-abcdefgh", "hmdc-hub-abcdefgh", "hmdc-hub-1-abcdefgh-012345")
    ]
    open_to_all = abandoned(place)
    open_to_all.chmod(0o755)
    elsewhere = abandoned(place, "elsewhere")
    ours = abandoned(place)  # last: making one clears the others
    link, file = (place / ours.name.replace("hub-", f"hub-{n}") for n in (1, 2))
    link.symlink_to(elsewhere)
    file.touch()
    kept = {*strangers, open_to_all, elsewhere, link, file}
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_abandoned()
    assert set(place.iterdir()) == {*kept, ours}, "another user's"
    remove_abandoned()
    assert set(place.iterdir()) == kept
    assert all((path / "data").is_file() for path in kept - {file})


def test_a_file_system_without_locks_keeps_everything(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError("no locks")

    left = abandoned(place)
    monkeypatch.setattr("fcntl.flock", refuse)
    with TemporaryFolder() as folder:
        assert set(place.iterdir()) == {left, folder}
    assert list(place.iterdir()) == [left]


def test_one_that_another_process_clears_before_it_is_locked_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = tempfile.mkdtemp, list[str]()

    def mkdtemp(prefix: str, suffix: str) -> str:
        made.append(real(prefix=prefix, suffix=suffix))
        if len(made) == 1:
            remove_abandoned()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with TemporaryFolder() as folder:
        assert len(made) == 2 and str(folder) == made[1] and folder.is_dir()
        remove_abandoned()
        assert folder.is_dir(), "locked"
