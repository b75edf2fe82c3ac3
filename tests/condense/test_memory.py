"""`memory` and `pool_strategy`: what is held at a time, and who works in an outer iteration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hmdc_hub import rng
from hmdc_hub.condense import low_memory, match, memory
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.loop import plain_attention
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.memory import available_bytes, choose_memory, saved_bytes
from hmdc_hub.condense.meter import allocated_peak
from hmdc_hub.condense.plan import plan
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.threads import Threads
from hmdc_hub.errors import Interrupted
from hmdc_hub.events import Event, ImageStep, Note, StopFlag
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.store import read_condensed
from tests.condense.running import CPU, digest, run
from tests.models.builders import build
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_recipe, tiny_source

RESNET = {"name": "resnet_tiny", "source": "builtin", "id": "resnet", "args": {"width": 4, "blocks": [1, 1]}}
GIB = 2**30


def recipe_of(*models: dict[str, Any], **condense: Any) -> Recipe:
    recipe = RECIPE | {"pool": list(models), "condense": RECIPE["condense"] | condense}
    return Recipe.model_validate(recipe)


def pool_of(recipe: Recipe) -> tuple[Pool, RealImages]:
    source = tiny_source()
    real = RealImages(source, recipe.condense, recipe.seed, CPU)
    networks = [build_for(model, source) for model in recipe.pool]
    return Pool(networks, recipe.condense, recipe.seed, Threads(CPU, 1)), real


# peaks


def objectives(specs: Sequence[ModelSpec], low: bool) -> Objectives:
    models: list[PoolModel] = [build(spec, source_size=32, seed=i) for i, spec in enumerate(specs)]
    alignments = []
    for a in range(len(models)):
        for b in range(a + 1, len(models)):
            align = Alignment((a, b), (models[a].taps, models[b].taps))
            align.reset(rng.generator(0, "test", a, b))
            alignments.append(align)
    return Objectives(models, alignments, low_memory=low)


def peak(specs: Sequence[ModelSpec], low: bool, weights: bool = True) -> int:
    targets = objectives(specs, low)
    real, fake = (torch.randn(16, 3, 32, 32, generator=rng.generator(i, "test")) for i in range(2))
    chosen = [1.0] * len(targets.names()) if weights else None
    engine = low_memory if low else match
    with plain_attention():
        return allocated_peak(lambda: engine.image_derivatives(targets, real, fake, 1, chosen), CPU)


WIDE = [
    ModelSpec(name="a", source="builtin", id="convnet", args={"depth": 3, "width": 24}),
    ModelSpec(name="b", source="builtin", id="convnet", args={"depth": 3, "width": 22, "norm": "batch"}),
    ModelSpec(name="c", source="builtin", id="convnet", args={"depth": 2, "width": 20}),
]


@pytest.mark.parametrize("weights", [True, False], ids=["summed", "apart"])
@pytest.mark.parametrize("count", [2, 3])
def test_low_takes_little_more_than_the_largest_model_alone(count: int, weights: bool) -> None:
    alone = max(peak([spec], False, weights) for spec in WIDE)
    assert peak(WIDE[:count], True, weights) <= 1.25 * alone


def test_fast_holds_a_pair_whatever_the_size_of_the_pool() -> None:
    pair, three = (peak(WIDE[:count], False) for count in (2, 3))
    assert pair > 1.5 * max(peak([spec], False) for spec in WIDE)
    assert three <= 1.1 * pair


# the choice


def test_what_fits_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, real = pool_of(recipe_of(CONVNET, MLP))
    assert not choose_memory(pool, real, recipe_of(CONVNET, MLP)).low
    needed = sum(saved_bytes(net, real, recipe_of(CONVNET, MLP)) for net in pool.members)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for there, low in ((needed / memory.SHARE * 1.01, False), (needed / memory.SHARE * 0.99, True)):
        monkeypatch.setattr(memory, "available_bytes", lambda device, there=there: int(there))
        assert choose_memory(pool, real, recipe_of(CONVNET, MLP)).low is low


@pytest.mark.parametrize(("word", "low"), [("low", True), ("fast", False)])
def test_the_recipe_s_word_counts(word: str, low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0 if word == "fast" else GIB)
    recipe = recipe_of(CONVNET, MLP, memory=word)
    assert choose_memory(*pool_of(recipe), recipe).low is low


def test_one_model_is_never_run_in_the_form_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
    recipe = recipe_of(CONVNET)
    assert not choose_memory(*pool_of(recipe), recipe).low


def test_estimates_do_not_vary() -> None:
    recipe = recipe_of(CONVNET, VIT)
    pool, real = pool_of(recipe)
    assert len({saved_bytes(pool.members[1], real, recipe) for _ in range(3)}) == 1


def test_available_memory_is_that_of_the_machine_or_its_container() -> None:
    assert 2**28 < available_bytes(CPU) < 2**50


# whole runs


def test_low_and_fast_are_one_run_up_to_rounding(tmp_path: Path) -> None:
    fast, low = (recipe_of(CONVNET, MLP, VIT, memory=word) for word in ("fast", "low"))
    assert fast.condense_hash() == low.condense_hash()
    directories = [run(tmp_path / recipe.condense.memory, recipe) for recipe in (fast, low)]
    first, second = (read_condensed(directory.condensed)[0] for directory in directories)
    torch.testing.assert_close(first, second, rtol=0, atol=2e-3)
    assert [json.loads(d.info.read_text())["memory"] for d in directories] == ["fast", "low"]


def test_a_choice_of_low_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    events: list[Event] = []
    directory = run(tmp_path / "run", tiny_recipe(), events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(text.startswith("memory: low, since two models at a time would take about") for text in notes)
    assert json.loads(directory.info.read_text())["memory"] == "low"


def pairs(directory: Any) -> list[tuple[str, ...]]:
    """Return who worked at each image step."""
    lines = [json.loads(line) for line in directory.log.read_text().splitlines()]
    return [tuple(name.removeprefix("match/") for name in line["losses"] if "match/" in name) for line in lines]


PAIRS = {"pool_strategy": "pair", "resets": 6}


def test_a_pair_is_drawn_for_every_outer_iteration(tmp_path: Path) -> None:
    recipe = recipe_of(CONVNET, MLP, RESNET, **PAIRS)
    directory = run(tmp_path / "a", recipe)
    seen = pairs(directory)
    assert len(seen) == 18 and all(len(pair) == 2 for pair in seen)
    assert all(len(set(seen[3 * i : 3 * i + 3])) == 1 for i in range(6)), "one pair for each reset"
    assert len(set(seen)) > 1
    assert digest(run(tmp_path / "b", recipe)) == digest(directory)
    other = recipe.model_copy(update={"seed": 1})
    assert pairs(run(tmp_path / "c", other)) != seen
    assert recipe.condense_hash() != recipe_of(CONVNET, MLP, RESNET, resets=6).condense_hash()


@pytest.mark.parametrize("stop_after", [4, 6, 8])
def test_a_run_in_pairs_resumes_with_its_pair(tmp_path: Path, stop_after: int) -> None:
    recipe = recipe_of(CONVNET, MLP, RESNET, **PAIRS)
    unbroken = run(tmp_path / "unbroken", recipe)
    stop = StopFlag()

    def listener(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == stop_after:
            stop.signal_number = 15

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", recipe, listener, stop)
    assert digest(run(tmp_path / "broken", recipe)) == digest(unbroken)


@pytest.mark.parametrize("models", [[CONVNET], [CONVNET, MLP]])
def test_pairs_of_two_or_one_are_all(tmp_path: Path, models: list[dict[str, Any]]) -> None:
    same = [recipe_of(*models, pool_strategy=strategy) for strategy in ("all", "pair")]
    first, second = (run(tmp_path / recipe.condense.pool_strategy, recipe) for recipe in same)
    assert torch.equal(read_condensed(first.condensed)[0], read_condensed(second.condensed)[0])


@pytest.mark.parametrize("strategy", ["all", "pair"])
def test_the_plan_knows_the_strategy(strategy: str) -> None:
    found = plan(recipe_of(CONVNET, MLP, RESNET, pool_strategy=strategy), tiny_source(), CPU)
    assert len(found.targets) == (6 if strategy == "all" else 3)
    assert found.seconds > 0 and found.memory_bytes > 0 and not found.low_memory


def test_mixed_libraries_condense_together(tmp_path: Path) -> None:
    """ConvNet of our own, ViT of transformers, a network of torchvision and one of timm, four at once."""
    mobile = {"name": "mobile", "source": "torchvision", "id": "mobilenet_v3_small", "input_size": 32}
    swin = {
        "name": "swin", "source": "timm", "id": "swin_tiny_patch4_window7_224", "input_size": 16,
        "args": {"patch_size": 2, "embed_dim": 6, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    }  # fmt: skip
    recipe = recipe_of(
        CONVNET, VIT, mobile, swin, resets=1, networks={"reset_every": 2, "batches_per_step": 1, "batch": 16}
    )
    directory = run(tmp_path / "run", recipe)
    info = json.loads(directory.info.read_text())
    assert set(info["parameters"]) == {"convnet_tiny", "vit_tiny_test", "mobile", "swin"} and "timm" in info["versions"]
    line = json.loads(directory.log.read_text().splitlines()[-1])
    assert len(line["losses"]) == 10 and all(value == value for value in line["losses"].values())
