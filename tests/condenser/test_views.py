"""Several augmented views of a class in one image step: what is drawn for them, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hmdc_hub import augment, multi_formation, rng
from hmdc_hub.augment import CutmixDraw
from hmdc_hub.condenser.cost import choose, class_bytes
from hmdc_hub.condenser.data import Classes, RealImages
from hmdc_hub.condenser.matching import image_gradients
from tests.condenser.running import CPU, hmdc_of, networks_of, recipe_of
from tests.tiny import CONVNET, MLP, tiny_recipe, tiny_source

LABELS, KEY = [1, 4, 7], (2, 5)
COUNTS = [8, 5, 2]  # real images of these classes: as many as a batch, and fewer


def real_of(**keys: Any) -> RealImages:
    recipe = tiny_recipe(cutmix={"match": True, "probability": 0.8}, **keys)
    return RealImages(tiny_source(), recipe.condense, recipe.seed, CPU)


def drawn_of(real: RealImages) -> Classes:
    chosen = [real.of_class(label)[:count] for label, count in zip(LABELS, COUNTS, strict=True)]
    return real.draw_classes(LABELS, LABELS, chosen, KEY, real.spec.sizes)


def row(draw: Any, place: int) -> Any:
    """Give the draw of one view."""
    return type(draw)(*(None if field is None else field[place : place + 1] for field in draw))


@pytest.mark.parametrize("views", [2, 3, 8])
def test_the_real_batch_is_dealt_out(views: int) -> None:
    real = real_of(views=views)
    drawn = drawn_of(real)
    size = -(-8 // views)
    assert real.batch == views * size and real.drawn(1) == views * 4
    assert drawn.real.shape == drawn.shares.shape == (3, views * size)
    for label, count, images, shares in zip(LABELS, COUNTS, drawn.real, drawn.shares, strict=True):
        torch.testing.assert_close(shares.view(views, size).sum(1), torch.full((views,), 1 / views))
        seen = images[shares > 0] - real.of_class(label)[0]
        if count >= views:
            assert sorted(seen.tolist()) == list(range(count)), "each image once"
        else:
            assert len(seen) == views and set(seen.tolist()) == set(range(count)), "each view has one"


def test_the_first_view_is_that_of_a_recipe_without_views() -> None:
    one, three = drawn_of(real_of()), drawn_of(real_of(views=3))
    assert (one.shares[1, :5] == 1 / 5).all() and (one.shares[1, 5:] == 0).all()
    for field, other in zip(one.augmentation, three.augmentation, strict=True):
        if field is not None and other is not None:
            assert torch.equal(field, other[::3]) and not torch.equal(field, other[1::3])
    (mix,), (mixes,) = one.mix_synthetic, three.mix_synthetic
    assert mix is not None and mixes is not None
    assert torch.equal(mix.box, mixes.box[::3])


@pytest.mark.parametrize("views", [1, 3])
def test_each_view_is_transformed_by_its_own_draw_and_alike_on_both_sides(views: int) -> None:
    real = real_of(views=views, ipc=2)
    drawn = drawn_of(real)
    pixels = torch.randn(3, 2, 1, 8, 8, generator=rng.generator(0, "views"))
    decoded = multi_formation.decode(pixels, 2)
    size = real.batch // views
    (mix_synthetic,) = drawn.mix_synthetic
    assert drawn.mix_real is not None and mix_synthetic is not None

    def by_hand(images: Tensor, mix: CutmixDraw, place: int) -> Tensor:
        augmented = augment.apply(row(drawn.augmentation, place), images)
        return augment.apply_cutmix(row(mix, place), augmented[None])[0]

    found_real, found_synthetic = real.view_real(drawn), real.view_synthetic(drawn, pixels)
    assert found_synthetic.shape == (3, views * 8, 1, 8, 8)
    for k in range(3):
        for v in range(views):
            place, few = k * views + v, slice(v * size, (v + 1) * size)
            wanted = by_hand(real.pixels(drawn.real[k, few]), drawn.mix_real, place)
            torch.testing.assert_close(found_real[k, few], wanted)
            wanted = by_hand(decoded[k], mix_synthetic, place)
            torch.testing.assert_close(found_synthetic[k, v * 8 : (v + 1) * 8], wanted)


def test_gradients_are_the_mean_over_views() -> None:
    """Of a distance to nothing at all: |g(X)|^2 with g(X) the mean of what the views give, each alone."""
    networks = networks_of(recipe_of(MLP, augment={"flip": False}, views=2, distill=False))
    real = networks.real
    drawn = drawn_of(real)
    pixels = torch.randn(3, 1, 1, 8, 8, generator=rng.generator(0, "views"))
    fake = real.view_synthetic(drawn, pixels)
    nothing, zero = real.view_real(drawn), torch.zeros_like(drawn.shares)
    losses, _ = image_gradients(networks.objectives, nothing, zero, fake, drawn.labels, None)
    net = networks.networks[0]
    for c, label in enumerate(LABELS):
        each = []
        for view in torch.split(fake[c], 4):
            logits = net(net.prepare(view)).logits
            loss = torch.nn.functional.cross_entropy(logits, torch.full((4,), label))
            each.append(torch.autograd.grad(loss, list(net.trained().values())))
        mean = [(a + b) / 2 for a, b in zip(*each, strict=True)]
        torch.testing.assert_close(losses[c, 0], torch.stack([m.square().sum() for m in mean]).sum())


@pytest.mark.slow
def test_memory_and_images_at_a_time_grow_with_views() -> None:
    one, four = (networks_of(recipe_of(CONVNET, MLP, views=views)) for views in (1, 4))
    assert (one.real.drawn(1), four.real.drawn(1), one.real.batch, four.real.batch) == (4, 16, 8, 8)
    told = [class_bytes(networks.objectives, networks.real, 1, networks.real.drawn(1)) for networks in (one, four)]
    assert told[1] > 1.5 * told[0]
    low = choose(networks_of(recipe_of(CONVNET, MLP, views=4, memory="low")))
    assert low.images == 1, "a tenth of 16"


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["squares", "cosine", "orthogonal"])
def test_few_images_at_a_time_are_the_same_run_up_to_rounding(distance: str) -> None:
    pixels = []
    for memory in ("fast", "low"):
        hmdc = hmdc_of(recipe_of(CONVNET, MLP, views=3, distance=distance, memory=memory))
        # Not three: there rounding tips a unit that stands at zero, which moves pixels by 1e-3, with any distance.
        for _ in zip(range(2), hmdc.run(), strict=False):
            pass
        pixels.append(hmdc.sizes[0].images.pixels)
    torch.testing.assert_close(*pixels, rtol=0, atol=1e-5)


def test_views_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"views: 9 is more than batch: 8, .* lower views or raise batch"):
        tiny_recipe(views=9)
    off: dict[str, Any] = dict.fromkeys(("flip", "crop", "scale", "rotate", "cutout"), False) | {"color": []}
    for cutmix in ({"match": False}, {"probability": 0.0}):
        with pytest.raises(ValidationError, match="views: 2 would all be the same"):
            tiny_recipe(views=2, augment=off, cutmix=cutmix)
    tiny_recipe(views=2, augment=off)
    tiny_recipe(augment=off, cutmix={"match": False})


def test_one_view_is_no_key() -> None:
    assert tiny_recipe(views=1).condense_hash() == tiny_recipe().condense_hash()
    assert tiny_recipe(views=2).condense_hash() != tiny_recipe().condense_hash()
    assert "views" not in tiny_recipe(views=1).condense.model_dump()
