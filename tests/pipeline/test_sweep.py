"""`sweep`: which variants there are, their budget, going on, failing; by processes, in this one, by submitit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hmdc_hub as hmdc
from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import HmdcError, Interrupted, RecipeError, UsageError
from hmdc_hub.events import Event, Note, StopFlag
from hmdc_hub.pipeline import launch
from hmdc_hub.pipeline.recipe import Recipe
from hmdc_hub.pipeline.sweep import Pace, prepare, request, steps_of, sweep, with_steps
from hmdc_hub.pipeline.variants import make_variants, parse_overrides, read_variants, split_values
from hmdc_hub.schema import Recipe as Schema
from hmdc_hub.store.files import sha256_file
from tests.tiny import RECIPE as TINY

LR = {"condense.images.lr": [0.01, 0.5]}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The smallest recipe, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    condense = TINY["condense"] | {"distill": False, "cluster": {"enabled": False}, "initialisation": "random"}
    return Recipe.of(Schema.model_validate(TINY | {"condense": condense}))


def names(request: Any) -> list[str]:
    return [one.name for one in request.variants]


# What is swept


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.01,0.02", ["0.01", "0.02"]),
        ("0.01", ["0.01"]),
        ("[a, b], [c]", ["[a, b]", "[c]"]),
        ("{a: 1, b: [2, 3]},null", ["{a: 1, b: [2, 3]}", "null"]),
        ("'a, b',\"c, d\"", ["'a, b'", '"c, d"']),
        ("", [""]),
    ],
)
def test_values_are_split_at_commas_outside_brackets(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_one_value_changes_the_recipe_several_make_variants() -> None:
    fixed, swept = parse_overrides(["evaluate.epochs=3", "condense.images.lr=0.01,0.02", "pool=[a, b]"])
    assert (fixed, swept) == (["evaluate.epochs=3", "pool=[a, b]"], {"condense.images.lr": ["0.01", "0.02"]})
    with pytest.raises(UsageError, match="stands twice"):
        parse_overrides(["a.b=1,2", "a.b=3,4"])


def test_each_value_alone_or_all_combinations(recipe: Recipe) -> None:
    swept = {"condense.images.lr": ["0.01", "0.005"], "condense.balance": ["true", "false"]}
    alone = make_variants(recipe, swept, {}, False, True)
    # 0.005 and true are the recipe as it is.
    assert [one.name for one in alone] == ["recipe", "images.lr=0.01", "balance=false"]
    grid = make_variants(recipe, swept, {}, True, True)
    assert [one.name for one in grid][1:] == [
        "images.lr=0.01, balance=true", "images.lr=0.01, balance=false", "images.lr=0.005, balance=false",
    ]  # fmt: skip
    assert grid[2].recipe.condense.images.lr == 0.01 and not grid[2].recipe.condense.balance
    assert len({one.slug for one in grid}) == 4 and all("/" not in one.slug and " " not in one.slug for one in grid)


def test_variants_of_a_file(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "variants.yaml"
    path.write_text("plain: {condense.balance: false, condense: {normalise: false}}\nalone: {pool: [mlp]}\n")
    _, plain, alone = make_variants(recipe, {}, read_variants(path), False, False)
    assert (plain.name, plain.recipe.condense.balance, plain.recipe.condense.normalise) == ("plain", False, False)
    assert [model.name for model in alone.recipe.pool] == ["mlp"]
    for text, words in (("a: 3", "a has no keys"), ("{}", "it has no keys"), ("a: [", "variants.yaml")):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_variants(path)


@pytest.mark.parametrize(
    ("swept", "words"),
    [
        ({"seed": [0, 1]}, "seed is no key to sweep"),
        ({"condense.resets": [1, 2]}, "all variants have one budget"),
        ({"evaluate.epochs": [1, 2]}, "scored on the same images"),
        ({"source.size": [8, 16]}, "scored on the same images"),
        ({"condense.balance": [True]}, "nothing is swept"),
        ({"condense.balance": "true"}, "is no list of values"),
        ({"condense.images.lr": [n / 1000 for n in range(1, 300)]}, "299 variants are more"),
        ({}, "nothing is swept"),
    ],
)
def test_what_cannot_be_swept(recipe: Recipe, swept: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        request(recipe, swept)
    assert caught.value.hint and not Path("runs").exists()


def test_a_value_that_breaks_the_schema(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="condense.batch"):
        request(recipe, {"condense.batch": [8, -1]})


def test_scored_on_held_out_images_by_a_protocol(recipe: Recipe) -> None:
    made = prepare(recipe, ["evaluate.seeds=4"], "quick")
    assert (made.source.validation_fraction, made.source.test_split, made.evaluate.holdout) == (0.2, None, None)
    assert (made.evaluate.epochs, made.evaluate.seeds, made.evaluate.baselines) == (200, 4, ["initialisation"])
    assert prepare(recipe, ["source.validation_fraction=0.5"], None).source.validation_fraction == 0.5
    assert prepare(recipe, ["evaluate.baselines=[random]"], None).evaluate.baselines == ["random"]


# Budget


@pytest.mark.parametrize(
    ("steps", "found"), [(6, (2, 3)), (1, (1, 1)), (2, (1, 2)), (7, (2, 4)), (30, (10, 3)), (100, (33, 3))]
)
def test_steps_become_network_resets(recipe: Recipe, steps: int, found: tuple[int, int]) -> None:
    condense = with_steps(recipe, steps).condense
    assert (condense.resets, condense.networks.reset_every) == found


def test_all_variants_have_the_steps_of_the_recipe(recipe: Recipe) -> None:
    asked = request(recipe, {"condense.networks.reset_every": [1, 2, 6]})
    paced = asked._with_budget(lambda event: None, StopFlag())
    assert {steps_of(one.recipe) for one in paced} == {6}


def test_a_pace_says_how_many_steps_fit() -> None:
    assert Pace(first=2.0, each=0.5).steps(10) == 17
    assert Pace(first=20.0, each=0.5).steps(10) == 1


def test_seconds_become_steps_by_what_each_variant_takes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def timed(recipe: Schema, device: torch.device, seconds: float, stop: StopFlag) -> dict[str, float]:
        asked.append((recipe.condense.images.lr, seconds))
        return {"first": 1.0, "each": {0.005: 1.0, 0.01: 2.0, 0.5: 0.25}[recipe.condense.images.lr]}

    monkeypatch.setattr(launch, "timed", timed)
    request(recipe, LR, seconds=13, workers=0, name="s").path.mkdir(parents=True)
    for _ in range(2):  # the second time nothing is measured
        paced = request(recipe, LR, seconds=13, workers=0, name="s")._with_budget(lambda event: None, StopFlag())
        assert [steps_of(one.recipe) for one in paced] == [12, 8, 48]  # whole network resets
    assert sorted(asked) == [(0.005, 13), (0.01, 13), (0.5, 13)]


def test_a_probe_stops_one_step_beyond_a_reset(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("hmdc_hub.pipeline.launch.time.process_time", lambda: float(next(ticks)))
    made = prepare(recipe, ["condense.resets=50", "condense.networks.reset_every=4"], None)
    assert launch.timed(made, torch.device("cpu"), 1000, StopFlag()) == {"first": 1.0, "each": 1.0}
    assert next(ticks) == 6  # began, and five steps
    assert launch.timed(with_steps(made, 2), torch.device("cpu"), 1, StopFlag())["each"] == 1.0


def test_a_bank_is_no_part_of_the_seconds(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hmdc_hub.condenser.stages import Bank

    train, now = Bank._train, [0.0]

    def slow(bank: Bank, model: int, number: int) -> None:
        now[0] += 1000
        train(bank, model, number)

    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Bank, "_train", slow)
    monkeypatch.setattr("hmdc_hub.pipeline.launch.time.process_time", lambda: now[0])
    made = prepare(recipe, ["condense.networks.bank.num_models=1"], None)
    for _ in range(2):  # whether it is there already or not
        assert launch.timed(made, torch.device("cpu"), 5, StopFlag()) == {"first": 0.0, "each": 0.0}
    assert now[0] == 1000 * len(recipe.pool)


# Running


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and not event.detail]


@pytest.mark.slow
def test_a_sweep_is_stopped_goes_on_and_grows(recipe: Recipe) -> None:
    events, stop = list[Event](), StopFlag()

    def stop_after_two(event: Event) -> None:
        events.append(event)
        if isinstance(event, Note) and event.text.startswith("2 of"):
            stop.signal_number = 15

    keys: dict[str, Any] = {"seeds": 2, "workers": 0, "progress": False}
    with pytest.raises(Interrupted, match="same command goes on"):
        sweep(recipe, LR, callbacks=stop_after_two, stop=stop, **keys)
    events.clear()
    found = sweep(recipe, LR, callbacks=events.append, **keys)
    assert [text[:6] for text in notes(events)] == [f"{n} of 4" for n in range(1, 5)]
    assert [one.name for one in found.results[0].variants] == ["recipe", "images.lr=0.01", "images.lr=0.5"]
    assert not found.results[0].failed and len(found.to_pandas()) == 6 and found.report.is_file()
    assert "images.lr=0.5" in found.summary() and "3 variants" in repr(found)
    # What stands in a directory is what was done, to the bit.
    run = hmdc.Run(found.path / "images.lr=0.5-seed1")
    assert (run.recipe.condense.images.lr, run.recipe.seed, run.info.seed) == (0.5, 1, 1)
    again = hmdc.condense(read_recipe_file(run.directory.recipe), run_dir="again", device="cpu", progress=False)
    assert sha256_file(again.directory.condensed) == sha256_file(run.directory.condensed)
    with pytest.raises(HmdcError, match="condensed for choosing settings"):
        run.push_to_hub("x")
    events.clear()
    more = sweep(recipe, {**LR, "condense.batch": [4]}, callbacks=events.append, **keys | {"seeds": 3})
    assert more.path == found.path and notes(events)[-1].startswith("6 of 6")


def test_a_variant_that_fails_stops_no_other(recipe: Recipe) -> None:
    bad = {"name": "bad", "source": "builtin", "id": "convnet", "args": {"depth": 9, "width": 4}}
    events: list[Event] = []
    variants: dict[str, dict[str, Any]] = {"too deep": {"pool": [bad]}, "small": {"condense.batch": 4}}
    found = sweep(recipe, variants=variants, seeds=1, workers=0, progress=False, callbacks=events.append)
    rows = {row.name: row for row in found.results[0].rows}
    assert rows["too deep"].accuracy is None and rows["small"].accuracy is not None
    (failed,) = found.results[0].failed
    assert "bad" in failed.problem and "failed" in found.summary() and "Traceback" not in failed.problem


def test_each_of_several_sizes_has_a_result(recipe: Recipe) -> None:
    several = hmdc.load_recipe(recipe, condense={"ipc": [1, 2]})
    found = sweep(several, {"condense.images.lr": [0.5]}, seeds=2, workers=0, progress=False, name="sizes")
    assert [result.ipc for result in found.results] == [1, 2]
    for result in found.results:
        for one in result.variants:
            for run in one.runs:
                assert Path(run.path).name == f"ipc{result.ipc}" and run.accuracy is not None
    table = found.to_pandas()
    assert len(table) == 8 and set(table["ipc"]) == {1, 2}
    assert (found.path / "sweep-ipc2.png").is_file() and "at 2" in repr(found)
    alone = sweep(recipe, {"condense.images.lr": [0.5]}, seeds=2, workers=0, progress=False, name="alone")
    assert alone.results[0].variants[1].scored == found.results[0].variants[1].scored
    with pytest.raises(UsageError, match=r"ipc=1 makes other sizes than the recipe: \[1\], not"):
        sweep(several, {"condense.ipc": [1]}, seeds=1, progress=False)
    assert len(request(recipe, {"condense.ipc": [2, 3]}).variants) == 3  # one size each: one table


def test_a_bug_keeps_its_traceback(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("of a bug")

    monkeypatch.setattr("hmdc_hub.pipeline.api.condense", broken)
    answer = launch.work({"recipe": recipe.model_dump(mode="json"), "directory": "x"}, "cpu", StopFlag())
    assert answer["problem"] == "KeyError: 'of a bug'" and "Traceback" in answer["trace"]


def test_a_module_of_this_session_is_swept_in_this_process(recipe: Recipe) -> None:
    def my_mlp() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))

    asked: dict[str, Any] = {"seeds": 1, "progress": False}
    found = sweep(recipe, {"pool": [[my_mlp]]}, **asked)
    assert found.results[0].variants[1].name == "pool=[my_mlp]" and not found.results[0].failed
    with pytest.raises(UsageError, match="known in this process alone"):
        sweep(recipe, {"pool": [[my_mlp]]}, slurm={}, name="other", **asked)


@pytest.mark.slow
def test_by_processes_of_its_own(recipe: Recipe) -> None:
    here = sweep(recipe, {"condense.batch": [4]}, seeds=2, workers=0, name="here", progress=False)
    there = sweep(recipe, {"condense.batch": [4]}, seeds=2, workers=2, name="there", progress=False)
    assert not there.results[0].failed
    for run in ("recipe-seed1", "batch=4-seed0"):
        one, other = (found.path / run / "condensed.safetensors" for found in (here, there))
        assert sha256_file(one) == sha256_file(other)


@pytest.mark.slow
def test_by_submitit(recipe: Recipe) -> None:
    pytest.importorskip("submitit")
    slurm = {"cluster": "local", "timeout_min": 5}
    found = sweep(recipe, {"condense.batch": [4]}, seeds=1, slurm=slurm, progress=False)
    assert not found.results[0].failed and len(list((found.path / "slurm").glob("*_result.pkl"))) == 2
    with pytest.raises(UsageError, match="does not take these options") as caught:
        sweep(recipe, {"condense.batch": [4]}, seeds=1, name="x", slurm={"cluster": "local", "gpus": 1}, progress=False)
    assert "slurm_partition" in caught.value.hint


def test_without_submitit(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match="needs submitit") as caught:
        sweep(recipe, LR, slurm={}, progress=False)
    assert "pip install submitit" in caught.value.hint


def test_a_process_that_dies_is_the_problem_of_its_task() -> None:
    class Dead:
        exitcode = -9

    assert "died with status -9" in launch._death(Dead())  # type: ignore[arg-type]


@pytest.mark.slow
def test_sigterm_stops_all_and_the_command_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """As a shell would: a signal to the command alone, whose runs stop at a safe place."""
    import signal
    import time

    Path("r.yaml").write_text(str(recipe))
    keys = ["-o", "condense.batch=4,8", "--steps", "6000", "--seeds", "1", "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "hmdc_hub", "sweep", "r.yaml", *keys, "--name", "n"]
    running = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs/sweeps/n/recipe-seed0/log.jsonl"
    end = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143 and "the same command goes on" in err, err
    assert list((tmp_path / "runs/sweeps/n/recipe-seed0/checkpoints").iterdir())
