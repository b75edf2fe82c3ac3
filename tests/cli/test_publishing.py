"""`package`, `push`, `pull`, `verify` and `evaluate`: the real entry point, the unpatched client, the local Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from hmdc_hub.schema import sealed
from hmdc_hub.store.rundir import RunDir
from tests.builders import make_recipe, make_run, make_source_info
from tests.cli import tiny
from tests.cli.conftest import Call, Done
from tests.hub import Fault, LocalHub
from tests.publish.pushing import REPO, made_run, prepare


@pytest.fixture
def token(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> str:
    found = prepare(hub)
    monkeypatch.setenv("HF_TOKEN", found)
    return found


@pytest.fixture
def run(folder: Path) -> RunDir:
    """A finished run, the newest, in `runs` of the working directory."""
    made = made_run(folder / "runs" / "tiny_ipc2")
    from hmdc_hub.publish.build import package

    package(made)
    return made


def wrong(done: Done, status: int, *words: str) -> None:
    assert done.status == status, done.err
    assert "Traceback" not in done.err and "hf_" not in done.err.replace("hf_hub", "")
    for word in words:
        assert word in done.err, done.err


# package


@pytest.mark.slow
def test_package_lists_what_it_built(call: Call, run: RunDir) -> None:
    shutil.rmtree(run.package)
    done = call("package", "tiny_ipc2")
    assert done.status == 0 and "ipc2/condensed.safetensors" in done.out and (run.package / "README.md").is_file()
    assert "hmdc-hub push tiny_ipc2" in done.err
    document = json.loads(call("package", "--json").out)
    assert document["package"] == "runs/tiny_ipc2/package" and document["rows"] == 24


@pytest.mark.slow
def test_package_under_another_name(call: Call, run: RunDir) -> None:
    assert call("package", "--config", "small").status == 0
    assert (run.package / "small" / "manifest.json").is_file() and not (run.package / "ipc2").exists()
    wrong(call("package", "--config", "a/b"), 2, "a/b", "--config ipc10")


def test_package_of_what_is_not_there(call: Call, folder: Path) -> None:
    wrong(call("package"), 2, "no finished run", "hmdc-hub condense")
    wrong(call("package", "nothing"), 2, "nothing", "runs ls")


# push


@pytest.mark.slow
def test_push_publishes_the_newest_finished_run(
    call: Call, hub: LocalHub, token: str, folder: Path, run: RunDir
) -> None:
    older = made_run(folder / "runs" / "older", 5)
    from hmdc_hub.publish.build import package

    package(older)
    os.utime(older.scores, (1, 1))
    made_run(folder / "runs" / "unscored", 9, scored=False)
    done = call("push", "--yes")
    assert done.status == 0, done.err
    assert f"{hub.url}/datasets/{REPO}" in done.out and hub.head(REPO) in done.out
    assert "ipc2/condensed.safetensors" in done.err and "public" in done.err
    assert f'load_dataset("{REPO}", "ipc2", revision="ipc2-' in done.err
    assert "ipc2/manifest.json" in hub.files(REPO)
    assert all(len(line) <= 100 for line in done.err.splitlines())


@pytest.mark.slow
def test_a_dry_run_sends_nothing(call: Call, hub: LocalHub, token: str, run: RunDir) -> None:
    done = call("push", "--dry-run")
    assert done.status == 0 and "a new dataset" in done.out and "files, " in done.out and not hub.exists(REPO)
    document = json.loads(call("push", "--dry-run", "--json").out)
    assert document["result"] is None and document["plan"]["new"] and document["plan"]["tags"]


@pytest.mark.slow
def test_without_a_terminal_consent_must_be_given(call: Call, hub: LocalHub, token: str, run: RunDir) -> None:
    wrong(call("push"), 2, "--yes", REPO)
    assert not hub.exists(REPO)


@pytest.mark.slow
def test_on_a_terminal_it_asks(
    hub: LocalHub, token: str, run: RunDir, folder: Path, child_environment: dict[str, str]
) -> None:
    import pty
    import subprocess
    import sys

    said = []
    for answer, status in ((b"n\n", 2), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "hmdc_hub", "push"], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=child_environment, cwd=folder,
        ) as process:  # fmt: skip
            os.write(ours, answer)
            assert process.stdout is not None
            said.append(process.stdout.read().decode())
        assert process.returncode == status, said[-1]
        assert f"publish to {REPO} (public)? [y/N]" in said[-1] and hub.exists(REPO) is (status == 0)
    assert "Nothing was published" in said[0] and "--dry-run" in said[0]


@pytest.mark.slow
def test_a_push_without_changes_needs_no_consent(call: Call, hub: LocalHub, token: str, run: RunDir) -> None:
    assert call("push", "--yes").status == 0
    done = call("push", "--json")
    assert done.status == 0 and json.loads(done.out)["result"]["changed"] is False


@pytest.mark.slow
def test_what_json_says(call: Call, hub: LocalHub, token: str, run: RunDir) -> None:
    document = json.loads(call("push", "--yes", "--json", "--tag", "v1").out)
    result = document["result"]
    assert result["commit"] == hub.head(REPO) and result["changed"] and set(result["tags"]) == set(hub.tags(REPO))
    assert result["rows"]["ipc2"] == 24 and document["plan"]["default"] == "ipc2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repo-id", "a/b/c"], ["a/b/c", "--repo-id ann/"]),
        (["--repo-id", "bob/x"], ["bob", "ann, lab"]),
        (["--create-pr"], ["--create-pr"]),
        (["--create-pr", "--revision", "next"], ["--create-pr", "--revision"]),
        (["--create-pr", "--tag", "v1"], ["--tag"]),
        (["--tag", "a b"], ["--tag v1"]),
        (["--scores-only"], ["--scores-only"]),
        (["--config", "data"], ["--config ipc10"]),
        (["--nonsense"], ["--nonsense"]),
        (["no-such-run"], ["no-such-run", "runs ls"]),
    ],
)
def test_wishes_that_do_not_go(
    call: Call, hub: LocalHub, token: str, run: RunDir, arguments: list[str], words: list[str]
) -> None:
    done = call("push", "--yes", *arguments)
    wrong(done, 1 if "bob/x" in arguments else 2, *words)
    assert not hub.exists(REPO)


@pytest.mark.slow
def test_not_logged_in(call: Call, hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    wrong(call("push", "--yes"), 1, "not logged in", "hf auth login")


@pytest.mark.slow
@pytest.mark.parametrize("action", ["503", "429", "drop-before", "401", "403", "500"])
def test_every_failure_of_the_hub_is_a_sentence(
    call: Call, hub: LocalHub, token: str, run: RunDir, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault(label="whoami", action=action, times=1000))  # type: ignore[arg-type]
    done = call("push", "--yes")
    wrong(done, 1)
    (line,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(line) < 200 and done.err.splitlines()[-1] != line, "a next command stands below"


def test_a_damaged_run_is_not_published(call: Call, hub: LocalHub, token: str, run: RunDir) -> None:
    run.parquet.write_bytes(run.parquet.read_bytes()[:-1] + b"x")
    wrong(call("push", "tiny_ipc2", "--yes"), 1, "train.parquet", "--resume")
    assert not hub.exists(REPO)


def test_an_unfinished_run_is_not_published(call: Call, hub: LocalHub, token: str, run: RunDir) -> None:
    run.info.unlink()
    wrong(call("push", "tiny_ipc2", "--yes"), 2, "--resume")


# pull and verify


@pytest.fixture
def published(call: Call, hub: LocalHub, token: str, folder: Path, run: RunDir) -> LocalHub:
    from hmdc_hub.publish.build import package

    made = made_run(folder / "runs" / "tiny_ipc5", 5)
    package(made)
    for name in ("tiny_ipc2", "tiny_ipc5"):
        assert call("push", name, "--yes").status == 0
    return hub


@pytest.mark.slow
def test_pull_makes_a_folder_that_everything_reads(call: Call, published: LocalHub, folder: Path) -> None:
    done = call("pull", REPO)
    assert done.status == 0, done.err
    assert published.head(REPO) in done.out and "ipc2, ipc5" in done.out
    there = {path: data for path, data in published.files(REPO).items() if path != ".gitattributes"}
    copy = folder / "tiny-hmdc"
    assert {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()} == there
    assert not [path for path in copy.rglob("*") if path.is_symlink()] and not list(folder.glob(".*"))
    assert call("verify", "tiny-hmdc").status == 0
    assert json.loads(call("pull", REPO, "--json").out)["state"] == "was there already"


@pytest.mark.slow
def test_one_configuration_is_a_set_of_its_own(call: Call, published: LocalHub, folder: Path, tmp_path: Path) -> None:
    import datasets

    import hmdc_hub

    done = call("pull", REPO, "--config", "ipc5", "--to", "small")
    assert done.status == 0 and not (folder / "small" / "ipc2").exists()
    assert call("verify", "small").status == 0
    loaded = datasets.load_dataset("small", "ipc5", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 60 and hmdc_hub.load("small").header.ipc == 5
    assert call("verify", "small", "--config", "ipc5").status == 0
    wrong(call("verify", "small", "--config", "ipc2"), 2, "ipc2", "ipc5")


@pytest.mark.slow
def test_pull_does_not_touch_what_is_there(call: Call, published: LocalHub, folder: Path) -> None:
    (folder / "tiny-hmdc").mkdir()
    (folder / "tiny-hmdc" / "mine.txt").write_text("x")
    wrong(call("pull", REPO, "--force"), 2, "tiny-hmdc", "--to")
    assert [path.name for path in (folder / "tiny-hmdc").iterdir()] == ["mine.txt"]
    assert call("pull", REPO, "--to", "copy").status == 0
    (folder / "copy" / "ipc2" / "recipe.yaml").write_text("mine")
    wrong(call("pull", REPO, "--to", "copy"), 2, "--force")
    assert (folder / "copy" / "ipc2" / "recipe.yaml").read_text() == "mine"
    mine = Path("copy/notes/mine.txt")
    mine.parent.mkdir()
    mine.write_text("three weeks of work")
    wrong(call("pull", REPO, "--to", "copy", "--force"), 2, "notes/mine.txt", "--to")
    assert mine.read_text() == "three weeks of work"
    shutil.rmtree(mine.parent)
    assert call("pull", REPO, "--to", "copy", "--force").status == 0
    assert call("verify", "copy").status == 0


@pytest.mark.slow
def test_a_recipe_that_names_a_path_here_is_not_pulled(call: Call, published: LocalHub, folder: Path) -> None:
    import hashlib

    files = published.files(REPO)
    lines = files["ipc2/recipe.yaml"].replace(b"id: someone/tiny", b"id: /etc/passwd").splitlines(keepends=True)
    recipe = b"".join(lines[:-1])  # without its checksum
    manifest = json.loads(files["ipc2/manifest.json"])
    entry = next(file for file in manifest["files"] if file["path"] == "ipc2/recipe.yaml")
    entry |= {"size": len(recipe), "sha256": hashlib.sha256(recipe).hexdigest()}
    changed = {"ipc2/recipe.yaml": recipe, "ipc2/manifest.json": json.dumps(sealed(manifest)).encode()}
    published.commit(REPO, changed)
    wrong(call("pull", REPO), 1, "source.id", "/etc/passwd", "local path")
    wrong(call("evaluate", REPO), 1, "source.id", "/etc/passwd", "local path")
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]


@pytest.mark.slow
def test_a_pull_that_fails_leaves_nothing(call: Call, published: LocalHub, folder: Path) -> None:
    published.faults.append(Fault(label="lfs-download", action="flip", times=1000))
    wrong(call("pull", REPO), 1, "hmdc-hub verify")
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([REPO, "--config", "ipc7"], 2, ["ipc7", "ipc2, ipc5"]),
        ([REPO, "--revision", "v9"], 2, ["v9"]),
        (["ann/nothing"], 2, ["ann/nothing", "hf auth login"]),
        (["a/b/c"], 2, ["a/b/c"]),
    ],
)
def test_pulling_what_is_not_there(
    call: Call, published: LocalHub, arguments: list[str], status: int, words: list[str]
) -> None:
    wrong(call("pull", *arguments), status, *words)
    wrong(call("verify", *arguments), status, *words)


@pytest.mark.slow
def test_verify_reads_the_hub_afresh(call: Call, published: LocalHub) -> None:
    done = call("verify", REPO)
    assert done.status == 0 and done.out.count(" ok ") == 16 and "FAIL" not in done.out
    info = published.files(REPO)["ipc5/info.json"].replace(b'"ipc": 5', b'"ipc": 6')
    published.commit(REPO, {"ipc5/info.json": info})
    done = call("verify", REPO, "--json")
    assert done.status == 1 and "failed" in done.err
    document = json.loads(done.out)
    failed = {(check["config"], check["check"]) for check in document["checks"] if not check["ok"]}
    assert not document["ok"] and ("ipc5", "files") in failed and not [name for name, _ in failed if name == "ipc2"]
    tag = next(name for name in published.tags(REPO) if name.startswith("ipc5"))
    assert call("verify", REPO, "--revision", tag).status == 0


def test_verify_takes_runs_and_refuses_revisions_of_folders(call: Call, run: RunDir) -> None:
    assert call("verify", "tiny_ipc2").status == 0 and call("verify", run.path).status == 0
    wrong(call("verify", "tiny_ipc2", "--revision", "main"), 2, "--revision")


# evaluate


@pytest.fixture
def condensed(call: Call, folder: Path) -> RunDir:
    """A real, tiny run with scores."""
    (folder / "tiny.yaml").write_text(tiny.TEXT)
    done = call("condense", "tiny.yaml")
    assert done.status == 0, done.err
    return RunDir(folder / "runs" / "tiny")


@pytest.mark.slow
def test_a_package_is_scored_again_to_the_same_numbers(call: Call, condensed: RunDir, folder: Path) -> None:
    done = call("evaluate", condensed.package, "--run-dir", "again", "--workers", "1")
    assert done.status == 0, done.err
    assert re.search(r"All \d+ trainings have exactly the published accuracy", done.out)
    assert (folder / "again" / "scores.json").read_bytes() == condensed.scores.read_bytes()
    assert (folder / "again" / "initialisation.safetensors").read_bytes() == condensed.initialisation.read_bytes()
    document = json.loads(call("evaluate", condensed.package, "--run-dir", "again", "--json").out)
    assert document["agreement"]["identical"] == document["agreement"]["trainings"] > 0


@pytest.mark.slow
def test_scores_that_do_not_agree_are_shown_side_by_side(call: Call, condensed: RunDir, folder: Path) -> None:
    path = next(condensed.package.glob("*/scores.json"))
    scores = json.loads(path.read_text())
    scores["cells"][0]["accuracy"] = 0.123
    path.write_text(json.dumps(sealed(scores)))
    done = call("evaluate", condensed.package, "--run-dir", "again", "--workers", "1")
    count = len(scores["cells"])
    assert done.status == 0 and f"{count - 1} of {count} trainings" in done.out and "->" in done.out


@pytest.mark.slow
def test_a_run_without_scores_is_scored_in_place(call: Call, condensed: RunDir) -> None:
    wanted = condensed.scores.read_bytes()
    condensed.scores.unlink()
    condensed.cells.unlink()
    done = call("evaluate", "tiny", "--workers", "1")
    assert done.status == 0 and condensed.scores.read_bytes() == wanted


@pytest.mark.slow
def test_evaluating_what_cannot_be(call: Call, folder: Path, hub: LocalHub) -> None:
    recipe = make_recipe(source_id="/data/cats")
    from hmdc_hub.publish.build import package

    local = package(make_run(folder / "run", recipe=recipe, source=make_source_info(recipe, kind="local")))
    wrong(call("evaluate", local), 2, "local:cats", "source.id")
    assert not (folder / "runs").exists()
    wrong(call("evaluate", "ann/nothing"), 2, "ann/nothing")
    wrong(call("evaluate", "run", "--revision", "x"), 2, "--revision")
    (folder / "busy").mkdir()
    (folder / "busy" / "x").write_text("x")
    public = package(make_run(folder / "other"))
    wrong(call("evaluate", public, "--run-dir", "busy"), 2, "--run-dir")
