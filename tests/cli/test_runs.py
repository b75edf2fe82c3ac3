"""`runs`: every state that a run directory can be in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmdc_hub.publish.build import package
from hmdc_hub.schema import FORMAT_VERSION
from tests.builders import make_run
from tests.cli.conftest import Call


@pytest.fixture
def root(folder: Path) -> Path:
    """A folder `runs` with a finished, a scored, an unscored, an unfinished and an unreadable run, and other things."""
    runs = folder / "runs"
    package(make_run(runs / "a_finished"))
    make_run(runs / "b_scored")
    make_run(runs / "c_condensed", scored=False)
    make_run(runs / "d_unfinished").info.unlink()
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
    assert header.split() == ["NAME", "STATE", "SOURCE", "IPC", "SCORE", "OVER", "RANDOM", "TIME"]
    assert [row.split()[:2] for row in rows] == [
        ["a_finished", "finished"],
        ["b_scored", "scored"],
        ["c_condensed", "condensed"],
        ["d_unfinished", "unfinished"],
        ["e_newer", "unreadable"],
    ]
    scores = json.loads((root / "a_finished/scores.json").read_text())
    score, gain = scores["table"]["condensed"]["mean"]["mean"], scores["gain"]["random"]["mean"]["mean"]
    assert rows[0].split()[2:] == ["someone/tiny", "2", f"{100 * score:.1f}", f"{100 * gain:+.1f}", "12:34"]
    assert "e_newer" in done.err and "format version 99" in done.err


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
    assert call("runs", "show", "d_unfinished").out == "run        runs/d_unfinished\nstate      unfinished\n"
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
