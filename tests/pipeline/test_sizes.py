"""One run of several sizes, from the recipe to what a stranger loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

import hmdc_hub as hmdc
from hmdc_hub.errors import HmdcError, NotFoundError, UsageError
from hmdc_hub.events import Event, Stage, Training
from hmdc_hub.store.files import read_scores, sha256_file
from hmdc_hub.store.rundir import RunDir
from tests.cli import tiny
from tests.cli.conftest import Call
from tests.conftest import Shared
from tests.hub import Fault, LocalHub
from tests.publish.pushing import push

SIZES = {"ipc": "  ipc: [1, 2]", "publish": "publish: {name: tiny-hmdc, config: ipc, license: cc-by-4.0}"}


@pytest.fixture(scope="session")
def two_sizes(shared: Shared) -> Path:
    """A folder with `both.yaml` and its finished run `runs/both`; not to be written to."""

    def condense(place: Path) -> None:
        from hmdc_hub.cli.main import run

        tiny.write(place / "both.yaml", **SIZES)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            patch.setenv("HMDC_HUB_CACHE", str(place / "cache"))
            assert run(["condense", "both.yaml", "--workers", "1"]) == 0

    return shared("two-sizes", condense)


@pytest.fixture
def both(two_sizes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of that run, in the current folder."""
    import shutil

    shutil.copytree(two_sizes, tmp_path / "both")
    monkeypatch.chdir(tmp_path / "both")
    return RunDir(Path("runs/both"))


def test_each_size_has_the_bytes_and_scores_that_it_has_alone(both: RunDir, call: Call) -> None:
    tiny.write(Path("both_ipc2.yaml"), ipc="  ipc: 2", publish=SIZES["publish"].replace("config: ipc", "config: ipc2"))
    done = call("condense", "both_ipc2.yaml", "--workers", "1")
    assert done.status == 0, done.err
    alone, beside = RunDir(Path("runs/both_ipc2")), both.of_size(2)
    for name in ("recipe.yaml", "initialisation.safetensors", "condensed.safetensors", "train.parquet", "scores.json"):
        assert (alone.path / name).read_bytes() == (beside.path / name).read_bytes(), name
    assert read_scores(beside.scores).budgets["condensed"].stored == 20
    assert both.state() == beside.state() == "finished"


def test_one_package_has_a_configuration_for_each_size(both: RunDir) -> None:
    assert sorted(path.name for path in both.package.iterdir()) == [
        "README.md", "assets", "croissant.json", "ipc1", "ipc2", "scores",
    ]  # fmt: skip
    for size in (1, 2):
        packaged = both.package / f"ipc{size}" / "train-00000-of-00001.parquet"
        assert sha256_file(packaged) == sha256_file(both.of_size(size).parquet)
        assert (both.of_size(size).path / "preview.png").is_file()
    assert all(one.ok for one in hmdc_verify(both))
    loaded = datasets.load_dataset(str(both.package), "ipc2", split="train")
    default = datasets.load_dataset(str(both.package), split="train")
    assert (loaded.num_rows, default.num_rows) == (80, 40)
    assert datasets.load_dataset(str(both.package), "scores", split="train").to_pandas()["config"].nunique() == 2


def hmdc_verify(run: RunDir) -> list[Any]:
    from hmdc_hub.publish.verify import verify_run

    return verify_run(run)


def test_what_is_said_at_the_end_and_shown(both: RunDir, call: Call) -> None:
    done = call("condense", "both.yaml")  # nothing is left to do
    lines = done.out.splitlines()
    assert done.status == 0 and "has it all already" in done.err
    assert [line.split()[0] for line in lines[:2]] == ["ipc1", "ipc2"]
    assert all("initialisation" in line and "random" in line and "(n = 2)" in line for line in lines[:2])
    assert f"{both.path}/{{ipc1,ipc2}}/report/report.html" in done.out and all(
        (size.report / "report.html").is_file() for size in both.sizes
    )
    shown = call("runs", "show", "both")
    assert shown.status == 0 and shown.out.count("condensed  builtin:digits") == 2 and '", "ipc2")' in shown.out
    rows = call("runs", "ls").out.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["both/ipc1", "finished"], ["both/ipc2", "finished"]]
    assert [row["ipc"] for row in json.loads(call("runs", "ls", "--json").out)] == [1, 2]
    assert [size["name"] for size in json.loads(call("runs", "show", "both", "--json").out)["sizes"]] == [
        "both/ipc1", "both/ipc2",
    ]  # fmt: skip
    assert call("runs", "show", "both/ipc2").out.count("condensed  builtin:digits") == 1


