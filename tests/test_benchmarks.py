"""Benchmarks that are run where there is no time to mend them: the one for a GPU, and those of an image step."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import RECIPE, tiny_source

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def run(*command: str) -> tuple[str, list[list[str]]]:
    """Run a program; what it prints, and the table in it."""
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    return done.stdout, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def test_what_they_import_is_there() -> None:
    for path in sorted(REPOSITORY.glob("benchmarks/*.py")):
        if path.name == "old_stepper.py":  # which imports another commit's package
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert not alias.name.startswith("hmdc_hub.") or importlib.util.find_spec(alias.name), path
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("hmdc_hub", "tests"):
                module = pkgutil.resolve_name(f"{node.module}:")
                names = {alias.name for alias in node.names if not hasattr(module, alias.name)}
                assert names <= {name for _, name, _ in pkgutil.iter_modules(getattr(module, "__path__", []))}, path


@pytest.mark.slow
def test_everything_for_a_gpu_runs_on_tiny_sizes(tmp_path: Path) -> None:
    _, (head, *rows) = run("benchmarks/gpu.sh", "", "--device", "cpu", "--tiny", "--out", str(tmp_path / "rows.json"))
    assert head == ["item", "case", "result"]
    assert not [row for row in rows if "Error" in row[2]]
    found = {name: [result for item, _, result in rows if item == name] for name in {row[0] for row in rows}}
    assert [r.startswith("relative errors") for r in found["reference vectors"]] == [True, False]
    assert found["two short runs"] == ["same bytes"] * 2
    assert all("a step" in r and "projections minibatch" in r for r in found["parts of a step"])
    assert len(found["parts of a step"]) == 11 and len(found["recipe"]) == 4 and len(found["evaluation"]) == 6
    # What only a GPU can answer says so; nothing else does.
    without = {name for name, results in found.items() if all(r.startswith("needs ") for r in results)}
    assert without == {"synchronisation in functions", "launches of a step", "a step"}
    assert (tmp_path / "rows.json").is_file()


@pytest.mark.slow
def test_an_item_that_fails_or_takes_too_long_does_not_stop_the_rest() -> None:
    program = """
import sys
sys.path.insert(0, "benchmarks")
import gpu
def fail(session): raise ValueError("a shape\\nand a long story")
def endless(session):
    session.say("endless", "", "begun")
    while True: pass
gpu.items = lambda: [("first", fail), ("endless", endless), ("last", fail)]
gpu.STARTED = gpu.time.monotonic()
gpu.main(["--device", "cpu", "--seconds", "0.2"])
"""
    _, (_, _, *rows) = run(sys.executable, "-c", program)
    assert rows == [
        ["first", "after 0 s", "ValueError: a shape"],
        ["endless", "", "begun"],
        ["endless", "after 0 s", "NoTimeError: the budget was used up here"],
        ["last", "", "not done: the budget is used up"],
    ]


@pytest.mark.slow
def test_methods_of_an_image_step_agree_and_are_timed(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps(RECIPE))
    arguments = ["--method", "plain", "--method", "new", "--rounds", "1"]
    said, (head, *rows) = run(sys.executable, "benchmarks/image_step.py", "--recipe", str(recipe), *arguments)
    assert head == ["part", "plain, s", "new, s", "plain / new", "plain, MiB", "new, MiB"]
    assert [row[0] for row in rows][-2:] == ["a step", "a step, with update"] and len(rows) == 7
    (error,) = re.findall(r"new (\S+) \(cosine 1.0000\)", said)
    assert float(error) < 1e-4


@pytest.mark.slow
def test_protocols_are_compared_on_a_set_of_another_program(tmp_path: Path) -> None:
    source = tiny_source()
    kept = {"images": source.train.images[list(source.train.offsets[:-1])], "labels": torch.arange(10)}
    save_file({name: value.contiguous() for name, value in kept.items()}, tmp_path / "first.safetensors")
    (tmp_path / "tiny.yaml").write_text(json.dumps(RECIPE))
    out = tmp_path / "rows.json"
    call = [
        sys.executable, "benchmarks/protocols.py", f"{tmp_path}/first.safetensors", "--recipe", f"{tmp_path}/tiny.yaml",
        "--work", f"{tmp_path}/work", "--workers", "1", "-o", "evaluate.holdout=0.2", "-o", "evaluate.steps=2",
        "-o", "evaluate.baselines=[random, initialisation]", "--out", str(out),
    ]  # fmt: skip
    words, (head, *rows) = run(*call, "--table", "candidates", "--only", "rate 0.003", "0.1")
    assert head == ["protocol", "condensed", "random", "mlp_tiny", "seconds"]  # a set of others has no initialisation
    assert [row[0] for row in rows] == ["Muon, rate 0.003", "SGD, rate 0.1", "AdamW, rate 0.003"]
    found = {(row["protocol"], row["training_set"]): row for row in json.loads(out.read_text())["levels"]}
    for label, *cells, _ in rows:
        shown = [sum(found[label, name]["percent"]) / 2 for name in ("condensed", "random")]
        assert [float(cell.split()[0]) for cell in cells[:2]] == pytest.approx(shown, abs=0.051)
    words, (_, one, other, *ranks) = run(*call, "--long", "paper", "--try", "quick")
    assert (one[0], other[0], len(ranks)) == ("paper", "quick", 4)  # two tables below one another


@pytest.mark.slow
def test_what_becomes_of_mutual_distillation_is_shown_for_a_form() -> None:
    said, (head, *rows) = run(
        sys.executable, "benchmarks/distillation.py", "--form", "random", "--steps", "1", "--classes", "2"
    )
    assert head[:3] == ["step", "matching loss", "share, %"] and [row[0] for row in rows] == ["0", "1"]
    assert all(float(number) > 0 for row in rows for number in row[1:]) and "random, 1 image steps" in said
