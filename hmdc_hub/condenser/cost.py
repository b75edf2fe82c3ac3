"""What a run will cost, measured on a few images of it before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hmdc_hub import cluster, rng
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.matching import Objectives, image_gradients
from hmdc_hub.condenser.memory import PROBE, AtOnce, choose, on_meta
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.errors import UsageError
from hmdc_hub.execution import Execution, settings
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.schema import CondenseSpec, Recipe
from hmdc_hub.sources import Source

LONG_ENOUGH = 5.0
"""Seconds after which nothing is measured again."""

PARTS = ("matching", "clustering", "networks", "projections")
"""Of the work of condensing, in the order that they are measured in."""


@dataclass(frozen=True)
class CostEstimate:
    """What condensing will do and take.

    Attributes:
        objectives: Names of the K objectives.
        parameters: Of each network in the pool, by name.
        image_steps: In all.
        synthetic_images: C x n; `training_images` C x n f f.
        ranks: Processes that work on it together.
        seconds: Estimated, from probes of 16 images on this device; None until all parts are measured.
        parts: The same by part, one rank's: those of `PARTS` that are measured.
        flops: Floating point operations of the whole run by part, counted in the same probes: matrix products and
            convolutions, forward, backward and twice backward.
        at_once: Images of a class whose graphs the matching step holds at a time; None for all of them.
        classes_at_once: Classes that it computes at a time; None until that is known.
        memory: Estimated peak of one rank in bytes: `graphs` (once that is known), `networks` with their
            gradients, the `source` (files that are mapped count, though the system may take their pages back) and the
            synthetic `images` with momentum, all counted; without the libraries' own.
        checkpoint_bytes: On disk, of a checkpoint between network resets: images and momentum of all classes.
        exchanged_bytes: What one rank receives in an image step: gradients of the parts of minibatches.
    """

    objectives: list[str]
    parameters: dict[str, int]
    image_steps: int
    synthetic_images: int
    training_images: int
    ranks: int
    seconds: float | None
    parts: dict[str, float]
    flops: dict[str, float]
    at_once: int | None
    classes_at_once: int | None
    memory: dict[str, int]
    checkpoint_bytes: int
    exchanged_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Sum of `memory`."""
        return sum(self.memory.values())

    @property
    def unmeasured(self) -> list[str]:
        """What is not measured yet, in order: `graphs`, and of `PARTS`."""
        return [*(["graphs"] if "graphs" not in self.memory else []), *(p for p in PARTS if p not in self.parts)]


def check_size(recipe: Recipe, counts: Sequence[int]) -> None:
    """Refuse, with a UsageError, an ipc above the largest of the classes, of `counts` images: that is no condensing."""
    largest = max(counts)
    if recipe.condense.ipc > largest:
        raise UsageError(
            f"condense.ipc = {recipe.condense.ipc} is more than the largest class of {recipe.source.id} has: {largest} "
            f"train image{'s' * (largest != 1)}.",
            hint=f"Lower it: -o condense.ipc={min(largest, 10)}",
        )


def estimate_cost(recipe: Recipe, source: Source, device: torch.device, ranks: int = 1) -> CostEstimate:
    """Estimate time and memory of condensing; arguments and errors as `estimate_cost_stepwise`, its last."""
    return list(estimate_cost_stepwise(recipe, source, device, ranks))[-1]


