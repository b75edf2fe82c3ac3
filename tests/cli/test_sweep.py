"""`sweep`: what it prints, on a screen of 80 columns and as JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.pipeline import launch
from tests.cli import tiny
from tests.cli.conftest import Call

SWEPT = "-o", "condense.images.lr=0.01,0.5", "--seeds", "2"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process, as `workers=0` does: starting processes takes seconds."""
    locally = launch.locally
    monkeypatch.setattr(launch, "locally", lambda tasks, device, _, stop: locally(tasks, device, 0, stop))


@pytest.mark.usefixtures("here")
def test_table_then_json_then_runs(call: Call, folder: Path) -> None:
    tiny.write(folder / "tiny.yaml")
    done = call("sweep", "tiny.yaml", *SWEPT, "--name", "lr")
    assert done.status == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80 and "images.lr=0.5" in done.out
    assert "1 of 6: recipe, seed 0" in done.err and "report.html" in done.err
    document: dict[str, Any] = json.loads(call("sweep", "tiny.yaml", *SWEPT, "--name", "lr", "--json").out)
    assert [one["name"] for one in document["results"][0]["variants"]] == ["recipe", "images.lr=0.01", "images.lr=0.5"]
    assert document["directory"] == "runs/sweeps/lr"
    assert len(json.loads(call("runs", "ls", "--root", "runs/sweeps/lr", "--json").out)) == 6
    assert (folder / "runs/sweeps/lr/sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("here")
def test_a_run_that_fails_is_status_1_after_the_table(call: Call, folder: Path) -> None:
    tiny.write(folder / "tiny.yaml")
    variants = "deep:\n  pool: [{name: deep, source: builtin, id: convnet, args: {depth: 9, width: 4}}]\n"
    (folder / "v.yaml").write_text(variants)
    done = call("sweep", "tiny.yaml", "--variants", "v.yaml", "--seeds", "1")
    assert done.status == 1 and "failed" in done.out and "1 of 2 runs failed" in done.err
    assert "Traceback" not in done.err and "deep-seed0" in done.err


def test_dry_run_writes_nothing(call: Call, folder: Path) -> None:
    tiny.write(folder / "tiny.yaml")
    done = call("sweep", "tiny.yaml", *SWEPT, "--dry-run")
    assert done.status == 0 and done.out.splitlines()[1:] == ["  recipe", "  images.lr=0.01", "  images.lr=0.5"]
    assert not (folder / "runs").exists()
    assert json.loads(call("sweep", "tiny.yaml", *SWEPT, "--dry-run", "--json").out)["condensing_seeds"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing is swept"),
        (("-o", "condense.lr=1,2"), "condense.lr"),
        (("-o", "evaluate.seeds=1,2"), "no key to sweep"),
        (("-o", "condense.batch=4,8", "--steps", "9", "--seconds", "9"), "two budgets"),
        (("-o", "condense.batch=4,8", "--slurm", "gpu"), "KEY=VALUE"),
        (("-o", "condense.batch=4,8", "--seeds", "0"), "--seeds"),
        (("--variants", "missing.yaml"), "missing.yaml cannot be read"),
    ],
)
def test_what_is_refused(call: Call, folder: Path, arguments: tuple[str, ...], words: str) -> None:
    tiny.write(folder / "tiny.yaml")
    done = call("sweep", "tiny.yaml", *arguments)
    assert done.status == 2 and done.err.startswith("error: ") and words in done.err, done.err
    assert "Traceback" not in done.err and not (folder / "runs").exists()
