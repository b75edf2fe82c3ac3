"""The forms of mutual distillation (`condense.distillation`): their formulas, derivatives, trainings and limits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser import condense, cost, hmdc
from hmdc_hub.condenser.cost import choose, shared_among_ranks
from hmdc_hub.condenser.data import Minibatch, RealImages
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.matching import Objectives, image_gradients, plain_attention
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.errors import Interrupted, OutOfMemoryError
from hmdc_hub.events import Event, ImageStep, StopFlag
from hmdc_hub.models import Features, TapInfo, TapOutput
from hmdc_hub.schema import Distillation, Recipe
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.rundir import RunDir
from tests.condenser.running import CPU, digest, estimate_cost, hmdc_of, networks_of, recipe_of, run
from tests.condenser.test_execution import on_meta
from tests.condenser.test_execution import recorded as recorded
from tests.condenser.test_matching import CONVNET as WIDE
from tests.condenser.test_matching import SIDE, apart, build, ours, pairs_of
from tests.condenser.test_matching import VIT as DEEP
from tests.gpu import GPU, Gpu
from tests.meta import OnlyMeta
from tests.tiny import CONVNET, MLP, tiny_recipe, tiny_source

FORMS: tuple[Distillation, ...] = get_args(Distillation)
NEW = FORMS[1:]
WHOLE: tuple[Distillation, ...] = ("standardised", "cosine")
RANDOM: dict[str, Any] = {"projection": {"batches_per_step": 0}}
TAPS = [TapInfo("a", "map", 6, 4), TapInfo("b", "tokens", 5, 2), TapInfo("c", "tokens", 5, 2)]


def distillation_of(form: Distillation) -> MutualDistillation:
    """Make one of three taps of up to six channels with one of two, both drawn."""
    found = MutualDistillation((TAPS, TAPS[:2]), form)
    found.reset(rng.generator(0, "test"))
    with torch.no_grad():
        found.layer_matching.normal_(generator=rng.generator(1, "test"))
    return found.double()


def features_of(taps: list[TapInfo], seed: int, *batch: int) -> Features:
    draw = partial(torch.randn, generator=rng.generator(seed, "features"), dtype=torch.float64)
    found = [TapOutput(draw(*batch, t.channels), draw(*batch, t.channels, t.side, t.side)) for t in taps]
    return Features(draw(*batch, 3), tuple(found))


def drawn(*batch: int) -> Tensor:
    return torch.randn(*batch, 3, SIDE, SIDE, generator=rng.generator(batch[-1], "images"))


def plain_losses(form: Distillation, one: Tensor, other: Tensor) -> Tensor:
    """Compare what is compared, B x L x positions x d, with functions of torch; the loss of every image."""
    if form == "standardised":
        # A dimension of a tap is a channel, positions are pixels.
        one, other = (
            F.batch_norm(x.permute(0, 1, 3, 2).flatten(1, 2), None, None, training=True, eps=1e-5) for x in (one, other)
        )
    if form == "cosine":
        one, other = (x - x.mean((0, 2), keepdim=True) for x in (one, other))
        return (1 - F.cosine_similarity(one, other, dim=-1, eps=1e-12)).flatten(1).mean(1)
    return F.mse_loss(one, other, reduction="none").flatten(1).mean(1)


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    with plain_attention():
        yield


# the formulas


@pytest.mark.parametrize("form", FORMS)
def test_what_torch_computes(form: Distillation) -> None:
    distillation = distillation_of(form)
    first, second = features_of(TAPS, 1, 7), features_of(TAPS[:2], 2, 7)
    compared = distillation.compared(first, second)
    assert [tuple(x.shape) for x in compared] == [(7, 2, 5, 5)] * 2
    # Squared lengths of about one, to which 1e-5 is added.
    tolerance = 1e-4 if form == "cosine" else 1e-12
    wanted = plain_losses(form, *compared)
    torch.testing.assert_close(distillation(first, second), wanted, rtol=0, atol=tolerance)
    wanted = wanted.mean()
    if form == "variance":
        for vectors in compared:
            deviation = torch.sqrt(vectors.transpose(1, 2).flatten(0, 1).var(0, correction=0) + 1e-4)
            wanted = wanted + (1 - deviation).clamp_min(0).mean()
    torch.testing.assert_close(distillation.learning_loss(first, second), wanted, rtol=0, atol=tolerance)


def test_by_hand() -> None:
    """One tap, one position, one dimension: a = -1, 1 and b = 2, 2 + t."""
    tap = [TapInfo("a", "map", 1, 1)]
    found: dict[str, float] = {}
    for form in FORMS:
        distillation = MutualDistillation((tap, tap), form)
        for linear in distillation.projections.modules():
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.ones_(linear.weight), torch.nn.init.zeros_(linear.bias)
        features = [
            Features(x, (TapOutput(x, x[..., None, None]),))
            for x in (torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [2.5]]))
        ]
        losses, learning = distillation(*features).detach(), distillation.learning_loss(*features).detach()
        found[form] = float(losses.mean())
        assert float(learning) == pytest.approx(found[form] + (0.75 if form == "variance" else 0), abs=1e-3)
    # (9 + 2.25) / 2; deviations 1 and 0.25; one rises where the other does.
    assert found == pytest.approx({"paper": 5.625, "variance": 5.625, "standardised": 0, "cosine": 0}, abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_images_without_weight_count_nowhere(form: Distillation) -> None:
    distillation = distillation_of(form)
    few, more = (
        [features_of(taps, seed, 7) for seed, taps in ((first, TAPS), (first + 1, TAPS[:2]))] for first in (1, 3)
    )
    both = [
        Features(
            torch.cat([a.logits, 50 * b.logits]),
            tuple(
                TapOutput(*(torch.cat([x, 50 * y]) for x, y in zip(s, t, strict=True)))
                for s, t in zip(a.taps, b.taps, strict=True)
            ),
        )
        for a, b in zip(few, more, strict=True)
    ]
    shares = torch.cat([torch.full((7,), 1 / 7, dtype=torch.float64), torch.zeros(7)])
    torch.testing.assert_close(distillation(*both, shares)[:7], distillation(*few), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", WHOLE)
def test_scale_and_offset_of_what_is_projected_do_not_matter(form: Distillation) -> None:
    """So that no projection is better for being smaller."""
    distillation = distillation_of(form)
    a, b = distillation.compared(features_of(TAPS, 1, 7), features_of(TAPS[:2], 2, 7))
    moved = distillation._losses(30 * a + 5, 30 * b - 5, None)
    torch.testing.assert_close(moved, distillation._losses(a, b, None), rtol=0, atol=1e-3)


# what is matched


def plain_gradient(
    pair: Pair, models: list[Any], real: Tensor, fake: Tensor, form: Distillation
) -> tuple[Tensor, Tensor]:
    """Give the distance between parameter gradients, and its derivative, through one graph of everything."""
    leaf = fake.clone().requires_grad_()
    parameters = [p for model in models for p in model.trained().values()]

    def gradients(x: Tensor, *, create_graph: bool) -> tuple[Tensor | None, ...]:
        loss = plain_losses(form, *pair.distillation.compared(*(m(m.prepare(x)) for m in models))).mean()
        return torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=create_graph)

    terms = [
        (a - b).square().sum()
        for a, b in zip(gradients(real, create_graph=False), gradients(leaf, create_graph=True), strict=True)
        if a is not None and b is not None
    ]
    distance = torch.stack(terms).sum()
    return distance.detach(), torch.autograd.grad(distance, leaf)[0]


@pytest.mark.parametrize("form", FORMS)
def test_the_image_gradient_is_the_plain_one(form: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    models = build([WIDE, DEEP])
    (pair,) = pairs_of(models)
    pair.distillation.form = form
    real, fake = drawn(5), drawn(4)
    monkeypatch.setattr("hmdc_hub.condenser.distillation.EPSILON", 1e-5 if form == "standardised" else 1e-12)
    losses, found = ours(Objectives(models, [pair], match=False), real, fake, None)
    distance, wanted = plain_gradient(pair, models, real, fake, form)
    assert float(losses[0]) == pytest.approx(float(distance), rel=1e-4)
    assert wanted.abs().max() > 0 and apart(found[0], wanted) < 1e-4
    if form in WHOLE:
        parts = ours(Objectives(models, [pair], match=False), real, fake, None, at_once=2)[1]
        assert apart(parts[0], wanted) > 0.01, "a few images at a time are something else"


@pytest.mark.parametrize("form", NEW)
def test_classes_together_are_each_alone(form: Distillation) -> None:
    models = build([WIDE, DEEP])
    (pair,) = pairs_of(models)
    pair.distillation.form = form
    objectives = Objectives(models, [pair])
    real, fake = drawn(2, 5), drawn(2, 4)
    shares = torch.tensor([[0.2] * 5, [0.25] * 4 + [0]])
    labels, weights = torch.arange(2), torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    together = image_gradients(objectives, real, shares, fake, labels, weights)
    for c, size in enumerate((5, 4)):
        one = slice(c, c + 1)
        own = torch.full((1, size), 1 / size)
        alone = image_gradients(objectives, real[one, :size], own, fake[one], labels[one], weights[one])
        for got, wanted in zip(together, alone, strict=True):
            assert apart(got[c], wanted[0]) < 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 4])
def test_where_nothing_varies_derivatives_are_finite(form: Distillation, count: int) -> None:
    """P of zeros gives every image the same; a single image of a network without positions has no variance."""
    mlps, shape = networks_of(recipe_of(MLP, MLP | {"name": "other"})).networks, (3 + count, 1, 8, 8)
    grey = torch.rand(shape, generator=rng.generator(0, "images"))
    cases = [(build([WIDE, DEEP]), drawn(3), drawn(count)), (mlps, grey[:3], grey[3:])]
    for models, real, fake in cases:
        (pair,) = pairs_of(models)
        pair.distillation.form = form
        if models is not mlps:
            with torch.no_grad():
                for parameter in pair.distillation.projections.parameters():
                    parameter.zero_()
        losses, found = ours(Objectives(models, [pair]), real, fake, None)
        assert torch.isfinite(losses).all() and torch.isfinite(found).all()
        features = [model(model.prepare(real)) for model in models]
        learnt = [p for p in pair.distillation.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(pair.distillation.learning_loss(*features), learnt, allow_unused=True)
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)


# training


@torch.no_grad()
def _varies(networks: ModelPool) -> float:
    """Give the variance over real images of what is compared, the lesser of both sides."""
    (pair,), seen = networks.objectives.pairs, networks.real.read(torch.arange(0, len(networks.real.labels), 9))
    compared = pair.distillation.compared(*(net.run_with({}, net.prepare(seen)) for net in networks.networks))
    return min(float(x.var(0).mean()) for x in compared)


def test_projections_give_a_constant_in_the_papers_form_alone() -> None:
    """Networks held, P and Q trained on: how much of what P makes of the images is left."""
    left: dict[str, float] = {}
    for form in FORMS:
        networks = networks_of(recipe_of(CONVNET, MLP, distillation=form))
        real, before = networks.real, _varies(networks)
        for key in range(12):
            for batch in real.draw_minibatches("test", (key, 0), 10):
                networks.train_projections(batch)
        left[form] = _varies(networks) / before
    assert left["paper"] < 0.2 and all(left[form] > 0.7 for form in NEW), left


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_minibatch_sum_up_or_stay_whole(form: Distillation) -> None:
    states = []
    for parts in (1, 3):
        networks = networks_of(recipe_of(CONVNET, MLP, distillation=form))
        networks.parts = parts
        batch = next(networks.real.draw_minibatches("test", (0, 0), 1))
        networks.train_projections(batch)
        networks.train(batch)
        states.append(networks.state())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
    exact = [torch.equal(states[1][name], value) for name, value in states[0].items() if name.startswith("network.")]
    assert all(exact) == (form in WHOLE)


def test_projections_stay_as_drawn_where_none_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    state = hmdc_of(recipe_of(CONVNET, MLP, **RANDOM))
    purposes, work = list[str](), RealImages.draw_minibatches

    def spy(self: RealImages, purpose: str, key: tuple[int, int], most: int) -> Iterator[Minibatch]:
        purposes.append(purpose)
        return work(self, purpose, key, most)

    monkeypatch.setattr(RealImages, "draw_minibatches", spy)
    (pair,) = state.networks.objectives.pairs
    before = {name: value.clone() for name, value in pair.distillation.state_dict().items()}
    steps = state.run()
    done = [next(steps) for _ in range(3)]
    assert set(purposes) == {"train-networks"}
    assert all(torch.equal(value, before[name]) for name, value in pair.distillation.state_dict().items())
    assert torch.equal(pair.distillation.layer_matching, torch.zeros(1, 2)), "a softmax of it is uniform"
    assert all(step.losses["distill/convnet_tiny+mlp_tiny"] > 0 for step in done)
    assert not any(name.startswith("adam.") for name in state.networks.state())
    plan = estimate_cost(recipe_of(CONVNET, MLP, **RANDOM), tiny_source())
    assert plan.parts["projections"] == plan.flops["projections"] == 0 and plan.parts["networks"] > 0


# whole runs


@pytest.mark.slow
@pytest.mark.parametrize("keys", [*({"distillation": form} for form in NEW), RANDOM], ids=[*NEW, "random"])
def test_stopped_in_an_outer_iteration_and_resumed(tmp_path: Path, keys: dict[str, Any]) -> None:
    recipe, stop = recipe_of(CONVNET, MLP, **keys), StopFlag()
    unbroken = run(tmp_path / "unbroken", recipe)
    assert digest(unbroken)[1] != digest(run(tmp_path / "paper", recipe_of(CONVNET, MLP)))[1]

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == 4:
            stop.signal_number = 15

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", recipe, callback, stop)
    assert digest(run(tmp_path / "broken", recipe)) == digest(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"distillation": "standardised", "derivative": "compiled"},
        {"distillation": "variance"},
        {"distillation": "cosine"},
        RANDOM,
    ],
    ids=["standardised, compiled", "variance", "cosine", "random"],
)
def test_a_run_on_a_gpu_is_that_on_a_cpu(
    recorded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    recipe = recipe_of(CONVNET, MLP, **keys)
    with Gpu(monkeypatch) as gpu:
        for name, device in (("cpu", CPU), ("gpu", GPU)):
            (tmp_path / name).mkdir()
            condense(recipe, tiny_source(), RunDir(tmp_path / name), device=device)
    assert set(gpu.events) == {"beside", "capture", "replay"}
    one, other = (read_condensed(RunDir(tmp_path / name).condensed)[0] for name in ("cpu", "gpu"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("form", NEW)
def test_no_function_of_a_step_asks_a_tensor_for_its_value(form: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, capturable: torch.optim.SGD(parameters, lr))
    state: HMDC = on_meta(recipe_of(CONVNET, MLP, distillation=form, ipc=2, batch=6))
    (classes,) = state.execution.upload([state.real.draw_classes([0, 1], [0, 1], [torch.arange(6)] * 2, (0, 0), [2])])
    (batch,) = state.execution.upload(list(state.real.draw_minibatches("test", (0, 0), 1)))
    for work in (
        partial(state.image_step, classes.tensors, update=True),
        partial(state.image_step, classes.tensors, update=False),
        partial(state.networks.train, batch.tensors),
        partial(state.networks.train_projections, batch.tensors),
    ):
        work()
        with OnlyMeta():  # type: ignore[no-untyped-call]
            work()


# what is refused, told and estimated


def test_recipes_that_do_not_say_it_stay_as_they_were() -> None:
    recipe = tiny_recipe()
    assert "distillation" not in recipe.model_dump(mode="json")["condense"]
    assert tiny_recipe(distillation="paper").condense_hash() == recipe.condense_hash()
    assert len({tiny_recipe(distillation=form).condense_hash() for form in FORMS}) == len(FORMS)
    again = Recipe.model_validate(tiny_recipe(distillation="cosine").model_dump(mode="json"))
    assert again.condense.distillation == "cosine"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"distillation": "cosine", "distill": False}, "is cosine, .* distill: false switches off; leave one"),
        ({"distillation": "variance", **RANDOM}, "is variance, .*batches_per_step: 0 leaves out; .* leave"),
        ({"distillation": "standardised", "memory": "low"}, "is standardised, .* memory: low takes them in parts"),
        ({"distillation": "cosine", "networks": {"accumulation_steps": 2}}, "is cosine, .* accumulation_steps: 2"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny_recipe(**keys)
    tiny_recipe(**{name: value for name, value in keys.items() if name != "distillation"})


def test_a_pool_of_one_has_no_form() -> None:
    with pytest.raises(ValidationError, match="distillation is variance, and a pool of one model .* add a model"):
        recipe_of(CONVNET, distillation="variance")


@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_fit_is_taken_in_parts_or_told(form: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = networks_of(recipe_of(CONVNET, MLP, distillation=form))
    monkeypatch.setattr(cost, "available_bytes", lambda device: 1000)
    if form not in WHOLE:
        assert choose(networks).images == 1
        return
    with pytest.raises(OutOfMemoryError, match=f"of 1000 B, and condense.distillation: {form} takes it whole") as told:
        choose(networks)
    assert "-o condense.distillation=variance" in told.value.hint


@pytest.mark.parametrize(("form", "least"), [("standardised", 8), ("variance", 1)])
def test_out_of_memory_stops_at_a_whole_class(form: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()

    def full(objectives: Any, real: Tensor, *rest: Any, at_once: int | None) -> Any:
        tried.append(len(real) * (at_once or 8))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(hmdc, "real_gradients", full)
    with pytest.raises(torch.OutOfMemoryError):
        next(hmdc_of(recipe_of(CONVNET, MLP, distillation=form)).run())
    assert min(tried) == least


@pytest.mark.parametrize(("form", "parts"), [("standardised", 1), ("variance", 4)])
def test_out_of_memory_in_training_cuts_what_may_be_cut(
    form: Distillation, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = hmdc_of(recipe_of(CONVNET, MLP, distillation=form))
    model = state.networks.models[0]
    work = model.net.run

    def full(seen: Tensor) -> Any:
        if model.training and len(seen) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(seen)

    model.net.run = full  # type: ignore[method-assign,assignment]
    if form in WHOLE:
        with pytest.raises(torch.OutOfMemoryError):
            next(state.run())
    else:
        next(state.run())
    assert state.networks.parts == parts


def test_ranks_share_no_projections_that_learn_from_whole_minibatches() -> None:
    work = {name: torch.tensor([60.0, 0.0]) for name in ("matching", "clustering", "networks", "projections")}
    networks = {"batch": 64, "accumulation_steps": 2}
    for form, seconds in (("paper", 30), ("variance", 60)):
        spec = tiny_recipe(networks=networks, distillation=form).condense
        parts = shared_among_ranks(work, spec, 10, block=5, ranks=2)
        assert (parts["networks"], parts["projections"]) == (30, seconds)
    plain, variance = (
        list(cost.estimate_cost_stepwise(tiny_recipe(networks=networks, distillation=form), tiny_source(), CPU, 2))[0]
        for form in ("paper", "variance")
    )
    learnt = sum(p.numel() for p in networks_of(tiny_recipe()).learnt)
    assert plain.exchanged_bytes - variance.exchanged_bytes == 4 * 2 * learnt
