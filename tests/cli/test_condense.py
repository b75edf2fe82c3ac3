"""`hmdc-hub condense` on a tiny recipe: the whole job, and every state that a run directory can be in."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hmdc_hub.errors import ModelError
from hmdc_hub.events import Event, ImageStep, Training
from hmdc_hub.pipeline import estimate
from hmdc_hub.pipeline.job import settled
from hmdc_hub.pipeline.progress import LogLines
from hmdc_hub.store.files import read_scores, sha256_file
from hmdc_hub.store.rundir import RunDir
from tests.cli import tiny
from tests.cli.conftest import Call, Done
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import image_folder


@pytest.fixture
def place(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def go(call: Call) -> Call:
    def going(*arguments: str | Path) -> Done:
        done = call("condense", *arguments, "--workers", "1")
        assert "Traceback" not in done.err
        return done

    return going


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and bytes: what "nothing was written" means. A lock file holds a process id."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Stopping(LogLines):
    """Progress that sends this process a signal at a certain event."""

    def __init__(self, kind: type[ImageStep] | type[Training], done: int, number: signal.Signals) -> None:
        super().__init__()
        self.at = kind, done, number

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        kind, done, number = self.at
        if isinstance(event, kind) and event.done == done:
            os.kill(os.getpid(), number)


def stop_at(
    monkeypatch: pytest.MonkeyPatch, kind: type[ImageStep] | type[Training], done: int, number: signal.Signals
) -> None:
    monkeypatch.setattr("hmdc_hub.pipeline.progress.LogLines", lambda verbose: Stopping(kind, done, number))


@pytest.mark.slow
def test_the_whole_job(folder: Path, go: Call, call: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml")
    assert done.status == 0
    run = RunDir(folder / "runs" / "tiny")
    assert run.state() == "finished" and run.preview.read_bytes().startswith(b"\x89PNG")
    assert [line.partition("  ")[0] for line in done.out.splitlines()] == [
        "accuracy", "gain over", "unseen", "verdict", "report", "preview",
    ]  # fmt: skip
    scores = read_scores(run.scores).table
    means = {name: f"{100 * row['mean'].mean:.1f}" for name, row in scores.items()}
    assert f"random {means['random']}, initialisation {means['initialisation']}" in done.out
    for words in (
        f"accuracy   {means['condensed']} ± ",
        "(n = 2)",
        "unseen     none scored, seen",
        "2 seeds are too few",
    ):
        assert words in done.out
    assert "report     runs/tiny/report/report.html (" in done.out and "preview    runs/tiny/preview.png\n" in done.out
    assert "match/" not in done.err and ": loss " in done.err
    details = call("runs", "show", "tiny").out
    for words in ("run        runs/tiny\n", "builtin:digits, 1 per class", "condensed − random", "mlp_a †", "time   "):
        assert words in details
    assert 'load_dataset("runs/tiny/package")' in details
    for words in ("source: builtin:digits", "condense 4/4 (100%)", "evaluate 6/6", "package: runs/tiny/package"):
        assert words in done.err
    assert done.err.endswith("next: hmdc-hub runs show tiny, hmdc-hub push tiny\n")


@pytest.mark.slow
def test_done_already(place: Path, go: Call) -> None:
    before = state_of(place)
    done = go("tiny.yaml")
    assert done.status == 0 and "has it all already" in done.err and "gain over  random" in done.out
    assert "next: hmdc-hub runs show tiny, hmdc-hub push tiny" in done.err
    assert state_of(place) == before


def test_json_is_one_document(place: Path, go: Call) -> None:
    shown = json.loads(go("tiny.yaml", "--json").out)
    assert set(shown) == {"run", "condense_hash", "protocol_hash", "scores", "package", "seconds"}
    assert shown["run"] == "runs/tiny" and shown["package"] == "runs/tiny/package"
    info = json.loads((place / "runs/tiny/info.json").read_text())
    assert shown["condense_hash"] == info["condense_hash"] and shown["seconds"]["condense"] == info["seconds"]
    assert shown["scores"]["table"]["condensed"]["mlp_a"]["n"] == 2 and set(shown["scores"]["gain"]) == {
        "random", "initialisation",
    }  # fmt: skip


@pytest.mark.slow
def test_overrides_have_a_directory_of_their_own(folder: Path, go: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml", "-o", "condense.resets=1", "-o", "evaluate.seeds=1", "--json")
    first = json.loads(done.out)["run"]
    assert first.startswith("runs/tiny-") and len(first) == len("runs/tiny-") + 8
    assert "has it all already" in go("tiny.yaml", "-o", "condense.resets=1", "-o", "evaluate.seeds=1").err
    go("tiny.yaml", "-o", "condense.resets=1", "-o", "evaluate.seeds=1", "-o", "seed=1")
    assert len(list((folder / "runs").iterdir())) == 2


def test_stopped_without_scores_goes_on_without(
    place: Path, folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    tiny.write(folder / "tiny.yaml")
    stop_at(monkeypatch, ImageStep, 3, signal.SIGINT)
    assert go("tiny.yaml", "--no-evaluate").err.endswith("--workers 1 --no-evaluate --resume\n")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_refused_resumed(
    place: Path, folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    monkeypatch.chdir(folder)
    tiny.write(folder / "tiny.yaml")
    stop_at(monkeypatch, ImageStep, 3, number)
    done = go("tiny.yaml", "--run-dir", "here")
    assert done.status == status and done.out == ""
    assert "stopped after image step 3 of 4" in done.err
    assert done.err.endswith("go on with: hmdc-hub condense tiny.yaml --run-dir here --workers 1 --resume\n")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    before = state_of(folder)
    done = go("tiny.yaml", "--run-dir", "here")
    assert done.status == 2 and "here holds an unfinished run" in done.err
    assert "--resume" in done.err and "--force" in done.err and state_of(folder) == before
    done = go("tiny.yaml", "--run-dir", "here", "--resume")
    assert done.status == 0 and "resume: image step 3 of 4" in done.err
    assert done.err.endswith("next: hmdc-hub runs show here, hmdc-hub push here\n")
    for name in ("condensed.safetensors", "train.parquet"):
        assert sha256_file(folder / "here" / name) == sha256_file(place / "runs/tiny" / name)


@pytest.mark.slow
def test_stopped_in_the_evaluation(folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(folder / "tiny.yaml")
    stop_at(monkeypatch, Training, 2, signal.SIGTERM)
    done = go("tiny.yaml")
    assert done.status == 143 and "2 of 6 trainings; they are kept" in done.err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    condensed = (folder / "runs/tiny/condensed.safetensors").stat().st_mtime_ns
    done = go("tiny.yaml")
    assert done.status == 0 and "evaluate 3/6" in done.err and "evaluate 2/6" not in done.err
    assert (folder / "runs/tiny/condensed.safetensors").stat().st_mtime_ns == condensed


def test_a_second_ctrl_c_stops_at_once(folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(LogLines):
        def __call__(self, event: Event) -> None:
            if isinstance(event, ImageStep):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("hmdc_hub.pipeline.progress.LogLines", Impatient)
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml")
    assert done.status == 130 and done.err.endswith("stopped at once\n")


def test_resume_with_nothing_there_starts(folder: Path, go: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    assert go("tiny.yaml", "--resume", "--no-evaluate").status == 0


@pytest.mark.parametrize("flag", [[], ["--resume"]], ids=["plain", "resume"])
def test_a_run_of_another_recipe_is_refused(place: Path, go: Call, flag: list[str]) -> None:
    tiny.write(place / "tiny.yaml", resets="  resets: 1", batch="  batch: 5")
    before = state_of(place)
    done = go("tiny.yaml", *flag)
    assert done.status == 2 and "another recipe" in done.err and state_of(place) == before
    info = json.loads((place / "runs/tiny/info.json").read_text())
    assert info["condense_hash"][:8] in done.err
    assert "condense.resets: 2 there, 1 here" in done.err and "condense.batch: 4 there, 5 here" in done.err
    assert "--run-dir" in done.err and "--force" in done.err


def test_force_starts_again(place: Path, go: Call) -> None:
    tiny.write(place / "tiny.yaml", resets="  resets: 1")
    assert go("tiny.yaml", "--force", "--no-evaluate").status == 0
    assert json.loads((place / "runs/tiny/info.json").read_text())["image_steps"] == 2
    assert not (place / "runs/tiny/scores.json").exists(), "nothing of the old run is left"


def test_force_spares_what_is_not_a_run(place: Path, go: Call) -> None:
    (place / "runs/tiny/thesis.tex").write_text("years of work")
    (place / "photos").mkdir()
    (place / "photos/recipe.yaml").write_text("flour, eggs")
    before = state_of(place)
    done = go("tiny.yaml", "--force")
    assert done.status == 2 and "thesis.tex" in done.err and "nothing was deleted" in done.err
    done = go("tiny.yaml", "--run-dir", "photos", "--force")
    assert done.status == 2 and "not a run directory" in done.err and not (place / "photos/.lock").exists()
    assert state_of(place) == before


def test_a_directory_with_other_files_is_refused(place: Path, go: Call) -> None:
    (place / "photos").mkdir()
    (place / "photos/cat.jpg").write_bytes(b"")
    before = state_of(place)
    done = go("tiny.yaml", "--run-dir", "photos")
    assert done.status == 2 and "not empty and holds no run: cat.jpg" in done.err and "--run-dir" in done.err
    assert state_of(place) == before


def test_a_damaged_stored_recipe(place: Path, go: Call) -> None:
    (place / "runs/tiny/recipe.yaml").write_text("pool: [")
    done = go("tiny.yaml")
    assert done.status == 2 and "cannot go on with" in done.err and "--force" in done.err


@pytest.mark.slow
def test_a_new_protocol_scores_again_and_condenses_nothing(place: Path, go: Call) -> None:
    run = RunDir(place / "runs/tiny")
    old, condensed = run.scores.read_text(), run.condensed.stat().st_mtime_ns
    tiny.write(place / "tiny.yaml", epochs="  epochs: 3")
    done = go("tiny.yaml")
    assert done.status == 0 and "evaluate 6/6" in done.err and "condense 1/" not in done.err
    assert run.condensed.stat().st_mtime_ns == condensed
    new = json.loads(run.scores.read_text())
    assert new["protocol"]["epochs"] == 3 and new["protocol_hash"] != json.loads(old)["protocol_hash"]
    assert json.loads(run.info.read_text())["protocol_hash"] == new["protocol_hash"]
    assert "epochs: 3" in run.recipe.read_text()
    assert (run.package / "ipc1/scores.json").read_text() == run.scores.read_text()
    assert "has it all already" in go("tiny.yaml").err


def test_a_new_publish_section_packages_again_only(place: Path, go: Call) -> None:
    run = RunDir(place / "runs/tiny")
    scores = run.scores.stat().st_mtime_ns
    tiny.write(place / "tiny.yaml", publish="publish: {name: tiny-hmdc, config: one}")
    done = go("tiny.yaml")
    assert done.status == 0 and "package:" in done.err and "evaluate" not in done.err and "source:" not in done.err
    assert run.scores.stat().st_mtime_ns == scores
    assert (run.package / "one").is_dir() and not (run.package / "ipc1").exists()


@pytest.mark.slow
def test_no_evaluate_then_all(folder: Path, go: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml", "--no-evaluate", "--json")
    shown = json.loads(done.out)
    assert shown["scores"] is None and shown["package"] == "runs/tiny/package"
    assert "next: hmdc-hub condense tiny.yaml" in done.err
    assert "has it all already" in go("tiny.yaml", "--no-evaluate").err
    done = go("tiny.yaml")
    assert done.status == 0 and "condense 1/" not in done.err and RunDir(folder / "runs/tiny").state() == "finished"


def test_scores_of_another_protocol_are_not_kept(place: Path, go: Call) -> None:
    tiny.write(place / "tiny.yaml", epochs="  epochs: 3")
    done = go("tiny.yaml", "--no-evaluate", "--json")
    run = RunDir(place / "runs/tiny")
    assert done.status == 0 and json.loads(done.out)["scores"] is None
    assert not run.scores.exists() and not (run.package / "ipc1/scores.json").exists()


def test_another_process_works_there(place: Path, go: Call) -> None:
    with (place / "runs/tiny/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = go("tiny.yaml")
    assert done.status == 2 and "Another process" in done.err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EACCES, "Permission denied"),
        (errno.EROFS, "Read-only"),
        (errno.EFBIG, "File too large"),
    ],
)
def test_a_full_or_closed_disk(
    folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), "runs/tiny/log.jsonl")

    monkeypatch.setattr("hmdc_hub.condenser.condense", fail)
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml")
    assert done.status == 1 and done.err.splitlines()[-2].startswith("error: runs/tiny/log.jsonl: ")
    assert words in done.err and "--resume" in done.err


def test_other_operating_system_errors_are_bugs(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("hmdc_hub.condenser.condense", fail)
    tiny.write(folder / "tiny.yaml")
    done = call("condense", "tiny.yaml")
    assert done.status == 1 and "Traceback" in done.err and "hmdc-hub env" in done.err


def test_places_that_cannot_be_written(folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml", "--run-dir", "tiny.yaml/inside")
    assert done.status == 2 and "is a file" in done.err and "--run-dir" in done.err
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = go("tiny.yaml", "--run-dir", "closed/deep")
    assert done.status == 2 and "no permission to write" in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.yaml"]


def test_a_device_that_is_not_here(folder: Path, go: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml", "--device", "cuda:77")
    assert done.status == 2 and "'cuda:77' is not here" in done.err and "cpu" in done.err and "--device" in done.err


def test_trackers_are_named_and_come_back_in_the_command_that_goes_on(
    folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml", "--report-to", "nope")
    assert done.status == 2 and "nope is no tracker" in done.err and not (folder / "runs").exists()
    stop_at(monkeypatch, ImageStep, 3, signal.SIGINT)
    done = go("tiny.yaml", "--report-to", "tensorboard")
    assert done.err.endswith("--report-to tensorboard --workers 1 --resume\n")
    assert list((folder / "runs/tiny/trackers").rglob("events.*"))


@pytest.mark.slow
def test_dry_run_prints_a_plan_and_writes_nothing(folder: Path, go: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    before = state_of(folder)
    done = go("tiny.yaml", "--dry-run")
    assert done.status == 0
    for words in ("at 8 x 8 pixels", "1438 images of train to condense, 139 to 146 in each of 10 classes",
                  "359 to score on, test", "2: match/mlp_a, match/conv_a", "steps       4",
                  "trainings   6 of 2 epochs", "memory", "condensing", "evaluation", "mlp_a   610"):  # fmt: skip
        assert words in done.out, words
    assert "not known" not in done.out and "measure: matching, " in done.err
    assert done.out.index("trainings") < done.out.index("measured on") < done.out.index("condensing  ")
    shown = json.loads(go("tiny.yaml", "--dry-run", "--json").out)
    assert shown["source"]["train_split"] == "train", "the source is looked up"
    assert shown["condense"]["objectives"] == ["match/mlp_a", "match/conv_a"] and shown["evaluate"]["trainings"] == 6
    assert shown["condense"]["seconds"] > 0 and shown["evaluate"]["seconds"] > 0 and shown["not_measured"] == []
    assert state_of(folder) == before and [path.name for path in folder.iterdir()] == ["tiny.yaml"]


@pytest.mark.slow
def test_what_is_not_measured_in_time_is_said(folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    tiny.write(folder / "tiny.yaml", models="  models: [mlp, resnet_narrow]")
    done = go("tiny.yaml", "--dry-run")
    assert done.status == 0 and "trainings   12 of 2 epochs" in done.out
    last = " ".join(done.out.split("\nnot known   ")[1].split())
    assert last.endswith("evaluation of mlp, evaluation of resnet_narrow: 0 s are over")
    shown = json.loads(go("tiny.yaml", "--dry-run", "--json").out)
    assert shown["condense"]["seconds"] is None and "evaluation of resnet_narrow" in shown["not_measured"]
    assert shown["condense"]["image_steps"] == 4


def test_a_dry_run_reads_no_image(folder: Path, go: Call) -> None:
    image_folder(folder / "set", {"train": {"a": 3, "b": 2}, "test": {"a": 1, "b": 1}})
    (folder / "set/train/a/0.png").write_bytes(b"no image")
    tiny.write(folder / "tiny.yaml", source="source: {id: set, size: 8, channels: 1}")
    done = go("tiny.yaml", "--dry-run")
    assert done.status == 0 and "5 images of train to condense, 2 to 3 in each of 2 classes" in done.out
    assert "condensing  " in done.out and "not known" not in done.out


@pytest.mark.slow
def test_a_probe_that_dies_or_refuses(folder: Path, go: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(folder / "tiny.yaml")
    monkeypatch.setattr(estimate, "measure", _dies)
    done = go("tiny.yaml", "--dry-run")
    assert done.status == 0 and done.out.endswith("was there too little memory?\n")
    monkeypatch.setattr(estimate, "measure", _refuses)
    done = go("tiny.yaml", "--dry-run")
    assert done.status == 2 and done.err.endswith("error: no such thing\nTake another.\n")


def _dies(end: Connection) -> None:
    end.recv()
    os._exit(9)


def _refuses(end: Connection) -> None:
    end.recv()
    end.send(None)
    end.send(ModelError("no such thing", hint="Take another."))


@pytest.mark.slow
def test_a_plan_for_several_ranks(folder: Path, go: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    done = go("tiny.yaml", "--dry-run", "--ranks", "3", "-o", "condense.networks.accumulation_steps=2")
    assert done.status == 0, done.err
    for words in ("ranks       3, each on a device like this one", "received by each in an image step", "operations"):
        assert words in done.out, words
    wrong = go("tiny.yaml", "--ranks", "3")
    assert wrong.status == 2 and "torchrun --nproc-per-node 3 -m hmdc_hub condense" in wrong.err
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]


def test_open_fields_of_a_source_come_from_the_run_that_goes_on(place: Path) -> None:
    from hmdc_hub.catalog import load_recipe, read_recipe_file

    stored = read_recipe_file(place / "runs/tiny/recipe.yaml")
    assert stored.source.train_split == "train" and load_recipe("tiny.yaml").source.train_split is None
    moved = stored.model_copy(update={"source": stored.source.model_copy(update={"revision": "a" * 40})})
    assert settled(load_recipe("tiny.yaml"), moved).source.revision == "a" * 40


@pytest.mark.slow
def test_a_run_that_is_listed_as_unfinished_goes_on_as_that_says(
    folder: Path, go: Call, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(folder / "tiny.yaml")
    with monkeypatch.context() as patch:
        stop_at(patch, ImageStep, 3, signal.SIGINT)
        assert go("tiny.yaml", "-o", "seed=1", "--run-dir", "runs/mine").status == 130
    said = call("runs", "ls").err
    assert "runs/mine: step 3 of 4, just now\n" in said
    command = shlex.split(said.partition("go on with: ")[2].splitlines()[0])
    done = call(*command[1:], "-v", "--workers", "1")
    assert done.status == 0 and "resume: image step 3 of 4" in done.err and "clamped" in done.err
    assert RunDir(folder / "runs/mine").state() == "finished"
