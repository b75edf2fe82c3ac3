"""The rules of docs/architecture.md, kept over the import graph of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hmdc_hub

PACKAGE = Path(hmdc_hub.__file__).parent

LEVELS = [
    {"errors", "events", "schema"},
    {"yaml12", "catalog", "rng"},
    {"pack", "measures", "comparison", "execution", "processes", "provenance", "temporary"},
    {"sources", "models", "augment", "cluster", "store"},
    {"condense", "evaluate"},
    {"report"},
    {"publish"},
    {"cli"},
]
LEVEL = {name: place for place, names in enumerate(LEVELS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Return the dotted names of everything a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    here = part_of(path)
    if here in {"__init__", "__main__"}:
        return
    assert here in LEVEL, f"{here} has no level; give it one in {Path(__file__).name} and in docs/architecture.md"
    for name in imports(path):
        other = part(name)
        if name.startswith("hmdc_hub.") and other in LEVEL and other != here:
            assert LEVEL[other] < LEVEL[here] or LEVEL[other] == LEVEL[here] <= 3, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_condense_evaluate_and_publish_meet_in_files(path: Path) -> None:
    apart = {"condense", "evaluate", "publish"}
    here = part_of(path)
    if here in apart:
        assert not {part(name) for name in imports(path) if name.startswith("hmdc_hub.")} & (apart - {here})


# `scan` asks for the token in force and `env` for settings: neither reaches the network.
MEETS_THE_HUB = (
    "sources/",
    "models/",
    "store/",
    "publish/hub.py",
    "publish/hub_errors.py",
    "publish/scan.py",
    "cli/env.py",
)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_some_modules_meet_the_hub(path: Path) -> None:
    if any(name.split(".")[0] in {"huggingface_hub", "requests", "httpx", "urllib"} for name in imports(path)):
        assert path.relative_to(PACKAGE).as_posix().startswith(MEETS_THE_HUB), path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_cli_prints_exits_and_reads_arguments(path: Path) -> None:
    here = part_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit", "input", "breakpoint"} or here == "cli"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            assert node.attr not in {"exit", "argv"} or here == "cli"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_rng_seeds(path: Path) -> None:
    if part_of(path) == "rng":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"manual_seed", "manual_seed_all", "fork_rng", "default_rng"}, (
                f"{path}:{node.lineno}"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_unpickles(path: Path) -> None:
    names = imports(path)
    assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("yaml", "load")}
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code", f"{path}: remote code has no place here"


HEAVY = ("torch", "torchvision", "transformers", "datasets", "matplotlib", "sklearn", "scipy")


@pytest.mark.parametrize(
    "module",
    ["hmdc_hub", "hmdc_hub.errors", "hmdc_hub.events", "hmdc_hub.schema", "hmdc_hub.catalog", "hmdc_hub.report.tables",
     "hmdc_hub.publish.card", "hmdc_hub.cli.main"],
)  # fmt: skip
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 600}
    assert not long, f"over 600 lines: {long}"
