"""What protocols make of the same training sets: how they rank them, at which level, in how many seconds.

    python benchmarks/protocols.py RUN [RUN ...] --long paper --try quick strong --out agreement.json
    python benchmarks/protocols.py RUN [RUN ...] --table ingredients -o evaluate.holdout=0.2 --out ingredients.json
    python benchmarks/protocols.py SET.safetensors --recipe cifar10_ipc10 --source FOLDER --table candidates \
        -o evaluate.holdout=0.2 -o evaluate.steps=1000 -o evaluate.seeds=2 --device cuda --budget 200 --out chosen.json

Scores every training set of every run (condensed and its baselines, each draw of a random one for itself) by several
protocols with the same seeds: the level of each, the mean over sets of each model, seconds. With `--long`, rankings are
compared with that protocol's: Kendall's tau-b and Spearman's rho over all training sets of a run, on each architecture
and on the mean over them; and of all pairs of training sets that the long protocol tells apart (95 % interval of the
paired difference without zero), the share that the other orders the same way. A `--table` is protocols of this file:
the ingredients apart, or settings to choose from, which is done on a held-out part of the train split. Scores are kept
below the run's `evaluations/`, or in `--work`, so that a second call only reads them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import recipe_on
from scipy.stats import kendalltau, spearmanr

from hmdc_hub.catalog import protocol_overrides
from hmdc_hub.catalog.load import change
from hmdc_hub.evaluator import evaluate, evaluated_set, of_run
from hmdc_hub.metrics import MEAN, estimate
from hmdc_hub.processes import Work
from hmdc_hub.schema import TRAINING_SETS, Recipe, Scores
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store.rundir import RunDir

SGD = ["evaluate.optimizer=sgd", "evaluate.schedule=cosine", "evaluate.cutmix.evaluate=true"]
ADAMW = ["evaluate.optimizer=adamw", "evaluate.schedule=cosine", "evaluate.cutmix.evaluate=true"]
MUON = ["evaluate.optimizer=muon", "evaluate.momentum=0.95", *ADAMW[1:]]
# Each changes one thing of the one above it or of `cosine`; `-o evaluate.epochs` (or steps) is the length of most.
INGREDIENTS = {
    "constant rate, as paper": [*SGD, "evaluate.schedule=constant"],
    "cosine": SGD,
    "cosine, Muon 0.01": [*MUON, "evaluate.lr=0.01"],
    "cosine, no CutMix": [*SGD, "evaluate.cutmix.evaluate=false"],
    "cosine, AdamW 0.003": [*ADAMW, "evaluate.lr=0.003"],
    "cosine, three times as long": SGD,
    "step decay, as idc": [*SGD, "evaluate.schedule=step", "evaluate.milestones=[0.666, 0.833]", "evaluate.gamma=0.2"],
}
LONGER = "three times as long"
CANDIDATES = {  # what is wanted first stands first: a budget may end before the others
    **{f"Muon, rate {rate}": [*MUON, f"evaluate.lr={rate}"] for rate in (0.01, 0.003, 0.03)},
    **{f"SGD, rate {rate}": [*SGD, f"evaluate.lr={rate}"] for rate in (0.01, 0.03, 0.1)},
    **{f"AdamW, rate {rate}": [*ADAMW, f"evaluate.lr={rate}"] for rate in (0.003, 0.001)},
}
TABLES = {"ingredients": INGREDIENTS, "candidates": CANDIDATES}


@dataclass(frozen=True)
class Target:
    """What is scored: a run, or a set of another program with the recipe that it is scored like."""

    name: str
    recipe: Recipe
    source: Source
    where: Path  # of its evaluations
    run: RunDir | None
    file: Path

    def score(self, label: str, overrides: Sequence[str], work: Work) -> tuple[Scores, float]:
        """Score it by a protocol, in a directory of its own; with the seconds that it took when it was done."""
        wanted = change(self.recipe, overrides, {}, label).evaluate
        recipe = self.recipe.model_copy(update={"evaluate": wanted})
        if self.run is not None:
            subject = of_run(recipe, self.run)
        else:
            subject = evaluated_set(str(self.file), self.source)
            kept = [name for name in wanted.baselines if not subject.lacks(name)]
            wanted = wanted.model_copy(update={"baselines": kept})
        where = RunDir(self.where / f"{label}-{wanted.protocol_hash()[:8]}")
        clock = where.path / "seconds.json"
        with where.lock():
            start = time.monotonic()
            scores = evaluate(subject, wanted, self.source, where, work)
            assert scores is not None
            if not clock.is_file():
                clock.write_text(json.dumps(round(time.monotonic() - start, 1)))
            return scores, json.loads(clock.read_text())


def target(path: Path, given: argparse.Namespace) -> Target:
    """Find what is scored."""
    if (path / "recipe.yaml").is_file():
        run = RunDir(path)
        recipe = recipe_on(given.source, str(run.recipe), [])
        return Target(path.name, recipe, load_source(recipe.source), run.evaluations, run, path)
    recipe = recipe_on(given.source, given.recipe, [])
    return Target(path.stem, recipe, load_source(resolve_source(recipe.source)), given.work / path.stem, None, path)


Rows = dict[tuple[str, int], list[float]]
"""Accuracy of each seed by training set and draw."""


def by_set(scores: Scores, model: str) -> Rows:
    """Gather the seeds of every training set on a model, or on the mean over models."""
    models = [spec.name for spec in scores.protocol.models] if model == MEAN else [model]
    seeds = range(scores.protocol.seeds)
    cells = {(c.training_set, c.draw, c.model, c.seed): c.accuracy for c in scores.cells}
    names = sorted({(c.training_set, c.draw) for c in scores.cells})
    return {key: [statistics.fmean(cells[*key, m, seed] for m in models) for seed in seeds] for key in names}


def agreement(long: Scores, short: Scores, model: str) -> dict[str, Any]:
    """Compare two rankings of the same training sets."""
    one, other = by_set(long, model), by_set(short, model)
    means = [[statistics.fmean(rows[key]) for key in one] for rows in (one, other)]
    apart, same = 0, 0
    for a, b in itertools.combinations(one, 2):
        difference = estimate([x - y for x, y in zip(one[a], one[b], strict=True)])
        if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
            continue
        apart += 1
        same += (statistics.fmean(other[a]) > statistics.fmean(other[b])) == (difference.mean > 0)
    return {
        "sets": len(one),
        "tau": float(kendalltau(*means).statistic),
        "rho": float(spearmanr(*means).statistic),
        "pairs_apart": apart,
        "pairs_alike": same,
        "condensed": [
            100 * means[0][list(one).index(("condensed", 0))],
            100 * means[1][list(one).index(("condensed", 0))],
        ],
    }


def level(scores: Scores, model: str, training_set: str) -> list[float]:
    """Give the accuracy, in percent, of each seed on a training set, the draws of a random one averaged."""
    rows = [row for (name, _), row in by_set(scores, model).items() if name == training_set]
    return [100 * statistics.fmean(seed) for seed in zip(*rows, strict=True)]


def levels(found: dict[str, tuple[Scores, float]]) -> str:
    """Lay out how well each protocol's networks do on each training set, the mean over sets by model, and seconds."""
    protocol = next(iter(found.values()))[0].protocol
    sets = [name for name in TRAINING_SETS if name in {"condensed", *protocol.baselines}]
    models = [spec.name for spec in protocol.models]
    lines = [
        f"| protocol | {' | '.join(TRAINING_SETS[name].label for name in sets)} | {' | '.join(models)} | seconds |",
        "|---" * (2 + len(sets) + len(models)) + "|",
    ]
    for label, (scores, seconds) in found.items():
        cells = []
        for name in sets:
            values = level(scores, MEAN, name)
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 2 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        for model in models:
            cells.append(f"{statistics.fmean(statistics.fmean(level(scores, model, name)) for name in sets):.1f}")
        lines.append(f"| {label} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def protocols(given: argparse.Namespace) -> dict[str, list[str]]:
    """List what is compared, by name, the long protocol first; each as overrides of a recipe."""
    found = {Path(name).stem: protocol_overrides(name) for name in ([given.long] if given.long else []) + given.tried}
    for label, overrides in TABLES.get(given.table, {}).items():
        found[label] = overrides
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, help="runs; or safetensors files, or folders of images")
    parser.add_argument("--recipe", default="cifar10_ipc10", help="of sets that are no runs")
    parser.add_argument("--source", help="another folder or id than the recipe names")
    parser.add_argument("--work", type=Path, default=Path("evaluations"), help="where scores of such sets are kept")
    parser.add_argument("--long", help="the protocol whose ranking the others are held to")
    parser.add_argument("--try", dest="tried", nargs="+", default=[], help="other protocols that ship, or files")
    parser.add_argument("--table", choices=TABLES, help="protocols of this file")
    parser.add_argument("--only", nargs="+", help="words of those that are wanted of it")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="for all, such as evaluate.seeds=3")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which none is begun")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    wanted, start = protocols(given), time.monotonic()
    result: dict[str, Any] = {"device": str(given.device), "overrides": given.overrides, "levels": [], "agreement": []}
    for path in given.sets:
        one, found = target(path, given), dict[str, tuple[Scores, float]]()
        # A cache of its own, so that trainings on real images count as what they take.
        work = Work(given.device, workers=given.workers, reuse=False, cache=one.where / "cache")
        length = change(one.recipe, given.overrides, {}, one.name).evaluate
        longer = f"evaluate.steps={3 * length.steps}" if length.steps else f"evaluate.epochs={3 * length.epochs}"
        for label, overrides in wanted.items():
            if given.only and not any(word in label for word in given.only):
                continue
            if time.monotonic() - start > given.budget:
                print(f"{one.name}: {label} left out, the budget of {given.budget:.0f} s is spent")
                continue
            safe = "".join(letter if letter.isalnum() else "_" for letter in label)
            extra = [longer] if LONGER in label else []
            found[label] = one.score(safe, [*overrides, *given.overrides, *extra], work)
            print(f"{one.name}: {label}: {found[label][1]:.0f} s", flush=True)
        result["levels"] += [row for label, scored in found.items() for row in plain_levels(one.name, label, *scored)]
        if found:
            print(f"\n{one.name}\n\n{levels(found)}\n", flush=True)
        if given.long and Path(given.long).stem in found:
            result["agreement"] += agreements(one.name, found)
        if given.out is not None:
            given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def plain_levels(run: str, label: str, scores: Scores, seconds: float) -> list[dict[str, Any]]:
    """Give every mean of one protocol as plain data, with its seeds."""
    names = {"condensed", *scores.protocol.baselines}
    return [
        {
            "run": run, "protocol": label, "hash": scores.protocol_hash, "model": model, "training_set": name,
            "percent": level(scores, model, name), "seconds": seconds,
        }
        for model in (*(spec.name for spec in scores.protocol.models), MEAN)
        for name in TRAINING_SETS if name in names
    ]  # fmt: skip


def agreements(run: str, found: dict[str, tuple[Scores, float]]) -> list[dict[str, Any]]:
    """Print how the other protocols rank as the first does, and return it."""
    (first, (long, _)), *others = found.items()
    print(f"| protocol | model | sets | tau | rho | pairs ordered alike | condensed, {first} -> it |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for label, (short, _) in others:
        for model in (*(spec.name for spec in long.protocol.models), MEAN):
            row = agreement(long, short, model)
            rows.append({"run": run, "long": first, "protocol": label, "model": model, **row})
            alike = f"{row['pairs_alike']} of {row['pairs_apart']}"
            condensed = " -> ".join(f"{x:.1f}" for x in row["condensed"])
            numbers = f"{row['sets']} | {row['tau']:.2f} | {row['rho']:.2f}"
            print(f"| {label} | {model} | {numbers} | {alike} | {condensed} |", flush=True)
    print()
    return rows


if __name__ == "__main__":
    main()
