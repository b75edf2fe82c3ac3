"""The evaluator against the loop that research code has, on the same trainings: seconds, and whether both agree.

    python benchmarks/evaluate.py --out evaluate-digits.json
    python benchmarks/evaluate.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> --out evaluate-cifar10.json

The plain loop is in `plain_loop.py`; of torch's own number of threads and one thread, the better one counts for each
model. It tests every ten epochs and at the end; the time without that habit is that of the same trainings less what the
looks before the end took. The evaluator is timed as a user gets it: `evaluate` into a fresh directory, worker processes
started by it, one look at the test split. Nothing is condensed: random real images, encoded like a condensed set, stand
for one.

In each round the two run in turn, model by model; then the evaluator on all models in one call, which is what compares
with the sum of the plain times. Prints Markdown tables: medians over rounds with ratios within a round, then
differences of accuracy (ours - plain), paired by seed, over `--pairs` seeds of which both start from the same weights.
"""

from __future__ import annotations

import multiprocessing.forkserver
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from data import recipe_on
from plain_loop import HABIT, Loop

from hmdc_hub import metrics, multi_formation, rng
from hmdc_hub.evaluator import EvaluatedSet, TrainingSet, evaluate, training_sets
from hmdc_hub.models import build_for
from hmdc_hub.processes import Work
from hmdc_hub.provenance import device_name
from hmdc_hub.schema import Cell, EvaluateSpec, Recipe
from hmdc_hub.sources import Source, load_source
from hmdc_hub.store.files import write_json_atomic
from hmdc_hub.store.parquet import to_uint8
from hmdc_hub.store.rundir import RunDir

CPU = torch.device("cpu")
NARROW = "convnet3_narrow,vit_micro,resnet_narrow,mlp"
ALL = "all"


def protocol_of(recipe: Recipe, sets: Sequence[str], models: Sequence[str], seeds: int) -> EvaluateSpec:
    """Restrict the recipe's protocol to some of its cells, with one draw of each random set."""
    plain = recipe.evaluate.model_dump(mode="json")
    chosen = [model for model in plain["models"] if model["name"] in models]
    return EvaluateSpec.model_validate(
        plain | {"models": chosen, "baselines": list(sets), "seeds": seeds, "random_draws": 1}
    )


def encoded(recipe: Recipe, source: Source) -> EvaluatedSet:
    """Keep random real images as a condensed set keeps its own."""
    n, factor, made = recipe.condense.size, recipe.condense.factor, []
    for label in range(source.train.num_classes):
        real = source.train.of_class(label)
        order = torch.randperm(len(real), generator=rng.generator(0, "benchmark", label))[: n * factor**2]
        stored = to_uint8(multi_formation.encode(real[order].float() / 255, factor, source.train.side))
        made.append(to_uint8(multi_formation.decode(stored.float() / 255, factor)))
    labels = torch.arange(len(made)).repeat_interleave(len(made[0]))
    return EvaluatedSet("encoded", torch.cat(made), labels, (n,) * len(made), "0" * 64, factor)


