"""`memory` and `pool_strategy`: what is held at a time, and who works in an outer iteration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hmdc_hub import rng
from hmdc_hub.condense import match, memory
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.class_gradient import plain_attention
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.memory import available_bytes, choose_memory, saved_bytes
from hmdc_hub.condense.meter import allocated_peak
from hmdc_hub.condense.plan import plan
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


def pool_of(recipe: Recipe) -> tuple[Members, RealImages]:
    source = tiny_source()
    real = RealImages(source, recipe.condense, recipe.seed, CPU)
    return Members([build_for(model, source) for model in recipe.pool], recipe.condense, recipe.seed), real


def chosen(recipe: Recipe) -> memory.Memory:
    return choose_memory(*pool_of(recipe), recipe, 1)


# peaks


def objectives(specs: Sequence[ModelSpec], at_once: int | None) -> Objectives:
    models: list[PoolModel] = [build(spec, source_size=32, seed=i) for i, spec in enumerate(specs)]
    alignments = []
    for a in range(len(models)):
        for b in range(a + 1, len(models)):
            align = Alignment((a, b), (models[a].taps, models[b].taps))
            align.reset(rng.generator(0, "test", a, b))
            alignments.append(align)
    return Objectives(models, alignments, at_once=at_once)


def peak(specs: Sequence[ModelSpec], at_once: int | None, weights: bool = True) -> int:
    targets = objectives(specs, at_once)
    real, fake = (torch.randn(16, 3, 32, 32, generator=rng.generator(i, "test")) for i in range(2))
    wanted = [1.0] * len(targets.names()) if weights else None
    with plain_attention():
        return allocated_peak(lambda: match.image_derivatives(targets, real, fake, 1, wanted), CPU)


WIDE = [
    ModelSpec(name="a", source="builtin", id="convnet", args={"depth": 3, "width": 24}),
    ModelSpec(name="b", source="builtin", id="convnet", args={"depth": 3, "width": 22, "norm": "batch"}),
    ModelSpec(name="c", source="builtin", id="convnet", args={"depth": 2, "width": 20}),
]


@pytest.mark.parametrize("weights", [True, False], ids=["summed", "apart"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_memory_follows_the_number_of_images_at_a_time(count: int, weights: bool) -> None:
    whole, half, eighth = (peak(WIDE[:count], at_once, weights) for at_once in (None, 8, 2))
    assert half <= 0.65 * whole
    assert eighth <= 0.3 * whole


def test_a_whole_batch_holds_a_pair_whatever_the_size_of_the_pool() -> None:
    pair, three = (peak(WIDE[:count], None) for count in (2, 3))
    assert pair > 1.5 * max(peak([spec], None) for spec in WIDE)
    assert three <= 1.1 * pair


# the choice


def test_as_many_images_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(CONVNET, MLP)  # 8 real and 4 decoded images
    assert chosen(recipe).at_once is None
    pool, real = pool_of(recipe)
    needed = sum(saved_bytes(net, real, recipe) for net in pool.everybody)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for share, at_once in ((1.01, None), (0.99, 7), (0.51, 4), (0.3, 2), (0.01, 1)):
        monkeypatch.setattr(memory, "available_bytes", lambda device, n=share * needed: int(n / memory.SHARE))
        assert chosen(recipe).at_once == at_once, share
        assert chosen(recipe).bytes <= max(share, 1 / 8) * needed


def test_more_side_by_side_is_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    recipe = recipe_of(CONVNET, MLP)
    two, five, many = (choose_memory(*pool_of(recipe), recipe, n).bytes for n in (1, 5, 50))
    assert five == pytest.approx(2.5 * two, abs=5) and many == pytest.approx(5 * two, abs=5), "there are ten classes"


@pytest.mark.parametrize(("word", "at_once"), [("low", 1), ("fast", None)])
def test_the_recipe_s_word_counts(word: str, at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0 if word == "fast" else GIB)
    assert chosen(recipe_of(CONVNET, MLP, memory=word)).at_once == at_once


def test_out_of_memory_halves_the_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(CONVNET, MLP)
    members, real = pool_of(recipe)
    events: list[Event] = []
    members.listener = events.append
    members.reset(0, real)
    hand = Hand(recipe.condense, 0, real, members)
    arguments = (0, 0), 3, real.matching_batches(members.networks[0], [3], (0, 0))[0], hand.starting_images(3)
    work = match.image_derivatives
    fits = 3

    def full(objectives: Objectives, *rest: Any) -> Any:
        if (objectives.at_once or 8) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(objectives, *rest)

    monkeypatch.setattr("hmdc_hub.condense.class_gradient.image_derivatives", full)
    with plain_attention():
        got = hand.class_part(*arguments, torch.full((3,), 1e-6), True)
        assert members.at_once == 2
        assert [event.text for event in events if isinstance(event, Note)] == [
            "out of memory; going on with the graphs of 4 images at a time",
            "out of memory; going on with the graphs of 2 images at a time",
        ]
        monkeypatch.undo()
        members.at_once = None
        wanted = hand.class_part(*arguments, torch.full((3,), 1e-6), True)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)
        fits = 0
        monkeypatch.setattr("hmdc_hub.condense.class_gradient.image_derivatives", full)
        with pytest.raises(torch.OutOfMemoryError):
            hand.class_part(*arguments, torch.full((3,), 1e-6), True)


class RunsOut(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Memory that is out once, at one operation of all that are done in here; counts them."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at, self.seen = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


def test_memory_that_runs_out_anywhere_in_a_class_leaves_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(MLP | {"args": {"depth": 1}}, MLP | {"name": "other", "args": {"depth": 1}})
    members, real = pool_of(recipe)
    members.reset(0, real)
    # Again with as many images, so that every bit can be compared.
    monkeypatch.setattr(members, "take_fewer", lambda images: True)
    hand = Hand(recipe.condense, 0, real, members)
    rows, stored = real.matching_batches(members.networks[0], [3], (0, 0))[0], hand.starting_images(3)
    accumulated, before = torch.rand(3, generator=rng.generator(0, "test")) + 0.1, members.values()
    before = {name: value.clone() for name, value in before.items()}

    def part(at: int = -1) -> tuple[list[bytes], int]:
        given = stored.clone(), accumulated.clone()
        with RunsOut(at) as memory, plain_attention():
            got = hand.class_part((0, 0), 3, rows, *given, True)
        assert torch.equal(given[0], stored) and torch.equal(given[1], accumulated), at
        return [tensor.numpy().tobytes() for tensor in got], memory.seen

    wanted, operations = part()
    assert wanted[3] != accumulated.numpy().tobytes()
    tried, late = 0, range(operations - 60, operations + 1)  # where the balance is updated
    for at in [*range(1, late.start, 29), *late]:
        try:
            got, _ = part(at)
        except torch.OutOfMemoryError:  # before the work or after it, where nobody tries again
            continue
        tried += 1
        assert got == wanted, f"operation {at} of {operations}"
    assert tried > 70
    for name, value in members.values().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("pool", [[CONVNET, MLP], [CONVNET, RESNET]], ids=["any", "batch norm"])
def test_out_of_memory_in_training_takes_fewer_images(
    pool: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(*pool)
    members, real = pool_of(recipe)
    events: list[Event] = []
    members.listener = events.append
    members.reset(0, real)
    for net in members.networks:
        net.train()
    hand = Hand(recipe.condense, 0, real, members)
    images = torch.randn(11, 1, 8, 8, generator=rng.generator(0, "test"))
    targets = torch.eye(10)[torch.arange(11) % 10]
    wanted, hits = hand.training_part(images, targets, 0.5)
    work = Hand._training_part

    def full(self: Hand, images: torch.Tensor, *rest: Any) -> Any:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(self, images, *rest)

    monkeypatch.setattr(Hand, "_training_part", full)
    if RESNET in pool:  # whose statistics are those of the whole minibatch
        with pytest.raises(torch.OutOfMemoryError):
            hand.training_part(images, targets, 0.5)
        return
    for _ in range(2):
        got, found = hand.training_part(images, targets, 0.5)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
        assert torch.equal(found, hits)
    assert [event.text for event in events if isinstance(event, Note)] == [
        "out of memory; networks are trained on 6 images at a time",
        "out of memory; networks are trained on 3 images at a time",
    ]


def test_estimates_do_not_vary() -> None:
    recipe = recipe_of(CONVNET, VIT)
    pool, real = pool_of(recipe)
    assert len({saved_bytes(pool.everybody[1], real, recipe) for _ in range(3)}) == 1


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
    assert any(text.startswith("memory: 1 image at a time, since whole batches would take about") for text in notes)
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
    assert found.seconds and found.seconds > 0 and found.memory_bytes > 0 and found.at_once is None


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
