"""What condensing takes: how many classes and images fit at a time, and, before a run, its time and memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode  # what torch's notes on extending it tell to use
from torch.utils.flop_counter import FlopCounterMode

from hmdc_hub import cluster, rng
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.distances import TRANSFORMS, compare
from hmdc_hub.condenser.matching import Objectives, distance_gradients, real_gradients, takes_classes_together
from hmdc_hub.condenser.pool import LOW, ModelPool
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.condenser.stages import missing_networks
from hmdc_hub.errors import OutOfMemoryError, UsageError
from hmdc_hub.execution import Execution, Held, settings, tensors_of, timed
from hmdc_hub.models import PoolModel, build_for, parameter_count
from hmdc_hub.schema import CondenseSpec, Recipe
from hmdc_hub.sources import Source
from hmdc_hub.text import amount, count

SHARE = 0.6  # of the memory that graphs may take; the rest: networks, their gradients, the source and the libraries
PROBE = 16  # images of each kind that are run on where something is measured; costs grow linearly from there
# Of the work, in the order that they are measured in; after them what is trained before the first image step.
PARTS = ("matching", "clustering", "networks", "projections")
BANK, OBSERVERS = "bank", "observers"

# On a CPU: inputs of networks, in pixels, up to which classes are computed together. More work than this fills its
# cores from within one class, and class by class is up to a third faster (measured, see docs/internals/engine.md).
PIXELS = 2**18


# How much is held at a time


@dataclass(frozen=True)
class AtOnce:
    """What the matching step holds at a time."""

    classes: int  # k, at least 1
    images: int | None  # of each class; None for all. Fewer than all only with k = 1
    bytes: int  # estimated peak of the graphs
    why: str = ""  # the reason, where the recipe does not give it

    def block(self, device: torch.device) -> int:
        """Say how many neighbouring classes have one owner: on a CPU those that are computed together."""
        return self.classes if device.type == "cpu" else 1


def choose(networks: ModelPool) -> AtOnce:
    """Choose how much is held at a time: the recipe's word (`condense.memory`), otherwise the most that fits.

    On a CPU the memory of the machine counts, not what is free just now: the same recipe on the same machine gives the
    same bytes, and another number of classes or images differs in the last bits. For the same reason the choice does
    not depend there on how many images are made: a set has the bytes of its own size, whatever others are beside it.
    """
    real, spec, constitutions = networks.real, networks.spec, networks.constitutions()
    largest = drawn = max(real.drawn(ipc) for ipc in spec.sizes)
    together = all(takes_classes_together(net) for net in networks.models)
    most = min(real.classes, spec.classes_per_step or real.classes) if together else 1
    if real.device.type == "cpu":
        inputs = max(sum(net.input_size**2 for net in objectives.networks) for objectives in constitutions)
        most, drawn = min(most, max(1, PIXELS // (inputs * real.batch))), spec.batch
    images = max(real.batch, drawn)

    def of_class(drawn: int) -> int:
        return max(class_bytes(objectives, real, min(most, 2), drawn) for objectives in constitutions)

    needed = of_class(drawn)
    taken = needed if drawn == largest else of_class(largest)
    if spec.memory == "low":
        few = max(1, images // LOW)
        return AtOnce(1, few, taken * few // images)
    available = available_bytes(real.device)
    room = int(SHARE * available)
    if spec.memory == "fast" or needed <= room:
        classes = max(1, min(most, room // max(needed, 1)))
        return AtOnce(classes, None, classes * taken)
    if spec.distils_batches:
        raise OutOfMemoryError(
            f"A class would take about {amount(needed)} beside networks and data, of {amount(available)}, and "
            f"condense.distillation: {spec.distillation} takes it whole.",
            hint="Take fewer images, -o condense.batch=64, or a form that takes them in parts, "
            "-o condense.distillation=variance",
        )
    few = max(1, min(images - 1, images * room // needed))
    why = (
        f"memory: {count(few, 'image')} at a time, since a class would take about {amount(needed)} beside networks and "
        f"data, of {amount(available)}"
    )
    return AtOnce(1, few, taken * few // images, why)


def class_bytes(objectives: Objectives, real: RealImages, classes: int, drawn: int) -> int:
    """Compute the peak of what matching allocates for each of k classes, without running it: on `meta` tensors.

    `drawn` are the decoded images of a class that take part, of the largest size: sizes are matched one after another.
    A network that asks a tensor for its value cannot run on those: it is measured on a few images, and counted for all.
    """
    try:
        return peak_bytes(_on_meta(objectives, real, classes, [drawn])) // classes
    except RuntimeError:
        inputs = _inputs(objectives, real, 1, [drawn], PROBE, real.device)
        taken = peak_bytes(lambda: _match(objectives, inputs, apart=False))
        return taken * (real.batch + drawn) // sum(each.shape[1] for each in (inputs.real, *inputs.synthetic))


class _Inputs(NamedTuple):
    """What matching takes for k classes."""

    real: Tensor  # k x B x ch x H x W
    shares: Tensor  # k x B
    synthetic: tuple[Tensor, ...]  # of each size, k x B_s x ch x H x W
    labels: Tensor  # k
    weights: Tensor  # k x K


def _inputs(
    objectives: Objectives, real: RealImages, classes: int, drawn: Sequence[int], most: int | None, device: torch.device
) -> _Inputs:
    """Make inputs of at most so many images of each kind; None: all of a step's, `drawn` of each size."""
    counts = [min(each, most or each) for each in (real.batch, *drawn)]
    shape = (real.source.train.channels, real.side, real.side)
    with device:
        images, *synthetic = (  # of no matter, but a GPU is faster with zeros
            torch.linspace(-1, 1, classes * each * prod(shape)).view(classes, each, *shape) for each in counts
        )
        shares, labels = torch.full((classes, counts[0]), 1 / counts[0]), torch.arange(classes)
        return _Inputs(images, shares, tuple(synthetic), labels, torch.ones(classes, len(objectives.names())))


