"""`condense.derivative: compiled` computes what the eager form does, with whatever values the networks have."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condense import match
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.class_gradient import plain_attention
from hmdc_hub.condense.compiled import Compiled
from hmdc_hub.condense.match import Derivatives, Objectives, image_derivatives
from hmdc_hub.condense.team import Threads
from hmdc_hub.errors import RunError
from hmdc_hub.events import Event, Note
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import Recipe
from tests.condense.running import condenser_of
from tests.condense.test_team import crew, state_after
from tests.models.builders import TINY, build, images, spec_of
from tests.tiny import CONVNET, MLP, RECIPE

CPU = torch.device("cpu")
WEIGHTS = [0.5, 2.0, 1.0]
COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are run as they are: what a compiler makes of them is its own affair, and takes long."""
    monkeypatch.setattr(torch, "compile", lambda record, **_: record)


def pair(family: str, seed: int, **fields: Any) -> tuple[list[PoolModel], Alignment]:
    side = {} if "input_size" in TINY[family] else {"input_size": 16}
    models = [build(spec_of(family, **side, **fields)), build(spec_of("convnet", name="partner", input_size=16))]
    for model in models:
        model.reset(rng.generator(seed, "compiled"))
        model.calibrate([images(model, 8)])
        model.eval()
    return models, aligned(models, seed)


def aligned(models: list[PoolModel], seed: int) -> Alignment:
    align = Alignment((0, 1), (models[0].taps, models[1].taps))
    align.reset(rng.generator(seed, "projections"))
    return align


def derivatives(objectives: Objectives, count: int, seed: int, label: int, weights: Any = WEIGHTS) -> Derivatives:
    with plain_attention():
        real, synthetic = (images(objectives.networks[0], count, seed=seed + i) for i in range(2))
        return image_derivatives(objectives, real, synthetic, label, weights)


def learnt(objectives: Objectives, count: int) -> Compiled:
    assert objectives.compiled is not None
    with objectives.compiled.learning():
        derivatives(objectives, count, 7, 0, [1.0] * len(objectives.names()))
    return objectives.compiled


def assert_alike(found: Derivatives, wanted: Derivatives, tolerance: float) -> None:
    assert len(found.gradients) == len(wanted.gradients)
    for a, b in zip([*found.gradients, *found.losses], [*wanted.gradients, *wanted.losses], strict=True):
        assert float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize(
    ("family", "at_once"),
    [("convnet-batch", None), ("resnet", None), ("vit", None), ("convnext", None), ("convnet", 3), ("vit", 3)],
)
def test_a_record_holds_for_other_values(recorded: None, family: str, at_once: int | None) -> None:
    """Networks are reset in place between outer iterations, alignments are made anew."""
    models, align = pair(family, 1)
    objectives = Objectives(models, [align], at_once=at_once, compiled=Compiled())
    compiled = learnt(objectives, 6)
    made = dict(compiled._made)
    assert len(made) == 2
    for model in models:
        model.reset(rng.generator(2, "compiled"))
        model.calibrate([images(model, 8)])
    fresh = aligned(models, 5)
    eager = derivatives(Objectives(models, [fresh], at_once=at_once), 6, 3, 2)
    calls: list[Any] = []
    compiled._made = {key: watched(function, calls) for key, function in made.items()}
    found = derivatives(Objectives(models, [fresh], at_once=at_once, compiled=compiled), 6, 3, 2)
    assert_alike(found, eager, 1e-5)
    assert len(calls) == (2 if at_once is None else 4), "it was computed eagerly"


def watched(function: Any, calls: list[Any]) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(function)
        return function(*arguments)

    return call


def test_a_record_in_bfloat16(recorded: None) -> None:
    models, align = pair("vit", 1, precision="bfloat16")
    objectives = Objectives(models, [align], compiled=Compiled())
    learnt(objectives, 6)
    found = derivatives(objectives, 6, 3, 1)
    assert_alike(found, derivatives(Objectives(models, [align]), 6, 3, 1), 1e-5)


