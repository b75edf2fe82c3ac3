"""From finished trainings to confusion matrices and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hmdc_hub import __version__, measures
from hmdc_hub.evaluate.baselines import TrainingSet
from hmdc_hub.evaluate.ledger import Entry
from hmdc_hub.evaluate.subject import Subject
from hmdc_hub.measures import Labels
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import Cell, EvaluateSpec, Scores
from hmdc_hub.sources import Source

Confused = Mapping[tuple[str, str], Labels]
"""Confusion matrix of each training set and model, over all its trainings."""


def confusions(entries: Sequence[Entry], source: Source) -> Confused:
    """Count confusions of every training set and model over its trainings."""
    labels, classes = source.test_labels.numpy(), source.train.num_classes
    found: dict[tuple[str, str], Labels] = {}
    for entry in entries:
        key = entry.cell.training_set, entry.cell.model
        found[key] = found.get(key, np.int64(0)) + measures.confusion(labels, entry.predicted, classes)
    return found


def scores_of(
    subject: Subject,
    protocol: EvaluateSpec,
    source: Source,
    sets: Sequence[TrainingSet],
    cells: list[Cell],
    confused: Confused,
    device: torch.device,
    fingerprint: str,
) -> Scores:
    """Put scores together.

    Args:
        subject: What was scored.
        protocol: Settled.
        source: What was scored on.
        sets: The training sets.
        cells: Every training.
        confused: As `confusions` gives it.
        device: Where trainings ran.
        fingerprint: Of the whole source.
    """
    models = [spec.name for spec in protocol.models]
    names = list(dict.fromkeys(training_set.name for training_set in sets))
    per_class = {n: {m: measures.class_accuracy(confused[n, m]) for m in models} for n in names}
    return Scores(
        hmdc_hub_version=__version__,
        versions=versions({spec.source for spec in protocol.models}),
        device=device_name(device),
        name=subject.name,
        condense_hash=subject.condense_hash,
        family_hash=subject.family_hash,
        condense_seed=subject.seed,
        protocol_hash=protocol.protocol_hash(),
        protocol=protocol,
        fingerprint=fingerprint,
        parquet_sha256=subject.sha256,
        condensed_by=list(subject.condensed_by),
        test_count=len(source.test_labels),
        class_names=source.info.class_names,
        budgets={made.name: made.budget for made in sets},
        cells=cells,
        per_class=per_class,
        **measures.summarise(cells, names, models, subject.condensed_by)._asdict(),
    )
