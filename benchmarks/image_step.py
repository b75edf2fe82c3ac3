r"""Time and peak memory of one image step, each part apart, in the plain form and as the condenser does it.

    python benchmarks/image_step.py                                    # digits_ipc1 as it ships
    python benchmarks/image_step.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> \
        --pool convnet3_narrow,vit_micro --out step.json

The plain form is in `plain_step.py`; `fast` and `low` are the condenser's two. The parts: choosing the real batches by
clustering; what real images give (of `low` as of `fast`); the whole matching (that included) without and with an update
of the balance; training networks; training projections; and an average step, put together from these (the recipe says
in how many steps the balance is updated and batches are chosen). In each round the methods run in turn, part by part.
Memory is the growth of what torch has allocated, at most, counted from every allocation with one class after another:
the same in every run (on a CPU the condenser works on as many classes at a time as there are threads, and takes as many
times as much). Before anything is timed, the image gradients of all methods are compared.

Prints a Markdown table of medians, with the ratio within a round (median, least and greatest).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from data import recipe_on
from plain_step import PlainCondenser, Serial

from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.images import StoredImages, starting_images
from hmdc_hub.condense.loop import Condenser, plain_attention
from hmdc_hub.condense.match import parameter_gradients
from hmdc_hub.condense.meter import allocated_peak
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.threads import Threads
from hmdc_hub.models import build_for
from hmdc_hub.provenance import device_name
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import ClassBank, Facts, Source, load_source, make_source
from hmdc_hub.store import write_json_atomic

METHODS = ("plain", "fast", "low")
KEY = (0, 0)


def first_classes(source: Source, count: int | None) -> Source:
    """Keep some classes of a source."""
    if count is None or count >= source.train.num_classes:
        return source
    offsets = source.train.offsets[: count + 1]
    kept = source.test_labels < count
    return make_source(
        ClassBank(source.train.images[: offsets[-1]], offsets),
        source.test_images[kept],
        source.test_labels[kept],
        facts=Facts(source.info.id, source.info.kind),
        class_names=source.info.class_names[:count],
    )


class Stepper:
    """One method in the state at the start of a run.

    Args:
        method: One of `METHODS`.
        recipe: What is condensed and how.
        source: Loaded.
        device: Where.
        serial: Whether one class comes after another in all methods, not in the plain one alone.
    """

    def __init__(
        self, method: str, recipe: Recipe, source: Source, device: torch.device, *, serial: bool = False
    ) -> None:
        self.device = device
        spec, seed = recipe.condense, recipe.seed
        self.threads = Serial(device) if serial or method == "plain" else Threads(device)
        real = RealImages(source, spec, seed, device)
        networks = [build_for(model, source).to(device) for model in recipe.pool]
        pool = Pool(networks, spec, seed, self.threads, low_memory=method == "low")
        pool.reset(0, real)
        images = StoredImages.begin(starting_images(pool.networks[0], real, spec, seed, self.threads), source)
        kind = PlainCondenser if method == "plain" else Condenser
        self.condenser = kind(spec, seed, real, pool, images)
        with self.threads.one_each():
            self.condenser.choose_real_batches()

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Give every part as a function of its own; none of them moves the run on."""
        work = self.condenser
        return {
            "real batches": work.choose_real_batches,
            "gradients of real images": self._real_gradients,
            "matching": lambda: self._matching(1),
            "matching, with update": lambda: self._matching(0),
            "networks": lambda: work.pool.train_networks(work.real, KEY),
            "projections": lambda: work.pool.train_projections(work.real, KEY),
        }

    def gradient(self) -> torch.Tensor:
        """Compute the image gradient of a first step."""
        gradient: torch.Tensor = self._matching(0)[0]
        return gradient

    def timed(self, part: Callable[[], Any]) -> float:
        """Do a part; seconds."""
        with self.threads.one_each():
            began = time.perf_counter()
            part()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - began

    def _matching(self, inner: int) -> Any:
        work = self.condenser
        work.balance = Balance.fresh(work.real.classes, len(work.pool.objectives.names()), enabled=work.spec.balance)
        work.inner = inner
        try:
            return work.image_gradient()
        finally:
            work.inner = 0

    def _real_gradients(self) -> None:
        work = self.condenser
        with plain_attention():
            if isinstance(work, PlainCondenser):
                work.real_gradients()
            else:
                self.threads.map(self._of_class, range(work.real.classes))

    def _of_class(self, label: int) -> None:
        work = self.condenser
        images, targets = work.real.take(work.real_batches[label]), work.pool.objectives
        for group in targets.groups():
            parameter_gradients(targets, group, images, label, create_graph=False)


