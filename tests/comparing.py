"""Scored sets whose every accuracy a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hmdc_hub import metrics
from hmdc_hub.report.comparison import ScoredSet
from hmdc_hub.schema import Budget, Cell, EvaluateSpec, Scores, sha256_of

MLP: dict[str, Any] = {"source": "builtin", "id": "mlp", "args": {"depth": 1, "width": 8}}
REAL = {"random": 0.4, "k-means": 0.5}


def protocol(models: Sequence[str] = ("a", "b"), seeds: int = 3, **keys: Any) -> EvaluateSpec:
    named = [MLP | {"name": name} for name in models]
    keys = {"random_draws": 2, "epochs": 30, "baselines": list(REAL)} | keys
    return EvaluateSpec.model_validate({"models": named, "seeds": seeds} | keys)


def scored(
    label: str,
    accuracies: Mapping[str, Sequence[float]],
    *,
    family: str | None = None,
    seed: int = 0,
    stored: int = 6,
    by: Sequence[str] = ("a",),
    real: Mapping[str, float] = REAL,
    changes: Mapping[str, Any] | None = None,
    **keys: Any,
) -> ScoredSet:
    """Make a set.

    Args:
        label: Also the recipe's.
        accuracies: Of the condensed set, by model: one for each evaluation seed.
        family: Of the recipe; None: a hash of its own.
        seed: Of condensing.
        stored: Images, of which each holds four.
        by: Models that condensed it.
        real: Accuracy of each baseline.
        changes: Fields of the scores that are something else.
        **keys: Of the protocol.
    """
    of = protocol(list(accuracies), len(next(iter(accuracies.values()))), baselines=list(real), **keys)
    cells = [
        Cell(model=model, training_set="condensed", draw=0, seed=n, accuracy=accuracy, ece=0.1)
        for model, row in accuracies.items()
        for n, accuracy in enumerate(row)
    ] + [
        Cell(model=model, training_set=name, draw=draw, seed=n, accuracy=real[name], ece=0.1)
        for name in real
        for model in accuracies
        for draw in range(of.draws(name))
        for n in range(of.seeds)
    ]
    sets = ["condensed", *real]
    scores = Scores(
        hmdc_hub_version="0.1.0",
        versions={"torch": "2.15.0"},
        device="cpu",
        name=label,
        condense_hash=f"{label} {seed}",
        family_hash=family or label,
        condense_seed=seed,
        protocol_hash=of.protocol_hash(),
        protocol=of,
        fingerprint="ab12" * 16,
        parquet_sha256=sha256_of([label, seed, *accuracies.values()]),
        condensed_by=list(by),
        test_count=300,
        class_names=["cat", "dog", "ship"],
        budgets={
            name: Budget(stored=stored, images=stored * (4 if name == "condensed" else 1), bytes=192 * stored)
            for name in sets
        },
        cells=cells,
        per_class={name: {model: [0.5] * 3 for model in accuracies} for name in sets},
        **metrics.summarise(cells, sets, list(accuracies), list(by)),
    )
    return ScoredSet(label, scores.model_copy(update=dict(changes or {})))
