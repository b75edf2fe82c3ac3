"""Time `hmdc-hub --help` beside `hf --help`, in turn.

python benchmarks/startup.py [--runs 15]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

COMMANDS = (["hmdc-hub", "--help"], ["hf", "--help"], ["hmdc-hub", "recipes", "ls"])


@click.command()
@click.option("--runs", default=15, show_default=True)
def main(runs: int) -> None:
    """Print the median of each command and the ratio of the first two."""
    folder = Path(sys.executable).parent
    seconds: dict[str, list[float]] = {" ".join(command): [] for command in COMMANDS}
    for _ in range(runs + 1):  # the first round warms the disk cache and does not count
        for command in COMMANDS:
            began = time.perf_counter()
            subprocess.run([folder / command[0], *command[1:]], check=True, capture_output=True)
            seconds[" ".join(command)].append(time.perf_counter() - began)
    for name, times in seconds.items():
        counted = sorted(times[1:])
        click.echo(f"{name:24} median {statistics.median(counted):.3f} s  ({counted[0]:.3f} to {counted[-1]:.3f})")
    ratios = [a / b for a, b in zip(seconds["hmdc-hub --help"][1:], seconds["hf --help"][1:], strict=True)]
    click.echo(f"hmdc-hub --help / hf --help: median {statistics.median(ratios):.2f}, n = {runs}")


if __name__ == "__main__":
    main()
