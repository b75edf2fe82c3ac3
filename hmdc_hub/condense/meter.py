"""What work takes: time, and memory of the process or of the device."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time work: the median of three calls, or of fewer once ten seconds have passed."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 10:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def growth(work: Callable[[], Any], device: torch.device) -> int:
    """Measure by how much memory grows at most while work is done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    before = resident_bytes()
    work()
    return max(peak_resident_bytes() - before, 0)


def allocated_peak(work: Callable[[], Any], device: torch.device) -> int:
    """Measure by how many bytes tensors grow at most while work is done: from every allocation, the same in every run.

    The work is done twice: what is cached once, such as interpolation matrices, is no part of it.

    Args:
        work: In this thread; of what others allocate on a CPU nothing is known.
        device: Whose memory counts.

    Raises:
        RuntimeError: Nothing was allocated.
    """
    work()
    if device.type == "cuda":
        return growth(work, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    now = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == torch._C._autograd.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now)
    if not most:
        raise RuntimeError("the profiler recorded no allocation")
    return most


def peak_resident_bytes() -> int:
    """Return the most memory that this process ever had, in bytes."""
    # Linux hands ru_maxrss of the parent on to a process that was started from it; VmHWM begins anew.
    return _from_status("VmHWM") or _maxrss()


def resident_bytes() -> int:
    """Return the memory that this process has now, in bytes; where that cannot be told, the most it ever had."""
    return _from_status("VmRSS") or _maxrss()


def _from_status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
