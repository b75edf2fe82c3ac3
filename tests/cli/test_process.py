"""A real process, really interrupted: what no call inside this process can show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmdc_hub.temporary import remove_abandoned
from tests.cli import tiny


@pytest.mark.slow
def test_ctrl_c_reaches_the_whole_group_and_the_run_goes_on(folder: Path) -> None:
    text = tiny.TEXT.replace("epochs: 2", "epochs: 100000")
    (folder / "tiny.yaml").write_text(text)
    command = [sys.executable, "-m", "hmdc_hub", "condense", "tiny.yaml", "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        # Workers hold the pipe too: that stderr ends shows that none of them outlives the run.
        for line in process.stderr:
            if line.startswith("evaluate:"):
                os.killpg(process.pid, signal.SIGINT)
                break
        said = process.stderr.read()
        assert process.wait() == 130 and process.stdout.read() == ""
    assert "stopping at the next safe place" in said and "stopped after 0 of 7 trainings" in said
    assert said.endswith("go on with: hmdc-hub condense tiny.yaml --workers 2 --resume\n") and "Traceback" not in said


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files whose name is short enough for sockets in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of forks")
@pytest.mark.parametrize("whom", ["the process", "its group"])
def test_what_a_killed_run_leaves_is_cleared_by_the_next(folder: Path, temporary: Path, whom: str) -> None:
    (folder / "tiny.yaml").write_text(tiny.TEXT.replace("seeds: 2", "seeds: 1000"))
    command = [sys.executable, "-m", "hmdc_hub", "condense", "tiny.yaml", "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("evaluate 1/"):
                break
        remove_abandoned()
        assert len(list(temporary.glob("hmdc-hub-*/data.safetensors"))) == 1, "in use"
        (os.kill if whom == "the process" else os.killpg)(process.pid, signal.SIGKILL)
        process.stderr.read()  # until the last worker has gone
    assert len(list(temporary.glob("pymp-*/listener-*"))) == 1
    remove_abandoned()
    assert not list(temporary.glob("pymp-*")) and not list(temporary.glob("*hmdc*"))