def whole(seconds: dict[str, float], recipe: Recipe) -> float:
    """Put an average step together from its parts."""
    spec = recipe.condense
    refresh = 1 / spec.cluster.every if spec.cluster.enabled else 1.0
    update = 1 / spec.balance_every
    matching = update * seconds["matching, with update"] + (1 - update) * seconds["matching"]
    return matching + refresh * seconds["real batches"] + seconds["networks"] + seconds["projections"]


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
        row += [f"{peaks[name][part] / 2**20:.0f}" if part in peaks[name] else "" for name in peaks]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--recipe", default="digits_ipc1", show_default=True)
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--pool", help="Names in model_pool/, in place of the recipe's.")
@click.option("--ipc", type=int, help="Stored images per class, in place of the recipe's.")
@click.option("--classes", type=int, help="The first so many of the source.")
@click.option("-o", "overrides", multiple=True, help="Of the recipe, such as condense.batch=32.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="[default: all]")
@click.option("--rounds", default=5, show_default=True)
@click.option("--memory/--no-memory", default=True, help="Count memory too.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file with every number.")
def main(
    recipe: str,
    source: str | None,
    pool: str | None,
    ipc: int | None,
    classes: int | None,
    overrides: tuple[str, ...],
    methods: tuple[str, ...],
    rounds: int,
    memory: bool,
    device: str,
    out: Path | None,
) -> None:
    """Measure and print."""
    wishes = [*overrides, *([f"pool=[{pool}]"] if pool else []), *([f"condense.ipc={ipc}"] if ipc else [])]
    resolved, place = recipe_on(source, recipe, wishes), torch.device(device)
    data = first_classes(load_source(resolved.source), classes)
    steppers = {name: Stepper(name, resolved, data, place) for name in methods or METHODS}
    gradients = {name: stepper.gradient() for name, stepper in steppers.items()}
    wanted = next(iter(gradients.values()))
    errors = {name: float((found - wanted).norm() / wanted.norm()) for name, found in gradients.items()}
    took: dict[str, dict[str, list[float]]] = {name: {} for name in steppers}
    for _ in range(rounds):
        for part in next(iter(steppers.values())).parts():
            for name, stepper in steppers.items():
                took[name].setdefault(part, []).append(stepper.timed(stepper.parts()[part]))
        for parts in took.values():
            latest = {part: seconds[-1] for part, seconds in parts.items() if part != "a step"}
            parts.setdefault("a step", []).append(whole(latest, resolved))
        click.echo(f"{ {name: round(parts['a step'][-1], 3) for name, parts in took.items()} }", err=True)
    for stepper in steppers.values():
        stepper.threads.close()
    peaks = {
        name: {part: allocated_peak(work, place) for part, work in one.parts().items()}
        for name in (steppers if memory else ())
        for one in [Stepper(name, resolved, data, place, serial=True)]
    }
    settings = {
        "recipe": resolved.name,
        "pool": [spec.name for spec in resolved.pool],
        "ipc": resolved.condense.ipc,
        "classes": data.train.num_classes,
        "batch": resolved.condense.batch,
        "device": device_name(place),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    click.echo("; ".join(f"{key} {value}" for key, value in settings.items()))
    click.echo("difference of image gradients: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    click.echo(f"\n{table(took, peaks)}")
    if out is not None:
        write_json_atomic(out, {"settings": settings, "errors": errors, "seconds": took, "bytes": peaks})


if __name__ == "__main__":
    main()
