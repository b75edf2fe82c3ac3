"""docs/python.md is one script: it runs as it stands, and prints what stands there; the README's six lines run, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.hub import LocalHub

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/python.md"
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_page_runs_and_prints_what_it_says(
    account: LocalHub, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    assert len(BLOCKS) > 8
    for code, printed in BLOCKS:
        capsys.readouterr()
        exec(compile(code, PAGE.name, "exec"), names)
        out = capsys.readouterr().out
        assert not printed or out == printed, code
    assert account.exists("ann/digits-hmdc")


@pytest.mark.slow
def test_the_six_lines_of_the_readme_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len([line for line in lines.splitlines() if line]) == 6 and '"digits_ipc1"' in lines
    # The first block of docs/python.md makes the same recipe so small that it takes seconds.
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[0][0], PAGE.name, "exec"), names)
    exec(compile(lines.replace('"digits_ipc1"', "recipe"), "README.md", "exec"), names)
    assert names["images"].shape == (40, 1, 16, 16) and len(names["labels"]) == 40
    assert "initialisation" in capsys.readouterr().out
