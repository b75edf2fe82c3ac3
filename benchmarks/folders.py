"""What people have on disk, from `init` to the dry run: seconds of each command, and of processors (user and system).

    python benchmarks/folders.py [photos classes pairs files] [--where FOLDER] [--condense]

Four folders are made where they are not there yet, and `init -O`, `recipes validate` and `condense --dry-run` are run
on each, as processes of their own, one after the other: `photos`, 10 classes of 40 JPEG photos with sides of 200 to 500
pixels, upright and lying; `classes`, 60 classes of 12; `pairs`, 200 classes of 2; `files`, 30 classes of 1,000 PNGs of
32 pixels. None has a test split. With `--condense` the recipe is then run as it was proposed, on the CPU, to the
package.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import click
import numpy as np
from PIL import Image

KINDS = {"photos": (10, 40), "classes": (60, 12), "pairs": (200, 2), "files": (30, 1000)}
"""Classes, and images in each."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: the time of a command's workers is counted here, whoever ends first."""


def photo(gen: np.random.Generator, label: int, classes: int) -> Image.Image:
    """Draw something with the colours, the grain and the blobs of its class: 200 to 500 pixels, either way up."""
    width, height = (int(side) for side in gen.integers(200, 501, 2))
    ground = np.asarray(Image.new("HSV", (1, 1), (label * 255 // classes, 90, 150)).convert("RGB"))[0, 0]
    coarse = gen.normal(0, 45, (4 + label % 5, 4 + label % 3, 3)) + ground
    clouds = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:height, :width]
    angle, wave = label * np.pi / classes, 8 + 5 * (label % 4)
    stripes = 25 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wave + gen.uniform(0, 6))
    pixels = np.asarray(clouds) + stripes[..., None] + gen.normal(0, 12, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make(kind: str, folder: Path) -> None:
    """Write one of `KINDS`, a folder of images per class."""
    classes, count = KINDS[kind]
    gen = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class {label:03}"
        place.mkdir(parents=True)
        for k in range(count):
            if kind == "files":
                Image.fromarray(gen.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{k:04}.png")
            else:
                photo(gen, label, classes).save(place / f"{k:04}.jpg", quality=90)


def timed(*arguments: str) -> str:
    """Run the command; seconds from its start to its end, and those that processors spent on it and its workers."""
    before, began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), perf_counter()
    subprocess.run([sys.executable, "-m", "hmdc_hub", *arguments], check=True, stdout=sys.stderr)
    took = perf_counter() - began
    with suppress(ChildProcessError):
        while True:
            os.wait()  # workers that outlived their parent, and came to this process
    return f"{took:.0f} ({sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before:.0f})"


@click.command(help=__doc__)
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)))
@click.option("--where", type=click.Path(path_type=Path), help="Folder to work in.  [default: a temporary one]")
@click.option("--condense", is_flag=True, help="Run what was proposed, too.")
def main(kinds: tuple[str, ...], where: Path | None, condense: bool) -> None:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as temporary:
        place = (where or Path(temporary)).resolve()
        place.mkdir(exist_ok=True)
        os.environ |= {"PYTHONPATH": os.getcwd(), "HF_HOME": str(place / "hf")}
        os.chdir(place)
        click.echo(
            "| folder | classes x images | init | validate | dry run | condense |\n|---|---|---:|---:|---:|---:|"
        )
        for kind in kinds or tuple(KINDS):
            if not Path(kind).exists():
                make(kind, Path(kind))
            recipe = f"{kind}.yaml"
            took = [
                timed("init", kind, "-O", recipe, "--force", "--preset", "cpu"),
                timed("recipes", "validate", recipe),
                timed("condense", recipe, "--dry-run", "--device", "cpu"),
            ]
            if condense:
                took.append(timed("condense", recipe, "--device", "cpu", "--force"))
            cells = [kind, " x ".join(map(str, KINDS[kind])), *took, *["-"] * (4 - len(took))]
            click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
