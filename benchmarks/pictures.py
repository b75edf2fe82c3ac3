"""The README's picture: what runs began with and what they condensed, with their scores.

    hmdc-hub condense digits_ipc1
    hmdc-hub condense cifar10_ipc1 --run-dir runs/cifar10_ipc1 ...   # the rest: docs/results.md, "on a CPU", seed 0
    python benchmarks/pictures.py runs/digits_ipc1 runs/cifar10_ipc1 --title "Handwritten digits" --title CIFAR-10

Every number is read from the runs' scores.json. An image per class; the first ten classes.
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib
from torch import Tensor

matplotlib.use("agg")
import matplotlib.pyplot as plt

from hmdc_hub import Run
from hmdc_hub.contact_sheet import contact_sheet
from hmdc_hub.report.tables import percent
from hmdc_hub.store.condensed import read_condensed

BOTH = {"initialisation": "Real images it began with", "condensed": "After condensing"}
REAL = "Random real images: {} % in the same bytes, {} % as many"


def first_of_each_class(path: Path) -> Tensor:
    """Read one synthetic image of each of the first ten classes: uint8 n x ch x H x W."""
    images, _, header = read_condensed(path)
    return (images[:: header.ipc][:10] * 255).round().byte()


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--title", "titles", multiple=True, required=True)
@click.option("--out", default="docs/images/condensed.png", type=click.Path(path_type=Path))
def main(runs: tuple[str, ...], titles: tuple[str, ...], out: Path) -> None:
    """Draw the picture."""
    # White paper of its own: it looks the same on a light and on a dark page.
    figure = plt.figure(figsize=(7.2, 2.75 * len(runs)), facecolor="white", layout="constrained")
    for part, path, title in zip(figure.subfigures(len(runs), 1, squeeze=False)[:, 0], runs, titles, strict=True):
        run = Run(path)
        scores = run.scores
        assert scores is not None, f"{path} has no scores"
        means = {name: percent(row["mean"]) for name, row in scores.table.items()}
        part.suptitle(title, x=0.005, ha="left", fontsize=17, fontweight="bold")
        files = (run.directory.initialisation, run.directory.condensed)
        for axis, (name, words), file in zip(part.subplots(2, 1), BOTH.items(), files, strict=True):
            images = first_of_each_class(file)
            axis.imshow(contact_sheet(images, len(images), scale=128 // images.shape[-1], gap=8), interpolation="none")
            weight = "bold" if name == "condensed" else "normal"
            axis.set_title(f"{words}: {means[name]} %", loc="left", fontsize=14, fontweight=weight)
            axis.set_axis_off()
        beside = REAL.format(means["random-encoded"], means["random"])
        part.supxlabel(beside, x=0.005, ha="left", fontsize=13, color="#444444")
        n = scores.table["condensed"]["mean"].n
        print(f"{title}: {means}, n = {n} seeds, {len(scores.protocol.models)} models")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
