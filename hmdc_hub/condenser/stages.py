"""Networks that are trained on the source before condensing begins."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.events import Callback, silent
from hmdc_hub.execution import Execution
from hmdc_hub.models import PoolModel


def trained(model: PoolModel, real: RealImages, *, epochs: int, seed: int, callback: Callback = silent) -> None:
    """Train a model of the pool on the source in place, from fresh weights; it is left in evaluation mode.

    It is trained as the pool is between image steps (`condense.augment`, `cutmix.train`, `networks.batch`, its own
    `lr.condense`), alone: without mutual distillation. Nothing is drawn from the recipe's seed, so that the same
    arguments give the same network in every run, and in every rank.

    Args:
        model: On the device of `real`.
        real: The source, and what the recipe says of condensing it.
        epochs: Passes over the train split, at least 1.
        seed: Of weights, minibatches and augmentation.
        callback: Told where a function cannot run as was meant.
    """
    for _ in training(model, real, epochs=epochs, seed=seed, callback=callback):
        pass


def training(
    model: PoolModel, real: RealImages, *, epochs: int, seed: int, callback: Callback = silent
) -> Iterator[int]:
    """Do what `trained` does, and give the number of minibatches done after each."""
    seeded = copy.copy(real)  # the same images, drawn by another seed
    seeded.seed = seed
    networks = ModelPool([model], seeded, Ranks.alone())
    networks.reset(0)
    execution, done = Execution(real.device, callback), 0
    function = execution.function(networks.train, f"training of {model.spec.name}")
    for epoch in range(epochs):
        drawn = seeded.draw_minibatches("trained", (0, epoch), minibatches(real))
        for batch in execution.upload(drawn, together=real.resident):
            function(batch)
            done += 1
            yield done


def minibatches(real: RealImages) -> int:
    """Count the minibatches of a pass over the train split."""
    return -(-len(real.labels) // real.spec.networks.batch)
