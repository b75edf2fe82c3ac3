"""What a verb imports before it answers, and what the process does with its streams: run as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "huggingface_hub", "matplotlib", "sklearn", "numpy")


def imported(*arguments: str) -> set[str]:
    code = (
        "import sys, json, hmdc_hub.cli.main as m\n"
        "status = m.run(sys.argv[1:])\n"
        "assert status == 0, status\n"
        "print('\\n' + json.dumps(sorted(name for name in sys.modules if '.' not in name or name.startswith('hmdc'))))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_help_imports_click_alone(arguments: list[str]) -> None:
    modules = imported(*arguments)
    assert "click" in modules
    assert not modules & {*LIBRARIES, "pydantic", "yaml"}
    assert {name for name in modules if name.startswith("hmdc_hub")} <= {
        "hmdc_hub", "hmdc_hub.cli", "hmdc_hub.cli.main", "hmdc_hub.errors", "hmdc_hub.text",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes", "ls"],
        ["recipes", "show", "digits_ipc1", "--resolved"],
        ["pool", "ls"],
        ["runs", "ls", "--root", "nowhere"],
        ["condense", "--help"],
        ["init", "--help"],
    ],
    ids=" ".join,
)
def test_light_verbs_never_import_torch(arguments: list[str]) -> None:
    assert not imported(*arguments) & set(LIBRARIES)


def test_a_recipe_with_a_mistake_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: -1\n")
    code = "import sys, hmdc_hub.cli.main as m\nm.run(sys.argv[1:])\nprint('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "recipes", "validate", str(tmp_path / "a.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and "seed = -1" in done.stderr


def test_the_module_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "hmdc_hub", "condnse"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: No such command 'condnse'. Did you mean 'condense'?\nsee: hmdc-hub --help\n"


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "hmdc_hub", "recipes", "show", "digits_ipc1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0