def _match(objectives: Objectives, given: _Inputs, at_once: int | None = None, *, apart: bool) -> list[Any]:
    """Do the matching of all sizes as `HMDC.image_step` does it, with derivatives summed or apart."""
    wanted, weights = real_gradients(objectives, given.real, given.shares, given.labels, at_once), given.weights
    return [
        distance_gradients(objectives, wanted, each, given.labels, None if apart else weights, at_once)
        for each in given.synthetic
    ]


def _on_meta(
    objectives: Objectives, real: RealImages, classes: int, drawn: Sequence[int], *, apart: bool = False
) -> Callable[[], Any]:
    """Prepare the matching of k whole classes on tensors that have shapes alone."""
    given = _inputs(objectives, real, classes, drawn, None, torch.device("meta"))
    held = Held([*objectives.networks, *(pair.distillation for pair in objectives.pairs)])
    values = {
        name: torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
        for name, value in (*held.named_parameters(), *held.named_buffers())
    }
    work = partial(_match, objectives, given, apart=apart)
    return partial(functional_call, held, values, (work,))


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive, on any device: from every operation, the same in every run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_of(out):
            storage = tensor.untyped_storage()  # torch keeps one object for a storage as long as that lives
            if id(storage) not in self._known:
                self._known.add(id(storage))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        return out

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


def peak_bytes(work: Callable[[], Any]) -> int:
    """Measure by how many bytes tensors grow at most while work is done, in whatever device's memory."""
    living = _Living()
    with living:
        work()
    return living.most