class Both:
    """The two programs on one source; each method runs some models on every training set."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        sets: Sequence[str],
        device: torch.device,
        loader: int,
        workers: int | None,
    ) -> None:
        self.recipe, self.source, self.sets = recipe, source, sets
        self.device, self.workers = device, workers
        self.specs = {spec.name: spec for spec in recipe.evaluate.models}
        self.names = list(self.specs)
        self.subject = encoded(recipe, source)
        protocol = protocol_of(recipe, sets, self.names, 1)
        self.images: list[TrainingSet] = training_sets(protocol, source, self.subject, CPU)
        self.loop = Loop(protocol, source, device, loader)

    def plain(self, name: str, seeds: int, threads: int) -> tuple[float, float, list[Cell]]:
        """Run the plain loop; what it gives is said at `Loop.run`."""
        return self.loop.run(self.specs[name], self.images, seeds, threads)

    def ours(self, names: Sequence[str], seeds: int) -> tuple[float, list[Cell]]:
        """Run the evaluator; seconds and accuracies."""
        with tempfile.TemporaryDirectory() as folder:
            run, cache = RunDir(Path(folder)), Path(folder) / "cache"
            # What imports libraries for all workers begins anew, as it does for who evaluates once.
            multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
            began = time.perf_counter()
            protocol = protocol_of(self.recipe, self.sets, names, seeds)
            work = Work(self.device, workers=self.workers, cache=cache)
            scores = evaluate(self.subject, protocol, self.source, run, work)
            assert scores is not None
            return time.perf_counter() - began, scores.cells


def time_both(both: Both, seeds: int, rounds: int, counts: Sequence[int]) -> dict[str, Any]:
    """Run the two in turn; lists over rounds: `ours[model]`, and `plain[model][threads]` without and with the habit."""
    mine: dict[str, list[float]] = {name: [] for name in (*both.names, ALL)}
    theirs: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in both.names}
    busy: list[float] = []
    for number in range(rounds):
        for name in both.names:
            for threads in counts:
                theirs[name].setdefault(str(threads), []).append(both.plain(name, seeds, threads)[:2])
                if threads == counts[0]:
                    mine[name].append(both.ours([name], seeds)[0])
            click.echo(f"round {number + 1}: {name}: plain {theirs[name]}, ours {mine[name]}", err=True)
        mine[ALL].append(both.ours(both.names, seeds)[0])
        busy.append(os.getloadavg()[0])
    return {"ours": mine, "plain": theirs, "load": busy}


def time_table(took: dict[str, Any]) -> str:
    """Lay out the times: medians over rounds, and median, least and greatest of the ratios within a round."""
    best = {name: min(by.items(), key=lambda item: _median(item[1], 0)) for name, by in took["plain"].items()}
    whole = [
        tuple(sum(pair) for pair in zip(*each, strict=True))
        for each in zip(*(t for _, t in best.values()), strict=True)
    ]
    rows = []
    for name, (threads, times) in (best | {ALL: ("as above", whole)}).items():
        mine = took["ours"][name]
        line = [name, threads, *(f"{_median(times, i):.2f}" for i in (0, 1)), f"{statistics.median(mine):.2f}"]
        for i in (0, 1):
            ratios = sorted(pair[i] / own for pair, own in zip(times, mine, strict=True))
            line.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        rows.append("| " + " | ".join(line) + " |")
    head = f"| model | threads of plain | plain, s | and tests every {HABIT} epochs, s | ours, s | plain / ours |"
    return "\n".join([f"{head} and tests / ours |", "|---|" + "---:|" * 6, *rows])


def _median(pairs: Sequence[tuple[float, float]], place: int) -> float:
    return statistics.median(pair[place] for pair in pairs)


def compare(both: Both, seeds: int) -> dict[str, Any]:
    """Train with both and pair accuracies by seed; the mean over training sets first."""
    cells = both.ours(both.names, seeds)[1]
    found: dict[str, Any] = {}
    for name in both.names:
        plain = both.plain(name, seeds, 1)[2]
        columns = []
        for some in (cells, plain):
            of_sets = [metrics.by_seed(some, made, [name]) for made in dict.fromkeys(made.name for made in both.images)]
            columns.append([statistics.fmean(row) for row in zip(*of_sets, strict=True)])
        found[name] = {"ours": columns[0], "plain": columns[1]}
        click.echo(f"pairs: {name}", err=True)
    found["mean"] = {
        who: [statistics.fmean(row) for row in zip(*(found[name][who] for name in both.names), strict=True)]
        for who in ("ours", "plain")
    }
    return found


def pair_table(found: dict[str, Any]) -> str:
    rows = []
    for name, by in found.items():
        gap = metrics.estimate([100 * (a - b) for a, b in zip(by["ours"], by["plain"], strict=True)])
        low, high = (f"{x:+.2f}" if x is not None else "?" for x in (gap.low, gap.high))
        means = [f"{100 * statistics.fmean(by[who]):.2f}" for who in ("ours", "plain")]
        rows.append(f"| {name} | {' | '.join(means)} | {gap.mean:+.2f} | {low} to {high} | {gap.n} |")
    return "\n".join(["| model | ours % | plain % | difference | 95 % | n |", "|---|" + "---:|" * 5, *rows])


@click.command()
@click.option("--recipe", default="digits_ipc1", show_default=True)
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--models", default=NARROW, show_default=True, help="Names in model_pool/.")
@click.option("--sets", default="random", show_default=True, help="Training sets beside the encoded one.")
@click.option("--seeds", default=2, show_default=True, help="Trainings of each model on each set.")
@click.option("--epochs", default=50, show_default=True, help="Of every training.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, multiple=True, help="Of the plain loop.  [default: torch's own number, and 1]")
@click.option("--pairs", default=10, show_default=True, help="Seeds for comparing accuracies; 0: do not.")
@click.option("--loader-workers", default=0, show_default=True, help="Processes of the plain loop's DataLoaders.")
@click.option("--workers", type=int, help="Processes of the evaluator.  [default: what a user gets]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file with every number.")
def main(
    recipe: str,
    source: str | None,
    models: str,
    sets: str,
    seeds: int,
    epochs: int,
    rounds: int,
    threads: tuple[int, ...],
    pairs: int,
    loader_workers: int,
    workers: int | None,
    device: str,
    out: Path,
) -> None:
    """Run both and print the tables."""
    wishes = [f"evaluate.models=[{models}]", f"evaluate.epochs={epochs}", "evaluate.steps=null"]
    resolved = recipe_on(source, recipe, [*wishes, "evaluate.schedule=constant"])
    data = load_source(resolved.source)
    both = Both(resolved, data, sets.split(",") if sets else [], torch.device(device), loader_workers, workers)
    budget = [f"{made.name} {made.draw}: {len(made.labels)}" for made in both.images]
    settings = {
        "recipe": recipe,
        "epochs": epochs,
        "seeds": seeds,
        "training images": ", ".join(budget),
        "test images": len(data.test_labels),
        "torch": torch.__version__,
        "device": device_name(both.device),
        "threads": torch.get_num_threads(),
        "loader workers": loader_workers,
        "workers": workers,
    }
    for spec in resolved.evaluate.models:
        build_for(spec, data)  # imports libraries, for which nobody is charged
    counts = threads or sorted({torch.get_num_threads(), 1}, reverse=True)
    done: dict[str, Any] = {"settings": settings, "seconds": time_both(both, seeds, rounds, counts)}
    write_json_atomic(out, done)
    click.echo("; ".join(f"{key} {value}" for key, value in settings.items()))
    click.echo(f"load {done['seconds']['load']}\n\n{time_table(done['seconds'])}\n")
    if pairs:
        done["accuracy"] = compare(both, pairs)
        write_json_atomic(out, done)
        click.echo(pair_table(done["accuracy"]))


if __name__ == "__main__":
    main()
