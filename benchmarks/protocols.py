"""How well a shorter protocol ranks training sets as the paper's does.

    python benchmarks/protocols.py RUN [RUN ...] --long paper --try quick --out agreement.json

Scores every training set of every run (condensed and its baselines, each draw of a random one for itself) by the long
protocol and by the short ones, with the same seeds, and compares the rankings: Kendall's tau-b and Spearman's rho over
all training sets of a run, on each architecture and on the mean over them; and of all pairs of training sets that the
long protocol tells apart (95 % interval of the paired difference without zero), the share that the short one orders the
same way. Scores are kept in the runs, below `evaluations/`, so that a second call only reads them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau, spearmanr

from hmdc_hub.catalog import load_recipe, protocol_overrides, read_recipe_file
from hmdc_hub.evaluator import evaluate, of_run
from hmdc_hub.metrics import MEAN, estimate
from hmdc_hub.processes import Work
from hmdc_hub.schema import Scores
from hmdc_hub.sources import load_source
from hmdc_hub.store.rundir import RunDir


def scored(run: RunDir, protocol: str, overrides: list[str], device: torch.device, workers: int | None) -> Scores:
    """Score a run by a protocol, in a directory below the run."""
    wanted = load_recipe(run.recipe, [*protocol_overrides(protocol), *overrides]).evaluate
    recipe = read_recipe_file(run.recipe).model_copy(update={"evaluate": wanted})
    where = RunDir(run.evaluations / f"{Path(protocol).stem}-{wanted.protocol_hash()[:8]}")
    with where.lock():
        source = load_source(recipe.source)
        scores = evaluate(of_run(recipe, run), wanted, source, where, Work(device, workers=workers))
        assert scores is not None
        return scores


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--long", default="paper", help="the long protocol")
    parser.add_argument("--try", dest="tried", nargs="+", default=["quick"], help="shorter ones")
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="for all, such as evaluate.seeds=3")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    print("| run | protocol | model | sets | tau | rho | pairs ordered alike | condensed, long -> short |")
    print("|---|---|---|---|---|---|---|---|")
    for path in given.runs:
        run = RunDir(path)
        long = scored(run, given.long, given.overrides, given.device, given.workers)
        for name in given.tried:
            short = scored(run, name, given.overrides, given.device, given.workers)
            for model in (*(spec.name for spec in long.protocol.models), MEAN):
                row = agreement(long, short, model)
                found.append({"run": path.name, "protocol": name, "model": model, **row})
                alike = f"{row['pairs_alike']} of {row['pairs_apart']}"
                condensed = " -> ".join(f"{x:.1f}" for x in row["condensed"])
                numbers = f"{row['sets']} | {row['tau']:.2f} | {row['rho']:.2f}"
                print(f"| {path.name} | {Path(name).stem} | {model} | {numbers} | {alike} | {condensed} |", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
