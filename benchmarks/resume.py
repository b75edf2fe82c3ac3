"""Kill a run at random moments, resume it every time, and compare its bytes with those of unbroken runs.

    python benchmarks/resume.py [RECIPE] [-o key=value ...] [--kills 5] [--fresh 4]

Starts the real command in processes of its own. Prints the SHA-256 of condensed.safetensors of `--fresh` unbroken runs
and of one run that got SIGKILL `--kills` times; they must all be equal, and the exit status says whether they are.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


def command(recipe: str, overrides: tuple[str, ...], run: Path) -> list[str]:
    options = [word for override in overrides for word in ("-o", override)]
    program = [sys.executable, "-m", "hmdc_hub", "condense", recipe]
    return [*program, *options, "--run-dir", str(run), "--resume", "--no-evaluate"]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "condensed.safetensors").read_bytes()).hexdigest()


@click.command()
@click.argument("recipe", default="digits_ipc1")
@click.option("-o", "overrides", multiple=True, help="As for hmdc-hub condense.")
@click.option("--kills", default=5, show_default=True)
@click.option("--fresh", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(recipe: str, overrides: tuple[str, ...], kills: int, fresh: int, seed: int) -> None:
    """Compare killed and resumed with unbroken runs."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        seconds, digests = [], []
        for i in range(fresh):
            began = time.monotonic()
            subprocess.run(command(recipe, overrides, Path(folder) / f"fresh{i}"), check=True, capture_output=True)
            seconds.append(time.monotonic() - began)
            digests.append(digest(Path(folder) / f"fresh{i}"))
            click.echo(f"unbroken {i + 1}: {digests[-1]}  {seconds[-1]:.0f} s")
        run = Path(folder) / "killed"
        for i in range(kills):
            process = subprocess.Popen(
                command(recipe, overrides, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wait = chance.uniform(0.1, 0.6) * min(seconds)
            try:
                process.wait(wait)
                click.echo(f"kill {i + 1}: the run was over before {wait:.1f} s")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                left = sorted(path.name for path in (run / "checkpoints").glob("*")) if run.exists() else []
                click.echo(f"kill {i + 1}: SIGKILL after {wait:.1f} s, checkpoints {left}")
        subprocess.run(command(recipe, overrides, run), check=True, capture_output=True)
        digests.append(digest(run))
        click.echo(f"killed and resumed: {digests[-1]}")
        click.echo("all equal" if len(set(digests)) == 1 else "NOT EQUAL")
        sys.exit(len(set(digests)) != 1)


if __name__ == "__main__":
    main()
