"""Sources, models and sets that are objects of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import HmdcError
from hmdc_hub.pipeline.api import condense, evaluate
from hmdc_hub.pipeline.evaluation import EvaluateRequest
from hmdc_hub.pipeline.recipe import Recipe, load_recipe
from hmdc_hub.sources import load_source
from tests.cli import tiny
from tests.cli.conftest import Call
from tests.pipeline.test_python import QUIET, stopped
from tests.sources.files import image_folder

QUICK: dict[str, Any] = {
    "condense": {"resets": 1, "batch": 4, "networks": {"reset_every": 4, "batches_per_step": 1, "batch": 16}},
    "evaluate": {"models": ["mlp"], "seeds": 1, "random_draws": 1, "steps": 2, "baselines": ["random"]},
}


def my_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )


def test_sections_of_a_recipe_are_nested_or_dotted(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "tiny.yaml")
    one = load_recipe(path, "condense.ipc=2", "evaluate.models=[mlp]")
    other = load_recipe(path, condense={"ipc": 2}, evaluate={"models": ["mlp"]})
    assert one == other and one.overridden and not load_recipe(path).overridden


def test_a_proposed_recipe_is_that_of_init(folder: Path, call: Call) -> None:
    image_folder(folder / "pets", {"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}})
    assert call("init", "pets", "--ipc", "1", "--preset", "cpu", "-O", "mine.yaml").status == 0
    wanted, found = load_recipe("mine.yaml"), Recipe.from_source("pets", ipc=1, preset="cpu")
    assert found == wanted and found.name == "pets_ipc1" and not found.overridden
    changed = Recipe.from_source(folder / "pets", ipc=1, preset="cpu", pool=["mlp"], source={"test_split": "test"})
    assert changed.overridden and [model.name for model in changed.pool] == ["mlp"]
    with pytest.raises(HmdcError, match=r"Recipe.from_source\('pets'\)"):
        Recipe.from_source("pets", condense={"ipcc": 1})


@pytest.mark.slow
def test_data_of_this_process_are_condensed_and_go_on(folder: Path) -> None:
    from torch.utils.data import TensorDataset

    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(24) % 3)
    recipe = Recipe.from_source(data, name="mine", ipc=1, preset="cpu", size=32, pool=["mlp"], **QUICK)
    assert recipe.name == "mine_ipc1" and recipe.source.id == "python:mine"
    stopped(recipe, 2)
    run = condense(recipe, evaluate=True, **QUIET)
    assert run.state == "finished" and run.recipe.source.id.startswith("local:mine@")
    assert load_source(run.recipe.source).info.kind == "local"
    assert evaluate(run, seeds=2, **QUIET).scores.protocol.seeds == 2


@pytest.mark.slow
def test_a_module_of_ones_own_condenses_and_is_evaluated(folder: Path, call: Call) -> None:
    path = tiny.write(folder / "tiny.yaml")
    recipe = load_recipe(path, pool=[my_net, "mlp"], condense={"resets": 1})
    assert not recipe.pool[0].reproducible and recipe.pool[1].reproducible
    run = condense(recipe, **QUIET)
    assert read_recipe_file(run.directory.recipe).pool[0].source == "python"
    found = evaluate(run, models=["mlp", my_net], seeds=1, baselines=["random"], protocol={"epochs": 1}, **QUIET)
    assert set(found.to_pandas()["model"]) == {"mlp", recipe.pool[0].name}
    recipe.plan("cpu", progress=False)


@pytest.mark.slow
def test_tensors_are_scored_like_a_recipe(folder: Path) -> None:
    path = tiny.write(folder / "tiny.yaml")
    train = load_source(load_recipe(path).source).train
    rows = torch.cat([torch.arange(start, start + 2) for start in train.offsets[:-1]])
    found = evaluate((train.images[rows], train.labels[rows]), like=path, seeds=1, **QUIET)
    assert found.scores.condense_hash is None and found.scores.budgets["condensed"].stored == 20
    labels: Any
    for labels in (train.labels[rows].tolist(), [str(int(label)) for label in train.labels[rows]]):
        again = evaluate((train.images[rows], labels), like=load_recipe(path), seeds=1, **QUIET)
        assert again.path == found.path


def test_one_module_is_one_model() -> None:
    net = my_net()
    assert EvaluateRequest(models=net).changes() == ([], {"evaluate": {"models": [net]}})
    assert EvaluateRequest(models=my_net).changes() == ([], {"evaluate": {"models": [my_net]}})
    assert EvaluateRequest(models="mlp").changes() == (["evaluate.models=[mlp]"], {})
