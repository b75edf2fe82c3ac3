"""How many classes, and images of a class, the matching step computes at a time, and how much memory that takes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode  # what torch's notes on extending it tell to use

from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.matching import Objectives, image_gradients, takes_classes_together
from hmdc_hub.condenser.pool import LOW
from hmdc_hub.execution import Held, tensors_of
from hmdc_hub.schema import CondenseSpec

SHARE = 0.6
"""Of the memory that graphs may take; the rest is for networks, their gradients, the source and the libraries."""

PROBE = 16
"""Images of each kind that are run on where something is measured; costs grow linearly from there."""

PIXELS = 2**18
"""On a CPU: inputs of networks, in pixels, up to which classes are computed together. More work than this fills its
cores from within one class, and class by class is up to a third faster (measured, see docs/scaling.md)."""


@dataclass(frozen=True)
class AtOnce:
    """What the matching step holds at a time.

    Attributes:
        classes: k, at least 1.
        images: Of each class; None for all. Fewer than all only with k = 1.
        bytes: Estimated peak of the graphs.
        why: The reason, where the recipe does not give it.
    """

    classes: int
    images: int | None
    bytes: int
    why: str = ""


def choose(constitutions: Sequence[Objectives], real: RealImages, spec: CondenseSpec) -> AtOnce:
    """Choose how much is held at a time: the recipe's word (`condense.memory`), otherwise the most that fits.

    On a CPU the memory of the machine counts, not what is free just now: the same recipe on the same machine gives the
    same bytes, and another number of classes or images differs in the last bits.

    Args:
        constitutions: The objectives for every constitution of the pool; the largest counts.
        real: The source on the device.
        spec: The condenser's part of the recipe.
    """
    images = max(real.batch, min(spec.batch, real.decoded))
    networks = {id(net): net for objectives in constitutions for net in objectives.networks}.values()
    together = all(takes_classes_together(net) for net in networks)
    most = min(real.classes, spec.classes_per_step or real.classes) if together else 1
    if real.device.type == "cpu":
        inputs = max(sum(net.input_size**2 for net in objectives.networks) for objectives in constitutions)
        most = min(most, max(1, PIXELS // (inputs * (real.batch + min(spec.batch, real.decoded)))))
    one = max(class_bytes(objectives, real, spec, min(most, 2)) for objectives in constitutions)
    if spec.memory == "low":
        few = max(1, images // LOW)
        return AtOnce(1, few, one * few // images)
    there = int(SHARE * available_bytes(real.device))
    if spec.memory == "fast" or one <= there:
        classes = max(1, min(most, there // max(one, 1)))
        return AtOnce(classes, None, classes * one)
    few = max(1, min(images - 1, images * there // one))
    needed, size = (f"{number / 2**30:.1f} GiB" for number in (one, available_bytes(real.device)))
    return AtOnce(
        1,
        few,
        one * few // images,
        f"memory: {few} image{'s' * (few > 1)} at a time, since a class would take about {needed} beside networks and "
        f"data, of {size}",
    )


def class_bytes(objectives: Objectives, real: RealImages, spec: CondenseSpec, classes: int) -> int:
    """Compute the peak of what matching allocates for each of k classes, without running it: on `meta` tensors.

    A network that asks a tensor for its value cannot run on those: it is measured on a few images, and counted for all.
    """
    try:
        return peak_bytes(on_meta(objectives, real, spec, classes)) // classes
    except RuntimeError:
        counts = (real.batch, min(spec.batch, real.decoded))
        few = [min(count, PROBE) for count in counts]
        shape = (real.source.train.channels, real.side, real.side)
        images, synthetic = (torch.zeros(1, count, *shape, device=real.device) for count in few)
        shares, label = images.new_full((1, few[0]), 1 / few[0]), torch.zeros(1, dtype=torch.int64, device=real.device)
        weights = images.new_ones(1, len(objectives.names()))
        taken = peak_bytes(partial(image_gradients, objectives, images, shares, synthetic, label, weights))
        return taken * sum(counts) // sum(few)


def on_meta(
    objectives: Objectives, real: RealImages, spec: CondenseSpec, classes: int, *, apart: bool = False
) -> Callable[[], Any]:
    """Prepare the matching of k whole classes, with derivatives summed or apart, on tensors that have shapes alone."""
    shape = (real.source.train.channels, real.side, real.side)
    with torch.device("meta"):
        counts = (real.batch, min(spec.batch, real.decoded))
        images, synthetic = (torch.empty(classes, count, *shape) for count in counts)
        shares = torch.empty(classes, counts[0])
        labels = torch.empty(classes, dtype=torch.int64)
        weights = None if apart else torch.empty(classes, len(objectives.names()))
    held = Held([*objectives.networks, *(pair.distillation for pair in objectives.pairs)])
    values = {
        name: torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
        for name, value in (*held.named_parameters(), *held.named_buffers())
    }
    work = partial(image_gradients, objectives, images, shares, synthetic, labels, weights)
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
        try:
            return min(total, int(limit.read_text()))
        except (OSError, ValueError):  # no such file, or no limit: `max`
            continue
    return total
