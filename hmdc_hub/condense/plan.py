"""What a run will cost, measured on a few images of it before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hmdc_hub import cluster, rng
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.memory import PROBE, choose_memory, probe
from hmdc_hub.condense.pool import Pool, parts_of
from hmdc_hub.condense.team import Threads
from hmdc_hub.errors import UsageError
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.schema import CondenseSpec, Recipe
from hmdc_hub.sources import Source

PROBED_MINIBATCHES = 2

LONG_ENOUGH = 5.0
"""Seconds after which nothing is measured again."""

PARTS = ("matching", "clustering", "networks", "projections")
"""Of the work of condensing, in the order that they are measured in."""


@dataclass(frozen=True)
class Plan:
    """What condensing will do and take.

    Attributes:
        targets: Names of the K targets.
        parameters: Of each network in the pool, by name.
        image_steps: In all.
        stored_images: C x n; `training_images` C x n f f.
        ranks: Processes that work on it together.
        seconds: Estimated, from probes of 16 images on this device; None until all parts are measured.
        parts: The same by part, one rank's: those of `PARTS` that are measured.
        flops: Floating point operations of the whole run by part, counted in the same probes: matrix products and
            convolutions, forward, backward and twice backward.
        at_once: Images whose graphs the matching step holds at a time; None for a whole batch.
        memory: Estimated peak of one rank in bytes: `graphs` (once it is measured, on 16 images), `networks` with their
            gradients, the `source` (files that are mapped count, though the system may take their pages back) and the
            stored `images` with momentum, all counted; without the libraries' own.
        checkpoint_bytes: On disk, of a checkpoint between network resets: stored images and momentum of all.
        exchanged_bytes: What one rank receives in an image step: gradients of the parts of minibatches.
    """

    targets: list[str]
    parameters: dict[str, int]
    image_steps: int
    stored_images: int
    training_images: int
    ranks: int
    seconds: float | None
    parts: dict[str, float]
    flops: dict[str, float]
    at_once: int | None
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
    """Refuse to make more images than there are: that would be no condensing.

    Args:
        recipe: Says `condense.ipc`.
        counts: Images to condense of each class.

    Raises:
        UsageError: ipc is larger than the source's largest class.
    """
    largest = max(counts)
    if recipe.condense.ipc > largest:
        raise UsageError(
            f"condense.ipc = {recipe.condense.ipc} is more than the largest class of {recipe.source.id} has: {largest} "
            f"train image{'s' * (largest != 1)}.",
            hint=f"Lower it: -o condense.ipc={min(largest, 10)}",
        )


def plan(recipe: Recipe, source: Source, device: torch.device, ranks: int = 1) -> Plan:
    """Estimate time and memory of condensing; arguments and errors as `planned`, of which this is the last."""
    return list(planned(recipe, source, device, ranks))[-1]


def planned(recipe: Recipe, source: Source, device: torch.device, ranks: int = 1) -> Iterator[Plan]:
    """Estimate time and memory of condensing: first what can be counted, then each part as it is measured.

    Each part is run on a few images; nothing is written. The values of the pixels are of no matter.

    Args:
        recipe: Resolved.
        source: Loaded, or of the same shape.
        device: Where it would run; nothing is put there before the first plan was taken.
        ranks: Processes on as many devices like this one.

    Raises:
        UsageError: ipc is larger than the source's largest class.
    """
    check_size(recipe, source.train.counts)
    spec, small = recipe.condense, _few_images(recipe.condense)
    networks = [build_for(model, source) for model in recipe.pool]
    found = _counted(recipe, source, Members(networks, small, recipe.seed), device, ranks)
    yield found
    networks = [net.to(device) for net in networks]
    real = RealImages(source, small, recipe.seed, device)
    threads, one = Threads(device), Threads(device, 1)
    try:
        with threads.one_each():
            members = Members(networks, small, recipe.seed)
            members.reset(0, real)
            memory = choose_memory(members, real, recipe, threads.count)
            members.at_once = memory.at_once
            found = replace(found, at_once=memory.at_once, memory={"graphs": memory.bytes} | found.memory)
            yield found
            pools = [Pool(Hand(small, recipe.seed, real, each), one) for each in _pools(members, real)]
            work: dict[str, Tensor] = {}
            for part in PARTS:
                work[part] = torch.stack([_work(pool, recipe, part) for pool in pools]).mean(0)
                parts, seconds = _shared(work, spec, device, threads.count, ranks)
                flops = {name: float(cost[1]) for name, cost in work.items()}
                found = replace(found, parts=parts, flops=flops, seconds=seconds if part == PARTS[-1] else None)
                yield found
    finally:
        threads.close()
        one.close()


def _few_images(spec: CondenseSpec) -> CondenseSpec:
    """Say the same with the batches of a probe."""
    networks = spec.networks.model_copy(
        update={
            "batch": min(PROBE, spec.networks.batch),
            "batches_per_step": min(PROBED_MINIBATCHES, spec.networks.batches_per_step),
            "parts": 1,
        }
    )
    projection = spec.projection.model_copy(
        update={"batches_per_step": min(PROBED_MINIBATCHES, spec.projection.batches_per_step)}
    )
    return spec.model_copy(update={"networks": networks, "projection": projection})


def _counted(recipe: Recipe, source: Source, members: Members, device: torch.device, ranks: int) -> Plan:
    """Count what is known without running anything."""
    spec, bank, networks = recipe.condense, source.train, members.everybody
    stored, largest_share = bank.num_classes * spec.ipc, -(-bank.num_classes // ranks)
    image = 4 * bank.channels * bank.side**2
    moved = members.trained(), members.learnt()
    return Plan(
        targets=members.objectives.names(),
        parameters={net.spec.name: parameter_count(net) for net in networks},
        image_steps=spec.resets * spec.networks.reset_every,
        stored_images=stored,
        training_images=stored * spec.factor**2,
        ranks=ranks,
        seconds=None,
        parts={},
        flops={},
        at_once=None,
        memory={
            "networks": sum(2 * t.nbytes for net in networks for t in net.state_dict().values()),
            "source": bank.images.nbytes,
            "images": 2 * image * largest_share * spec.ipc,
        },
        checkpoint_bytes=2 * image * stored,
        exchanged_bytes=_exchanged(spec, device, ranks, len(bank.images), moved),
    )


def _shared(
    work: dict[str, Tensor], spec: CondenseSpec, device: torch.device, threads: int, ranks: int
) -> tuple[dict[str, float], float]:
    """Share seconds of work among ranks and their threads: by part, and in all."""
    minibatch = min(ranks, parts_of(spec.networks, device))
    each = {
        name: float(cost[0]) / (ranks if name in ("matching", "clustering") else minibatch)
        for name, cost in work.items()
    }
    parts = {name: seconds / threads for name, seconds in each.items()}
    # On a CPU everything is done side by side, but a minibatch after another: no more of one than it has parts.
    training = (each.get("networks", 0) + each.get("projections", 0)) * minibatch
    least = training / min(threads * ranks, parts_of(spec.networks, device))
    return parts, max(sum(parts.values()), least)


def _exchanged(
    spec: CondenseSpec, device: torch.device, ranks: int, images: int, moved: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> int:
    """Count the bytes of gradients that a rank receives in an image step."""
    cut = parts_of(spec.networks, device)
    if ranks == 1 or cut == 1:
        return 0
    minibatches = -(-images // spec.networks.batch)
    counts = (spec.networks.batches_per_step, spec.projection.batches_per_step)
    rows = -(-cut // ranks) * ranks
    return sum(
        4 * rows * min(count, minibatches) * sum(p.numel() for p in parameters)
        for count, parameters in zip(counts, moved, strict=True)
    )


def _pools(members: Members, real: RealImages) -> Iterator[Members]:
    """Give the pool in every constitution that the run may have it in: one, or one for each pair."""
    if len(members.active) == len(members.everybody):
        yield members
        return
    for pair in combinations(members.everybody, 2):
        one = Members(pair, members.spec, members.seed, at_once=members.at_once)
        one.reset(0, real)
        yield one


def _work(pool: Pool, recipe: Recipe, part: str) -> Tensor:
    """Measure one of `PARTS` for the whole run, one thing after another: seconds and operations."""
    spec, small, real = recipe.condense, pool.spec, pool.hand.real
    steps = spec.resets * spec.networks.reset_every
    images, classes = len(real.images), min(real.classes, spec.classes_per_step or real.classes)

    def minibatches(wanted: int, batch: int) -> int:
        return min(wanted, -(-images // batch))

    def training(work: Callable[[], Any], wanted: int) -> Tensor:
        scale = spec.networks.batch / small.networks.batch
        probed = max(1, minibatches(min(wanted, PROBED_MINIBATCHES), small.networks.batch))
        return _cost(work, real.device) * (steps / probed * minibatches(wanted, spec.networks.batch) * scale)

    if part == "matching":
        return _matching(pool, recipe) * (steps * classes)
    if part == "clustering":
        return _clustering(pool, recipe) * (classes / real.classes)
    if part == "networks":
        return training(partial(pool.train_networks, real, (0, 0)), spec.networks.batches_per_step)
    return training(partial(pool.train_projections, real, (0, 0)), spec.projection.batches_per_step)


def _matching(pool: Pool, recipe: Recipe) -> Tensor:
    """Measure one class's matching, averaged over steps with and without balance update."""
    go, scale = probe(pool.members.objectives, pool.hand.real, recipe)
    plain, updating = (_cost(partial(go, update), pool.hand.real.device) for update in (False, True))
    share = 1 / recipe.condense.balance_every
    return ((1 - share) * plain + share * updating) * scale


