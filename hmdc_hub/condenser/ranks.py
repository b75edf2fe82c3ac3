"""Several processes, on one machine or many, that condense one set together: the ranks that torchrun started.

Each rank owns some classes, with their synthetic images, momentum, real batches and balance: nothing about an image
step needs another rank. The networks are the same in all of them: a minibatch is cut into the recipe's number of parts,
each differentiated by one rank, and every rank adds all of them up in the same order. On a CPU classes that are
computed together have one owner. So a result depends on no number of ranks, and a checkpoint neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hmdc_hub.errors import PeerLostError

PATIENCE = timedelta(hours=2)  # of one rank with another, which may have a slower clustering, or a download, to do

# What torch's errors say where another process is gone or does not answer. Their types tell nothing: a bug of ours, a
# tensor of another size, say, raises the same ones.
_GONE = re.compile(
    r"(closed|reset) by (remote )?peer|broken pipe|connection was likely closed|connection refused"
    r"|timed out|wait timeout|timeout caused pair closure|collective operation timeout"
    r"|remote process|ncclRemoteError|communicator was aborted",
    re.IGNORECASE,
)


class Ranks:
    """The processes that work on one set, of which this is one; without a process group this one alone.

    Gradients on a GPU go over NCCL, the rest over Gloo.
    """

    def __init__(self) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.index, self.count = (dist.get_rank(), dist.get_world_size()) if there else (0, 1)

    @classmethod
    def alone(cls) -> Ranks:
        """Make one that works without the others, whether there are any or not."""
        one = cls()
        one.index, one.count = 0, 1
        return one

    @classmethod
    def of_torchrun(cls, device: torch.device) -> Ranks:
        """Meet the other processes that torchrun started, each computing on such a device."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with peers():
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls()

    def owner(self, label: int, together: int) -> int:
        """Say whose a class is where so many neighbours are computed together."""
        return label // together % self.count

    def all_parts(self, mine: Sequence[Sequence[Tensor]], parts: int) -> list[list[Tensor]]:
        """Exchange what ranks computed of the parts of a minibatch: part i is of rank i modulo their number.

        Args:
            mine: Tensors of the same type for each part of this rank; it has one at least.
            parts: How many there are in all.

        Returns:
            Those of all parts, in order.
        """
        if self.count == 1:
            return [list(part) for part in mine]
        like, sizes = mine[0], [t.numel() for t in mine[0]]
        flat = torch.zeros(-(-parts // self.count), sum(sizes), dtype=like[0].dtype, device=like[0].device)
        for row, part in zip(flat, mine, strict=False):
            torch.cat([t.flatten() for t in part], out=row)
        everybody = [torch.empty_like(flat) for _ in range(self.count)]
        with peers():
            dist.all_gather(everybody, flat)
        rows = (everybody[part % self.count][part // self.count] for part in range(parts))
        return [[t.view_as(one) for t, one in zip(torch.split(row, sizes), like, strict=True)] for row in rows]

    def together(self, rows: Tensor) -> Tensor:
        """Add up tensors on the CPU of which every entry is zero in all ranks but one, or that count something."""
        if self.count == 1:
            return rows
        total = rows.clone()
        with peers():
            dist.all_reduce(total)
        return total

    def any(self, here: bool) -> bool:
        """Say whether something is so in any rank."""
        return bool(self.together(torch.tensor([float(here)])))

    def gather(self, mine: Tensor, owners: Sequence[int]) -> Iterator[Tensor]:
        """Give the first rank rows of all, 1 x ... each, one after another; the others get nothing.

        All ranks must go through what they get at the same time; what is given is valid until the next is asked for.

        Args:
            mine: This rank's rows, on any device.
            owners: The rank of each row of the whole.
        """
        own = iter(mine)
        spare = torch.empty(1, *mine.shape[1:], dtype=mine.dtype)
        for owner in owners:
            row = next(own)[None].cpu() if owner == self.index else spare
            if owner != 0:
                with peers():
                    if self.index == owner:
                        dist.send(row, 0)
                    elif self.index == 0:
                        dist.recv(row, owner)
            if self.index == 0:
                yield row

    def close(self) -> None:
        """Leave."""
        if self.count > 1 and dist.is_initialized():
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