def test_what_was_not_compiled_is_eager(recorded: None) -> None:
    """Classes smaller than a batch, and derivatives apart."""
    models, align = pair("convnet", 1)
    objectives, eager = Objectives(models, [align], compiled=Compiled()), Objectives(models, [align])
    compiled = learnt(objectives, 6)
    before = set(compiled._made)
    for count, weights in ((5, WEIGHTS), (6, None)):
        found, wanted = (derivatives(each, count, 3, 1, weights) for each in (objectives, eager))
        assert all(torch.equal(a, b) for a, b in zip(found.gradients, wanted.gradients, strict=True))
    assert set(compiled._made) == before


def test_pools_of_three_have_a_function_for_each_pair(recorded: None) -> None:
    models, _ = pair("resnet", 1)
    models.append(build(spec_of("mlp", input_size=16)))
    aligns = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        aligns.append(Alignment((a, b), (models[a].taps, models[b].taps)))
        aligns[-1].reset(rng.generator(3, "projections", a, b))
    objectives = Objectives(models, aligns, compiled=Compiled())
    assert len(learnt(objectives, 6)._made) == 6
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = derivatives(objectives, 6, 3, 1, weights)
    assert_alike(found, derivatives(Objectives(models, aligns), 6, 3, 1, weights), 1e-5)


def recipe_of(**condense: Any) -> Recipe:
    return Recipe.model_validate(
        RECIPE | {"pool": [CONVNET, MLP], "condense": RECIPE["condense"] | {"derivative": "compiled"} | condense}
    )


@COMPILER
def test_the_compiler_itself_in_threads_and_in_a_process() -> None:
    recipe = recipe_of()
    threads = Threads(CPU, 2)
    wanted = state_after(3, recipe_of(derivative="eager"), threads)
    found = state_after(3, recipe, threads)
    threads.close()
    for name, value in wanted.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)
    assert any(not torch.equal(found[name], value) for name, value in wanted.items()), "nothing was compiled"
    with crew(1, recipe) as processes:
        again = state_after(3, recipe, processes)
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_it_says_what_it_does(recorded: None) -> None:
    told: list[Event] = []
    threads = Threads(CPU, 1)
    condenser = condenser_of(recipe_of(), threads)
    condenser.pool.members.listener = told.append
    for _ in range(3):
        condenser.step()
    threads.close()
    assert [note.text for note in told if isinstance(note, Note)] == [
        "compiling the matching step; the first time this takes minutes"
    ]


def test_memory_that_runs_out_while_compiling_is_no_failure(recorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of images is halved, and what is then done is compiled; again when it is halved later."""
    threads = Threads(CPU, 1)
    condenser = condenser_of(recipe_of(), threads)
    hand, work, tried = condenser.pool.hand, match._derivatives, list[int]()

    def too_much(objectives: Objectives, group: Any, like: Tensor, *rest: Any) -> Any:
        tried.append(len(like))
        raise torch.OutOfMemoryError("CUDA out of memory")

    too_much.__name__ = work.__name__
    monkeypatch.setattr(match, "_derivatives", too_much)
    members = hand.members
    assert members.compiled is not None
    assert hand.prepare() > 0 and len(tried) == 1 and members.at_once is not None
    first, before = members.at_once, set(members.compiled._made)
    assert {key[0] for key in before} == {"_gradients", "_products"}
    assert hand.prepare() == 0
    assert members.take_fewer(first)
    assert hand.prepare() > 0 and set(members.compiled._made) > before
    threads.close()


def test_what_cannot_be_compiled_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(record: Any, **_: Any) -> Any:
        def call(*_: Any) -> Tensor:
            raise ValueError("no compiler found\nlong story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    threads = Threads(CPU, 1)
    with pytest.raises(RunError, match="torch.compile failed: ValueError: no compiler found\n") as told:
        condenser_of(recipe_of(), threads).step()
    threads.close()
    assert "-o condense.derivative=eager" in told.value.hint


def test_it_is_how_not_what() -> None:
    assert recipe_of().condense_hash() == recipe_of(derivative="eager").condense_hash()
