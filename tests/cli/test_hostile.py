"""Strangers' files through the real commands: refused in a sentence, before anything of them is decoded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from PIL import ImageFile

from hmdc_hub.publish.build import package
from hmdc_hub.store.files import read_info
from tests import bombs
from tests.builders import make_run
from tests.cli.conftest import Call
from tests.cli.test_publishing import published as published
from tests.cli.test_publishing import run as run
from tests.cli.test_publishing import token as token
from tests.cli.test_publishing import wrong
from tests.hub import LocalHub, Request
from tests.publish.pushing import REPO
from tests.publish.test_verify import settle

DATA, NAMES = "train-00000-of-00001.parquet", ["cat", "dog", "ship"]
LABELS = [label for label in range(3) for _ in range(8)]


@pytest.fixture
def folder_of_set(folder: Path) -> Path:
    return Path(shutil.move(package(make_run(folder / "run")), folder / "set"))


def large_images(where: Path) -> None:
    bombs.parquet(where / DATA, [bombs.png(9000, 9000, data=b"")] * 24, LABELS, NAMES)


def many_rows(where: Path) -> None:
    bombs.repeated(where / DATA, bombs.png(8, 8), 30_000, NAMES)


def large_pages(where: Path) -> None:
    bombs.parquet(where / DATA, [bytes(1 << 20)] * 24, LABELS, NAMES, compression="zstd")


def absurd_info(where: Path) -> None:
    info = json.loads((where / "info.json").read_text())
    info |= {"ipc": 10**9, "synthetic_images": 3 * 10**9, "training_images": 12 * 10**9}
    info["source"]["size"] = 10**6
    del info["checksum"]  # as an older program writes it
    (where / "info.json").write_text(json.dumps(info))


BOMBS: list[Callable[[Path], None]] = [large_images, many_rows, large_pages, absurd_info]


@pytest.fixture
def decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", mock.Mock(side_effect=AssertionError("decoded")))


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_verify_reads_headers_first(
    call: Call, folder_of_set: Path, bomb: Callable[[Path], None], decodes_nothing: None
) -> None:
    bomb(folder_of_set / "ipc2")
    if bomb is not absurd_info:
        settle(folder_of_set)
    done = call("verify", "set")
    wrong(done, 1, "set is not in order")
    assert {line.split()[2] for line in done.out.splitlines() if line.split()[1] == "images"} == {"FAIL"}, done.out


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_evaluate_of_a_package_reads_headers_first(
    call: Call, folder_of_set: Path, bomb: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hmdc_hub.catalog import read_recipe_file
    from hmdc_hub.errors import FormatError
    from hmdc_hub.evaluator import of_run
    from hmdc_hub.store.rundir import RunDir

    bomb(folder_of_set / "ipc2")
    run = RunDir(folder_of_set.parent / "adopted")
    run.path.mkdir()
    for name, place in ((DATA, run.parquet), ("condensed.safetensors", run.condensed), ("info.json", run.info)):
        shutil.copyfile(folder_of_set / "ipc2" / name, place)
    recipe = read_recipe_file(folder_of_set / "ipc2" / "recipe.yaml")
    monkeypatch.setattr(ImageFile.ImageFile, "load", mock.Mock(side_effect=AssertionError("decoded")))
    with pytest.raises(FormatError):
        of_run(recipe, run)
    assert read_info(run.info)


@pytest.mark.slow
def test_a_link_out_of_a_package_is_not_followed(call: Call, folder_of_set: Path, folder: Path) -> None:
    path = folder_of_set / "ipc2" / "info.json"
    path.rename(folder / "info.json")
    path.symlink_to(folder / "info.json")
    done = call("verify", "set")
    wrong(done, 1, "not in order")
    assert "ipc2/info.json is a link that leads out" in done.out
    wrong(call("evaluate", "set"), 1, "is a link that leads out")
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_no_link_of_a_run_is_packaged_as_one(call: Call, folder: Path) -> None:
    made = make_run(folder / "runs" / "tiny")
    made.parquet.rename(folder / "elsewhere")
    made.parquet.symlink_to(folder / "elsewhere")
    call("package", "tiny")
    assert not [path for path in made.package.rglob("*") if path.is_symlink()]


# pull


@pytest.mark.slow
def test_a_second_pull_of_one_name_says_so(
    call: Call, published: LocalHub, folder: Path, child_environment: dict[str, str]
) -> None:
    line = [sys.executable, "-m", "hmdc_hub", "pull", REPO]
    others = list[subprocess.CompletedProcess[str]]()

    def pull_too(request: Request) -> None:
        if request.label == "lfs-download" and not others:
            others.append(subprocess.run(line, env=child_environment, cwd=folder, capture_output=True, text=True))

    published.before = pull_too
    done = call("pull", REPO)
    published.before = None
    assert done.status == 0 and call("verify", "tiny-hmdc").status == 0
    assert others[0].returncode == 2 and "Another process is writing tiny-hmdc" in others[0].stderr
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_a_disk_that_fails_is_not_the_hub(call: Call, published: LocalHub, folder: Path) -> None:
    def sweep(request: Request) -> None:
        if request.label == "lfs-download":
            shutil.rmtree(folder / ".tiny-hmdc.hmdc-tmp", ignore_errors=True)

    published.before = sweep
    done = call("pull", REPO)
    published.before = None
    said = done.err[done.err.index("error: ") :]  # before it the client complains in its log
    # Its threads make the folder anew at the same time: what is said first varies.
    assert done.status == 1 and re.search(f"downloading {REPO}: (No such file|File exists)", said), said
    assert "not of the Hub" in said
    assert "Traceback" not in said and "cannot be reached" not in said and not (folder / "tiny-hmdc").exists()
    assert call("pull", REPO).status == 0


KILLED = """
import os, signal, sys
from hmdc_hub.cli.main import main
import hmdc_hub.publish.card, hmdc_hub.store.hub, hmdc_hub.cli.pull
left = int(sys.argv.pop(1))

def hook(event, arguments):
    global left
    if event in {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"} or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
main()
"""


@pytest.mark.parametrize("force", [False, True], ids=["new", "other"])
@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 40, "last"])
def test_killed_at_an_operation_of_files(
    call: Call, published: LocalHub, folder: Path, child_environment: dict[str, str], number: int | str, force: bool
) -> None:
    whole = {path: data for path, data in published.files(REPO).items() if path != ".gitattributes"}
    old = {}
    if force:
        assert call("pull", REPO, "--config", "ipc5", "--to", "tiny-hmdc").status == 0
        old = content(folder / "tiny-hmdc")
    options = ["--force"] if force else []
    if number == "last":  # the moves into place: found by where the folder is when they begin
        code = KILLED.replace("left == 0", 'event == "os.rename" and str(arguments[0]).endswith(".hmdc-tmp/new")')
        number = 1
    else:
        code = KILLED
    line = [sys.executable, "-c", code, str(number), "pull", REPO, *options]
    killed = subprocess.run(line, env=child_environment, cwd=folder, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert content(folder / "tiny-hmdc") in ({}, old, whole), "never a half set"
    assert call("pull", REPO, "--force").status == 0
    assert content(folder / "tiny-hmdc") == whole and not list(folder.glob(".*"))


def content(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}
