"""Pushes to a Hub that fails: afterwards it holds the old state or the new one, and pushing again finishes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import AccessError, HmdcError, NetworkError, RunError
from hmdc_hub.store.rundir import RunDir
from tests.hub import Fault, LocalHub, Request
from tests.publish.pushing import REPO, made_run, prepare, push

Files = dict[str, bytes]


@pytest.fixture
def account(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> str:
    token = prepare(hub)
    monkeypatch.setenv("HF_TOKEN", token)
    return token


def content(hub: LocalHub) -> Files:
    """What the repository holds besides what the Hub puts there itself; nothing if it does not exist."""
    if not hub.exists(REPO):
        return {}
    return {name: data for name, data in hub.files(REPO).items() if name != ".gitattributes"}


STATES: dict[tuple[str, ...], list[Files]] = {}
"""The same runs give the same bytes, in whatever folder they are: pushed once in a process."""


def expected(hub: LocalHub, runs: list[RunDir]) -> list[Files]:
    """Push runs one after the other; gives the states in between, the empty one first, and leaves the Hub empty."""
    names = tuple(read_recipe_file(run.recipe).name for run in runs)
    if names not in STATES:
        states: list[Files] = [{}]
        for run in runs:
            push(run)
            states.append(content(hub))
        hub.delete_repo(REPO)
        hub.requests.clear()
        STATES[names] = states
    return STATES[names]


QUESTIONS = ["whoami", "repo-info", "refs", "create-repo", "validate-yaml", "preupload", "lfs-batch", "lfs-upload",
             "lfs-verify", "commit", "tag", "resolve"]  # fmt: skip
ACTIONS: list[Any] = ["503", "429", "500", "drop-before", "drop-after"]


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("label", QUESTIONS)
def test_one_failure_anywhere_is_survived_or_said(
    hub: LocalHub, account: str, tmp_path: Path, label: str, action: str
) -> None:
    run = made_run(tmp_path / "run")
    old, new = expected(hub, [run])
    hub.faults.append(Fault(label=label, action=action, times=1))  # type: ignore[arg-type]
    try:
        push(run)
    except HmdcError as error:
        assert error.hint and "\n" not in error.message and account not in str(error), repr(error)
        assert content(hub) in (old, new)
    hub.faults.clear()
    done = push(run)
    assert content(hub) == new and hub.tags(REPO) == {done.tags[0]: hub.head(REPO)}
    assert len(hub.commits(REPO)) == 2, "one commit of ours on the Hub's own first one"


@pytest.mark.slow
@pytest.mark.parametrize("label", ["lfs-upload", "commit", "preupload"])
def test_a_connection_lost_in_mid_upload(hub: LocalHub, account: str, tmp_path: Path, label: str) -> None:
    run = made_run(tmp_path / "run")
    old, new = expected(hub, [run])
    hub.faults.append(Fault(label=label, action="drop-midway", times=1))
    try:
        push(run)
    except HmdcError as error:
        assert error.hint
        assert content(hub) in (old, new)
    hub.faults.clear()
    push(run)
    assert content(hub) == new and len(hub.commits(REPO)) == 2


@pytest.mark.slow
def test_an_answer_lost_after_the_commit_took_place_is_found_out(hub: LocalHub, account: str, tmp_path: Path) -> None:
    hub.faults.append(Fault(label="commit", action="drop-after", times=1))
    done = push(made_run(tmp_path / "run"))
    assert done.changed and done.commit == hub.head(REPO) and len(hub.commits(REPO)) == 2
    assert sum(request.label == "commit" for request in hub.requests) == 1


@pytest.mark.slow
def test_a_pull_request_whose_answer_was_lost_is_found(hub: LocalHub, account: str, tmp_path: Path) -> None:
    push(made_run(tmp_path / "run"))
    hub.faults.append(Fault(label="commit", action="drop-after", times=1))
    done = push(made_run(tmp_path / "five", 5), create_pr=True)
    assert list(hub.pull_requests(REPO)) == [done.revision] or len(hub.pull_requests(REPO)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("label", ["whoami", "repo-info", "create-repo", "commit", "tag"])
def test_a_hub_that_stays_down_is_one_clear_sentence(hub: LocalHub, account: str, tmp_path: Path, label: str) -> None:
    run = made_run(tmp_path / "run")
    old, new = expected(hub, [run])
    hub.faults.append(Fault(label=label, action="503", times=1000))
    with pytest.raises(NetworkError, match="503") as caught:
        push(run)
    assert "same command again" in caught.value.hint and "\n" not in caught.value.message
    assert content(hub) in (old, new)
    hub.faults.clear()
    push(run)
    assert content(hub) == new and len(hub.commits(REPO)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("label", ["repo-info", "auth-check", "preupload", "commit", "tag"])
@pytest.mark.parametrize("action", ["401", "403"])
def test_access_lost_in_between(hub: LocalHub, account: str, tmp_path: Path, label: str, action: Any) -> None:
    runs = [made_run(tmp_path / "two"), made_run(tmp_path / "five", 5)]
    states = expected(hub, runs)
    push(runs[0])
    hub.faults.append(Fault(label=label, action=action, times=1000))
    with pytest.raises((AccessError, RunError)) as caught:
        push(runs[1])
    assert caught.value.hint and account not in str(caught.value)
    assert content(hub) in states[1:]
    hub.faults.clear()
    push(runs[1])
    assert content(hub) == states[2]


@pytest.mark.slow
def test_a_byte_flipped_on_the_way_back_is_found(hub: LocalHub, account: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    hub.faults.append(Fault(label="lfs-download", action="flip", times=1000))
    with pytest.raises(RunError, match=r"Published, but .* not what was sent"):
        push(run)
    hub.faults.clear()
    done = push(run)
    assert not done.changed and len(hub.commits(REPO)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("label", "path"), [("lfs-download", ""), ("resolve", "info.json"), ("resolve", "README.md")])
def test_a_byte_flipped_once_on_the_way_back_is_read_again(
    hub: LocalHub, account: str, tmp_path: Path, label: str, path: str
) -> None:
    hub.faults.append(Fault(label=label, action="flip", times=2, path=path))
    done = push(made_run(tmp_path / "run"))
    assert done.loads["ipc2"] == 24 and hub.faults[0].times == 0
    # What arrived as it was sent is not downloaded again.
    asked = [request.path.rpartition("/")[2] for request in hub.requests if request.label == "resolve"]
    assert asked.count("recipe.yaml") <= 2, "one HEAD, one GET"


@pytest.mark.slow
def test_a_byte_flipped_once_in_what_the_card_is_made_of_is_read_again(
    hub: LocalHub, account: str, tmp_path: Path
) -> None:
    push(made_run(tmp_path / "run"))
    hub.faults.append(Fault(label="resolve", action="flip", times=1, path="info.json"))
    assert push(made_run(tmp_path / "five", 5)).changed and hub.faults[0].times == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["info.json", "recipe.yaml", "scores.json", "manifest.json", "README.md"])
def test_a_byte_flipped_in_what_the_card_is_made_of_is_found(
    hub: LocalHub, account: str, tmp_path: Path, path: str
) -> None:
    push(made_run(tmp_path / "run"))
    head = hub.head(REPO)
    hub.faults.append(Fault(label="resolve", action="flip", times=1000, path=path))
    with pytest.raises(RunError, match="did not arrive"):
        push(made_run(tmp_path / "five", 5))
    assert hub.head(REPO) == head


@pytest.mark.slow
def test_a_disk_that_is_full_while_packaging(hub: LocalHub, account: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    run = made_run(tmp_path / "run")
    push(run)
    before, package = content(hub), sorted(run.package.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # as a full disk: writes fail beyond this size
    try:
        with pytest.raises(RunError, match="Cannot write|No space"):
            push(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert content(hub) == before and sorted(run.package.rglob("*")) == package
    push(run)


def _push(path: str, token: str) -> None:
    os.environ["HF_TOKEN"] = token  # the server of forks was started with another test's
    tempfile.tempdir = str(Path(path).parent)  # who is killed leaves temporary files
    push(RunDir(Path(path)))


@pytest.fixture(scope="session")
def forks() -> Any:
    """Children with everything imported: a push in one is as quick as in this process, and can be killed."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # one that evaluations started
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.publish.pushing", "hmdc_hub.publish.push", "datasets", "torch",
                                    "hmdc_hub.report.plots", "matplotlib.backends.backend_agg"])  # fmt: skip
    return context


