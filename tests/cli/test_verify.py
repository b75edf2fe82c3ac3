"""Runs of every kind of source, made with the real command: `verify` passes for what is sound and for nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.schema import sealed
from hmdc_hub.store.files import read_confusion, read_info, read_scores, write_confusion
from hmdc_hub.store.rundir import RunDir
from tests.cli import tiny
from tests.cli.conftest import Call, Done
from tests.hub import LocalHub
from tests.publish.pushing import prepare
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import cells, image_folder, picture, png, write_parquet

COUNTS = {"train": {"ant": 6, "bee": 6}, "test": {"ant": 3, "bee": 3}}
TYPES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}


def columns(split: str) -> dict[str, list[Any]]:
    labels = [label for label, count in enumerate(COUNTS[split].values()) for _ in range(count)]
    first = 0 if split == "train" else 100
    return {"image": cells([png(first + 20 * label + k) for k, label in enumerate(labels)]), "label": labels}


def folder_of_images(root: Path) -> str:
    image_folder(root / "pics", COUNTS)
    return "pics"


def absolute_folder(root: Path) -> str:
    return str(root / folder_of_images(root))


def parquet_file(root: Path) -> str:
    whole = [columns(split) for split in COUNTS]
    first = {name: [whole[0][name][k // 2 + 6 * (k % 2)] for k in range(12)] for name in TYPES}
    write_parquet(root / "rows.parquet", {name: first[name] + whole[1][name] for name in TYPES}, TYPES)
    return "rows.parquet"


def parquet_folder(root: Path) -> str:
    for split in COUNTS:
        write_parquet(root / "rows" / "data" / f"{split}-00000-of-00001.parquet", columns(split), TYPES)
    return "./rows"


def folder_with_metadata(root: Path) -> str:
    for split, classes in COUNTS.items():
        (root / "listed" / split).mkdir(parents=True)
        lines = ["file_name,label"]
        for c, (name, count) in enumerate(classes.items()):
            for k in range(count):
                picture(40 * c + k + 100 * (split == "test")).save(root / "listed" / split / f"{name}{k}.png")
                lines.append(f"{name}{k}.png,{name}")
        (root / "listed" / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return "listed"


def saved_to_disk(root: Path) -> str:
    made = {split: datasets.Dataset.from_dict(columns(split), datasets.Features(TYPES)) for split in COUNTS}
    datasets.DatasetDict(made).save_to_disk(str(root / "saved"))
    return "saved"


SOURCES: Mapping[str, Callable[[Path], str]] = {
    "builtin": lambda root: "builtin:digits",
    "folder, relative": folder_of_images,
    "folder, absolute": absolute_folder,
    "parquet file": parquet_file,
    "parquet folder": parquet_folder,
    "metadata.csv": folder_with_metadata,
    "save_to_disk": saved_to_disk,
}


def condensed(call: Call, root: Path, source: str, name: str = "tiny") -> RunDir:
    """Condense, score and package a source of two or more classes."""
    slices = ['train_split: "train[:12]"', 'test_split: "train[12:]"'] if source.endswith(".parquet") else []
    keys = [f'id: "{source}"', "size: 8", "channels: 1", *slices]
    tiny.write(root / f"{name}.yaml", source=f"source: {{{', '.join(keys)}}}")
    done = call("condense", f"{name}.yaml", "--workers", "1")
    assert done.status == 0, done.err
    return RunDir(Path("runs") / name)


def checks(done: Done) -> dict[str, str]:
    """What failed, by check, of `verify --json`."""
    return {one["check"]: one["detail"] for one in json.loads(done.out)["checks"] if not one["ok"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_a_fresh_set_is_in_order_here_and_everywhere(
    call: Call, hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", prepare(hub))
    run = condensed(call, folder, SOURCES[kind](folder))
    assert call("push", "tiny", "--yes").status == 0
    assert call("pull", "ann/tiny-hmdc").status == 0
    for target in ("tiny", run.package, "ann/tiny-hmdc", "tiny-hmdc"):
        done = call("verify", target)
        assert done.status == 0 and "FAIL" not in done.out, done.out
    assert call("condense", "tiny.yaml").err.startswith("runs/tiny has it all already")


@pytest.mark.slow
def test_who_has_the_data_where_is_no_part_of_the_experiment(call: Call, folder: Path) -> None:
    first = condensed(call, folder, folder_of_images(folder), "first")
    shutil.copytree(folder / "pics", folder / "elsewhere" / "photos")
    second = condensed(call, folder, str(folder / "elsewhere" / "photos"), "second")
    hashes = [read_scores(run.scores).family_hash for run in (first, second)]
    published = read_scores(second.package / "ipc1" / "scores.json").family_hash
    assert hashes == [published, published] != [read_recipe_file(run.recipe).family_hash() for run in (first, second)]
    assert read_info(first.info).condense_hash != read_info(second.info).condense_hash
    (folder / "pics" / "train" / "ant" / "0.png").unlink()
    other = condensed(call, folder, "pics", "other")
    assert read_scores(other.scores).family_hash != published


def without_checksum(path: Path, **changes: Any) -> None:
    """Make a JSON file as an older program wrote it."""
    plain = json.loads(path.read_text()) | changes
    del plain["checksum"]
    path.write_text(json.dumps(plain))


@pytest.mark.slow
def test_an_older_packages_family_hash_of_a_path_is_no_damage(call: Call, folder: Path) -> None:
    run = condensed(call, folder, folder_of_images(folder))
    path_hash = read_recipe_file(run.recipe).family_hash()
    published = read_scores(run.scores).family_hash
    without_checksum(run.scores, family_hash=path_hash)
    assert call("verify", "tiny").status == 0
    # Packaged again, it is the hash that others can compute.
    assert call("package", "tiny").status == 0
    assert read_scores(run.package / "ipc1" / "scores.json").family_hash == published
    assert call("verify", run.package).status == 0 and run.state() == "finished"
    without_checksum(run.package / "ipc1" / "scores.json", family_hash="0" * 64)
    assert "scores" not in checks(call("verify", run.package, "--json"))
    # One that can be computed is.
    scores = json.loads((run.package / "ipc1" / "scores.json").read_text())
    (run.package / "ipc1" / "scores.json").write_text(json.dumps(sealed(scores)))
    assert "family hash" in checks(call("verify", run.package, "--json"))["scores"]


@pytest.fixture
def run(finished_run: Path, folder: Path) -> RunDir:
    shutil.copytree(finished_run, folder, dirs_exist_ok=True)
    return RunDir(Path("runs") / "tiny")


def flip(path: Path, place: int = -40) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.slow
def test_verify_looks_at_the_runs_own_files(call: Call, run: RunDir) -> None:
    assert call("verify", "tiny").status == 0
    damage: Mapping[str, Callable[[], None]] = {
        "initialisation": lambda: flip(run.initialisation),
        "trainings": lambda: edit(run.cells, '"accuracy": 0.', '"accuracy": 0.1'),
        "tensors": lambda: flip(run.condensed),
        "images": lambda: flip(run.parquet, 200),
        "provenance": lambda: edit(run.info, '"seed": 0', '"seed": 1'),
        "scores": lambda: edit(run.scores, '"device": "', '"device": "x'),
        "recipe": lambda: edit(run.recipe, "license: cc-by-4.0", "license: cc-by-3.0"),
    }
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    for check, break_it in damage.items():
        break_it()
        done = call("verify", "tiny", "--json")
        assert done.status == 1 and check in checks(done), (check, done.out)
        assert "hmdc-hub" in done.err or "rm runs" in done.err or "last line" in done.err
        assert call("verify", run.package).status == 0
        for path, data in before.items():
            path.write_bytes(data)
    matrices = read_confusion(run.confusion)
    first = next(iter(matrices))
    write_confusion(run.confusion, matrices | {first: matrices[first][:, ::-1]})
    assert "confusion.safetensors" in checks(call("verify", "tiny", "--json"))["scores"]
    run.confusion.write_bytes(before[run.confusion])
    flip(run.package / "ipc1" / "condensed.safetensors")
    done = call("verify", "tiny")
    assert done.status == 1 and "hmdc-hub package runs/tiny" in done.err
    assert call("package", "runs/tiny").status == 0 and call("verify", "tiny").status == 0


@pytest.mark.slow
def test_verify_looks_at_evaluations_by_other_protocols(call: Call, run: RunDir) -> None:
    assert call("evaluate", "tiny", "--seeds", "1", "--baselines", "random", "--workers", "1").status == 0
    assert call("verify", "tiny").status == 0
    (scores,) = run.evaluations.glob("*/scores.json")
    plain = json.loads(scores.read_text())
    plain["table"]["condensed"]["mean"]["mean"] += 0.25
    scores.write_text(json.dumps(sealed(plain)))
    done = call("verify", "tiny", "--json")
    failed = [one["config"] for one in json.loads(done.out)["checks"] if not one["ok"]]
    assert done.status == 1 and failed == [f"evaluations/{scores.parent.name}"]


def test_a_run_that_is_not_done_and_options_that_do_not_go(call: Call, run: RunDir, folder: Path) -> None:
    done = call("verify", "tiny", "--config", "ipc1")
    assert done.status == 2 and "--config" in done.err
    run.info.unlink()
    done = call("verify", "tiny")
    assert done.status == 2 and "not completely condensed" in done.err and "--resume" in done.err


@pytest.mark.slow
def test_nothing_that_is_wrong_is_packaged_or_pushed(
    call: Call, hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", prepare(hub))
    scores = run.scores.read_text()
    plain = json.loads(scores)
    plain["table"]["condensed"]["mlp_a"]["mean"] += 0.001
    for text, step in (
        (scores.replace('"ece": 0.', '"ece": 0.1', 1), "hmdc-hub evaluate runs/tiny"),
        (json.dumps(sealed(plain)), "hmdc-hub evaluate runs/tiny --fresh"),
    ):
        assert text != scores
        run.scores.write_text(text)
        shutil.rmtree(run.package)
        for arguments in (("package", "tiny"), ("push", "tiny", "--yes")):
            done = call(*arguments)
            assert done.status == 1 and f"`{step}`" in done.err and "Traceback" not in done.err, done.err
        assert not run.package.exists() and not hub.exists("ann/tiny-hmdc")
        assert call(*step.split()[1:], "--workers", "1").status == 0
        assert run.scores.read_text() == scores and call("push", "tiny", "--dry-run").status == 0


@pytest.mark.slow
def test_a_finished_run_does_not_recommend_a_damaged_package(call: Call, run: RunDir) -> None:
    good = {path: path.read_bytes() for path in run.package.rglob("*") if path.is_file()}
    for path in good:
        flip(path)
        done = call("condense", "tiny.yaml")
        assert done.status == 0 and "has it all already" not in done.err and "hmdc-hub push tiny" in done.err, path
        assert path.read_bytes() == good[path]
    assert "has it all already" in call("condense", "tiny.yaml").err
    # What is packaged was wrong before: it is not recommended, and the step works.
    plain = json.loads(run.scores.read_text())
    plain["table"]["condensed"]["mlp_a"]["mean"] += 0.001
    for path in (run.scores, run.package / "ipc1" / "scores.json"):
        path.write_text(json.dumps(sealed(plain)))
    done = call("condense", "tiny.yaml")
    assert done.status == 1 and "hmdc-hub push" not in done.err and "evaluate runs/tiny --fresh" in done.err


def test_a_changed_recipe_of_a_run_is_noticed_and_may_be_meant(call: Call, run: RunDir) -> None:
    edit(run.recipe, "license: cc-by-4.0", "license: mit")
    for arguments in (("package", "tiny"), ("condense", "tiny.yaml"), ("evaluate", "tiny")):
        done = call(*arguments)
        assert done.status in (1, 2) and "checksum" in done.err and "Traceback" not in done.err, done.err
    done = call("package", "tiny")
    assert "delete its last line" in done.err
    run.recipe.write_text("".join(run.recipe.read_text().splitlines(keepends=True)[:-1]))
    assert call("package", "tiny").status == 0
    assert "license: mit" in (run.package / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_start_that_cannot_be_trusted_is_made_again(call: Call, run: RunDir, old: bool) -> None:
    start, scores = run.initialisation.read_bytes(), run.scores.read_bytes()
    log = run.log.read_bytes()
    if old:
        run.initialisation.write_bytes(start.replace(b"sha256", b"xha256"))
        edit_header(run.initialisation)
    else:
        flip(run.initialisation)
    run.scores.unlink()
    run.cells.unlink()
    done = call("condense", "tiny.yaml", "--workers", "1")
    assert done.status == 0, done.err
    assert ("older program" if old else "checksum is another") in done.err and "made again" in done.err
    assert (run.initialisation.read_bytes(), run.scores.read_bytes(), run.log.read_bytes()) == (start, scores, log)
    assert not [path for path in run.path.iterdir() if path.name.startswith(".start")]


def edit_header(path: Path) -> None:
    """Write a set without a checksum, as older programs did."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hmdc"])
    save_file(load_file(path), path, metadata={"hmdc": json.dumps({k: header[k] for k in header if k != "xha256"})})


@pytest.mark.slow
def test_other_images_than_those_of_info_json_are_not_scored(call: Call, run: RunDir) -> None:
    flip(run.parquet, 200)
    done = call("evaluate", "tiny", "--seeds", "1", "--workers", "1")
    assert done.status == 1 and "--resume" in done.err and not run.evaluations.exists()
    assert (
        call("condense", "tiny.yaml", "--resume", "--workers", "1").status == 0 and call("verify", "tiny").status == 0
    )
