"""Folders are built by one process at a time, and a killed one is in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hmdc_hub.errors import RunExistsError
from hmdc_hub.store.files import put, workplace

HOLD = """
import sys; from pathlib import Path; from hmdc_hub.store.files import workplace
with workplace(Path(sys.argv[1])) as folder:
    (folder / "new").mkdir(); (folder / "new" / "half").write_text("x")
    print(flush=True); sys.stdin.read()
"""


def child(place: Path) -> subprocess.Popen[str]:
    """Start a process that is building a folder, and stays there."""
    line = [sys.executable, "-c", HOLD, str(place)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_second_process_says_so_and_touches_nothing(tmp_path: Path) -> None:
    with child(tmp_path / "set") as process:
        for _ in range(2):
            with pytest.raises(RunExistsError, match=r"Another process is writing .*set"), workplace(tmp_path / "set"):
                pytest.fail("two at once")
        assert (tmp_path / ".set.hmdc-tmp" / "new" / "half").read_text() == "x"
        with workplace(tmp_path / "other"):
            pass
        process.communicate()
    assert process.returncode == 0 and not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    with child(tmp_path / "set") as process:
        process.kill()
    assert (tmp_path / ".set.hmdc-tmp" / "new" / "half").exists()
    with workplace(tmp_path / "set") as folder:
        assert not list(folder.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_kill_between_two_moves_loses_nothing(tmp_path: Path) -> None:
    place, left = tmp_path / "set", tmp_path / ".set.hmdc-tmp"
    (left / "old").mkdir(parents=True)
    (left / "old" / "mine").write_text("x")
    (left / "new").mkdir()
    with workplace(place) as folder:
        assert (place / "mine").read_text() == "x" and not list(folder.iterdir())


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    place = tmp_path / "set"
    for text in ("first", "second"):
        with workplace(place) as folder:
            (folder / "new").mkdir()
            (folder / "new" / "a").write_text(text)
            put(folder / "new", place)
        assert (place / "a").read_text() == text
    with pytest.raises(FileNotFoundError), workplace(place) as folder:
        put(folder / "new", place)
    assert (place / "a").read_text() == "second" and [path.name for path in tmp_path.iterdir()] == ["set"]
