"""Networks that are trained on the source before condensing begins."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hmdc_hub import augment, rng
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.stages import trained
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import Recipe
from tests.condenser.running import CPU, recipe_of
from tests.tiny import CONVNET, MLP, tiny_recipe, tiny_source


def model_and_source(recipe: Recipe, seed: int = 0) -> tuple[PoolModel, RealImages]:
    source = tiny_source()
    return build_for(recipe.pool[0], source), RealImages(source, recipe.condense, seed, CPU)


def test_a_network_is_trained_as_a_plain_loop_over_the_same_minibatches_does() -> None:
    model, real = model_and_source(tiny_recipe())
    trained(model, real, epochs=2, seed=3)
    assert not model.training

    twin = build_for(model.spec, real.source)
    twin.reset(rng.generator(3, "network", 0, 0))
    images = real.source.normalise(real.source.train.images)
    steps = 0
    for epoch in range(2):
        order = torch.randperm(len(images), generator=rng.generator(3, "trained", "order", 0, epoch))
        for i, rows in enumerate(order.split(16)):
            gen = rng.generator(3, "trained", "augment", 0, epoch, i)
            draw = augment.draw(real.spec.augment, gen, 8, len(rows))
            mix = augment.draw_cutmix(gen, len(rows), 8, 0.5)
            x = augment.apply_cutmix(mix, augment.apply(draw, images[rows]))
            targets = augment.mix_targets(mix, F.one_hot(real.labels[rows], 10).float())
            loss = F.cross_entropy(twin(twin.prepare(x)).logits, targets)
            for p, g in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
                p.data -= model.spec.lr.condense * g
            steps += 1
    assert steps == 2 * -(-len(images) // 16)
    for (name, value), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=name)


def test_a_trained_network_depends_on_its_seed_and_not_on_the_recipes() -> None:
    def weights(recipe: Recipe, seed: int, own: int) -> torch.Tensor:
        model, real = model_and_source(recipe, seed)
        trained(model, real, epochs=1, seed=own)
        assert real.seed == seed
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    alone, pool = recipe_of(CONVNET), recipe_of(CONVNET, MLP)
    assert torch.equal(weights(alone, 0, 1), weights(pool, 5, 1))
    assert not torch.equal(weights(alone, 0, 1), weights(alone, 0, 2))
