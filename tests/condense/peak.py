"""The peak of tensor memory, counted from every allocation: the same number in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return by how many bytes CPU tensors grow at most while work is done."""
    work()  # what is cached once, such as interpolation matrices, is no part of it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    now = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == torch._C._autograd.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now)
    assert most > 0, "nothing was recorded"
    return most
