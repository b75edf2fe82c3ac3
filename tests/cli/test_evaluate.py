"""`hmdc-hub evaluate` by other protocols than the recipe's, and on sets of other programs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hmdc_hub.sources import load_source
from hmdc_hub.store.files import read_scores
from hmdc_hub.store.rundir import RunDir
from tests.cli import tiny
from tests.cli.conftest import Call, Done

WORD = "condense"


@pytest.fixture
def tiny_run(call: Call, folder: Path) -> RunDir:
    tiny.write(folder / "tiny.yaml")
    done = call("condense", "tiny.yaml", "--workers", "1")
    assert done.status == 0, done.err
    return RunDir(folder / "runs" / "tiny")


def only(run: RunDir) -> RunDir:
    (path,) = run.evaluations.iterdir()
    return RunDir(path)


def refused(done: Done, *words: str) -> None:
    assert done.status == 2 and done.out == "", done
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


@pytest.mark.slow
def test_a_run_leaves_a_report(tiny_run: RunDir) -> None:
    names = {path.name for path in tiny_run.report.iterdir()}
    assert names >= {"report.html", "scores.png", "scores.svg", "scores.csv", "cells.csv", "scores.md"}
    assert tiny_run.confusion.is_file()


@pytest.mark.slow
def test_another_protocol_has_a_directory_of_its_own(call: Call, tiny_run: RunDir) -> None:
    before = {path: path.read_bytes() for path in (tiny_run.scores, tiny_run.recipe, tiny_run.info)}
    done = call("evaluate", "tiny", "--protocol", "quick", "-o", "evaluate.epochs=3", "--workers", "1")
    assert done.status == 0, done.err
    where = only(tiny_run)
    scores = read_scores(where.scores)
    assert where.path.name == f"quick-{scores.protocol_hash[:8]}"
    assert (scores.protocol.schedule, scores.protocol.epochs, scores.protocol.seeds) == ("cosine", 3, 2)
    assert scores.protocol.augment == read_scores(tiny_run.scores).protocol.augment  # the dataset's, not the protocol's
    assert f"runs/tiny/evaluations/{where.path.name}/report/report.html" in done.out
    assert done.err.endswith(f"next: hmdc-hub runs show runs/tiny/evaluations/{where.path.name}\n")
    assert "cosine" in call("runs", "show", f"runs/tiny/evaluations/{where.path.name}").out
    assert (where.report / "report.html").is_file()
    assert {path: path.read_bytes() for path in before} == before
    again = call("evaluate", "tiny", "--protocol", "quick", "-o", "evaluate.epochs=3", "--workers", "1")
    assert again.out == done.out and "evaluate 1/" not in again.err  # nothing is trained again


@pytest.mark.slow
def test_soft_labels_are_a_table_of_their_own(call: Call, tiny_run: RunDir) -> None:
    asked = ("-o", "evaluate.soft_labels.teacher=same", "--baselines", "random,full", "-o", "evaluate.full_epochs=1")
    done = call("evaluate", "tiny", *asked, "--workers", "2")
    assert done.status == 0, done.err
    where = only(tiny_run)
    scores = read_scores(where.scores)
    soft = scores.soft_labels
    assert soft is not None and set(soft.teachers) == {model.name for model in scores.protocol.models}
    assert set(soft.table) == {"condensed", "random"} and {cell.training_set for cell in soft.cells} < set(scores.table)
    shown = call("runs", "show", str(where.path)).out
    assert "hard labels" in shown and "LRS" in shown and "ARS" in shown
    assert "Soft labels (teacher" in (where.report / "scores.md").read_text("utf-8")
    # Beside them the headline is what it is without: the same trainings on hard labels.
    assert call("evaluate", "tiny", *asked[2:], "--workers", "1").status == 0
    (other,) = set(tiny_run.evaluations.iterdir()) - {where.path}
    assert read_scores(RunDir(other).scores).table == scores.table
    refused(call("evaluate", "tiny", "-o", "evaluate.soft_labels.teacher=vit"), "none, same or one of evaluate.models")


@pytest.mark.slow
def test_a_full_disk_by_another_protocol(call: Call, tiny_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hmdc_hub.evaluator.result_log.ResultLog.add", full)
    for share in ([], ["--share", "1/2"]):
        done = call("evaluate", "tiny", "-o", "evaluate.epochs=3", "--workers", "1", *share)
        assert done.status == 1 and "Traceback" not in done.err
        assert "No space left on device; what the run had written before is unchanged" in done.err


@pytest.mark.slow
def test_models_seeds_and_baselines_of_the_command_line(call: Call, tiny_run: RunDir) -> None:
    done = call(
        "evaluate", "tiny", "--models", "mlp, convnet3_narrow", "--seeds", "1", "--baselines", "herding,exact",
        "--workers", "1", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    document = json.loads(done.out)
    assert list(document["table"]) == ["condensed", "herding", "exact"]
    assert list(document["table"]["exact"]) == ["mlp", "convnet3_narrow", "mean"]
    assert document["table"]["exact"]["mean"]["n"] == 1
    name = only(tiny_run).path.name
    assert document["directory"] == f"runs/tiny/evaluations/{name}" and name.startswith("custom-")


@pytest.mark.slow
def test_no_baselines_at_all(call: Call, tiny_run: RunDir) -> None:
    assert call("evaluate", "tiny", "--baselines", "", "--workers", "1").status == 0
    assert list(read_scores(only(tiny_run).scores).table) == ["condensed"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["keys", "recipe", "scores"])
def test_a_protocol_is_a_few_keys_a_recipe_or_scores(call: Call, folder: Path, tiny_run: RunDir, form: str) -> None:
    if form == "keys":
        (folder / "mine.yaml").write_text("epochs: 3\naugment: {flip: false}\n")
        name = "mine.yaml"
    else:
        tiny.write(folder / "other.yaml", epochs="  epochs: 3")
        name = "other.yaml"
        if form == "scores":
            assert call("condense", "other.yaml", "--workers", "1").status == 0
            name = "runs/other/scores.json"
    done = call("evaluate", "tiny", "--protocol", name, "--workers", "1")
    assert done.status == 0, done.err
    scores = read_scores(only(tiny_run).scores)
    assert scores.protocol.epochs == 3 and scores.protocol.seeds == 2
    assert scores.protocol.augment.flip is (form != "keys")
    label = {"keys": "mine", "recipe": "other", "scores": "other"}[form]
    assert only(tiny_run).path.name.startswith(f"{label}-")


@pytest.mark.slow
def test_the_own_protocol_by_another_name_is_the_own(call: Call, tiny_run: RunDir) -> None:
    done = call("evaluate", "tiny", "--protocol", "tiny.yaml", "--workers", "1")
    assert done.status == 0 and not tiny_run.evaluations.exists()
    assert "report     runs/tiny/report/report.html" in done.out


@pytest.mark.slow
def test_settings_are_chosen_on_a_part_of_the_train_split(call: Call, tiny_run: RunDir) -> None:
    done = call("evaluate", "tiny", "--tune-split", "0.1", "--workers", "1")
    assert done.status == 0, done.err
    scores = read_scores(only(tiny_run).scores)
    info = json.loads(tiny_run.info.read_text())["source"]
    assert scores.protocol.holdout == 0.1
    assert scores.test_count == sum(round(0.1 * count) for count in info["train_counts"])
    assert f"{scores.test_count} held-out train images" in " ".join(done.out.split())


@pytest.mark.slow
def test_held_out_scores_are_not_published(call: Call, folder: Path) -> None:
    tiny.write(folder / "tiny.yaml", epochs="  epochs: 2\n  holdout: 0.1")
    done = call("condense", "tiny.yaml", "--workers", "1")
    refused(done, "held-out images", "evaluate.holdout=null")


@pytest.mark.slow
def test_fresh_removes_nothing_before_it_can_work(call: Call, tiny_run: RunDir) -> None:
    before = tiny_run.scores.read_bytes(), tiny_run.cells.read_bytes()
    assert call("evaluate", "tiny", "--fresh", "--device", "cuda:7").status == 2
    assert (tiny_run.scores.read_bytes(), tiny_run.cells.read_bytes()) == before


@pytest.mark.slow
def test_lost_confusions_are_counted_again(call: Call, tiny_run: RunDir) -> None:
    assert call("evaluate", "tiny", "--seeds", "1", "--workers", "1").status == 0
    where = only(tiny_run)
    before = where.confusion.read_bytes()
    where.confusion.unlink()
    done = call("evaluate", "tiny", "--seeds", "1", "--workers", "1")
    assert done.status == 0 and "3 of 3 trainings were done before" in done.err
    assert where.confusion.read_bytes() == before


@pytest.mark.slow
def test_a_protocol_file_names_models_beside_it(call: Call, folder: Path, tiny_run: RunDir) -> None:
    (folder / "there").mkdir()
    (folder / "there/mine.yaml").write_text("{source: builtin, id: mlp, args: {depth: 1, width: 4}}")
    (folder / "there/p.yaml").write_text("models: [./mine.yaml]\n")
    assert call("evaluate", "tiny", "--protocol", "there/p.yaml", "--workers", "1").status == 0
    assert [model.name for model in read_scores(only(tiny_run).scores).protocol.models] == ["mine"]


@pytest.mark.slow
def test_what_a_protocol_says_of_all_models_is_stored_with_each_and_can_be_taken_back(call: Call, folder: Path) -> None:
    tiny.write(folder / "tiny.yaml", epochs="  epochs: 2\n  lr: 0.5\n  resolution: 16")
    assert call("condense", "tiny.yaml", "--workers", "1").status == 0
    run = RunDir(folder / "runs/tiny")
    model = read_scores(run.scores).protocol.models[0]
    assert (model.lr.evaluate, model.input_size) == (0.5, 16)
    keys = ["-o", "evaluate.lr=null", "-o", "evaluate.resolution=null"]
    assert call("evaluate", "tiny", *keys, "--workers", "1").status == 0
    model = read_scores(only(run).scores).protocol.models[0]
    assert (model.lr.evaluate, model.input_size) == (0.01, None)


@pytest.mark.slow
def test_fresh_trains_again_to_the_same_bytes(call: Call, tiny_run: RunDir) -> None:
    before = tiny_run.scores.read_bytes()
    done = call("evaluate", "tiny", "--fresh", "--workers", "1")
    assert done.status == 0 and "evaluate 6/6" in done.err
    assert tiny_run.scores.read_bytes() == before


@pytest.mark.slow
def test_shares_are_put_together(call: Call, tiny_run: RunDir) -> None:
    before = tiny_run.scores.read_bytes()
    for path in (tiny_run.scores, tiny_run.cells):
        path.unlink()
    for share in ("1/2", "2/2"):
        done = call("evaluate", "tiny", "--share", share, "--workers", "1")
        assert done.status == 0 and f"share {share} of the trainings is done" in done.err and done.out == ""
    done = call("evaluate", "tiny", "--workers", "1")
    assert "6 of 6 trainings were done before" in done.err and tiny_run.scores.read_bytes() == before
    assert call("runs", "rm", "tiny", "--yes").status == 0


@pytest.mark.slow
def test_the_best_of_many_looks_is_labelled(call: Call, tiny_run: RunDir) -> None:
    done = call("evaluate", "tiny", "-o", "evaluate.best_every=1", "--workers", "1")
    assert done.status == 0
    words = " ".join(call("runs", "show", str(only(tiny_run).path)).out.split())
    assert "best of many looks at the test images, not comparable" in words
    assert all(cell.best is not None for cell in read_scores(only(tiny_run).scores).cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "quik"], ["no protocol 'quik'", "quick"]),
        (["--protocol", "bad.yaml"], ["bad.yaml: 1 problem", "line 1: epoch = 3", "epochs"]),
        (["--protocol", "bad.json"], ["bad.json is no scores.json", "it holds no protocol"]),
        (["--protocol", "theirs.json"], ["theirs.json names ./secret.safetensors, a file of whoever made"]),
        (["-o", "evaluate.resolution=2000"], ["evaluate.resolution = 2000", "1024"]),
        (["-o", "evaluate.resolution=2", "--models", "convnet3_narrow"], ["convnet3_narrow", "2"]),
        (["-o", "condense.ipc=2"], ["keys of the protocol alone", "hmdc-hub condense"]),
        (["--models", "mpl"], ["mpl", "mlp"]),
        (["--baselines", "rnadom"], ["evaluate.baselines.0", "random"]),
        (["--baselines", "random,random"], ["names a training set twice"]),
        (["--tune-split", "1"], ["tune-split"]),
        (["--share", "3/2"], ["must be K/N"]),
        (["--share", "1/2", "--fresh"], ["--fresh removes what other processes"]),
        (["--normalised"], ["--normalised", "--recipe"]),
        (["--config", "ipc1"], ["is a run: --config does not apply to it"]),
        (["--recipe", "tiny.yaml"], ["--recipe", "set of another program"]),
    ],
)
def test_mistakes_are_one_sentence(
    call: Call, folder: Path, tiny_run: RunDir, arguments: list[str], words: list[str]
) -> None:
    (folder / "bad.yaml").write_text("epoch: 3\n")
    (folder / "bad.json").write_text("{}")
    model = {"name": "m", "source": "builtin", "id": "mlp", "weights": "./secret.safetensors"}
    (folder / "theirs.json").write_text(json.dumps({"protocol": {"models": [model]}}))
    refused(call("evaluate", "tiny", *arguments), *words)
    assert not tiny_run.evaluations.exists()


def test_a_name_that_is_nothing_is_not_asked_of_the_hub(call: Call, folder: Path) -> None:
    for verb in ("evaluate", "verify"):
        refused(call(verb, "nope"), "there is no run 'nope'", "owner/name")


# sets of other programs


@pytest.fixture
def theirs(folder: Path) -> Path:
    """Twenty real digits, as another program may leave them: floats."""
    from hmdc_hub.catalog import load_recipe

    tiny.write(folder / "tiny.yaml")
    bank = load_source(load_recipe("tiny.yaml").source).train
    rows = torch.cat([torch.arange(start, start + 2) for start in bank.offsets[:-1]])
    path = folder / "their set.safetensors"
    save_file({"images": bank.images[rows].float() / 255 + 1e-5, "labels": bank.labels[rows]}, path)
    return path


@pytest.mark.slow
def test_a_set_of_another_program(call: Call, folder: Path, theirs: Path) -> None:
    done = call("evaluate", theirs, "--recipe", "tiny.yaml", "--baselines", "exact,random", "--workers", "1")
    assert done.status == 0, done.err
    (where,) = (folder / "runs").glob("*/evaluations/custom-*")
    scores = read_scores(where / "scores.json")
    assert (scores.condense_hash, scores.family_hash, scores.condense_seed) == (None, None, None)
    assert scores.condensed_by == [] and scores.gap == {}
    assert {name: budget.stored for name, budget in scores.budgets.items()} == {
        "condensed": 20, "exact": 20, "random": 20,
    }  # fmt: skip
    assert call("runs", "ls").out.count("\n") <= 1  # it is no run


@pytest.mark.slow
def test_two_files_of_one_name_are_two_sets(call: Call, folder: Path, theirs: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(theirs)
    (folder / "b").mkdir()
    save_file(tensors | {"labels": tensors["labels"].flip(0)}, folder / "b" / theirs.name)
    for path in (theirs, folder / "b" / theirs.name):
        assert call("evaluate", path, "--recipe", "tiny.yaml", "--baselines", "", "--workers", "1").status == 0
    assert len(list((folder / "runs").glob("*/evaluations/*/scores.json"))) == 2


@pytest.mark.slow
def test_what_another_set_does_not_have_is_left_out_unless_asked_for(call: Call, folder: Path, theirs: Path) -> None:
    done = call("evaluate", theirs, "--recipe", "tiny.yaml", "--workers", "1")
    assert done.status == 0 and "has no initialisation: left out" in done.err
    refused(
        call("evaluate", theirs, "--recipe", "tiny.yaml", "--baselines", "initialisation"),
        "evaluate.baselines names initialisation",
    )


def test_a_set_without_a_recipe(call: Call, folder: Path, theirs: Path) -> None:
    (folder / "images").mkdir()
    for target in (theirs, "images"):
        refused(call("evaluate", target), "needs a recipe that names its source", "--recipe cifar10_ipc10")


def test_a_set_that_is_not_there(call: Call, folder: Path, theirs: Path) -> None:
    refused(call("evaluate", "nothing.safetensors", "--recipe", "tiny.yaml"), "nothing.safetensors")


@pytest.mark.slow
def test_a_set_of_another_program_is_compared_with_ours(call: Call, folder: Path, theirs: Path) -> None:
    assert (
        call("condense", "tiny.yaml", "-o", "evaluate.seeds=4", "--run-dir", "runs/tiny", "--workers", "1").status == 0
    )
    # Without a start.
    assert call("evaluate", theirs, "--recipe", "tiny.yaml", "--seeds", "4", "--workers", "1").status == 0
    (where,) = (folder / "runs").glob("their-set-*/evaluations/custom-*")
    done = call("compare", "tiny", where)
    assert done.status == 0, done.err
    assert "tiny" in done.out and "their-set" in done.out and "p = " in done.out