def estimate_cost_stepwise(
    recipe: Recipe, source: Source, device: torch.device, ranks: int = 1
) -> Iterator[CostEstimate]:
    """Estimate time and memory of condensing: first what can be counted, then each part as it is measured.

    Each part is run on a few images; nothing is written. The values of the pixels are of no matter.

    Args:
        recipe: Resolved.
        source: Loaded, or of the same shape.
        device: Where it would run; nothing is put there before the first estimate was taken.
        ranks: Processes on as many devices like this one.

    Raises:
        UsageError: ipc is larger than the source's largest class.
    """
    check_size(recipe, source.train.counts)
    spec = recipe.condense
    models = [build_for(model, source) for model in recipe.pool]
    probe = {"batch": min(PROBE, spec.networks.batch), "accumulation_steps": 1}
    few = spec.model_copy(update={"networks": spec.networks.model_copy(update=probe)})
    pool = ModelPool(models, spec, 0, RealImages(source, spec, 0, torch.device("cpu")))
    found = _counted(recipe, source, pool, ranks)
    yield found
    with settings(device):
        real = RealImages(source, few, recipe.seed, device)
        networks = ModelPool([model.to(device) for model in models], few, recipe.seed, real)
        networks.reset(0)
        at_once = choose(networks.constitutions(), real, spec)
        memory = {"graphs": at_once.bytes} | found.memory
        found = replace(found, at_once=at_once.images, classes_at_once=at_once.classes, memory=memory)
        yield found
        work: dict[str, Tensor] = {}
        pools = _pools(networks)
        for part in PARTS:
            work[part] = torch.stack([_work(part, pool, recipe, at_once) for pool in pools]).mean(0)
            parts = _shared(work, spec, real.classes, at_once, device, ranks)
            seconds = sum(parts.values()) if part == PARTS[-1] else None
            found = replace(found, parts=parts, flops={k: float(v[1]) for k, v in work.items()}, seconds=seconds)
            yield found


