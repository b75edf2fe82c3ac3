"""docs/python.md is one script: it runs as it stands, and prints what stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.hub import LocalHub

PAGE = Path(__file__).parents[2] / "docs/python.md"
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
