"""Run directories: how far they came, who works there, what may be removed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from hmdc_hub.errors import NewerFormatError, NotFoundError, RunExistsError, UsageError
from hmdc_hub.publish.build import package
from hmdc_hub.schema import FORMAT_VERSION
from hmdc_hub.store.rundir import RunDir, list_runs, remove
from tests.builders import edit_json, make_recipe, make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "runs" / "tiny")


def test_states_follow_from_files(run: RunDir) -> None:
    assert run.state() == "scored"
    package(run)
    assert run.state() == "finished"
    shutil.rmtree(run.package)
    run.scores.unlink()
    assert run.state() == "condensed" and run.finished
    run.info.unlink()
    assert run.state() == "unfinished" and not run.finished
    run.recipe.unlink()
    assert run.state() == "empty"
    assert RunDir(run.path / "nothing").state() == "empty"


@pytest.mark.parametrize("name", ["condensed", "parquet"])
def test_damaged_data_make_a_run_unfinished(run: RunDir, name: str) -> None:
    path: Path = getattr(run, name)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    assert run.state() == "unfinished" and run.state(verify=False) == "scored"


def test_scores_of_other_images_do_not_count(run: RunDir) -> None:
    edit_json(run.scores, lambda scores: scores | {"parquet_sha256": "0" * 64})
    assert run.state() == "condensed"


def test_a_newer_programs_run_is_not_taken_for_an_unfinished_one(run: RunDir) -> None:
    info = json.loads(run.info.read_text())
    run.info.write_text(json.dumps(info | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(NewerFormatError):
        run.state()
    (entry,) = list_runs(run.path.parent)
    assert "version" in entry.problem


def _try_lock(path: str, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    try:
        with RunDir(Path(path)).lock():
            answers.put("mine")
    except RunExistsError as error:
        answers.put(str(error))


@pytest.mark.slow
def test_one_process_at_a_time(run: RunDir) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()

    def other() -> str:
        process = context.Process(target=_try_lock, args=(str(run.path), answers))
        process.start()
        said: str = answers.get()
        process.join()
        return said

    with run.lock(), run.lock():
        assert "Another process" in other()
    assert other() == "mine"


def test_a_lock_clears_what_killed_processes_left(run: RunDir) -> None:
    checkpoint = run.checkpoints / ".000001-000000.safetensors.7.hmdc-tmp"
    leftovers = [run.path / ".info.json.7.hmdc-tmp", checkpoint, run.path / ".package.hmdc-tmp"]
    leftovers[0].write_text("half")
    leftovers[1].write_text("half")
    leftovers[2].mkdir()
    with run.lock():
        assert not any(path.exists() for path in leftovers)


def test_runs_are_listed_by_name(tmp_path: Path, run: RunDir) -> None:
    make_run(tmp_path / "runs" / "another", recipe=make_recipe(name="another"))
    (tmp_path / "runs" / "notes").mkdir()
    entries = list_runs(tmp_path / "runs")
    assert [entry.run.path.name for entry in entries] == ["another", "tiny"]
    assert all(entry.info is not None and entry.scores is not None and not entry.problem for entry in entries)
    assert list_runs(tmp_path / "nothing") == []


def test_only_runs_are_removed(tmp_path: Path, run: RunDir) -> None:
    (run.path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        remove(run)
    (run.path / "thesis.txt").unlink()
    remove(run)
    assert not run.path.exists()
    with pytest.raises(NotFoundError):
        remove(run)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError):
        remove(RunDir(tmp_path / "other"))
    kept = make_run(tmp_path / "kept")
    (tmp_path / "link").symlink_to(kept.path)
    with pytest.raises(NotFoundError):
        remove(RunDir(tmp_path / "link"))
    assert kept.info.is_file()
