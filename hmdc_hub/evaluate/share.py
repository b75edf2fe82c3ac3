"""Several processes, on one machine or many, that share the trainings of one evaluation through its directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hmdc_hub.errors import UsageError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """One of `count` shares of the trainings.

    Attributes:
        index: Which one, from 0.
        count: How many there are.
        local: Number of this process on its machine, from 0: its GPU.
        waits: Whether this process waits for the others and puts the scores together.
    """

    index: int
    count: int
    local: int = 0
    waits: bool = False

    def __str__(self) -> str:
        """Write it as `--share` takes it."""
        return f"{self.index + 1}/{self.count}"

    def of(self, jobs: Sequence[_T]) -> list[_T]:
        """Take this share of a list that all processes have alike: longest jobs first, dealt out in turn."""
        return list(jobs[self.index :: self.count])

    @property
    def ledger(self) -> str:
        """Name of the file of finished trainings that this process alone writes."""
        return f"cells-{self.index + 1}of{self.count}.jsonl"


def parse_share(text: str) -> Share:
    """Read `2/4`, the second of four shares.

    Raises:
        UsageError: It is not of that form.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageError(f"--share {text} must be K/N with K from 1 to N, such as 2/4.")
    return Share(int(match[1]) - 1, int(match[2]))


def share_of_torchrun(environment: Mapping[str, str] = os.environ) -> Share | None:
    """Read what torchrun tells each process; None outside of it. The first process waits for the others."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    rank, count, local = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Share(rank, count, local, waits=rank == 0) if count > 1 else None