def test_python_sees_the_whole_and_each_size(both: RunDir) -> None:
    run = hmdc.Run(both.path)
    one, two = run.sizes
    assert (run.several, one.several, two.sizes) == (True, False, [two])
    assert [len(size.condensed) for size in run.sizes] == [40, 80]
    assert [size.info.ipc for size in run.sizes] == [1, 2] and one.scores is not None
    assert run.package_folder == one.package_folder == both.package
    assert "ipc1 " in repr(run) and "ipc2 " in repr(run) and "finished" in repr(run)
    for what in ("info", "scores", "condensed"):
        with pytest.raises(UsageError, match="several sizes, ipc1, ipc2") as caught:
            getattr(run, what)
        assert f"run.{what} for run in run.sizes" in caught.value.hint
    with pytest.raises(UsageError, match="preview"):
        run.preview()
    assert isinstance(two.preview(), Image.Image)
    assert run._repr_html_().count("<img") == 2
    assert hmdc.load(both.path).ipc == hmdc.load(both.package).ipc == 1  # the first that the recipe lists
    assert hmdc.load(both.path, "ipc2").ipc == hmdc.load(both.of_size(2).path).ipc == 2
    with pytest.raises(NotFoundError, match="ipc1, ipc2"):
        hmdc.load(both.path, "ipc3")


def test_scores_of_all_sizes_of_one_and_by_another_protocol(both: RunDir, call: Call) -> None:
    before = {size: size.scores.read_bytes() for size in both.sizes}
    both.of_size(2).scores.unlink()
    assert both.state() == "condensed"
    seen: list[Event] = []
    found = hmdc.evaluate("both", workers=1, callbacks=seen.append)
    assert both.state() == "finished" and {size: size.scores.read_bytes() for size in both.sizes} == before
    assert [one.scores.name for one in found.sizes] == ["both_ipc1", "both_ipc2"] and found.run is not None
    assert set(found.to_pandas()["name"]) == {"both_ipc1", "both_ipc2"}
    with pytest.raises(UsageError, match="scores of each"):
        _ = found.scores

    both.of_size(1).scores.unlink()
    done = call("evaluate", "both/ipc1", "--workers", "1")  # one of them, and the package of all
    assert done.status == 0 and done.out.startswith("accuracy"), done.err
    assert both.state() == "finished" and not (both.of_size(1).path / "package").exists()
    assert json.loads(call("evaluate", "both", "--json").out)["sizes"][1]["run"] == "runs/both/ipc2"

    again = hmdc.evaluate("both", seeds=1, workers=1, callbacks=seen.append)
    assert [one.path.parent.parent.name for one in again.sizes] == ["ipc1", "ipc2"]
    assert [len(one.scores.cells) for one in again.sizes] == [3, 3] and "ipc" in again.summary()
    told = [event for event in seen if isinstance(event, Training)]
    assert {event.training_set.split("/")[0] for event in told} == {"ipc1", "ipc2"}
    stages = [event.detail.split(",")[0] for event in seen if isinstance(event, Stage) and event.name == "evaluate"]
    assert stages == ["ipc2", "ipc1", "ipc2", "ipc1"]  # the largest first
    verified = call("verify", "both", "--json")
    configs = {check["config"] for check in json.loads(verified.out)["checks"]}
    assert verified.status == 0 and {"ipc1/", "ipc2/", "ipc1", "ipc2"} < configs
    assert [name for name in configs if "/evaluations/" in name] != []


def test_sizes_are_compared_as_sets(both: RunDir, call: Call) -> None:
    done = call("compare", "both", "--json")
    assert done.status == 0 and "both/ipc1" in done.out and "both/ipc2" in done.out
    assert len(json.loads(done.out)["sets"]) == 2
    assert call("compare", "both/ipc2", "both/ipc1").status == 0


def test_one_recipe_and_one_lock_for_all_sizes(both: RunDir, call: Call) -> None:
    with both.of_size(1).lock():
        assert both.owner() and both.lock_file == both.of_size(2).lock_file
    assert not (both.of_size(1).path / ".lock").exists()
    done = call("condense", "both.yaml", "--run-dir", "runs/both", "-o", "evaluate.epochs=3", "--workers", "1")
    assert done.status == 0, done.err
    assert {read_scores(size.scores).protocol.epochs for size in both.sizes} == {3} and both.state() == "finished"
    done = call("condense", "both.yaml", "--run-dir", "runs/both", "-o", "condense.ipc=[1, 2, 3]")
    assert done.status == 2 and "[1, 2] there, [1, 2, 3] here" in done.err


