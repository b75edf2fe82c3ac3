"""What TARGET means, and `evaluate PACKAGE --run-dir D`: the set comes into D whole or not at all, whatever happens."""

from __future__ import annotations

import fcntl
import re
import shutil
import sys
from pathlib import Path

import pytest

from hmdc_hub.cli._output import present
from hmdc_hub.errors import FormatError, HmdcError, NotFoundError, RunExistsError, UsageError
from hmdc_hub.pipeline.target import Target, adopt, find_run, find_target
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.rundir import RunDir
from tests.killing import KILLED, Ended, Fault, forked

FILES = ("train.parquet", "condensed.safetensors", "recipe.yaml", "info.json")


@pytest.fixture
def published(sound_package: Path) -> Path:
    return sound_package


def into(published: Path, place: Path) -> RunDir:
    run = RunDir(place)
    adopt(*Target("package", published).open(), run)
    return run


def trial(published: Path, place: Path, fault: Fault = "none", at: int = 0) -> Ended:
    def work() -> int:
        try:
            into(published, place)
        except HmdcError as error:
            return present(error)
        return 0

    return forked(work, place, fault, at)


def whole(published: Path, place: Path) -> bool:
    wanted = next(published.glob("*/info.json")).parent
    same = all(
        (place / name).read_bytes() == (wanted / name).read_bytes() for name in ("info.json", "condensed.safetensors")
    )
    left = {path.name for path in place.iterdir()} == {*FILES, ".lock"}
    return same and left and RunDir(place).finished and RunDir(place).recipe.is_file()


@pytest.mark.parametrize(
    ("text", "kind", "path", "config"),
    [
        ("mine", "run", "runs/mine", None),  # not the folder of that name, in which nothing is ours
        ("runs/mine/scores.json", "run", "runs/mine", None),
        ("runs/mine/evaluations/quick-1a2b3c4d", "evaluation", "runs/mine/evaluations/quick-1a2b3c4d", None),
        ("pulled", "package", "pulled", None),
        ("pulled:ipc1", "package", "pulled", "ipc1"),
        ("pulled/ipc1", "package", "pulled", "ipc1"),
        ("pulled/ipc1/scores.json", "package", "pulled", "ipc1"),
        ("notes.txt", "file", "notes.txt", None),
        ("notes", "folder", "notes", None),
        ("someone/mine", "hub", "someone/mine", None),
        ("someone/mine:ipc1", "hub", "someone/mine", "ipc1"),
    ],
)
def test_what_a_text_means(
    text: str, kind: str, path: str, config: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine/x", "notes/x", "notes.txt", "runs/mine/info.json", "runs/mine/scores.json",
                 "runs/mine/evaluations/quick-1a2b3c4d/scores.json", "pulled/ipc1/manifest.json",
                 "pulled/ipc1/scores.json", "pulled/ipc1/info.json"):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    assert find_target(text, Path("runs")) == (kind, Path(path), config)
    long = 300 * "x"
    for wrong in ("nope", "./nope", "a//b", "runs/mine/nope.json", "mine:x", "../someone/mine", long, f"{long}:x"):
        with pytest.raises(NotFoundError, match=re.escape(f"there is no run {wrong!r} in runs and no folder")):
            find_target(wrong, Path("runs"))
        with pytest.raises(NotFoundError, match=re.escape(f"there is no run {wrong!r} in runs")):
            find_run(wrong, Path("runs"))
    monkeypatch.chdir("pulled/ipc1")
    assert find_target(".", Path("runs")) == ("package", tmp_path / "pulled", "ipc1")


