"""`memory` and `pool_strategy`: what is held at a time, and who works in an outer iteration."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hmdc_hub import rng
from hmdc_hub.condenser import cost, hmdc
from hmdc_hub.condenser.cost import AtOnce, available_bytes, choose, class_bytes, peak_bytes
from hmdc_hub.condenser.matching import image_gradients
from hmdc_hub.errors import Interrupted
from hmdc_hub.events import Event, ImageStep, Note, StopFlag
from hmdc_hub.schema import Recipe
from hmdc_hub.store.condensed import read_condensed
from tests.builders import RESNET
from tests.condenser.running import CPU, digest, estimate_cost, hmdc_of, networks_of, recipe_of, run
from tests.tiny import CONVNET, MLP, VIT, tiny_recipe, tiny_source

GIB = 2**30


def chosen(recipe: Recipe) -> AtOnce:
    return choose(networks_of(recipe))


# the choice


@pytest.mark.slow
def test_the_peak_is_that_of_real_tensors() -> None:
    recipe = recipe_of(CONVNET, VIT)
    networks = networks_of(recipe)
    shapes = [torch.randn(1, count, 1, 8, 8, generator=rng.generator(count, "test")) for count in (8, 4)]
    rest = torch.full((1, 8), 1 / 8), shapes[1], torch.zeros(1, dtype=torch.int64), torch.ones(1, 3)
    found = peak_bytes(lambda: image_gradients(networks.objectives, shapes[0], *rest))
    told = class_bytes(networks.objectives, networks.real, 1, 4)
    assert told == pytest.approx(found, rel=0.1)
    assert {class_bytes(networks.objectives, networks.real, 1, 4) for _ in range(3)} == {told}


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False], ids=["apart", "summed"])
def test_memory_follows_the_number_of_images_at_a_time(apart: bool) -> None:
    networks = networks_of(recipe_of(CONVNET, RESNET))
    real, fake = (torch.randn(1, 64, 1, 8, 8, generator=rng.generator(i, "test")) for i in range(2))
    rest = torch.full((1, 64), 1 / 64), fake, torch.zeros(1, dtype=torch.int64), None if apart else torch.ones(1, 3)
    work = partial(image_gradients, networks.objectives, real, *rest)
    whole, half, eighth = (peak_bytes(partial(work, at_once=n)) for n in (None, 32, 8))
    assert half <= 0.65 * whole
    assert eighth <= 0.3 * whole


@pytest.mark.slow
def test_as_many_classes_as_fit_and_then_as_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(CONVNET, MLP)  # 8 real and 4 decoded images
    assert chosen(recipe).classes == 10 and chosen(recipe).images is None and not chosen(recipe).why
    networks = networks_of(recipe)
    two = class_bytes(networks.objectives, networks.real, 2, 8)  # whatever ipc is: eight of each kind
    for share, classes, images in ((10.1, 10, None), (3.5, 3, None), (1.01, 1, None), (0.51, 1, 4), (0.01, 1, 1)):
        monkeypatch.setattr(cost, "available_bytes", lambda device, n=share * two: int(n / cost.SHARE) + 1)
        found = chosen(recipe)
        assert (found.classes, found.images) == (classes, images), share
        assert found.bytes <= max(share, 1 / 8) * two and bool(found.why) == (images is not None)


def test_on_a_cpu_large_classes_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, pixels = recipe_of(CONVNET, MLP), 8 * 2 * 8 * 8  # eight real images, two networks
    for most, classes in ((3.5, 3), (1.5, 1), (0.1, 1)):
        monkeypatch.setattr(cost, "PIXELS", int(most * pixels))
        assert chosen(recipe).classes == classes


@pytest.mark.parametrize(("word", "classes", "images"), [("low", 1, 1), ("fast", 1, None)])
def test_the_recipe_s_word_counts(word: str, classes: int, images: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_bytes", lambda device: 0 if word == "fast" else GIB)
    found = chosen(recipe_of(CONVNET, MLP, memory=word))
    assert (found.classes, found.images) == (classes, images)


def test_a_network_that_refuses_goes_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "takes_classes_together", lambda net: net.spec.name != "mlp_tiny")
    assert chosen(recipe_of(CONVNET, MLP)).classes == 1
    assert chosen(recipe_of(CONVNET)).classes == 10


# memory that runs out


def notes_of(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


@pytest.mark.slow
def test_out_of_memory_takes_fewer_classes_then_images(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, events, work = recipe_of(CONVNET, MLP), list[Event](), hmdc.distance_gradients
    wanted = hmdc_of(recipe)
    next(wanted.run())

    def full(objectives: Any, given: Any, synthetic: torch.Tensor, *rest: Any, at_once: int | None) -> Any:
        if len(synthetic) * (at_once or 8) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(objectives, given, synthetic, *rest, at_once)  # type: ignore[call-arg]

    monkeypatch.setattr(hmdc, "distance_gradients", full)
    found = hmdc_of(recipe, events.append)
    next(found.run())
    torch.testing.assert_close(found.sizes[0].images.pixels, wanted.sizes[0].images.pixels, rtol=0, atol=1e-4)
    assert (found.at_once.classes, found.at_once.images) == (1, 2)
    assert notes_of(events) == [
        f"out of memory; going on with the graphs of {few} at a time"
        for few in ("5 classes", "3 classes", "8 images", "4 images", "2 images")
    ]
    monkeypatch.setattr(hmdc, "distance_gradients", lambda *_, **__: full(None, None, torch.ones(99), at_once=None))
    with pytest.raises(torch.OutOfMemoryError):
        next(found.run())


def test_memory_that_runs_out_late_in_a_step_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, found, work = hmdc_of(recipe_of(CONVNET, MLP)), hmdc_of(recipe_of(CONVNET, MLP)), hmdc.normalise
    next(wanted.run())

    def full(gradient: torch.Tensor) -> torch.Tensor:
        if len(gradient) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(gradient)

    monkeypatch.setattr(hmdc, "normalise", full)
    next(found.run())
    assert found.at_once.classes == 5
    (one,), (other,) = found.sizes, wanted.sizes
    for here, there in ((one.accumulated, other.accumulated), (one.images.pixels, other.images.pixels)):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [[CONVNET, MLP], [CONVNET, RESNET]], ids=["any", "batch norm"])
def test_out_of_memory_in_training_takes_more_parts(pool: list[Any]) -> None:
    recipe, events = recipe_of(*pool), list[Event]()
    wanted = hmdc_of(recipe)
    next(wanted.run())

    found = hmdc_of(recipe, events.append)
    model = found.networks.models[0]
    work = model.net.run

    def full(images: torch.Tensor) -> Any:
        if model.training and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(images)

    model.net.run = full  # type: ignore[method-assign,assignment]
    if RESNET in pool:  # whose statistics are those of the whole minibatch
        with pytest.raises(torch.OutOfMemoryError):
            next(found.run())
        return
    next(found.run())
    assert notes_of(events) == [f"out of memory; networks are trained on {n} parts of a batch" for n in (2, 4)]
    for name, value in wanted.networks.state().items():
        torch.testing.assert_close(found.networks.state()[name], value, rtol=1e-4, atol=1e-6)


def test_available_memory_is_that_of_the_machine_or_its_container() -> None:
    assert 2**28 < available_bytes(CPU) < 2**50


# whole runs


@pytest.mark.slow
def test_low_and_fast_are_one_run_up_to_rounding(tmp_path: Path) -> None:
    fast, low = (recipe_of(CONVNET, MLP, VIT, memory=word) for word in ("fast", "low"))
    assert fast.condense_hash() == low.condense_hash()
    directories = [run(tmp_path / recipe.condense.memory, recipe) for recipe in (fast, low)]
    first, second = (read_condensed(directory.condensed)[0] for directory in directories)
    torch.testing.assert_close(first, second, rtol=0, atol=2e-3)
    assert [json.loads(d.info.read_text())["memory"] for d in directories] == ["fast", "low"]


@pytest.mark.slow
def test_a_choice_of_low_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_bytes", lambda device: 1000)
    events: list[Event] = []
    directory = run(tmp_path / "run", tiny_recipe(), events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(text.startswith("memory: 1 image at a time, since a class would take about") for text in notes)
    assert json.loads(directory.info.read_text())["memory"] == "low"


def pairs(directory: Any) -> list[tuple[str, ...]]:
    """Return who worked at each image step."""
    lines = [json.loads(line) for line in directory.log.read_text().splitlines()]
    return [tuple(name.removeprefix("match/") for name in line["losses"] if "match/" in name) for line in lines]


PAIRS = {"pool_strategy": "pair", "resets": 6}


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [4, 6, 8])
def test_a_run_in_pairs_resumes_with_its_pair(tmp_path: Path, stop_after: int) -> None:
    recipe = recipe_of(CONVNET, MLP, RESNET, **PAIRS)
    unbroken = run(tmp_path / "unbroken", recipe)
    stop = StopFlag()

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == stop_after:
            stop.signal_number = 15

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", recipe, callback, stop)
    assert digest(run(tmp_path / "broken", recipe)) == digest(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("models", [[CONVNET], [CONVNET, MLP]])
def test_pairs_of_two_or_one_are_all(tmp_path: Path, models: list[dict[str, Any]]) -> None:
    same = [recipe_of(*models, pool_strategy=strategy) for strategy in ("all", "pair")]
    first, second = (run(tmp_path / recipe.condense.pool_strategy, recipe) for recipe in same)
    assert torch.equal(read_condensed(first.condensed)[0], read_condensed(second.condensed)[0])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["all", "pair"])
def test_the_plan_knows_the_strategy(strategy: str) -> None:
    found = estimate_cost(recipe_of(CONVNET, MLP, RESNET, pool_strategy=strategy), tiny_source(), CPU)
    assert len(found.objectives) == (6 if strategy == "all" else 3)
    assert (
        found.seconds
        and found.seconds > 0
        and found.memory_bytes > 0
        and found.at_once is None
        and found.classes_at_once == 10
    )


@pytest.mark.slow
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