def test_damage_and_removal(both: RunDir, call: Call) -> None:
    done = call("runs", "rm", "--yes", "both/ipc1")
    assert done.status == 2 and "one size of the run" in done.err
    data = both.of_size(2).parquet.read_bytes()
    both.of_size(2).parquet.write_bytes(data[:-1] + b"x")
    assert both.state() == "unfinished" and both.state(verify=False) == "finished"
    done = call("package", "both")
    assert done.status == 1 and "ipc2" in done.err and "train.parquet" in done.err
    done = call("condense", "both.yaml")
    assert done.status == 2 and "--resume" in done.err
    done = call("condense", "both.yaml", "--resume", "--workers", "1")
    assert done.status == 0 and both.state() == "finished" and both.of_size(2).parquet.read_bytes() == data
    (both.of_size(1).path / "mine.txt").touch()
    done = call("runs", "rm", "--yes", "both")
    assert done.status == 2 and "ipc1/mine.txt" in done.err
    (both.of_size(1).path / "mine.txt").unlink()
    assert call("runs", "rm", "--yes", "both").status == 0 and not both.path.exists()


def test_without_scores_and_the_default_is_the_first_listed(here: Path, call: Call) -> None:
    tiny.write(here / "both.yaml", **SIZES | {"ipc": "  ipc: [2, 1]"})
    run = hmdc.condense("both.yaml", progress=False)
    assert run.state == "condensed" and run.package_folder == Path("runs/both/package")
    assert [line.split()[0] for line in run.summary().splitlines()] == ["ipc2", "ipc1", "preview"]
    assert hmdc.load(run.path).ipc == hmdc.load(run.package_folder).ipc == 2
    assert "not evaluated" in (run.package_folder / "README.md").read_text()


def test_a_dry_run_counts_all_sizes(here: Path, call: Call) -> None:
    from hmdc_hub.evaluator import planned
    from hmdc_hub.sources import load_source

    tiny.write(here / "both.yaml", **SIZES, baselines="  baselines: [random, full]")
    recipe = hmdc.load_recipe("both.yaml")
    source, device = load_source(recipe.source), torch.device("cpu")
    both, *each = (next(planned(one, source, device)).trainings for one in (recipe, *recipe.of_sizes()))
    full = len(recipe.evaluate.models) * recipe.evaluate.seeds  # trained on once for all sizes
    assert both == sum(each) - full


# push


@pytest.mark.slow
def test_all_sizes_are_published_in_one_commit(both: RunDir, call: Call, account: LocalHub) -> None:
    plan = json.loads(call("push", "both", "--dry-run", "--json").out)["plan"]
    assert plan["pushed"] == plan["configs"] == ["ipc1", "ipc2"] and plan["default"] == "ipc1"
    done = call("push", "both", "--yes")
    assert done.status == 0, done.err
    repo = "ann/tiny-hmdc"
    assert len(account.commits(repo)) == 2  # with the one that makes it
    assert sorted(tag.split("-")[0] for tag in account.tags(repo)) == ["ipc1", "ipc2"]
    assert "loaded ipc1 40 rows, ipc2 80 rows, scores" in done.out
    loaded = [datasets.load_dataset(repo, name, split="train").num_rows for name in ("ipc1", "ipc2", None)]
    assert loaded == [40, 80, 40]
    assert hmdc.load(repo, "ipc2").ipc == 2
    assert call("verify", repo).status == 0
    assert call("pull", repo).status == 0 and call("verify", "tiny-hmdc").status == 0
    done = call("push", "both", "--yes")
    assert done.status == 0 and "was there already" in done.out
    done = call("evaluate", repo, "--config", "ipc2", "--workers", "1")
    assert "have exactly the published accuracy" in done.out


@pytest.mark.slow
def test_one_size_is_published_alone_and_the_others_join_it(both: RunDir, call: Call, account: LocalHub) -> None:
    repo = "ann/tiny-hmdc"
    done = call("push", "both", "--config", "small", "--yes")
    assert done.status == 2 and "ipc1, ipc2" in done.err and not account.exists(repo)
    done = call("push", "both/ipc1", "--config", "ipc2", "--yes")
    assert done.status == 2 and not account.exists(repo)
    assert call("push", "both", "--config", "ipc2", "--yes").status == 0
    assert not [name for name in account.files(repo) if "ipc1" in name]
    published = hmdc.Run(both.path).push_to_hub(progress=False)
    assert published.changed and len(published.tags) == 2 and set(published.loads) == {"ipc1", "ipc2", "scores"}
    assert len(account.commits(repo)) == 3  # with the one that makes it
    assert datasets.load_dataset(repo, split="train", download_mode="force_redownload").num_rows == 80  # stays

    call("condense", "both.yaml", "--run-dir", "runs/both", "-o", "evaluate.epochs=3", "--workers", "1")
    files = account.files(repo)
    done = call("push", "both/ipc1", "--scores-only", "--yes")
    assert done.status == 0, done.err
    changed = {name for name, data in account.files(repo).items() if files.get(name) != data}
    assert {"ipc1/scores.json", "scores/ipc1.parquet"} <= changed and not [name for name in changed if "ipc2" in name]


