"""Entries that compute in bfloat16: how much that changes, where, and where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser import check
from hmdc_hub.condenser.check import check_model
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.matching import Objectives, image_gradients
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import Recipe, plain_models
from tests.models.builders import TINY, build, images, spec_of
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_source

CPU = torch.device("cpu")
SIDES = {"swin": 16, "timm-swin": 16}


def twins(family: str) -> tuple[PoolModel, PoolModel]:
    """One network twice, in float32 and in bfloat16."""
    side = {} if "input_size" in TINY[family] else {"input_size": SIDES.get(family, 16)}
    exact, reduced = (build(spec_of(family, precision=word, **side)) for word in ("float32", "bfloat16"))
    for model in (exact, reduced):
        model.reset(rng.generator(1, "twins"))
        model.calibrate([images(model, 8)])
        model.eval()
    return exact, reduced


@pytest.mark.slow
@pytest.mark.parametrize("family", list(TINY))
def test_every_family_gives_float32_features_of_a_bfloat16_network(family: str) -> None:
    exact, reduced = twins(family)
    x = images(exact, 4)
    with torch.no_grad():
        wanted, found = exact.run_with({}, x), reduced.run_with({}, x)
    pairs = [
        (wanted.logits, found.logits),
        *((a.spatial, b.spatial) for a, b in zip(wanted.taps, found.taps, strict=True)),
    ]
    for a, b in pairs:
        assert b.dtype == torch.float32
        assert not torch.equal(a, b), "it was computed in float32"
        assert float((a - b).norm()) < 0.2 * float(a.norm())


def gradient(models: list[PoolModel], real: Tensor, synthetic: Tensor, at_once: int | None = None) -> Tensor:
    distillation = MutualDistillation((models[0].taps, models[1].taps))
    distillation.reset(rng.generator(0, "projections"))
    objectives, shares = Objectives(models, [Pair(0, 1, distillation)]), torch.full((1, len(real)), 1 / len(real))
    label = torch.ones(1, dtype=torch.int64)
    losses, found = image_gradients(objectives, real[None], shares, synthetic[None], label, torch.ones(1, 3), at_once)
    assert losses.dtype == torch.float32
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["convnet", "resnet", "mlp", "vit"])
@pytest.mark.parametrize("at_once", [None, 3])
def test_the_image_gradient_turns_little(family: str, at_once: int | None) -> None:
    exact, reduced = twins(family)
    partner = build(spec_of("convnet", input_size=16))
    real, synthetic = (images(exact, 8, seed=seed) for seed in (1, 2))
    wanted = gradient([exact, partner], real, synthetic)
    found = gradient([reduced, partner], real, synthetic, at_once)
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    assert F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.99


def recipe_of(**vit: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | {"pool": [CONVNET, VIT | vit]})


def test_clustering_sees_embeddings_of_the_entrys_precision() -> None:
    recipe, source = recipe_of(precision="bfloat16"), tiny_source()
    real = RealImages(source, recipe.condense, 0, CPU)
    convnet, vit = (build_for(spec, source) for spec in recipe.pool)
    rows = torch.arange(8)
    for model in (convnet, vit):
        model.requires_grad_(False)
    found = real.embed(convnet, rows)
    assert torch.equal(found, convnet.embed(convnet.prepare(real.pixels(rows))).float())
    found, wanted = real.embed(vit, rows), vit.embed(vit.prepare(real.pixels(rows)))
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_batch_norm_learns_in_float32() -> None:
    _, reduced = twins("convnet-batch")
    before = {name: value.clone() for name, value in reduced.named_buffers()}
    reduced.train()
    reduced.run_with({}, images(reduced, 4)).logits.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in reduced.trained().values())
    moved = {name: value for name, value in reduced.named_buffers() if not torch.equal(value, before[name])}
    assert any("running_mean" in name for name in moved)
    assert all(value.dtype == torch.float32 for name, value in moved.items() if "running" in name)


def test_it_is_part_of_what_decides_the_images_and_of_no_score() -> None:
    exact, reduced = recipe_of(), recipe_of(precision="bfloat16")
    assert exact.condense_hash() != reduced.condense_hash()
    scored = [
        Recipe.model_validate(RECIPE | {"evaluate": RECIPE["evaluate"] | {"models": [model]}})
        for model in (MLP, MLP | {"precision": "bfloat16"})
    ]
    assert scored[0].protocol_hash() == scored[1].protocol_hash()
    assert scored[1].evaluate.settled().models[0].precision == "float32"


def test_hashes_of_recipes_older_than_it_stay() -> None:
    exact, reduced = plain_models(recipe_of(precision="bfloat16").model_dump(mode="json")["pool"])
    assert "precision" not in exact and reduced["precision"] == "bfloat16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_check_tells_the_cosine(precision: str) -> None:
    result = check_model(spec_of("convnet", input_size=16, precision=precision), CPU)
    assert result.error <= 1e-4, "of the same network in float32"
    assert result.cosine is not None and 0.99 < result.cosine < 1 - 1e-6


@pytest.mark.parametrize(
    "scale", [1.0, torch.inf, RuntimeError("not implemented for 'BFloat16'")], ids=["finite", "overflow", "error"]
)
def test_a_gradient_that_does_not_exist_has_no_cosine(scale: float | RuntimeError) -> None:
    exact, reduced = twins("convnet")
    work = reduced.net.run

    def run(x: Tensor) -> Any:
        if isinstance(scale, RuntimeError):
            raise scale
        return work(x * scale)

    reduced.net.run = run  # type: ignore[method-assign]
    real, synthetic = (images(exact, 4, seed=seed) for seed in (1, 2))
    found = check.cosine(exact, reduced, exact, real, synthetic)
    assert found is None if scale != 1 else found is not None and found > 0.99
