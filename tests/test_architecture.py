"""The rules of docs/architecture.md, kept over the source; a test names everything that breaks its rule."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import hmdc_hub

PACKAGE = Path(hmdc_hub.__file__).parent
LEVELS = [
    {"errors", "events", "schema", "text"},
    {"catalog", "rng"},
    {"multi_formation", "newton_schulz", "metrics", "contact_sheet"}
    | {"execution", "processes", "provenance", "temporary"},
    {"sources", "models", "augment", "cluster", "store"},
    {"condenser", "evaluator"},
    {"report", "trackers"},
    {"publish"},
    {"pipeline"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
BESIDE = 3
"""Up to this level the parts of one level may use one another."""
APART = {"condenser", "evaluator", "publish"}
MEET_THE_HUB = ("sources/", "models/", "store/", "publish/", "cli/env.py")  # the last asks for settings alone
HUB_CLIENTS = {"huggingface_hub", "requests", "httpx", "urllib"}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LIGHT = ("hmdc_hub", "hmdc_hub.errors", "hmdc_hub.events", "hmdc_hub.schema", "hmdc_hub.catalog",
         "hmdc_hub.report.tables", "hmdc_hub.trackers", "hmdc_hub.publish.card", "hmdc_hub.cli.main")  # fmt: skip
HEAVY = ("torch", "torchvision", "transformers", "datasets", "matplotlib", "sklearn", "scipy", "pandas")
FILE_LINES, FUNCTION_LINES = 600, 60


@cache
def modules() -> dict[str, ast.Module]:
    """All of the package, by path below it."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def part_of(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def nodes() -> Iterator[tuple[str, str, ast.AST]]:
    """Every node, with the part of the package that it is in and where it stands."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            yield part_of(path), f"{path}:{getattr(node, 'lineno', 1)}", node


@cache
def imports() -> list[tuple[str, str, str]]:
    """The dotted name of everything imported, at the top of a file or inside functions, likewise."""
    found = []
    for here, where, node in nodes():
        if isinstance(node, ast.Import):
            found += [(here, where, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(here, where, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names]
    return found


def own_imports() -> Iterator[tuple[str, str, str]]:
    """Imports between parts of the package, the other part in place of the name."""
    for here, where, name in imports():
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "hmdc_hub" and other in LEVEL and other != here and here not in ("__init__", "__main__"):
            yield here, where, other


def refuse(wrong: list[str]) -> None:
    if wrong:
        pytest.fail("\n".join(sorted(set(wrong))), pytrace=False)


@pytest.mark.slow
def test_imports_go_downwards() -> None:
    parts = {part_of(path) for path in modules()} - {"__init__", "__main__"}
    wrong = [f"{name} has no level: give it one here and in docs/architecture.md" for name in parts - set(LEVEL)]
    wrong += [f"{where}: relative import {name}" for _, where, name in imports() if name.startswith(".")]
    for here, where, other in own_imports():
        if here in LEVEL and not (LEVEL[other] < LEVEL[here] or LEVEL[other] == LEVEL[here] <= BESIDE):
            wrong.append(f"{where}: {here} imports {other}, which is not below it")
    refuse(wrong)


@pytest.mark.slow
def test_condense_evaluate_and_publish_meet_in_files() -> None:
    refuse([f"{where}: {here} imports {other}" for here, where, other in own_imports() if {here, other} <= APART])


def test_only_some_parts_meet_the_hub() -> None:
    clients = [(where, name) for _, where, name in imports() if name.partition(".")[0] in HUB_CLIENTS]
    refuse([f"{where}: {name}" for where, name in clients if not where.startswith(MEET_THE_HUB)])


def test_only_cli_prints_and_exits_only_rng_seeds_nothing_unpickles() -> None:
    wrong = [f"{where}: import of {name}" for _, where, name in imports() if name.partition(".")[0] in UNPICKLERS]
    for here, where, node in nodes():
        match node:
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "input" | "breakpoint" as name)) if (
                here != "cli"
            ):
                wrong.append(f"{where}: {name}() outside cli")
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit" | "argv" as name) if here != "cli":
                wrong.append(f"{where}: sys.{name} outside cli")
            case ast.Attribute(attr="manual_seed" | "manual_seed_all" | "fork_rng" | "default_rng" as name) if (
                here != "rng"
            ):
                wrong.append(f"{where}: {name} outside rng")
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" as name):
                wrong.append(f"{where}: torch.{name} pickles")
            case ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load" as name):
                wrong.append(f"{where}: yaml.{name} makes objects")
            case ast.keyword(arg="trust_remote_code" | "allow_pickle" as name):
                wrong.append(f"{where}: {name} has no place here")
            case ast.keyword(arg="typ", value=ast.Constant(value="unsafe")):
                wrong.append(f"{where}: unsafe YAML")
    refuse(wrong)


def test_light_modules_stay_light() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module(name)\n"
        f"    print(*(f'{{name}} imports {{heavy}}' for heavy in {HEAVY} if heavy in sys.modules), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    refuse([line for line in (done.stdout + done.stderr).splitlines() if line])


def test_files_and_functions_stay_readable() -> None:
    wrong = []
    for path, tree in modules().items():
        if (lines := len((PACKAGE / path).read_text(encoding="utf-8").splitlines())) > FILE_LINES:
            wrong.append(f"{path}: {lines} lines, of {FILE_LINES} at most")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno}: {node.name} has {lines} lines, of {FUNCTION_LINES} at most")
    refuse(wrong)
