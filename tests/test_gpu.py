"""The engine and the evaluator on a GPU: close to a CPU, the same bits twice, graphs that give what they replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hmdc_hub.condenser import condense
from hmdc_hub.evaluator import evaluate, of_run
from hmdc_hub.events import Event, ImageStep, Note
from hmdc_hub.execution import Execution, settings
from hmdc_hub.processes import Work
from hmdc_hub.schema import Recipe, Scores
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.rundir import RunDir
from tests.evaluator import toys
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_source

pytestmark = pytest.mark.gpu
GPU, CPU = torch.device("cuda"), torch.device("cpu")
ONE_STEP = {"resets": 1, "networks": {"reset_every": 1, "batches_per_step": 1, "batch": 16}}
SIX_STEPS = {"resets": 1, "networks": {"reset_every": 6, "batches_per_step": 3, "batch": 16}}
"""Long enough for every function of a step to be called, captured and replayed."""


def condensed(folder: Path, device: torch.device, pool: list[dict[str, Any]], **condense_keys: Any) -> list[Event]:
    """Condense from random images, whose choice no rounding changes."""
    keys = RECIPE["condense"] | {"initialisation": "random", "cluster": {"enabled": False}} | condense_keys
    folder.mkdir()
    told: list[Event] = []
    recipe = Recipe.model_validate(RECIPE | {"pool": pool, "condense": keys})
    condense(recipe, tiny_source(), RunDir(folder), device=device, callback=told.append)
    return told


def movement(folder: Path) -> torch.Tensor:
    before, after = RunDir(folder).initialisation, RunDir(folder).condensed
    return (read_condensed(after)[0] - read_condensed(before)[0]).flatten()


def test_an_image_step_is_close_to_the_cpus(tmp_path: Path) -> None:
    told = {device: condensed(tmp_path / device.type, device, [CONVNET, MLP], **ONE_STEP) for device in (CPU, GPU)}
    start = [read_condensed(RunDir(tmp_path / device.type).initialisation)[0] for device in told]
    assert torch.allclose(start[0], start[1], atol=1e-6), "but for the rounding of averages"
    cpu, gpu = (movement(tmp_path / device.type) for device in told)
    assert float(cpu.abs().max()) > 0
    # TF32 on one side; the directions stay, and lengths are normalised.
    assert float(torch.cosine_similarity(cpu, gpu, dim=0)) > 0.98
    losses = [next(event.losses for event in events if isinstance(event, ImageStep)) for events in told.values()]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("pool", [[CONVNET, MLP], [CONVNET, VIT]], ids=["convnet and mlp", "convnet and vit"])
def test_the_same_bits_twice_and_everything_captured(tmp_path: Path, pool: list[dict[str, Any]]) -> None:
    told = [condensed(tmp_path / name, GPU, pool, cutmix={"match": True, "train": True}, **SIX_STEPS) for name in "ab"]
    assert sha256_file(RunDir(tmp_path / "a").condensed) == sha256_file(RunDir(tmp_path / "b").condensed)
    assert float(movement(tmp_path / "a").abs().max()) > 0
    notes = [event.text for events in told for event in events if isinstance(event, Note)]
    assert not [note for note in notes if "captured" in note or "deterministic" in note], notes


def test_a_replayed_graph_gives_what_the_first_call_gives() -> None:
    notes: list[Event] = []
    execution = Execution(GPU, notes.append)
    weight = torch.arange(16.0, device=GPU).reshape(4, 4) / 16
    state, reference = torch.zeros(4, device=GPU), torch.zeros(4, device=GPU)

    def work(into: torch.Tensor, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        into.add_(x @ weight).mul_(0.5)
        return into[wanted] * 2

    def of_state(inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return work(state, *inputs)

    function = execution.function(of_state, "work")
    with settings(GPU):
        for call in range(5):
            inputs = (torch.full((4,), float(call)), torch.tensor([call % 4, 0]))
            (packed,) = execution.upload([inputs])
            got = function(packed).clone()
            assert torch.equal(got, work(reference, *(one.to(GPU) for one in inputs))), f"call {call}"
            assert torch.equal(state, reference)
        (packed,) = execution.upload([(torch.ones(4), torch.tensor([1]))])  # another shape has a graph of its own
        assert torch.equal(function(packed).clone(), work(reference, torch.ones(4).to(GPU), torch.tensor([1]).to(GPU)))
    assert not notes


MODELS = [toys.MLP, toys.CONVNET, toys.RESNET, VIT | {"cutmix": False}]


def scored(folder: Path, device: torch.device, **protocol: Any) -> Scores:
    recipe = toys.recipe(epochs=30, baselines=["random"], random_draws=1, models=MODELS, **protocol)
    run = toys.run(folder, recipe)
    told: list[Event] = []
    work = Work(device, workers=0, reuse=False, callback=told.append)
    scores = evaluate(of_run(recipe, run), recipe.evaluate, toys.source(), run, work)
    assert scores is not None
    assert not [event.text for event in told if isinstance(event, Note)], "everything is captured and deterministic"
    return scores


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_trainings_score_as_on_the_cpu_and_the_same_twice(tmp_path: Path, optimizer: str, precision: str) -> None:
    keys: dict[str, Any] = {"optimizer": optimizer} | ({} if optimizer == "sgd" else {"lr": 0.01})
    reference = scored(tmp_path / "cpu", CPU, **keys)
    first, again = (scored(tmp_path / name, GPU, precision=precision, **keys) for name in ("first", "again"))
    accuracies = [[cell.accuracy for cell in scores.cells] for scores in (reference, first, again)]
    assert accuracies[1] == accuracies[2]
    assert len(accuracies[0]) == len(accuracies[1]) == 16
    # Noise teaches 30 answers that rounding may turn; real images teach all of them, here and there.
    differences = torch.tensor(accuracies[1]) - torch.tensor(accuracies[0])
    assert float(differences.abs().mean()) < 0.15
    means = [sum(cell.accuracy for cell in s.cells if cell.training_set == "random") / 8 for s in (reference, first)]
    assert means[1] == pytest.approx(means[0], abs=0.05 if precision == "float32" else 0.1)
