"""`runs`: every state that a run directory can be in."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from hmdc_hub.publish.build import package
from hmdc_hub.schema import FORMAT_VERSION
from tests.builders import make_run
from tests.cli.conftest import Call

GO_ON = "go on with: hmdc-hub condense runs/d_unfinished/recipe.yaml --run-dir runs/d_unfinished --resume\n"


@pytest.fixture
def root(folder: Path) -> Path:
    """A folder `runs` with a finished, a scored, an unscored, an unfinished and an unreadable run, and other things."""
    runs = folder / "runs"
    package(make_run(runs / "a_finished"))
    make_run(runs / "b_scored")
    make_run(runs / "c_condensed", scored=False)
    unfinished = make_run(runs / "d_unfinished", scored=False)
    unfinished.info.unlink()
    newer = make_run(runs / "e_newer").info
    newer.write_text(newer.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'))
    (runs / "notes").mkdir()
    (runs / "notes.txt").write_text("not a run")
    return runs


@pytest.mark.slow
def test_ls(call: Call, root: Path) -> None:
    done = call("runs", "ls")
    assert done.status == 0
    header, *rows = done.out.splitlines()
    assert header.split() == ["NAME", "STATE", "DATE", "SOURCE", "IPC", "SCORE", "GAIN", "TIME"]
    assert [row.split()[:2] for row in rows] == [
        ["a_finished", "finished"],
        ["b_scored", "scored"],
        ["c_condensed", "condensed"],
        ["d_unfinished", "unfinished"],
        ["e_newer", "unreadable"],
    ]
    scores = json.loads((root / "a_finished/scores.json").read_text())
    score, gain = scores["table"]["condensed"]["mean"]["mean"], scores["gain"]["random"]["mean"]["mean"]
    assert all(row.split()[2] == time.strftime("%Y-%m-%d") for row in rows)
    assert rows[0].split()[3:] == ["someone/tiny", "2", f"{100 * score:.1f}", f"{100 * gain:+.1f}", "12:34"]
    assert "e_newer" in done.err and "format version 99" in done.err
    assert "runs/d_unfinished: step 1, just now\n" + GO_ON in done.err


@pytest.mark.slow
def test_ls_json(call: Call, root: Path) -> None:
    listed = json.loads(call("runs", "ls", "--json").out)
    states = [run["state"] for run in listed]
    assert states == ["finished", "scored", "condensed", "unfinished", "unfinished"]
    assert listed[0]["table"]["condensed"]["mean"]["n"] == 5 and listed[0]["ipc"] == 2
    assert listed[2]["table"] is None and listed[2]["source"] == "someone/tiny" and listed[3]["source"] is None
    assert "99" in listed[4]["problem"] and listed[0]["problem"] is None


@pytest.mark.parametrize("arguments", [[], ["--root", "elsewhere"]], ids=["empty", "no folder"])
def test_ls_of_nothing(call: Call, folder: Path, arguments: list[str]) -> None:
    done = call("runs", "ls", *arguments)
    assert done.status == 0 and done.out == "" and "no runs in" in done.err and "recipes ls" in done.err
    assert json.loads(call("runs", "ls", "--json", *arguments).out) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a_finished", "runs/a_finished"])
def test_show(call: Call, root: Path, name: str) -> None:
    done = call("runs", "show", name)
    assert done.status == 0 and done.err == ""
    for words in (
        "state      finished",
        "run        runs/a_finished",
        "someone/tiny, 2 per class",
        "condensed − initialisation",
    ):
        assert words in done.out


@pytest.mark.slow
def test_show_from_inside(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "b_scored")
    assert "state      scored" in call("runs", "show", ".").out


@pytest.mark.slow
def test_show_unfinished_and_unreadable(call: Call, root: Path) -> None:
    log = root / "d_unfinished/log.jsonl"
    log.write_text('{"done": 379, "total": 8000}\n{"done": 380, "total": 8000}\n{"done": 3')
    os.utime(log, times=(time.time() - 7_300,) * 2)
    done = call("runs", "show", "d_unfinished")
    assert done.out == "run        runs/d_unfinished\nstate      unfinished\nstep 380 of 8000, 2 hours ago\n"
    assert done.err == GO_ON
    with (root / "d_unfinished/.lock").open("w+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        print(1234, file=file, flush=True)
        done = call("runs", "show", "d_unfinished")
        assert "step 380 of 8000, process 1234 works on it" in done.out and "go on" not in done.err
        assert "go on" not in call("runs", "ls").err
    shown = json.loads(call("runs", "show", "d_unfinished", "--json").out)
    assert (shown["step"], shown["steps"]) == (380, 8000) and shown["written"] == log.stat().st_mtime
    assert "format version 99" in call("runs", "show", "e_newer").out
    assert json.loads(call("runs", "show", "d_unfinished", "--json").out)["state"] == "unfinished"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("nope", "there is no run 'nope'"), ("notes", "is not a run directory")])
def test_show_what_is_no_run(call: Call, root: Path, name: str, words: str) -> None:
    done = call("runs", "show", name)
    assert done.status == 2 and words in done.err and "runs ls" in done.err


@pytest.mark.slow
def test_rm(call: Call, root: Path) -> None:
    done = call("runs", "rm", "a_finished", "b_scored", "--yes")
    assert done.status == 0 and done.out == "" and "removed runs/a_finished" in done.err
    assert not (root / "a_finished").exists() and not (root / "b_scored").exists() and (root / "c_condensed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "left"), [("n", True), ("y", False)])
def test_rm_asks(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: answer)
    assert call("runs", "rm", "a_finished").status == 0
    assert (root / "a_finished").exists() is left


@pytest.mark.slow
def test_rm_without_anybody_to_ask(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_of_input(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("click.termui.visible_prompt_func", end_of_input)
    done = call("runs", "rm", "a_finished")
    assert done.status == 2 and "--yes" in done.err and (root / "a_finished").exists()


@pytest.mark.slow
def test_rm_spares_the_rest(call: Call, root: Path) -> None:
    done = call("runs", "rm", "notes", "--yes")
    assert done.status == 2 and "not a run directory" in done.err and (root / "notes").exists()
    (root / "a_finished/mine.txt").write_text("x")
    done = call("runs", "rm", "a_finished", "--yes")
    assert done.status == 2 and "mine.txt" in done.err and (root / "a_finished/info.json").exists()
    done = call("runs", "rm", "b_scored", "nope", "--yes")
    assert done.status == 2 and (root / "b_scored").exists(), "all names are looked up before anything goes"


@pytest.mark.slow
def test_the_beginning_of_a_name_will_do(call: Call, root: Path) -> None:
    assert call("runs", "show", "a_f").out == call("runs", "show", "a_finished").out
    make_run(root / "b_more", scored=False)
    for command in (["runs", "show"], ["evaluate"], ["verify"], ["compare"], ["package"], ["push", "--dry-run"]):
        done = call(*command, "b_")
        assert done.status == 2 and "2 runs in runs begin with 'b_': 'b_more', 'b_scored'" in done.err, command
    assert "there is no run 'notes.'" in call("runs", "show", "notes.").err, "a file is no run"


@pytest.mark.slow
def test_what_nobody_is_asked_about_needs_the_whole_name(call: Call, root: Path) -> None:
    done = call("runs", "rm", "a_f", "--yes")
    assert done.status == 2 and "With --yes the name must be whole: a_finished" in done.err
    done = call("push", "a_f", "--yes")
    assert done.status == 2 and "must be whole" in done.err and (root / "a_finished").is_dir()


@pytest.mark.slow
def test_show_reads_the_run_it_shows_alone(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b_scored", "e_newer"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
        (root / name / "recipe.yaml").mkdir()
    monkeypatch.setattr("hmdc_hub.store.rundir.list_runs", lambda root: pytest.fail("reads all"))
    assert call("runs", "show", "a_finished").status == 0


@pytest.mark.slow
def test_show_an_evaluation(call: Call, root: Path) -> None:
    place = root / "a_finished/evaluations/quick-1a2b3c4d"
    place.mkdir(parents=True)
    shutil.copy(root / "a_finished/scores.json", place)
    done = call("runs", "show", place)
    assert (
        done.status == 0 and f"scores     {place}/scores.json" in done.out and "condensed − initialisation" in done.out
    )
    assert json.loads(call("runs", "show", place, "--json").out)["directory"] == str(place)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80])
def test_ls_on_a_terminal(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("hmdc_hub.cli._output.width", lambda stream: columns)
    (root / "a_finished").rename(root / "cifar10_ipc10-1a2b3c4d1")
    lines = call("runs", "ls").out.splitlines()
    assert all(len(line) <= columns for line in lines) and any("someone/tiny" in line for line in lines)
    if columns == 80:  # without the time, which is the first that can be missed
        assert lines[0].split() == ["NAME", "STATE", "DATE", "SOURCE", "IPC", "SCORE", "GAIN"] and len(lines) == 6
    else:
        assert lines[:2] == ["b_scored", "  state   scored"] and "  time    12:34" in lines
