"""How much memory the matching step takes, and of how many images at a time the graphs fit (`condense.memory`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.class_gradient import class_gradient, plain_attention
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.views import View
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import Recipe

PROBE = 16
"""Images of each kind that a probe runs on; costs grow linearly from there."""

SHARE = 0.6
"""Of the memory that graphs may take; the rest is for networks, their gradients, the source and the libraries."""


LOW = 10
"""`memory: low` holds the graphs of this part of a batch at a time."""


@dataclass(frozen=True)
class Memory:
    """What was chosen.

    Attributes:
        at_once: Images whose graphs are held at a time; None for a whole batch.
        bytes: Estimated peak of the graphs, over all classes that are worked on side by side.
        why: The reason, as a clause.
    """

    at_once: int | None
    bytes: int
    why: str


def choose_memory(members: Members, real: RealImages, recipe: Recipe, side_by_side: int) -> Memory:
    """Choose how many images' graphs are held at a time: the recipe's word, otherwise the most that fit.

    On a CPU the memory of the machine counts, not what is free just now: the same recipe on the same machine gives the
    same bytes, and another number of images differs in the last bits.

    Args:
        members: The pool.
        real: The source on the device.
        recipe: Says `condense.memory`.
        side_by_side: Classes that are worked on at a time; on a CPU its cores count, however many work.
    """
    spec = recipe.condense
    graphs = sorted((saved_bytes(net, real, recipe) for net in members.everybody), reverse=True)
    side_by_side = min(max(side_by_side, os.cpu_count() or 1), real.classes) if real.device.type == "cpu" else 1
    whole = sum(graphs[:2]) * side_by_side
    images = max(min(spec.batch, max(real.source.train.counts)), min(spec.batch, spec.ipc * spec.factor**2))

    def held(at_once: int) -> int:
        return whole * at_once // images

    if spec.memory != "auto":
        few = max(1, images // LOW) if spec.memory == "low" else None
        return Memory(few, held(few or images), "the recipe says so")
    there = int(SHARE * available_bytes(real.device))
    if whole <= there:
        return Memory(None, whole, "it fits")
    few = max(1, min(images - 1, images * there // whole))
    needed, size = (f"{number / 2**30:.1f} GiB" for number in (whole, available_bytes(real.device)))
    return Memory(
        few,
        held(few),
        f"memory: {few} image{'s' * (few > 1)} at a time, since whole batches would take about {needed} beside "
        f"networks and data, of {size}",
    )


def saved_bytes(net: PoolModel, real: RealImages, recipe: Recipe) -> int:
    """Estimate what the graph of one model's matching saves for one class, in bytes; parameters are not counted."""
    go, scale = probe(Objectives([net], []), real, recipe)
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    saved: dict[int, Tensor] = {}

    def remember(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        go(False)
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in parameters)
    return int(total * scale)


def probe(objectives: Objectives, real: RealImages, recipe: Recipe) -> tuple[Callable[[bool], Any], float]:
    """Prepare one class's matching on a few images.

    Returns:
        A function that does it, with an update of the balance or without; how many times as many images the run has.
    """
    spec = recipe.condense
    decoded = spec.ipc * spec.factor**2
    rows = torch.arange(real.rows(0).start, real.rows(0).stop)
    rows = rows[torch.arange(min(PROBE, spec.batch)) % len(rows)]
    stored = real.take(rows[:1]).expand(-(-min(PROBE, decoded) // spec.factor**2), -1, -1, -1).contiguous()
    balance = Balance.fresh(1, len(objectives.names()), enabled=spec.balance)

    def go(update: bool) -> Any:
        images = real.take(rows)
        with plain_attention():
            return class_gradient(objectives, balance, stored, images, 0, View(), factor=spec.factor, update=update)

    probed = len(rows) + len(stored) * spec.factor**2
    wanted = min(spec.batch, max(real.source.train.counts)) + min(spec.batch, decoded)
    return go, wanted / probed


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