@pytest.mark.slow
def test_a_push_that_is_refused_publishes_no_size(both: RunDir, call: Call, account: LocalHub) -> None:
    """Scores of images that are not there: of one of the sizes is enough."""
    repo = "ann/tiny-hmdc"
    assert call("push", "both/ipc1", "--yes").status == 0
    head = account.head(repo)
    done = call("push", "both", "--scores-only", "--yes")
    assert done.status == 2 and "no ipc2 is published yet" in done.err and account.head(repo) == head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "action", "times"),
    [
        ("lfs-upload", "drop-midway", 1), ("preupload", "drop-before", 1), ("commit", "drop-after", 1),
        ("commit", "503", 1000), ("tag", "503", 1000), ("resolve", "drop-midway", 1),
    ],
)  # fmt: skip
def test_a_push_that_is_cut_off_publishes_all_sizes_or_none(
    both: RunDir, account: LocalHub, label: str, action: Any, times: int
) -> None:
    repo = "ann/tiny-hmdc"
    account.faults.append(Fault(label=label, action=action, times=times))
    with suppress(HmdcError):
        push(both)
    there = {name.split("/")[0] for name in account.files(repo) if name.startswith("ipc")}
    assert there in (set(), {"ipc1", "ipc2"})
    account.faults.clear()
    done = push(both)
    assert len(done.tags) == 2 and dict.fromkeys(done.tags, account.head(repo)) == account.tags(repo)
    assert len(account.commits(repo)) == 2 and hmdc.load(repo, "ipc2").ipc == 2


@pytest.mark.slow
def test_a_pull_request_has_all_sizes(both: RunDir, account: LocalHub) -> None:
    repo = "ann/tiny-hmdc"
    push(RunDir(both.path / "ipc1"))
    head = account.head(repo)
    done = push(both, create_pr=True)
    assert list(account.pull_requests(repo)) == [done.revision] and account.head(repo) == head
    assert [hmdc.load(repo, f"ipc{ipc}", revision=done.revision).ipc for ipc in (1, 2)] == [1, 2]


# several processes, trackers


@pytest.mark.slow
def test_shares_of_all_sizes_are_put_together(both: RunDir, call: Call) -> None:
    before = [size.scores.read_bytes() for size in both.sizes]
    for size in both.sizes:
        size.scores.unlink()
        size.cells.unlink()
    for share in ("1/2", "2/2"):
        done = call("evaluate", "both", "--share", share, "--workers", "1")
        assert done.status == 0 and done.out == "", done.err
        assert both.state() == "condensed"
    assert call("evaluate", "both", "--workers", "1").status == 0
    assert [size.scores.read_bytes() for size in both.sizes] == before


@pytest.mark.slow
def test_the_real_command_under_torchrun(both: RunDir) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hmdc_hub"]
    command = [*launch, "condense", "both.yaml", "--run-dir", "runs/ranks", "--device", "cpu"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ranks = RunDir(Path("runs/ranks"))
    assert ranks.state() == "finished"
    for one, other in zip(ranks.sizes, both.sizes, strict=True):
        for name in ("initialisation.safetensors", "condensed.safetensors", "train.parquet", "scores.json"):
            assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


@pytest.mark.slow
def test_a_tracker_is_told_of_every_size(both: RunDir, call: Call) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = call("condense", "both.yaml", "--run-dir", "runs/told", "--workers", "1", "--report-to", "tensorboard")
    assert done.status == 0, done.err
    found = EventAccumulator("runs/told/trackers/tensorboard")
    found.Reload()
    for ipc in (1, 2):
        losses = [one.value for one in found.Scalars(f"loss/ipc{ipc}/match/mlp_a")]
        assert len(losses) == 4 and all(loss > 0 for loss in losses)
        assert len(found.Scalars(f"evaluate/ipc{ipc}/condensed/mlp_a")) == 2