def killed_at(hub: LocalHub, run: RunDir, forks: Any, number: int, when: Literal["before", "after"]) -> bool:
    """Push in a child process and kill it at its request `number`; False if it made fewer.

    `before`: the request never takes place; `after`: it does, and its answer is never read.
    """
    hub.requests.clear()
    child = forks.Process(target=_push, args=(str(run.path), os.environ["HF_TOKEN"]))
    gone = multiprocessing.Event()

    def kill(request: Request) -> None:
        if request.number == number and not gone.is_set():
            gone.set()
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            if when == "before":
                raise ConnectionAbortedError

    hooks: dict[str, Callable[[Request], None]] = {when: kill}
    hub.before, hub.after = hooks.get("before"), hooks.get("after")
    child.start()
    child.join()
    hub.before = hub.after = None
    if not gone.is_set():
        assert child.exitcode == 0
    return gone.is_set()


@pytest.mark.exhaustive
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("first", [True, False], ids=["new", "existing"])
def test_killed_at_every_single_request(
    hub: LocalHub, account: str, tmp_path: Path, forks: Any, first: bool, when: Literal["before", "after"]
) -> None:
    runs = [made_run(tmp_path / "two"), made_run(tmp_path / "five", 5)]
    states = expected(hub, runs)
    run, old, new = (runs[0], states[0], states[1]) if first else (runs[1], states[1], states[2])
    if not first:
        push(runs[0])
    before = hub.snapshot()
    number, seen = 0, set()
    while True:
        hub.restore(before)
        if not killed_at(hub, run, forks, number, when):
            break
        seen.add("old" if content(hub) == old else "new")
        assert content(hub) in (old, new), f"a mixture after a kill {when} request {number}"
        done = push(run)
        assert content(hub) == new and done.tags[0] in hub.tags(REPO)
        assert len(hub.commits(REPO)) == (2 if first else 3)
        number += 1
    assert seen == {"old", "new"} and number > 15
