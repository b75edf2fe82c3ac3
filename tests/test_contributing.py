"""CONTRIBUTING.md: the commands, files and names that it tells a newcomer about are there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

import hmdc_hub
from hmdc_hub.cli.main import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEVELOPER = {re.split(r"[<>=\[]", one)[0] for one in PROJECT["optional-dependencies"]["dev"]} | {"pip", "hmdc-hub"}
BIN = ".venv/bin/"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]


def names() -> list[str]:
    """Every path in backticks or a link."""
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    paths = {name for name in quoted if ("/" in name and not name.startswith(BIN)) or name.endswith((".toml", ".cff"))}
    return sorted(paths | set(re.findall(r"\]\((.*?)\)", TEXT)))


@pytest.mark.parametrize("name", names())
def test_the_files_it_names_exist(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_it_names_exist(command: list[str]) -> None:
    program, *arguments = command
    if program == ".ci/run":
        assert (ROOT / program).stat().st_mode & 0o100
        return
    assert program == "python3" or program.startswith(BIN)
    name = program.removeprefix(BIN)
    assert name in DEVELOPER | {"python", "python3"}
    if name == "hmdc-hub":
        group = cli.get_command(click.Context(cli), arguments[0])
        assert isinstance(group, click.Group) and arguments[1] in group.list_commands(click.Context(group))
    if "-m" in arguments and name.startswith("python"):
        assert importlib.util.find_spec(arguments[arguments.index("-m") + 1]), arguments
    for path in arguments:
        assert not path.startswith("tests/") or (ROOT / path).exists()


def test_the_hooks_run_what_the_environment_has_and_fetch_nothing() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: (\S+)", text) == ["local"] and "://" not in text
    entries = re.findall(r"entry: (\S+)", text)
    assert [entry.removeprefix(BIN) for entry in entries] == ["ruff", "ruff", "mypy"] and {"ruff", "mypy"} <= DEVELOPER
    assert re.findall(r"language: (\S+)", text) == ["system"] * len(entries)


def test_the_version_is_one() -> None:
    cited = re.search(r"(?m)^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited and cited[1] == PROJECT["version"] == hmdc_hub.__version__


def test_the_names_in_the_code_that_it_tells_of_are_there() -> None:
    from hmdc_hub.evaluator.train import FORM
    from hmdc_hub.schema import BASELINES, FORMAT_VERSION
    from hmdc_hub.sources import open_reader

    assert FORM and BASELINES and FORMAT_VERSION and callable(open_reader)
