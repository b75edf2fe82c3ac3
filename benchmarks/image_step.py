r"""Time and peak memory of one image step, each part apart: the old engine, the condenser as it is, the plain form.

    python benchmarks/image_step.py                                    # digits_ipc1 as it ships
    python benchmarks/image_step.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> \
        --pool convnet3_narrow,vit_micro --out step.json

`old` is the engine of commit 2922b06 with its worker processes, out of the repository's history or from the folder
`--old`; `new` the condenser; `compiled` the same with `condense.derivative: compiled`; `eager` without captured graphs
on a GPU; the plain form is in `plain_step.py`. The parts: choosing the real batches by clustering; matching without and
with an update of the balance; training networks; training projections; and a whole step: as nine in ten are, and as
those are that choose real batches and update the balance. Every method lives in a process of its own; in each round
they run in turn, part by part.

Memory is what tensors grow by at most while a part is done, counted from every allocation: the same in every run (that
of the old engine, in several processes, is not counted). Before anything is timed, the image gradients of all methods
are compared. Prints a Markdown table of medians, with the ratio within a round (median, least and greatest).
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from data import recipe_on
from driver import METHODS, Engine
from old_stepper import old_tree

from hmdc_hub.provenance import device_name
from hmdc_hub.schema import Recipe
from hmdc_hub.store.files import write_json_atomic

DEFAULT = METHODS[:3]


def table(took: dict[str, dict[str, list[float]]], peaks: dict[str, dict[str, int]]) -> str:
    """Lay out medians and ratios to the first method."""
    first, *others = took
    head = ["part", f"{first}, s", *(f"{name}, s | {first} / {name}" for name in others)]
    head += [f"{name}, MiB" for name in peaks]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(" | ".join(head).split(" | ")) - 1)]
    for part, mine in took[first].items():
        row = [part, f"{statistics.median(mine):.3f}"]
        for name in others:
            ratios = sorted(a / b for a, b in zip(mine, took[name][part], strict=True))
            row += [
                f"{statistics.median(took[name][part]):.3f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            ]
        row += [f"{peaks[name][part] / 2**20:.0f}" for name in peaks]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def measured(engines: dict[str, Engine], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Time every part of every engine in turn; seconds of each round, but for a first one that warms up."""
    took: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    for number in range(rounds + 1):
        for part in next(iter(engines.values())).parts:
            for name, engine in engines.items():
                seconds = engine.seconds(part)
                if number:
                    took[name].setdefault(part, []).append(seconds)
        if number:
            click.echo(f"{ {name: round(parts['a step'][-1], 3) for name, parts in took.items()} }", err=True)
    return took


@click.command()
@click.option("--recipe", default="digits_ipc1", show_default=True)
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--pool", help="Names in model_pool/, in place of the recipe's.")
@click.option("--ipc", type=int, help="Stored images per class, in place of the recipe's.")
@click.option("--classes", type=int, help="The first so many of the source.")
@click.option("-o", "overrides", multiple=True, help="Of the recipe, such as condense.batch=32.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help=f"[default: {', '.join(DEFAULT)}]")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="Of all networks but in the plain form.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--memory/--no-memory", default=True, help="Count memory too.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--old", type=click.Path(exists=True, path_type=Path), help="Folder with the old engine's files.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file with every number.")
def main(
    recipe: str,
    source: str | None,
    pool: str | None,
    ipc: int | None,
    classes: int | None,
    overrides: tuple[str, ...],
    methods: tuple[str, ...],
    precision: str | None,
    rounds: int,
    memory: bool,
    device: str,
    old: Path | None,
    out: Path | None,
) -> None:
    """Measure and print."""
    wishes = [*overrides, *([f"pool=[{pool}]"] if pool else []), *([f"condense.ipc={ipc}"] if ipc else [])]
    resolved = recipe_on(source, recipe, wishes)

    def recipe_of(method: str) -> Recipe:
        wanted = "float32" if method == "plain" else precision
        models = [one.model_copy(update={"precision": wanted} if wanted else {}) for one in resolved.pool]
        return resolved.model_copy(update={"pool": models})

    methods = methods or DEFAULT
    with ExitStack() as stack:
        tree = stack.enter_context(old_tree(old)) if "old" in methods else None
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = {
            name: stack.enter_context(closing(Engine(name, recipe_of(name), device, classes, tree))) for name in methods
        }
        gradients = {name: engine.gradients(place / name) for name, engine in engines.items()}
        took = measured(engines, rounds)
        counted = [name for name in methods if memory and name != "old"]
        peaks = {name: {part: engines[name].peak(part) for part in engines[name].parts} for name in counted}
    wanted = next(iter(gradients.values()))
    errors = {name: float((found - wanted).norm() / wanted.norm()) for name, found in gradients.items()}
    cosines = {name: float(F.cosine_similarity(g.flatten(), wanted.flatten(), 0)) for name, g in gradients.items()}
    settings = {
        "recipe": resolved.name,
        "pool": [spec.name for spec in resolved.pool],
        "precision": precision or [spec.precision for spec in resolved.pool],
        "ipc": resolved.condense.ipc,
        "classes": len(wanted),
        "batch": resolved.condense.batch,
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }
    click.echo("; ".join(f"{key} {value}" for key, value in settings.items()))
    apart = ", ".join(f"{name} {error:.1e} (cosine {cosines[name]:.4f})" for name, error in errors.items())
    click.echo(f"difference of image gradients: {apart}")
    click.echo(f"\n{table(took, peaks)}")
    if out is not None:
        write_json_atomic(
            out, {"settings": settings, "errors": errors, "cosines": cosines, "seconds": took, "bytes": peaks}
        )


if __name__ == "__main__":
    main()
