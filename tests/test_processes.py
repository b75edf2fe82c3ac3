"""Worker processes of scripts that keep nothing behind `if __name__ == "__main__":`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmdc_hub.processes import starting_workers

SCRIPT = """
from multiprocessing import get_context
from hmdc_hub.processes import starting_workers, worker_context

print("the script runs")
with starting_workers():
    child = {context}.Process(target=print, args=("so does the worker",))
    child.start()
child.join()
print(__file__, __spec__)
"""


@pytest.mark.parametrize("context", ["worker_context()", "get_context('spawn')"])
@pytest.mark.parametrize("options", [["script.py"], ["-m", "script"]], ids=["file", "module"])
def test_a_worker_does_not_run_the_script_again(tmp_path: Path, context: str, options: list[str]) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(context=context))
    command = [sys.executable, "-u", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[:2]) == (0, "", ["the script runs", "so does the worker"])
    assert "script.py" in lines[2] and len(lines) == 3, "the module is as it was"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of forks")
def test_where_no_socket_fits_workers_start_by_themselves(tmp_path: Path) -> None:
    (folder := tmp_path / ("long" * 25)).mkdir()
    (tmp_path / "script.py").write_text(SCRIPT.format(context="worker_context()"))
    done = subprocess.run(
        [sys.executable, "-u", "script.py"], cwd=tmp_path, env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and "so does the worker" in done.stdout
    assert list(folder.iterdir()) == []


def test_what_names_the_script_is_back_after_an_error() -> None:
    main = vars(sys.modules["__main__"])
    before = dict(main)
    with pytest.raises(OSError), starting_workers():
        assert "__file__" not in main and main["__spec__"] is None
        raise OSError
    assert main == before
