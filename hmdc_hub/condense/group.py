"""Ranks that torchrun started, and what they tell one another through torch.distributed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hmdc_hub.condense.hand import TrainingPart
from hmdc_hub.errors import PeerLostError

PATIENCE = timedelta(hours=2)
"""How long one rank waits for another, which may have a slower clustering, or a download, in front of it."""

_GONE = re.compile(
    r"(closed|reset) by (remote )?peer|broken pipe|connection was likely closed|connection refused"
    r"|timed out|wait timeout|timeout caused pair closure|collective operation timeout"
    r"|remote process|ncclRemoteError|communicator was aborted",
    re.IGNORECASE,
)
"""What torch's errors say where another process is gone or does not answer. Their types tell nothing: a bug of ours, a
tensor of another size, say, raises the same ones."""


class Group:
    """The ranks of torch's process group; see `ranks.Ranks`. Gradients on a GPU go over NCCL, the rest over Gloo."""

    def __init__(self) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()

    @classmethod
    def of_torchrun(cls, device: torch.device) -> Group:
        """Meet the other processes that torchrun started.

        Args:
            device: Where this one computes.

        Raises:
            PeerLostError: One of them ended before.
        """
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with peers():
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls()

    def share(self, items: int) -> range:
        """See `Ranks`."""
        return range(self.index, items, self.count)

    def all_parts(
        self, mine: Sequence[TrainingPart], parts: int, parameters: Sequence[Tensor], networks: int
    ) -> list[TrainingPart]:
        """See `Ranks`; a parameter that a part does not reach counts zero."""
        sizes, like = [p.numel() for p in parameters], parameters[0]
        own = torch.zeros(-(-parts // self.count), sum(sizes) + networks, dtype=like.dtype, device=like.device)
        for row, (gradients, hits) in zip(own, mine, strict=False):
            filled = (torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True))
            torch.cat([*(part.flatten() for part in filled), hits.to(row)], out=row)
        everybody = [torch.empty_like(own) for _ in range(self.count)]
        with peers():
            dist.all_gather(everybody, own)
        found: list[TrainingPart] = []
        for part in range(parts):
            *flat, hits = torch.split(everybody[part % self.count][part // self.count], [*sizes, networks])
            found.append(([g.view_as(p) for g, p in zip(flat, parameters, strict=True)], hits))
        return found

    def together(self, rows: Tensor) -> Tensor:
        """See `Ranks`."""
        total = rows.clone()
        with peers():
            dist.all_reduce(total)
        return total

    def gather(self, mine: Tensor, items: int) -> Iterator[Tensor]:
        """See `Ranks`; one from each rank is there at a time."""
        spare = torch.zeros(1, *mine.shape[1:], dtype=mine.dtype)
        found = [torch.empty_like(spare) for _ in range(self.count)] if self.index == 0 else None
        for row in range(-(-items // self.count)):
            with peers():
                dist.gather(mine[row : row + 1] if row < len(mine) else spare, found)
            yield from (found or [])[: items - row * self.count]

    def close(self) -> None:
        """Leave."""
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def peers() -> Iterator[None]:
    """Turn what torch raises when another rank is gone into an error of ours; every other error stays what it is."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not _GONE.search(str(error)):
            raise
        what = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise PeerLostError(
            f"Another rank ended ({what}); what it said, if it could, stands above.",
            hint="The same command with --resume goes on from the last checkpoint, with any number of ranks.",
        ) from error
