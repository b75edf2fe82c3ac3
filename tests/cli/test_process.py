"""A real process, really interrupted: what no call inside this process can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli import tiny


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
    assert "stopping at the next safe place" in said and "stopped after 0 of 6 trainings" in said
    assert said.endswith("go on with: hmdc-hub condense tiny.yaml --workers 2 --resume\n") and "Traceback" not in said