def _counted(recipe: Recipe, source: Source, networks: ModelPool, ranks: int) -> CostEstimate:
    """Count what is known without running anything."""
    spec, train, models = recipe.condense, source.train, networks.models
    images, largest_share = train.num_classes * spec.ipc, -(-train.num_classes // ranks)
    bytes_each = 4 * train.channels * train.side**2
    return CostEstimate(
        objectives=networks.objectives.names(),
        parameters={net.spec.name: parameter_count(net) for net in models},
        image_steps=spec.resets * spec.networks.reset_every,
        synthetic_images=images,
        training_images=images * spec.factor**2,
        ranks=ranks,
        seconds=None,
        parts={},
        flops={},
        at_once=None,
        classes_at_once=None,
        memory={
            "networks": sum(2 * t.nbytes for net in models for t in net.state_dict().values()),
            "source": train.images.nbytes,
            "images": 2 * bytes_each * largest_share * spec.ipc,
        },
        checkpoint_bytes=2 * bytes_each * images,
        exchanged_bytes=_exchanged(networks, ranks, len(train.images)),
    )


def _shared(
    work: dict[str, Tensor], spec: CondenseSpec, classes: int, at_once: AtOnce, device: torch.device, ranks: int
) -> dict[str, float]:
    """Share seconds of work among ranks, by part."""
    owned = -(-classes // at_once.classes) if device.type == "cpu" else classes
    shares = {"matching": min(ranks, owned), "clustering": min(ranks, owned)}
    return {
        name: float(cost[0]) / shares.get(name, min(ranks, spec.networks.accumulation_steps or 1))
        for name, cost in work.items()
    }


def _exchanged(networks: ModelPool, ranks: int, images: int) -> int:
    """Count the bytes of gradients that a rank receives in an image step."""
    spec = networks.spec
    if ranks == 1 or networks.parts == 1:
        return 0
    minibatches, rows = -(-images // spec.networks.batch), -(-networks.parts // ranks) * ranks
    counts = (spec.networks.batches_per_step, spec.projection.batches_per_step)
    moved = (networks.trained, networks.learnt)
    return sum(
        4 * rows * min(count, minibatches) * sum(p.numel() for p in parameters)
        for count, parameters in zip(counts, moved, strict=True)
    )


def _pools(networks: ModelPool) -> list[ModelPool]:
    """List the pool in every constitution that the run may have it in: one, or one for each pair."""
    if len(networks.active) == len(networks.models):
        return [networks]
    pairs = combinations(networks.models, 2)
    found = [ModelPool(pair, networks.spec, networks.seed, networks.real) for pair in pairs]
    for pool in found:
        pool.reset(0)
    return found


def _work(part: str, networks: ModelPool, recipe: Recipe, at_once: AtOnce) -> Tensor:
    """Measure one of `PARTS` for the whole run, one thing after another: seconds and operations."""
    spec, real = recipe.condense, networks.real
    steps, classes = spec.resets * spec.networks.reset_every, min(real.classes, spec.classes_per_step or real.classes)
    if part == "clustering":
        return _clustering(networks, spec) * (classes / real.classes)
    execution = Execution(real.device)
    if part == "matching":
        return _matching(networks.objectives, execution, spec, real, at_once) * (steps * classes)
    wanted = spec.networks.batches_per_step if part == "networks" else spec.projection.batches_per_step
    if not wanted or (part == "projections" and not networks.objectives.pairs):
        return torch.zeros(2, dtype=torch.float64)
    train = networks.train if part == "networks" else networks.train_projections
    (batch,) = execution.upload(real.draw_minibatches("plan", (0, 0), 1))
    function = execution.function(train, part)
    minibatches = min(wanted, -(-len(real.labels) // spec.networks.batch))
    scale = min(spec.networks.batch, len(real.labels)) / len(batch.tensors.labels)
    return _cost(lambda: function(batch), real.device) * (steps * minibatches * scale)


def _matching(
    objectives: Objectives, execution: Execution, spec: CondenseSpec, real: RealImages, at_once: AtOnce
) -> Tensor:
    """Measure one class's matching, averaged over steps with and without balance update."""
    wanted = real.batch, min(spec.batch, real.decoded)
    counts = [min(PROBE, count) for count in wanted]
    shape = (at_once.classes, real.source.train.channels, real.side, real.side)
    gen = rng.generator(0, "plan", "images")
    images, synthetic = (torch.randn(shape[0], count, *shape[1:], generator=gen) for count in counts)
    shares = torch.full(images.shape[:2], 1 / counts[0])
    labels = torch.arange(at_once.classes)
    weights = torch.ones(shape[0], len(objectives.names()))
    (inputs,) = execution.upload([(images, shares, synthetic, labels, weights)])
    few = None if at_once.images is None else min(PROBE, at_once.images)

    def go(given: Sequence[Tensor], update: bool) -> Any:
        real, shares, synthetic, labels, weights = given
        return image_gradients(objectives, real, shares, synthetic, labels, None if update else weights, few)

    costs = []
    for update in (False, True):
        function = execution.function(partial(go, update=update), "matching")
        cost = _cost(partial(function, inputs), real.device) * (sum(wanted) / sum(counts) / at_once.classes)
        # Counted for one class: torch's formulas take the convolutions of several at a time for larger ones.
        with suppress(RuntimeError):  # a network that asks a tensor for its value
            cost[1] = _operations(on_meta(objectives, real, spec, 1, apart=update))
        costs.append(cost)
    share = 1 / spec.balance_every
    return (1 - share) * costs[0] + share * costs[1]


def _clustering(networks: ModelPool, spec: CondenseSpec) -> Tensor:
    """Measure the choice of real batches: embedding and k-means on a sample, scaled to the whole run."""
    real = networks.real
    refreshes = spec.resets * -(-spec.networks.reset_every // spec.cluster.every)
    total = torch.zeros(2, dtype=torch.float64)
    rows = torch.arange(real.rows(0).start, real.rows(0).stop)
    wanted = [min(count, spec.cluster.candidates or count) for count in real.source.train.counts if count > spec.batch]
    if not wanted or not spec.cluster.enabled:
        return total
    sample = rows[: 4 * PROBE]
    for net in networks.models:
        embedding = _cost(partial(real.embed, net, sample), real.device)
        points = real.embed(net, rows[:256])
        k = max(1, min(spec.batch, len(points) // 2))
        gen = rng.generator(0, "plan")
        lloyd = _cost(partial(cluster.representatives, [points], k, [gen], max_iter=10), real.device)
        # Real data come to rest after some 30 iterations; the probe makes at most 10.
        per_point = embedding / len(sample) + 3 * lloyd / len(points) * spec.batch / k
        total += refreshes / len(networks.models) * per_point * sum(wanted)
    return total


def _cost(work: Callable[[], Any], device: torch.device) -> Tensor:
    """Measure work: seconds, the fastest of a few calls since a busy machine only ever makes it slower; operations."""
    operations = _operations(work)
    work()  # where functions are captured, this call does it
    times: list[float] = []
    while len(times) < 3 and sum(times) < LONG_ENOUGH:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return torch.tensor([min(times), operations], dtype=torch.float64)


def _operations(work: Callable[[], Any]) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())
