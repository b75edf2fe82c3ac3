"""What docs/your-data-and-model.md says about models, tried as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from hmdc_hub.store.files import read_info
from hmdc_hub.store.rundir import RunDir
from tests.cli.conftest import Call, Done

PAGE = Path(__file__).parents[2] / "docs" / "your-data-and-model.md"
SHORT = [
    "-o", "condense.resets=1", "-o", "condense.networks.reset_every=1", "-o", "condense.networks.batches_per_step=1",
    "-o", "condense.batch=4", "-o", "evaluate.seeds=2", "-o", "evaluate.random_draws=1", "-o", "evaluate.epochs=1",
    "-o", "evaluate.models=[mlp]", "--workers", "1",
]  # fmt: skip
"""What makes the page's run short; everything else is as it stands there."""


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition("\n## Your model\n")[2]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.slow
def test_the_page(call: Call, folder: Path) -> None:
    for text in blocks("yaml"):
        Path(f"{yaml.safe_load(text)['name']}.yaml").write_text(text)
    for text in blocks("python"):
        exec(compile(text, str(PAGE), "exec"), {})
    done: list[Done] = []
    for program, *arguments in commands():
        assert program == "hmdc-hub"
        short = SHORT if arguments[0] == "condense" else []
        done.append(call(*arguments, *short))
        assert done[-1].status == 0, done[-1].err
    assert len(done) == 5
    shown = blocks("")[0].splitlines()
    printed = done[0].out.splitlines()
    assert [line.split() for line in shown[2:]] == [line.split() for line in printed[2:]], "the taps are as shown"
    assert shown[1].split()[:4] == printed[1].split()[:4]
    assert [model.name for model in read_info(RunDir(Path("runs/mine")).info).models] == ["convnet3_narrow", "my_model"]