def test_the_beginning_of_the_name_of_one_run(tmp_path: Path) -> None:
    for name in ("digits_ipc1", "digits_ipc10", "cifar"):
        (tmp_path / name).mkdir()
        for file in ("recipe.yaml", "info.json"):
            (tmp_path / name / file).write_text("x")
    (tmp_path / "cifar.notes").mkdir()  # is no run
    for name, meant in (("c", "cifar"), ("digits_ipc1", "digits_ipc1"), ("digits_ipc10", "digits_ipc10")):
        assert find_run(name, tmp_path) == tmp_path / meant
        assert find_target(name, tmp_path) == ("run", tmp_path / meant, None)
    assert find_run("cifar", tmp_path, whole=True) == tmp_path / "cifar"
    for find in (find_run, find_target):
        with pytest.raises(UsageError, match="2 runs in .* begin with 'dig': 'digits_ipc1', 'digits_ipc10'"):
            find("dig", tmp_path)
    with pytest.raises(NotFoundError, match="there is no run 'ci'") as caught:
        find_run("ci", tmp_path, whole=True)
    assert caught.value.hint == "With --yes the name must be whole: cifar"


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        (Target("run", Path("x")), ("config", "revision", "run_dir")),
        (Target("package", Path("x")), ("revision",)),
        (Target("package", Path("x"), "ipc1"), ("config", "revision")),
        (Target("hub", Path("a/x")), ()),
        (Target("hub", Path("a/x"), "ipc1"), ("config",)),
    ],
)
def test_options_that_do_not_apply(target: Target, refused: tuple[str, ...]) -> None:
    target.refuse(config=None, revision=None, run_dir=None)
    for name in ("config", "revision", "run_dir"):
        if name in refused:
            with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} does not apply to it") as caught:
                target.refuse(**{name: "y"})
            assert caught.value.hint == "Leave it out."
        else:
            target.refuse(**{name: "y"})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc and forks")
@pytest.mark.parametrize("fault", ["kill", "full"])
def test_whatever_happens_at_any_file_operation_the_next_try_finishes(
    published: Path, tmp_path: Path, fault: Fault
) -> None:
    """The first operations leave an empty directory, and one with a lock file."""
    operations = trial(published, tmp_path / "0").operations
    assert len(operations) > 15 and sum("rename" in name for name in operations) == 4
    refused = 0
    for at, operation in enumerate(operations, start=1):
        place = tmp_path / str(at)
        first = trial(published, place, fault, at)
        assert "Traceback" not in first.said and "bug" not in first.said, first.said
        if fault == "kill":
            assert first.status == KILLED
        elif first.status != 0:
            refused += 1
            assert "space" in first.said and "run the same command again" in first.said, first.said
        into(published, place)
        assert whole(published, place), operation
    assert fault == "kill" or refused > 10


@pytest.mark.slow
def test_what_is_not_exactly_a_part_of_the_set_is_in_the_way(published: Path, tmp_path: Path) -> None:
    whole_run = into(published, tmp_path / "whole")
    for name, data in {
        "notes.txt": b"mine",
        "train.parquet": whole_run.parquet.read_bytes()[:-1],
        "recipe.yaml": b"seed: 1\n",
        ".hidden": b"",
    }.items():
        place = tmp_path / f"d{name}"
        place.mkdir()
        (place / name).write_bytes(data)
        with pytest.raises(RunExistsError, match="is not empty") as caught:
            into(published, place)
        assert "--run-dir" in caught.value.hint and name in caught.value.message
        assert [path.name for path in place.iterdir()] == [name] and (place / name).read_bytes() == data
    (tmp_path / "folder" / "train.parquet").mkdir(parents=True)
    with pytest.raises(RunExistsError, match="is not empty"):
        into(published, tmp_path / "folder")


def test_a_damaged_package_leaves_nothing(published: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    tensors = next(copy.glob("*/condensed.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(FormatError, match=r"condensed.safetensors is damaged"):
        into(copy, tmp_path / "d")
    tensors.unlink()
    with pytest.raises(NotFoundError, match=r"has no \S+/condensed.safetensors"):
        into(copy, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_two_at_once(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "d")
    run.path.mkdir()
    with run.lock_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunExistsError, match="Another process"):
            into(published, run.path)
    assert list(run.path.iterdir()) == [run.lock_file]

    seen: list[int] = []

    def meanwhile(file: Path) -> str:
        if not seen:
            seen.append(0)
            into(published, run.path)
            seen[0] = run.info.stat().st_ino
        return sha256_file(file)

    monkeypatch.setattr("hmdc_hub.pipeline.target.sha256_file", meanwhile)
    into(published, run.path)
    assert whole(published, run.path) and run.info.stat().st_ino == seen[0], "written once"
