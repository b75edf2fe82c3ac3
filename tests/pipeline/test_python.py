"""The Python API and the command line are one: runs begun in one go on in the other, with the same bytes and errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hmdc_hub as hmdc
from hmdc_hub.errors import DeviceError, HmdcError, Interrupted, NotFoundError, RecipeError, RunExistsError, UsageError
from hmdc_hub.events import Event, ImageStep, StopFlag
from hmdc_hub.pipeline.api import Run, condense, evaluate
from hmdc_hub.pipeline.recipe import Recipe, load_recipe
from hmdc_hub.store.files import sha256_file
from tests.cli import tiny
from tests.cli.conftest import Call

QUIET: dict[str, Any] = {"device": "cpu", "workers": 1, "progress": False}
DATA = ("recipe.yaml", "condensed.safetensors", "train.parquet")


def stopped(recipe: Recipe, step: int = 3) -> None:
    """Condense until after an image step."""
    flag = StopFlag()

    def stop(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == step:
            flag.signal_number = 2

    with pytest.raises(Interrupted):
        condense(recipe, callbacks=[stop], stop=flag, **QUIET)


def hashes(run: Path) -> list[str]:
    return [sha256_file(run / name) for name in DATA]


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    tiny.write(folder / "tiny.yaml")
    return load_recipe("tiny.yaml")


def test_the_names_are_there_and_nothing_is_imported_for_them() -> None:
    code = (
        "import sys, hmdc_hub; print('torch' in sys.modules, all(name in dir(hmdc_hub) for name in hmdc_hub.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert all(getattr(hmdc, name) is not None for name in hmdc.__all__) and callable(hmdc.condense)
    with pytest.raises(AttributeError, match="nope"):
        _ = hmdc.nope
    source = Path(str(hmdc.__file__)).read_text(encoding="utf-8")
    for name in set(hmdc.__all__) - {"__version__"}:
        assert f" import {name} as {name}\n" in source, "a type checker takes other imports for the package's own"


@pytest.mark.slow
def test_a_run_begun_in_python_goes_on_by_the_command(recipe: Recipe, folder: Path, call: Call) -> None:
    stopped(recipe)
    assert call("condense", "tiny.yaml").status == 2, "an unfinished run, and no --resume"
    done = call("condense", "tiny.yaml", "--resume", "--workers", "1")
    assert done.status == 0 and "resume: image step 3 of 4" in done.err
    assert call("condense", "tiny.yaml", "--run-dir", "other", "--no-evaluate").status == 0
    assert hashes(folder / "runs/tiny") == hashes(folder / "other")


@pytest.mark.slow
def test_a_run_begun_by_the_command_goes_on_in_python(folder: Path, call: Call) -> None:
    tiny.write(folder / "tiny.yaml")
    changes = ("condense.batch=5", "evaluate.seeds=1")
    done = call("condense", "tiny.yaml", "-o", changes[0], "-o", changes[1], "--no-evaluate", "--json")
    assert done.status == 0
    (path,) = (folder / "runs").iterdir()
    before = hashes(path)
    run = condense(load_recipe("tiny.yaml", *changes), evaluate=True, **QUIET)
    assert run.path.resolve() == path and set(run.seconds) == {"evaluate", "package"} and hashes(path) == before
    assert condense(load_recipe("tiny.yaml", *changes), **QUIET).seconds == {}, "it has it all"
    assert "has it all already" in call("condense", "tiny.yaml", "-o", changes[0], "-o", changes[1]).err


def test_an_unfinished_run_goes_on_unless_it_must_not(recipe: Recipe, folder: Path) -> None:
    stopped(recipe)
    with pytest.raises(RunExistsError, match="unfinished") as caught:
        condense(recipe, resume=False, **QUIET)
    assert "--resume (resume=True)" in caught.value.hint and "--force (force=True)" in caught.value.hint
    assert Run("runs/tiny").state == "unfinished" and "unfinished" in Run("runs/tiny")._repr_html_()
    assert condense(recipe, **QUIET).state == "condensed"


def test_a_stop_button_keeps_the_step(recipe: Recipe, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []

    def press(event: Event) -> None:
        if isinstance(event, ImageStep):
            steps.append(event.done)
            if steps == [1, 2, 3]:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after image step 3 of 4; a checkpoint was written"):
        condense(recipe, callbacks=press, **QUIET)
    assert "stopping at the next safe place" in capfd.readouterr().err
    assert condense(recipe, callbacks=press, **QUIET).state == "condensed" and steps == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("finished")
    found = load_recipe(tiny.write(place / "tiny.yaml"))
    return condense(found, run_dir=place / "run", evaluate=True, **QUIET)


@pytest.mark.slow
def test_what_a_run_is(finished: Run) -> None:
    assert finished.scores is not None
    mean = f"{100 * finished.scores.table['condensed']['mean'].mean:.1f} %"
    assert finished.state == "finished" and repr(finished) == f"Run({str(finished.path)!r}, finished, {mean})"
    assert finished.recipe.source.train_split == "train" and finished.info.ipc == 1
    assert finished.preview().format == "PNG" and finished.package() == finished.path / "package"
    assert finished.scores.name == "tiny"
    short = finished.summary()
    assert "gain over  random" in short and f"preview    {finished.path}/preview.png" in short and mean[:-2] in short
    summary = finished.details()
    assert "10 synthetic images that hold 40" in summary and "condensed − random" in summary and "condense " in summary
    again = finished.evaluate(**QUIET)
    assert again.scores == finished.scores and again.run is not None and again.path == finished.path
    with pytest.raises(NotFoundError, match="there is no run directory"):
        Run("nowhere")


@pytest.mark.slow
def test_what_a_notebook_shows_of_a_run(finished: Run) -> None:
    html = finished._repr_html_()
    assert "gain over  random" in html and "<img" in html and len(html) < 40_000
    assert len(finished.condensed) == len(hmdc.load(finished)) == 40 and Path(finished) == finished.path


@pytest.mark.slow
def test_what_an_evaluation_is(finished: Run) -> None:
    found = evaluate(finished, models=["mlp"], seeds=2, protocol={"epochs": 1}, **QUIET)
    assert found.run is None and found.path.parent == finished.path / "evaluations"
    frame = found.to_pandas()
    assert len(frame) == len(found.scores.cells) == 6 and found.report.is_file()
    assert found.scores.protocol.epochs == 1 and str(found.report) in found.summary()
    assert "condensed − random" in found.details() and "1 epoch" in found.details()
    assert (
        repr(found).startswith("Evaluation(tiny: condensed ")
        and ", random " in repr(found)
        and "<pre>" in found._repr_html_()
    )


def test_callbacks_hear_of_everything(recipe: Recipe) -> None:
    heard: list[Event] = []
    before = torch.get_rng_state()
    condense(recipe, callbacks=heard.append, **QUIET)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is its own"
    assert [event.done for event in heard if isinstance(event, ImageStep)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("action", "kind", "words"),
    [
        (lambda: load_recipe("nope"), NotFoundError, "nope"),
        (lambda: load_recipe("digits_ipc1", "condense.ipc=0", "seed=x"), RecipeError, "2 problems"),
        (lambda: condense("digits_ipc1", device="cuda:77"), DeviceError, "cuda:77"),
        (lambda: condense("digits_ipc1", report_to="nope"), HmdcError, "nope"),
        (lambda: evaluate("nope"), NotFoundError, "no run 'nope'"),
        (lambda: evaluate(("images", "labels")), UsageError, "like='cifar10_ipc10'"),
        (lambda: load_recipe(None), UsageError, "not a NoneType"),  # type: ignore[arg-type]
        (lambda: load_recipe("digits_ipc1", {"seed": 1}), UsageError, "not a dict"),  # type: ignore[arg-type]
        (lambda: condense({"condense": {"ipc": 1}}), UsageError, "not a dict"),  # type: ignore[arg-type]
        (lambda: Recipe.from_source("nope", preset="fast"), UsageError, "cpu, gpu, paper"),  # type: ignore[arg-type]
        (lambda: evaluate(load_recipe("digits_ipc1")), UsageError, "evaluate(condense(recipe))"),
        (lambda: evaluate("nope", epochs=5), UsageError, "protocol={'epochs': ...}"),  # type: ignore[arg-type]
        (lambda: evaluate("nope", sedes=5), UsageError, "did you mean 'seeds'?"),  # type: ignore[arg-type]
        (lambda: evaluate("nope", report_to="trackio"), UsageError, "It takes models, "),  # type: ignore[arg-type]
        (lambda: evaluate("nope", overrides=["seed=1"]), UsageError, "keys of the protocol alone"),
    ],
)
def test_errors_are_those_of_the_command(here: Path, action: object, kind: type[HmdcError], words: str) -> None:
    assert callable(action)
    with pytest.raises(kind) as caught:
        action()
    assert words in str(caught.value) and list(here.iterdir()) == []


def test_a_recipe_is_changed_and_looked_at(recipe: Recipe) -> None:
    assert repr(recipe) == "Recipe(tiny: builtin:digits, 1 per class, condensed by mlp_a, conv_a)"
    assert "ipc: 1" in str(recipe) and "<pre>" in recipe._repr_html_()
    assert load_recipe(recipe) == recipe and not load_recipe(recipe).overridden
    changed = load_recipe(recipe, "seed=7", condense={"ipc": 2})
    assert changed == load_recipe("tiny.yaml", "seed=7", condense={"ipc": 2}) and changed.overridden
    assert load_recipe(changed).overridden and changed.condense_hash() != recipe.condense_hash()


@pytest.mark.slow
def test_a_plan_is_readable(recipe: Recipe, folder: Path) -> None:
    plan = recipe.plan("cpu", progress=False)
    assert "steps       4, networks reset 2 times" in str(plan) and "measured on cpu" in str(plan)
    assert repr(plan).startswith("RunEstimate(tiny: 4 image steps, ")
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]
