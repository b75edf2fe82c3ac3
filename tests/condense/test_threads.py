"""Working side by side changes the time, never the bits."""

from __future__ import annotations

from typing import Any

import torch

from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.images import StoredImages, starting_images
from hmdc_hub.condense.loop import Condenser
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.threads import SHARDS, Threads
from hmdc_hub.models import build_model
from hmdc_hub.schema import Recipe
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_source

CPU = torch.device("cpu")
RESNET = {
    "name": "resnet_tiny",
    "source": "builtin",
    "id": "resnet",
    "args": {"width": 4, "blocks": [1]},
}


def state_after_two_steps(count: int, pool: list[Any]) -> dict[str, torch.Tensor]:
    recipe, source = Recipe.model_validate(RECIPE | {"pool": pool}), tiny_source()
    threads = Threads(CPU, count)
    real = RealImages(source, recipe.condense, 0, CPU)
    networks = [
        build_model(
            spec,
            num_classes=source.train.num_classes,
            source_size=source.train.side,
            channels=source.train.channels,
            mean=source.mean,
            std=source.std,
        )
        for spec in recipe.pool
    ]
    with threads.one_each():
        nets = Pool(networks, recipe.condense, 0, threads)
        nets.reset(0, real)
        pixels = starting_images(networks[0], real, recipe.condense, 0, threads)
        condenser = Condenser(recipe.condense, 0, real, nets, StoredImages.begin(pixels, source))
        condenser.step()
        condenser.step()
        state = {name: value.clone() for name, value in condenser.state().items()}
    threads.close()
    return state


def test_any_number_of_threads_gives_the_same_bits() -> None:
    pools: list[list[Any]] = [[CONVNET, MLP], [CONVNET, VIT, RESNET]]
    for pool in pools:
        one, three = (state_after_two_steps(count, pool) for count in (1, 3))
        assert one.keys() == three.keys()
        assert all(torch.equal(one[name], three[name]) for name in one)


def test_shards_cover_a_minibatch_once() -> None:
    threads = Threads(CPU, 2)
    for size in (1, 3, 4, 5, 64, 127):
        parts = threads.shards(torch.zeros(size))
        assert [i for part in parts for i in range(size)[part]] == list(range(size))
        assert len(parts) == min(SHARDS, size)
    threads.close()


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    threads = Threads(CPU, 2)
    with threads.one_each():
        assert torch.get_num_threads() == 1
        assert threads.map(lambda x: torch.get_num_threads() * x, [1, 2]) == [1, 2]
    assert torch.get_num_threads() == before
    threads.close()
