"""What a run will cost, measured on a few images of it before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hmdc_hub import cluster, rng
from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.loop import class_gradient, plain_attention
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.threads import Threads
from hmdc_hub.condense.views import View
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source

PROBE = 16
"""Images that a probe runs on; costs grow linearly from there."""


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
        memory_bytes: Estimated peak of activations, networks and images, without the libraries' own.
    """

    targets: list[str]
    parameters: dict[str, int]
    image_steps: int
    stored_images: int
    training_images: int
    seconds: float
    parts: dict[str, float]
    memory_bytes: int


def plan(recipe: Recipe, source: Source, device: torch.device) -> Plan:
    """Estimate time and memory of condensing; runs each part on a few images, writes nothing.

    Args:
        recipe: Resolved.
        source: Loaded.
        device: Where it would run.
    """
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
        parts, saved = _parts(pool, real, recipe)
    threads.close()
    stored = bank.num_classes * spec.ipc
    held = sum(2 * t.nbytes for net in networks for t in net.state_dict().values())
    return Plan(
        targets=pool.objectives.names(),
        parameters={net.spec.name: parameter_count(net) for net in networks},
        image_steps=spec.resets * spec.networks.reset_every,
        stored_images=stored,
        training_images=stored * spec.factor**2,
        seconds=sum(parts.values()),
        parts=parts,
        memory_bytes=saved + held + bank.images.nbytes + 3 * 4 * stored * bank.channels * bank.side**2,
    )


def _parts(pool: Pool, real: RealImages, recipe: Recipe) -> tuple[dict[str, float], int]:
    """Measure every part of the run; seconds by part, and bytes that the matching step saves."""
    spec, small = recipe.condense, pool.spec
    steps = spec.resets * spec.networks.reset_every
    images = len(real.images)
    side_by_side = min(pool.threads.count, real.classes) if pool.threads.parallel else 1
    matching, saved = _matching(pool, real, recipe)

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
    }, saved * side_by_side


def _matching(pool: Pool, real: RealImages, recipe: Recipe) -> tuple[float, int]:
    """Measure one class's matching: seconds averaged over steps with and without balance update, bytes saved."""
    spec = recipe.condense
    decoded = spec.ipc * spec.factor**2
    rows = torch.arange(real.rows(0).start, real.rows(0).stop)
    rows = rows[torch.arange(min(PROBE, spec.batch)) % len(rows)]
    stored = real.take(rows[:1]).expand(-(-min(PROBE, decoded) // spec.factor**2), -1, -1, -1).contiguous()
    balance = Balance.fresh(1, len(pool.objectives.names()), enabled=spec.balance)

    def go(update: bool) -> Any:
        images = real.take(rows)
        with plain_attention():
            return class_gradient(
                pool.objectives, balance, stored, images, 0, View(), factor=spec.factor, update=update
            )

    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        go(False)
    plain, updating = (_seconds(partial(go, update), real.device) for update in (False, True))
    share = 1 / spec.balance_every
    probed = len(rows) + len(stored) * spec.factor**2
    wanted = min(spec.batch, max(real.source.train.counts)) + min(spec.batch, decoded)
    scale = wanted / probed
    return ((1 - share) * plain + share * updating) * scale, int(sum(saved.values()) * scale)


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