def _clustering(pool: Pool, recipe: Recipe) -> Tensor:
    """Measure the choice of real batches: embedding and k-means on a sample, scaled to the whole run."""
    spec, real = recipe.condense, pool.hand.real
    refreshes = spec.resets * -(-spec.networks.reset_every // spec.cluster.every)
    total = torch.zeros(2, dtype=torch.float64)
    rows = torch.arange(real.rows(0).start, real.rows(0).stop)
    wanted = [min(count, spec.cluster.candidates or count) for count in real.source.train.counts if count > spec.batch]
    if not wanted or not spec.cluster.enabled:
        return total
    sample = rows[: 4 * PROBE]
    for net in pool.members.networks:
        embedding = _cost(partial(real.embed, net, sample), real.device)
        points = real.embed(net, rows[:256])
        k = max(1, min(spec.batch, len(points) // 2))
        gen = rng.generator(0, "plan")
        lloyd = _cost(partial(cluster.representatives, [points], k, [gen], max_iter=10), real.device)
        # Real data come to rest after some 30 iterations; the probe makes at most 10.
        per_point = embedding / len(sample) + 3 * lloyd / len(points) * spec.batch / k
        total += refreshes / len(pool.members.networks) * per_point * sum(wanted)
    return total


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating point operations; torch's own counter follows modules, which a second derivative breaks."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(count(*args, **kwargs, out_val=out))
        return out


def _cost(work: Callable[[], Any], device: torch.device) -> Tensor:
    """Measure work: seconds, the fastest of a few calls since a busy machine only ever makes it slower; operations."""
    with _Operations() as counter:  # type: ignore[no-untyped-call]
        work()
    times: list[float] = []
    while len(times) < 3 and sum(times) < LONG_ENOUGH:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return torch.tensor([min(times), float(counter.total)], dtype=torch.float64)