def available_bytes(device: torch.device) -> int:
    """Return the memory for a run: what is free on a GPU; on a CPU all of the machine's or of its container's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):  # no such file, or no limit: `max`
            return min(total, int(limit.read_text()))
    return total


# What a run will cost


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What condensing will do and take, as far as it is known.

    Measured are probes of 16 images on this device. The memory is without the libraries' own; files that are mapped
    count, though the system may take their pages back.
    """

    objectives: list[str]  # names of the K objectives
    parameters: dict[str, int]  # of each network in the pool, by name
    image_steps: int
    synthetic_images: int  # C x n, of all sizes
    training_images: int  # C x n f f
    ranks: int
    seconds: float | None = None  # until all parts are measured
    parts: dict[str, float] = field(default_factory=dict)  # seconds of one rank, by those of `PARTS` that are measured
    # Of the whole run by part: matrix products and convolutions, forward, backward and twice backward.
    flops: dict[str, float] = field(default_factory=dict)
    at_once: int | None = None  # images of a class whose graphs the matching step holds at a time; None for all of them
    classes_at_once: int | None = None  # until it is known
    memory: dict[str, int]  # peak of one rank in bytes: `graphs` (once known), `networks`, `source`, `images`
    checkpoint_bytes: int  # on disk, of one between network resets: images and optimiser of all classes and sizes
    exchanged_bytes: int  # that one rank receives in an image step: gradients of the parts of minibatches
    bank_networks: int = 0  # of `condense.networks.bank`, all of them
    # Those that no file was found for: nobody read the images, so the source's word counts that it is the same.
    bank_missing: int = 0
    bank_bytes: int = 0  # of their files, those that are there too
    observers: int = 0  # networks that are trained to judge real images

    @property
    def memory_bytes(self) -> int:
        """Sum of `memory`."""
        return sum(self.memory.values())

    @property
    def all_parts(self) -> list[str]:
        """Every part of this run's work, in the order that they are measured in."""
        return [*PARTS, *[BANK] * bool(self.bank_missing), *[OBSERVERS] * bool(self.observers)]

    @property
    def unmeasured(self) -> list[str]:
        """What is not measured yet, in order: `graphs`, and of `PARTS`."""
        graphs = [] if "graphs" in self.memory else ["graphs"]
        return graphs + [part for part in self.all_parts if part not in self.parts]


def check_size(recipe: Recipe, counts: Sequence[int]) -> None:
    """Refuse, with a UsageError, an ipc above the largest of the classes, of `counts` images: that is no condensing."""
    largest, most = max(counts), max(recipe.condense.sizes)
    if most > largest:
        lower = f"Lower it: -o condense.ipc={min(largest, 10)}"
        raise UsageError(
            f"condense.ipc = {most} is more than the largest class of {recipe.source.id} has: "
            f"{count(largest, 'train image')}.",
            hint="Leave it out of the list." if isinstance(recipe.condense.ipc, list) else lower,
        )


def estimate_cost_stepwise(
    recipe: Recipe, source: Source, device: torch.device, ranks: int = 1
) -> Iterator[CostEstimate]:
    """Estimate time and memory of condensing: first what can be counted, then each part as it is measured.

    Each part is run on a few images of a source that has the shape of the recipe's; nothing is written, and nothing is
    put on the device before the first estimate was taken. Raises a UsageError as `check_size` does.
    """
    check_size(recipe, source.train.counts)
    spec = recipe.condense
    models = [build_for(model, source) for model in recipe.pool]
    found = _counted(ModelPool(models, RealImages(source, spec, 0, torch.device("cpu"))), ranks)
    missing = missing_networks(recipe, device)
    found = replace(found, bank_missing=sum(missing))
    yield found
    probe = {"batch": min(PROBE, spec.networks.batch), "accumulation_steps": 1}
    few = spec.model_copy(update={"networks": spec.networks.model_copy(update=probe)})
    with settings(device):
        real = RealImages(source, few, recipe.seed, device)
        networks = ModelPool([model.to(device) for model in models], real)
        networks.reset(0)
        at_once = choose(networks)
        memory = {"graphs": at_once.bytes} | found.memory
        found = replace(found, at_once=at_once.images, classes_at_once=at_once.classes, memory=memory)
        yield found
        pools = [networks]
        if len(networks.active) < len(models):  # every pair that may work
            pools = [ModelPool(pair, real) for pair in combinations(models, 2)]
            for pool in pools:
                pool.reset(0)
        work: dict[str, Tensor] = {}
        for part in found.all_parts:
            if part == BANK:
                work[part] = _trained(models, missing, spec.networks.bank.pretrain_epochs, real, spec, at_once)
            elif part == OBSERVERS:
                once = [int(place < found.observers) for place in range(len(models))]
                work[part] = _trained(models, once, spec.observer_epochs, real, spec, at_once)
            else:
                work[part] = torch.stack([_work(part, pool, spec, at_once) for pool in pools]).mean(0)
            parts = shared_among_ranks(work, spec, real.classes, at_once.block(device), ranks, found.bank_missing)
            seconds = sum(parts.values()) if part == found.all_parts[-1] else None
            found = replace(found, parts=parts, flops={k: float(v[1]) for k, v in work.items()}, seconds=seconds)
            yield found


