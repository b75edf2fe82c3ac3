"""What an estimate of the cost counts."""

from __future__ import annotations

import pytest
import torch

from hmdc_hub.condenser import cost
from hmdc_hub.condenser.cost import shared_among_ranks
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.schema import Recipe
from tests.condenser.running import estimate_cost
from tests.gpu import CPU, GPU, Gpu
from tests.tiny import CONVNET, MLP, RECIPE, tiny_recipe, tiny_source


def test_the_second_derivative_is_counted() -> None:
    """Of one linear map, l the loss: y and dl/dW of both kinds of images, then d(v dl/dW)/dX."""
    spec = {"name": "p", "source": "builtin", "id": "mlp", "args": {"depth": 1, "width": 4}}
    recipe = Recipe.model_validate(tiny_recipe(resets=1).model_dump() | {"pool": [spec]})
    few, many = (
        estimate_cost(recipe.model_copy(update={"condense": recipe.condense.model_copy(update={"batch": batch})}),
                      tiny_source(), CPU).flops["matching"]
        for batch in (1, 2)
    )  # fmt: skip
    pixels, hidden, classes, steps = 64, 4, 10, 3 * 10
    forward = 2 * (pixels * hidden + hidden * classes)
    assert few >= steps * (2 * 2 + 2) * forward, "forward, backward, and twice backward of the synthetic ones"
    assert many == 2 * few


@pytest.mark.slow
def test_views_are_counted_of_synthetic_images_alone() -> None:
    """Twice the views are twice the images: 4 + 4 and 4 + 8, or 8 + 4."""
    small = {"batch": 4, "distill": False, "resets": 1}
    one, two = (estimate_cost(tiny_recipe(views=views, **small), tiny_source(), CPU) for views in (1, 2))
    more = estimate_cost(tiny_recipe(**small | {"batch": 8}), tiny_source(), CPU)
    real = more.flops["matching"] - one.flops["matching"]
    assert two.flops["matching"] == pytest.approx(2 * one.flops["matching"] - real)
    assert two.flops["networks"] == one.flops["networks"]


@pytest.mark.slow
def test_comparing_gradients_is_counted_once_however_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rounds and back, of a matrix 4 x 64 and one 10 x 4, and of the real ones once more without the way back."""
    spec = {"name": "p", "source": "builtin", "id": "mlp", "args": {"depth": 1, "width": 4}}
    flops = {}
    for distance in ("squares", "orthogonal"):
        for batch in (1, 2):
            plain = tiny_recipe(resets=1, distance=distance, batch=batch).model_dump() | {"pool": [spec]}
            flops[distance, batch] = estimate_cost(Recipe.model_validate(plain), tiny_source(), CPU).flops["matching"]
    own = flops["orthogonal", 1] - flops["squares", 1]
    assert flops["orthogonal", 2] - flops["squares", 2] == own
    rounds = sum(2 * (2 * a * a * b + a**3) for a, b in ((4, 64), (4, 10)))
    assert own == 3 * 10 * 10 * rounds * (1 + 3), "image steps, classes, rounds; of X thrice as much as of R"
    took = iter((0.25, 1.25, 1.25))
    monkeypatch.setattr(cost, "timed", lambda work, device: next(took, 1.0))
    recipe = tiny_recipe(resets=1, distance="orthogonal", batch=64, memory="low", balance_every=1)
    parts = estimate_cost(recipe, tiny_source(), CPU).parts
    assert parts["matching"] == pytest.approx(3 * 10 * ((64 + 4) / (16 + 4) * 1.0 + 0.25))


@pytest.mark.slow
def test_what_a_gpu_does_is_counted_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate_cost(tiny_recipe(), tiny_source(), CPU)
    with Gpu(monkeypatch) as gpu:
        there = estimate_cost(tiny_recipe(), tiny_source(), GPU)
    assert (there.flops, there.memory) == (found.flops, found.memory)
    # Each of the four functions once as it is, then captured; what is timed is a replay.
    assert gpu.events == (["beside", "capture"] + 4 * ["replay"]) * 4


@pytest.mark.slow
def test_work_grows_with_steps_and_classes() -> None:
    one, two = (estimate_cost(tiny_recipe(resets=resets), tiny_source(), CPU) for resets in (1, 2))
    assert all(two.flops[name] == pytest.approx(2 * one.flops[name]) for name in one.flops)
    assert all(one.flops[name] > 0 for name in ("matching", "networks", "projections"))
    few = estimate_cost(tiny_recipe(resets=1, classes_per_step=5), tiny_source(), CPU)
    assert few.flops["matching"] == pytest.approx(one.flops["matching"] / 2)
    assert few.flops["networks"] == one.flops["networks"]


@pytest.mark.slow
def test_what_ranks_hold_and_exchange() -> None:
    recipe = tiny_recipe(networks={"reset_every": 3, "batches_per_step": 2, "batch": 64, "parts": 3})
    alone, three = (estimate_cost(recipe, tiny_source(), CPU, ranks) for ranks in (1, 3))
    trained = sum(parameter_count(build_for(model, tiny_source())) for model in recipe.pool)
    image = 4 * 8 * 8
    assert alone.exchanged_bytes == 0 and alone.checkpoint_bytes == 2 * 10 * image
    assert alone.memory["images"] == 2 * 10 * image
    assert three.memory["images"] == 2 * 4 * image, "the largest share of ten classes is four"
    assert three.checkpoint_bytes == alone.checkpoint_bytes
    projections = three.exchanged_bytes - 4 * 3 * 2 * trained
    assert projections > 0 and projections % (4 * 3) == 0
    whole = tiny_recipe(networks={"reset_every": 3, "batches_per_step": 2, "batch": 64, "parts": 1})
    assert estimate_cost(whole, tiny_source(), CPU, 3).exchanged_bytes == 0, "every rank trains by itself"
    assert alone.memory_bytes == sum(alone.memory.values())


@pytest.mark.slow
def test_a_distillation_switched_off_exchanges_no_projections() -> None:
    spec = RECIPE["condense"] | {"distill": False, "networks": {"batches_per_step": 1, "batch": 64, "parts": 2}}
    recipe = Recipe.model_validate(RECIPE | {"pool": [CONVNET, MLP], "condense": spec})
    trained = sum(parameter_count(build_for(model, tiny_source())) for model in recipe.pool)
    assert estimate_cost(recipe, tiny_source(), CPU, 2).exchanged_bytes == 4 * 2 * trained


def test_time_is_shared_among_ranks_as_far_as_there_is_something_to_share() -> None:
    names = ("matching", "clustering", "networks", "projections")
    work = {name: torch.tensor([seconds, 0.0]) for name, seconds in zip(names, (800.0, 80.0, 90.0, 30.0), strict=True)}
    spec = tiny_recipe(networks={"batch": 64, "parts": 2}).condense
    assert shared_among_ranks(work, spec, 10, block=3, ranks=1) == {n: float(work[n][0]) for n in names}
    parts = shared_among_ranks(work, spec, 10, block=3, ranks=8)
    assert parts == {"matching": 200, "clustering": 20, "networks": 45, "projections": 15}, "four owners, two parts"
    assert shared_among_ranks(work, spec, 10, block=1, ranks=8)["matching"] == 100
