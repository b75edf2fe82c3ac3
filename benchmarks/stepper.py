"""The condenser in the state at the start of a run, for benchmarks to do its parts one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from plain_step import PlainHMDC
from torch import Tensor

from hmdc_hub.condenser.cost import AtOnce, choose
from hmdc_hub.condenser.data import Minibatch, RealImages
from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.images import SyntheticImages, initial_images
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.execution import Execution, Packed, settings
from hmdc_hub.models import build_for
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source

KEY = (0, 1)
"""A step in the middle of an outer iteration."""


class Eager(Execution):
    """Captures nothing."""

    def function(self, work: Callable[[Any], Any], name: str) -> Callable[[Packed[Any]], Any]:
        return lambda packed: work(packed.tensors)


class Stepper:
    """One method in the state at the start of a run; `settings` hold until it is closed.

    Args:
        recipe: What is condensed and how.
        source: Loaded.
        device: Where.
        method: `new`, the condenser as it is; `plain` (see `plain_step.py`), whose minibatches go through whole;
            `eager`, which captures nothing; `compiled`, with `condense.derivative: compiled`.
    """

    def __init__(self, recipe: Recipe, source: Source, device: torch.device, method: str = "new") -> None:
        plain, spec = method == "plain", recipe.condense
        if plain:
            spec = spec.model_copy(update={"networks": spec.networks.model_copy(update={"accumulation_steps": 1})})
        if method == "compiled":
            spec = spec.model_copy(update={"derivative": "compiled"})
        self._settings = ExitStack()
        self._settings.enter_context(settings(device))
        real = RealImages(source, spec, recipe.seed, device)
        networks = ModelPool([build_for(model, source).to(device) for model in recipe.pool], real)
        networks.reset(0)
        at_once = AtOnce(1, None, 0) if plain else choose(networks)
        labels = range(real.classes)
        images = []
        for ipc in spec.sizes:
            pixels = torch.stack([initial_images(real, networks.networks[0], label, ipc) for label in labels])
            images.append(SyntheticImages(labels, pixels.to(device), source, spec.images))
        execution = (Eager if method in ("plain", "eager") else Execution)(device)
        self.hmdc = (PlainHMDC if plain else HMDC)(networks, images, at_once, execution)
        self._functions: dict[Any, Callable[[Packed[Any]], Any]] = {}
        self.choose_real_batches()

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Give every part as a function of its own, with what is drawn and uploaded for it."""
        spec = self.hmdc.spec
        return {
            "real batches": self.choose_real_batches,
            "matching": lambda: self.matching(update=False),
            "matching, with update": lambda: self.matching(update=True),
            "networks": lambda: self.training("train", spec.networks.batches_per_step),
            "projections": lambda: self.training("train_projections", spec.projection.batches_per_step),
            "a step": lambda: self.step(1),
            "a step, with update": lambda: self.step(0),
        }

    def choose_real_batches(self) -> None:
        """Choose the real batches of all classes."""
        self.hmdc.visits = [0] * self.hmdc.real.classes
        self.hmdc.choose_real_batches(range(self.hmdc.real.classes), KEY)

    def function(self, name: str, **settled: bool) -> Callable[[Packed[Any]], Any]:
        """Give a function of a step, as the device runs it."""
        at = (name, *settled.values(), self.hmdc.at_once)
        owner = self.hmdc if name == "image_step" else self.hmdc.networks
        if at not in self._functions:
            self._functions[at] = self.hmdc.execution.function(partial(getattr(owner, name), **settled), name)
        return self._functions[at]

    def classes(self) -> list[Packed[Any]]:
        """Draw and upload what all classes see, as many at a time as are computed together."""
        hmdc = self.hmdc
        count = -(-hmdc.real.classes // hmdc.at_once.classes)
        chunks = [chunk.tolist() for chunk in torch.arange(hmdc.real.classes).tensor_split(count)]
        batches, sizes = hmdc.real_batches, hmdc.spec.sizes
        drawn = [hmdc.real.draw_classes(few, few, [batches[c] for c in few], KEY, sizes) for few in chunks]
        return list(hmdc.execution.upload(drawn))

    def minibatches(self, count: int) -> list[Packed[Minibatch]]:
        """Draw and upload minibatches."""
        return list(self.hmdc.execution.upload(list(self.hmdc.real.draw_minibatches("train-networks", KEY, count))))

    def matching(self, *, update: bool) -> None:
        """Move the synthetic images of every class."""
        for drawn in self.classes():
            self.function("image_step", update=update)(drawn)

    def training(self, name: str, count: int) -> None:
        """Train on minibatches."""
        if name == "train" or self.hmdc.networks.objectives.pairs:
            for batch in self.minibatches(count):
                self.function(name)(batch)

    def step(self, visits: int) -> None:
        """Make a whole step in the middle of an outer iteration, after so many: at 0 the balance is updated."""
        hmdc = self.hmdc
        (hmdc.outer, hmdc.inner), hmdc.visits = KEY, [visits] * hmdc.real.classes
        next(hmdc.run())

    def gradients(self) -> Tensor:
        """Compute the image gradient of every class in a step without update, on the CPU, and move nothing."""
        (size,) = self.hmdc.sizes
        images, found = size.images, torch.zeros_like(size.images.pixels)

        def keep(rows: Tensor, gradient: Tensor) -> None:
            found.index_copy_(0, rows, gradient)

        images.step = keep  # type: ignore[method-assign]
        for drawn in self.classes():
            self.hmdc.image_step(drawn.tensors, update=False)
        del images.step
        return found.cpu()

    def close(self) -> None:
        """Put torch's settings back."""
        self._settings.close()
