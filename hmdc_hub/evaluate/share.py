"""Several processes, on one machine or many, that share the trainings of one evaluation through its directory."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hmdc_hub.errors import UsageError
from hmdc_hub.evaluate.ledger import differing
from hmdc_hub.events import StopFlag
from hmdc_hub.processes import POLL_SECONDS, launched

_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """One of `count` shares of the trainings.

    Attributes:
        index: Which one, from 0.
        count: How many there are.
        local: Number of this process on its machine, from 0: its GPU.
        waits: Whether this process waits for the others and puts the scores together.
        store: Host and port where the processes of torchrun can tell each other something.
    """

    index: int
    count: int
    local: int = 0
    waits: bool = False
    store: tuple[str, int] | None = None

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
    found = launched(environment)
    if found is None:
        return None
    return Share(found.index, found.count, found.local, waits=found.index == 0, store=found.store)


def meet(share: Share, place: Mapping[str, str], stop: StopFlag) -> None:
    """Make sure that all processes of torchrun train in places of one kind; does nothing without torchrun.

    The first would wait for ever for trainings that another one did on another device.

    Args:
        share: Which process this is.
        place: Device, program and versions of this one.
        stop: Looked at while the first process waits for the others.

    Raises:
        UsageError: In the first process: another one is in another place.
        Interrupted: `stop` was set.
    """
    if share.store is None:
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(*share.store, is_master=False, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"hmdc-hub/{attempt}/{index}" for index in range(share.count)]
    store.set(keys[share.index], json.dumps(dict(place)))
    if not share.waits:
        return
    while not store.check(keys):
        stop.raise_if_set("stopped while other processes were starting")
        time.sleep(POLL_SECONDS)
    for index, key in enumerate(keys):
        other = json.loads(store.get(key))
        if other != place:
            raise UsageError(
                f"Process {index} of {share.count} would train with {differing(other, place)}, this one with "
                f"{differing(place, other)}: such trainings cannot stand in one table.",
                hint="Start torchrun on devices and environments of one kind.",
            )