def _counted(networks: ModelPool, ranks: int) -> CostEstimate:
    """Count what is known without running anything."""
    spec, train, models = networks.spec, networks.real.source.train, networks.models
    images, largest_share = train.num_classes * sum(spec.sizes), -(-train.num_classes // ranks)
    copies = 3 if spec.images.average else 2  # images, momentum, and their average
    bytes_each = copies * 4 * train.channels * train.side**2
    exchanged = 0
    if ranks > 1 and networks.parts > 1:
        minibatches, rows = -(-len(train.images) // spec.networks.batch), -(-networks.parts // ranks) * ranks
        for wanted, parameters, whole in (
            (spec.networks.batches_per_step, networks.trained, networks.trains_whole),
            (spec.projection.batches_per_step, networks.learnt, networks.learns_whole),
        ):
            exchanged += 4 * rows * min(wanted, minibatches) * sum(p.numel() for p in parameters) * (not whole)
    return CostEstimate(
        objectives=networks.objectives.names(),
        parameters={net.spec.name: parameter_count(net) for net in models},
        image_steps=spec.resets * spec.networks.reset_every,
        synthetic_images=images,
        training_images=images * spec.factor**2,
        ranks=ranks,
        memory={
            "networks": sum(2 * t.nbytes for net in models for t in net.state_dict().values()),  # and their gradients
            "source": train.images.nbytes,
            "images": bytes_each * largest_share * sum(spec.sizes),
        },
        checkpoint_bytes=bytes_each * images,
        exchanged_bytes=exchanged,
        observers=len(models) if spec.difficulty.keep < 1 else int(spec.observes),
        bank_networks=spec.networks.bank.num_models * len(models),
        bank_bytes=spec.networks.bank.num_models
        * spec.networks.bank.stages
        * sum(value.nbytes for net in models for value in net.state_dict().values()),
    )


def shared_among_ranks(
    work: dict[str, Tensor], spec: CondenseSpec, classes: int, block: int, ranks: int, networks: int = 0
) -> dict[str, float]:
    """Share seconds of work (of seconds and operations by part) among ranks, of which each owns blocks of classes.

    Of a bank so many `networks` are trained, each by one rank.
    """
    owners = min(ranks, -(-classes // block))
    learners = min(ranks, spec.networks.accumulation_steps or 1)
    workers: dict[str, float] = {
        "matching": owners,
        "clustering": owners,
        "networks": learners,
        "projections": learners,
        OBSERVERS: 1,
    }
    if networks:
        workers[BANK] = networks / -(-networks // ranks)
    if spec.distillation == "variance":
        workers["projections"] = 1  # by every rank
    return {name: float(cost[0]) / workers[name] for name, cost in work.items()}


def _work(part: str, networks: ModelPool, spec: CondenseSpec, at_once: AtOnce) -> Tensor:
    """Measure one of `PARTS` for the whole run, one thing after another: seconds and operations."""
    real = networks.real
    steps, classes = spec.resets * spec.networks.reset_every, min(real.classes, spec.classes_per_step or real.classes)
    if part == "clustering":
        return _clustering(networks) * (classes / real.classes)
    execution = Execution(real.device)
    if part == "matching":
        return _matching(networks.objectives, execution, real, at_once) * (steps * classes)
    wanted = spec.networks.batches_per_step if part == "networks" else spec.projection.batches_per_step
    if not wanted or (part == "projections" and not networks.objectives.pairs):
        return torch.zeros(2, dtype=torch.float64)
    (batch,) = execution.upload(real.draw_minibatches("plan", (0, 0), 1))
    function = execution.function(networks.train if part == "networks" else networks.train_projections, part)
    minibatches = min(wanted, -(-len(real.labels) // spec.networks.batch))
    scale = min(spec.networks.batch, len(real.labels)) / len(batch.tensors.labels)
    return _cost(lambda: function(batch), real.device) * (steps * minibatches * scale)


def _trained(
    models: Sequence[PoolModel],
    wanted: Sequence[int],
    epochs: int,
    real: RealImages,
    spec: CondenseSpec,
    at_once: AtOnce,
) -> Tensor:
    """Measure the training of so many networks of each model, before image steps: seconds and operations."""
    # As a recipe: an image step for each epoch, with all minibatches after it.
    networks = {"reset_every": epochs, "batches_per_step": len(real.labels)}
    one = spec.model_copy(update={"resets": 1, "networks": spec.networks.model_copy(update=networks)})
    some = [(model, few) for model, few in zip(models, wanted, strict=True) if few]
    pools = [ModelPool([model], real, Ranks.alone()) for model, _ in some]
    each = [few * _work("networks", pool, one, at_once) for pool, (_, few) in zip(pools, some, strict=True)]
    return torch.stack(each).sum(0)


def _matching(objectives: Objectives, execution: Execution, real: RealImages, at_once: AtOnce) -> Tensor:
    """Measure one class's matching, averaged over steps with and without balance update."""
    drawn = [real.drawn(ipc) for ipc in real.spec.sizes]
    probe = _inputs(objectives, real, at_once.classes, drawn, PROBE, torch.device("cpu"))
    images = sum(each.shape[1] for each in (probe.real, *probe.synthetic))
    scale = (real.batch + sum(drawn)) / images / at_once.classes
    (inputs,) = execution.upload([probe])
    few = None if at_once.images is None else min(PROBE, at_once.images)
    comparing = torch.zeros(2, dtype=torch.float64)
    if TRANSFORMS[objectives.distance] is not None:  # takes as long however few the images
        compared = execution.function(partial(_compare, objectives), "matching")
        comparing = _cost(partial(compared, inputs), real.device) * len(drawn)
    costs = []
    for update in (False, True):

        def work(given: _Inputs, update: bool = update) -> Any:
            return _match(objectives, given, few, apart=update)

        cost = _cost(partial(execution.function(work, "matching"), inputs), real.device) - comparing
        cost = cost.clamp(min=0) * scale + comparing / at_once.classes
        # Counted for one class: torch's formulas take the convolutions of several at a time for larger ones.
        with suppress(RuntimeError):  # a network that asks a tensor for its value
            cost[1] = _operations(_on_meta(objectives, real, 1, drawn, apart=update))
        costs.append(cost)
    share = 1 / real.spec.balance_every
    return (1 - share) * costs[0] + share * costs[1]


def _compare(objectives: Objectives, given: _Inputs) -> None:
    """Compare gradients of as many classes, of whatever values, as often as a matching step does."""
    zero = torch.zeros_like(given[1][:, 0])
    for reached in objectives.reached():
        parameters = [p.detach() for m in reached for p in objectives.networks[m].trained().values()]
        gradients = [p.repeat(len(zero), *[1] * p.ndim) for p in parameters]
        compare(objectives.distance, gradients, gradients, zero)


def _clustering(networks: ModelPool) -> Tensor:
    """Measure the choice of real batches: embedding and k-means on a sample, scaled to the whole run."""
    real, spec = networks.real, networks.spec
    refreshes = spec.resets * -(-spec.networks.reset_every // spec.cluster.every)
    total = torch.zeros(2, dtype=torch.float64)
    rows = real.of_class(0)
    wanted = [min(each, spec.cluster.candidates or each) for each in real.source.train.counts if each > spec.batch]
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
    """Measure work: seconds, and operations."""
    operations = _operations(work)
    work()  # where functions are captured, this call does it
    return torch.tensor([timed(work, device), operations], dtype=torch.float64)


def _operations(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
