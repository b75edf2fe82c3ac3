"""What a run will cost, measured on a few images of it before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch

from hmdc_hub import cluster, rng
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.memory import PROBE, choose_memory, probe
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.threads import Threads
from hmdc_hub.errors import UsageError
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source


@dataclass(frozen=True)
class Plan:
    """What condensing will do and take.

    Attributes:
        targets: Names of the K targets.
        parameters: Of each network in the pool, by name.
        image_steps: In all.
        stored_images: C x n; `training_images` C x n f f.
        seconds: Estimated, from probes of 16 images on this device.
        parts: The same by part: matching, clustering, networks, projections.
        low_memory: Whether the matching step holds the graph of one model at a time.
        memory_bytes: Estimated peak of activations, networks and images, without the libraries' own.
    """

    targets: list[str]
    parameters: dict[str, int]
    image_steps: int
    stored_images: int
    training_images: int
    seconds: float
    parts: dict[str, float]
    low_memory: bool
    memory_bytes: int


def check_size(recipe: Recipe, source: Source) -> None:
    """Refuse to make more images than there are: that would be no condensing.

    Raises:
        UsageError: ipc is larger than the source's largest class.
    """
    largest = max(source.train.counts)
    if recipe.condense.ipc > largest:
        raise UsageError(
            f"condense.ipc = {recipe.condense.ipc} is more than the largest class of {recipe.source.id} has: {largest} "
            "train images.",
            hint="Lower it: -o condense.ipc=10",
        )


def plan(recipe: Recipe, source: Source, device: torch.device) -> Plan:
    """Estimate time and memory of condensing; runs each part on a few images, writes nothing.

    Args:
        recipe: Resolved.
        source: Loaded.
        device: Where it would run.

    Raises:
        UsageError: ipc is larger than the source's largest class.
    """
    check_size(recipe, source)
    spec, bank = recipe.condense, source.train
    networks = [build_for(model, source).to(device) for model in recipe.pool]
    small = spec.model_copy(
        update={
            "networks": spec.networks.model_copy(update={"batch": min(PROBE, spec.networks.batch)}),
        }
    )
    real = RealImages(source, small, recipe.seed, device)
    threads = Threads(device)
    with threads.one_each():
        pool = Pool(networks, small, recipe.seed, threads)
        pool.reset(0, real)
        memory = choose_memory(pool, real, recipe)
        pool.low_memory = memory.low
        targets = pool.objectives.names()
        parts = _mean([_parts(each, real, recipe) for each in _pools(pool, real)])
    threads.close()
    stored = bank.num_classes * spec.ipc
    held = sum(2 * t.nbytes for net in networks for t in net.state_dict().values())
    return Plan(
        targets=targets,
        parameters={net.spec.name: parameter_count(net) for net in networks},
        image_steps=spec.resets * spec.networks.reset_every,
        stored_images=stored,
        training_images=stored * spec.factor**2,
        seconds=sum(parts.values()),
        parts=parts,
        low_memory=memory.low,
        memory_bytes=memory.bytes + held + bank.images.nbytes + 3 * 4 * stored * bank.channels * bank.side**2,
    )


def _pools(pool: Pool, real: RealImages) -> Iterator[Pool]:
    """Give the pool in every constitution that the run may have it in: one, or one for each pair."""
    if len(pool.active) == len(pool.members):
        yield pool
        return
    for pair in combinations(pool.members, 2):
        one = Pool(pair, pool.spec, pool.seed, pool.threads, low_memory=pool.low_memory)
        one.reset(0, real)
        yield one


def _mean(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def _parts(pool: Pool, real: RealImages, recipe: Recipe) -> dict[str, float]:
    """Measure every part of the run; seconds by part."""
    spec, small = recipe.condense, pool.spec
    steps = spec.resets * spec.networks.reset_every
    images = len(real.images)
    side_by_side = min(pool.threads.count, real.classes) if pool.threads.parallel else 1
    matching = _matching(pool, real, recipe)

    def minibatches(wanted: int, batch: int) -> int:
        return min(wanted, -(-images // batch))

    def training(work: Callable[[], Any], wanted: int) -> float:
        scale = spec.networks.batch / small.networks.batch
        probed = max(1, minibatches(wanted, small.networks.batch))
        return steps * _seconds(work, real.device) / probed * minibatches(wanted, spec.networks.batch) * scale

    clustering = _clustering(pool, real, recipe) if spec.cluster.enabled else 0.0
    return {
        "matching": steps * real.classes * matching / side_by_side,
        "clustering": clustering / side_by_side,
        "networks": training(partial(pool.train_networks, real, (0, 0)), spec.networks.batches_per_step),
        "projections": training(partial(pool.train_projections, real, (0, 0)), spec.projection.batches_per_step),
    }


def _matching(pool: Pool, real: RealImages, recipe: Recipe) -> float:
    """Measure one class's matching: seconds averaged over steps with and without balance update."""
    go, scale = probe(pool.objectives, real, recipe)
    plain, updating = (_seconds(partial(go, update), real.device) for update in (False, True))
    share = 1 / recipe.condense.balance_every
    return ((1 - share) * plain + share * updating) * scale


def _clustering(pool: Pool, real: RealImages, recipe: Recipe) -> float:
    """Measure the choice of real batches: embedding and k-means on a sample, scaled to the whole run."""
    spec = recipe.condense
    refreshes = spec.resets * -(-spec.networks.reset_every // spec.cluster.every)
    total = 0.0
    rows = torch.arange(real.rows(0).start, real.rows(0).stop)
    wanted = [min(count, spec.cluster.candidates or count) for count in real.source.train.counts if count > spec.batch]
    if not wanted:
        return 0.0
    sample = rows[: 4 * PROBE]
    for net in pool.networks:
        embedding = _seconds(partial(real.embed, net, sample), real.device)
        points = real.embed(net, rows[:256])
        k = max(1, min(spec.batch, len(points) // 2))
        lloyd = _seconds(partial(cluster.kmeans, points, k, rng.generator(0, "plan"), max_iter=10), real.device)
        # Real data come to rest after some 30 iterations; the probe makes at most 10.
        per_point = embedding / len(sample) + 3 * lloyd / len(points) * spec.batch / k
        total += refreshes / len(pool.networks) * per_point * sum(wanted)
    return total


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time work: the fastest of three calls after a first one, since a busy machine only ever makes it slower."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
