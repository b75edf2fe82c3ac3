"""Several processes, on one machine or many, that condense one set together.

Each rank owns every `count`-th class, with its stored images, momentum, real batch and balance: nothing about an image
step needs another rank. Networks are the same in all of them: a minibatch is cut into a fixed number of parts, each
differentiated by one rank, and every rank adds all of them up in the same order. So a result depends on no number of
ranks, and a checkpoint neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from hmdc_hub.condense.hand import TrainingPart


class Ranks(Protocol):
    """The processes that work on one set.

    Attributes:
        index: Of this one, from 0.
        count: How many there are.
    """

    index: int
    count: int

    def share(self, items: int) -> range:
        """Say which of so many things are this rank's."""

    def all_parts(
        self, mine: Sequence[TrainingPart], parts: int, parameters: Sequence[Tensor], networks: int
    ) -> list[TrainingPart]:
        """Exchange the parts of a minibatch.

        Args:
            mine: What this rank did.
            parts: Of the minibatch in all.
            parameters: What they are gradients of.
            networks: How many there are.

        Returns:
            All of them, in order.
        """

    def together(self, rows: Tensor) -> Tensor:
        """Add up tensors on the CPU of which every entry is zero in all ranks but one, or that count something."""

    def gather(self, mine: Tensor, items: int) -> Iterator[Tensor]:
        """Give the first rank things of all, 1 x ... each, one after another; the others get nothing.

        All ranks must go through what they get at the same time; what is given is valid until the next is asked for.

        Args:
            mine: len(share(items)) x ..., on the CPU.
            items: How many there are in all.
        """


class Alone:
    """One process."""

    index, count = 0, 1

    def share(self, items: int) -> range:
        """See `Ranks`."""
        return range(items)

    def all_parts(
        self, mine: Sequence[TrainingPart], parts: int, parameters: Sequence[Tensor], networks: int
    ) -> list[TrainingPart]:
        """See `Ranks`."""
        return list(mine)

    def together(self, rows: Tensor) -> Tensor:
        """See `Ranks`."""
        return rows

    def gather(self, mine: Tensor, items: int) -> Iterator[Tensor]:
        """See `Ranks`."""
        return (row[None] for row in mine)
