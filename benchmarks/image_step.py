r"""Time and peak memory of one image step, each part apart, in the plain form and as the condenser does it.

    python benchmarks/image_step.py                                    # digits_ipc1 as it ships
    python benchmarks/image_step.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> \
        --pool convnet3_narrow,vit_micro --out step.json

The plain form is in `plain_step.py`; `fast` and `low` are the condenser's two, with a worker process for each thread on
a CPU, `threads` is the first of them in threads, as every run begins, `compiled` and `compiled-low` are the two with
`condense.derivative: compiled`. The parts: choosing the real batches by clustering; matching without and with an update
of the balance; training networks; training projections; and a whole step, in which the condenser trains while it
matches: as nine in ten are, and as those are that choose real batches and update the balance. In each round the methods
run in turn, part by part.

Memory is the growth of what torch has allocated, at most, counted from every allocation with one class after another:
the same in every run (on a CPU the condenser works on as many classes at a time as there are threads, and takes as many
times as much). Before anything is timed, the image gradients of all methods are compared. The plain form is in float32
always, the others compute in the precision of each pool entry, or in `--precision`.

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
import torch.nn.functional as F
from data import recipe_on
from plain_step import PlainHand, Serial

from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.crew import Crew
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.loop import Condenser
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.memory import choose_memory
from hmdc_hub.condense.meter import allocated_peak
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.team import Threads
from hmdc_hub.models import build_for
from hmdc_hub.provenance import device_name
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import ClassBank, Facts, Source, load_source, make_source
from hmdc_hub.store import write_json_atomic

METHODS = ("plain", "threads", "fast", "low")
COMPILED = {"compiled": "fast", "compiled-low": "low"}
"""Methods that are another's with `condense.derivative: compiled`."""
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
        precision: Of all networks but in the plain form; None: as their entries say.
    """

    def __init__(
        self,
        method: str,
        recipe: Recipe,
        source: Source,
        device: torch.device,
        *,
        serial: bool = False,
        precision: str | None = None,
    ) -> None:
        derivative = "compiled" if method in COMPILED else "eager"
        method = COMPILED.get(method, method)
        self.device, self.plain = device, method == "plain"
        # The plain form knows no parts: a minibatch goes through whole.
        networks_spec = recipe.condense.networks.model_copy(update={"parts": 1} if self.plain else {})
        word = "low" if method == "low" else "fast"
        spec, seed = (
            recipe.condense.model_copy(update={"networks": networks_spec, "memory": word, "derivative": derivative}),
            recipe.seed,
        )
        wanted = "float32" if self.plain else precision
        models = [one.model_copy(update={"precision": wanted} if wanted else {}) for one in recipe.pool]
        recipe = recipe.model_copy(update={"condense": spec, "pool": models})
        alone = serial or method != "threads"
        self.threads = Serial(device) if self.plain else Threads(device, 1 if alone else torch.get_num_threads())
        real = RealImages(source, spec, seed, device)
        members = Members([build_for(model, source).to(device) for model in recipe.pool], spec, seed)
        members.at_once = choose_memory(members, real, recipe, 1).at_once
        self.hand = (PlainHand if self.plain else Hand)(spec, seed, real, members)
        pool = Pool(self.hand, self.threads)
        pool.reset(0, real)
        pixels = torch.stack([self.hand.starting_images(label) for label in range(real.classes)])
        self.condenser = Condenser(spec, seed, real, pool, StoredImages.begin(range(real.classes), pixels, source))
        with self.threads.one_each():
            if not self.plain:
                self.hand.prepare()  # now, so that no measurement has it in it
        self.crew: Crew | None = None
        if method in ("fast", "low") and not serial and device.type == "cpu":
            self.crew = Crew(torch.get_num_threads(), recipe, source)
            self.crew.at_once = members.at_once
            while not self.crew.ready:
                time.sleep(0.1)
            pool.team = self.crew
        with self.threads.one_each():
            self.choose_real_batches()

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Give every part as a function of its own; none of them moves the run on."""
        work = self.condenser
        return {
            "real batches": self.choose_real_batches,
            "matching": lambda: self.matching(1),
            "matching, with update": lambda: self.matching(0),
            "networks": lambda: work.pool.train_networks(work.real, KEY),
            "projections": lambda: work.pool.train_projections(work.real, KEY),
            "a step": lambda: self.step(1),
            "a step, with update": lambda: self.step(0),
        }

    def choose_real_batches(self) -> None:
        """Choose the real batches of all classes."""
        work = self.condenser
        work.visits = [0] * work.real.classes
        work.choose_real_batches(range(work.real.classes), work.values())

    def matching(self, inner: int) -> list[torch.Tensor]:
        """Compute the image gradient of every class in a step of this number."""
        work = self.condenser
        work.balance = Balance.fresh(work.real.classes, len(work.balance.accumulated[0]), enabled=work.spec.balance)
        work.visits = [inner] * work.real.classes
        try:
            return [part[0] for part in work.class_parts(range(work.real.classes), work.values())]
        finally:
            work.visits = [0] * work.real.classes

    def step(self, inner: int) -> None:
        """Make a whole step in the middle of an outer iteration: with this number the balance is updated, or not."""
        work = self.condenser
        work.inner, work.visits = work.inner or 1, [inner] * work.real.classes
        work.step()
        work.visits = [0] * work.real.classes

    def timed(self, part: Callable[[], Any]) -> float:
        """Do a part; seconds."""
        with self.threads.one_each():
            began = time.perf_counter()
            part()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - began

    def close(self) -> None:
        """End its workers."""
        if self.crew is not None:
            self.crew.close()
        self.threads.close()


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
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice([*METHODS, *COMPILED]),
    help="[default: plain, threads, fast, low]",
)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="Of all networks but in the plain form.")
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
    precision: str | None,
    rounds: int,
    memory: bool,
    device: str,
    out: Path | None,
) -> None:
    """Measure and print."""
    wishes = [*overrides, *([f"pool=[{pool}]"] if pool else []), *([f"condense.ipc={ipc}"] if ipc else [])]
    resolved, place = recipe_on(source, recipe, wishes), torch.device(device)
    data = first_classes(load_source(resolved.source), classes)
    steppers = {name: Stepper(name, resolved, data, place, precision=precision) for name in methods or METHODS}
    gradients = {name: torch.stack(stepper.matching(1)) for name, stepper in steppers.items()}
    wanted = next(iter(gradients.values()))
    errors = {name: float((found - wanted).norm() / wanted.norm()) for name, found in gradients.items()}
    cosines = {name: float(F.cosine_similarity(g.flatten(), wanted.flatten(), 0)) for name, g in gradients.items()}
    took: dict[str, dict[str, list[float]]] = {name: {} for name in steppers}
    for _ in range(rounds):
        for part in next(iter(steppers.values())).parts():
            for name, stepper in steppers.items():
                took[name].setdefault(part, []).append(stepper.timed(stepper.parts()[part]))
        click.echo(f"{ {name: round(parts['a step'][-1], 3) for name, parts in took.items()} }", err=True)
    for stepper in steppers.values():
        stepper.close()
    peaks = {
        name: {part: allocated_peak(work, place) for part, work in one.parts().items() if not part.startswith("a step")}
        for name in (steppers if memory else ())
        for one in [Stepper(name, resolved, data, place, serial=True, precision=precision)]
    }
    settings = {
        "recipe": resolved.name,
        "pool": [spec.name for spec in resolved.pool],
        "precision": precision or [spec.precision for spec in resolved.pool],
        "ipc": resolved.condense.ipc,
        "classes": data.train.num_classes,
        "batch": resolved.condense.batch,
        "device": device_name(place),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
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
