"""Runs and packages of earlier programs are read, verified, loaded, pulled and pushed again."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import read_config
from hmdc_hub.publish.verify import Finding, verify, verify_run
from hmdc_hub.schema import FORMAT_VERSION
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.dataset import load
from hmdc_hub.store.files import read_confusion, read_info, read_scores
from hmdc_hub.store.hub import download_package
from hmdc_hub.store.rundir import RunDir, remove
from tests.hub import LocalHub
from tests.publish.pushing import made_run, plan, prepare, push

RUNS = Path(__file__).parents[1] / "old" / "runs.tar.xz"
"""A run of the tiny digits recipe, with its package, by the last program of format 1 and one of format 2."""
REPO = "ann/digits-hmdc"


@pytest.fixture(params=["format1", "format2"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> RunDir:
    with tarfile.open(RUNS) as archive:
        archive.extractall(tmp_path, [one for one in archive if one.name.startswith(request.param)], filter="data")
    return RunDir(tmp_path / request.param)


@pytest.fixture
def account(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setenv("HF_TOKEN", prepare(hub))
    return hub


def failed(found: list[Finding]) -> dict[str, str]:
    return {f"{one.config} {one.check}": one.detail for one in found if not one.ok}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_read(run: RunDir) -> None:
    assert read_info(run.info).format_version < FORMAT_VERSION or FORMAT_VERSION == 2
    assert run.state() == "finished" and run.finished
    assert run.initialisation.name == "start.safetensors" and len(read_condensed(run.initialisation)[0]) == 10
    assert set(read_scores(run.scores).table) == {"condensed", "random", "initialisation"}
    assert set(read_confusion(run.confusion)) == {(name, "mlp_b") for name in ("condensed", "random", "initialisation")}


def test_a_run_and_its_package_are_in_order(run: RunDir) -> None:
    assert failed(verify_run(run)) == {}
    assert failed(verify(run.package)) == {}


def test_a_run_is_loaded_and_packaged_anew(run: RunDir) -> None:
    before = load(run.path)
    assert len(before) == 40 and len(before.synthetic_images) == 10
    assert torch.equal(load(run.package).images, before.images)
    data = {
        name: content
        for name, content in files(run.package).items()
        if name.startswith("ipc1/t") or "safetensors" in name
    }
    assert failed(verify(package(run))) == {}
    assert data.items() <= files(run.package).items()


def test_a_run_is_removed(run: RunDir) -> None:
    remove(run)
    assert not run.path.exists()


@pytest.mark.slow
def test_what_was_published_is_read_and_pushed_again(account: LocalHub, run: RunDir, tmp_path: Path) -> None:
    published = files(run.package)
    account.create_repo(REPO, files=published)
    got = download_package(REPO, cache=tmp_path / "cache")
    assert got.configs == ("ipc1",) and failed(verify(got.folder)) == {}
    assert torch.equal(load(REPO, "ipc1").images, load(run.path).images)

    again = push(run, repo_id=REPO)  # the same images, recipe and protocol: the card alone is of today
    there = account.files(REPO)
    kept = {name: content for name, content in published.items() if name != "README.md"}
    assert kept.items() <= there.items() and again.loads["ipc1"] == 40
    assert failed(verify(download_package(REPO, cache=tmp_path / "again").folder)) == {}
    assert not push(run, repo_id=REPO).changed


@pytest.mark.slow
def test_a_set_of_today_is_published_beside_it(account: LocalHub, run: RunDir, tmp_path: Path) -> None:
    account.create_repo(REPO, files=files(run.package))
    new = made_run(tmp_path / "five", 5)
    assert plan(new, repo_id=REPO).configs == ("ipc1", "ipc5")
    done = push(new, repo_id=REPO)  # reading it back loads the scores of both as one table
    cells = [len(read_config(folder).scores.cells) for folder in (run.package / "ipc1", new.package / "ipc5")]  # type: ignore[union-attr]
    assert done.loads == {"ipc5": 60, "scores": sum(cells)}
    found = download_package(REPO, everything=True, cache=tmp_path / "cache")
    assert found.configs == ("ipc1", "ipc5") and failed(verify(found.folder)) == {}
