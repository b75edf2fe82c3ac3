"""Scores as CSV, for spreadsheets and other programs: UTF-8, commas, one header line, lines that end in a newline."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from hmdc_hub.report.tables import training_sets
from hmdc_hub.schema import Estimate, Scores


def cells_csv(scores: Scores) -> str:
    """Write one line per training: the columns of a package's scores parquet, but for its configuration.

    Accuracy and calibration error are shares in [0, 1], written so that reading gives the same floats; truth values
    are `true` and `false`.
    """
    header = (
        "training_set",
        "stored_images",
        "training_images",
        "model",
        "condensed_by",
        "draw",
        "seed",
        "accuracy",
        "ece",
    )
    return _csv(
        header,
        (
            (
                cell.training_set,
                scores.budgets[cell.training_set].stored,
                scores.budgets[cell.training_set].images,
                cell.model,
                "true" if cell.model in scores.condensed_by else "false",
                cell.draw,
                cell.seed,
                cell.accuracy,
                cell.ece,
            )
            for cell in scores.cells
        ),
    )


def table_csv(scores: Scores) -> str:
    """Write one line per mean: accuracy and calibration error of every training set, gain over every baseline.

    Measures are `accuracy`, `ece` and `gain`; the gain of a training set is the condensed set's accuracy minus its
    own. Means, standard deviations and bounds of the 95 % interval are shares in [0, 1], their differences in [-1, 1];
    with n = 1 the last three are empty. The model `mean` is the mean over models.
    """
    found = []
    for measure, table in (("accuracy", scores.table), ("ece", scores.ece), ("gain", scores.gain)):
        for name in training_sets(scores):
            for model, estimate in table.get(name, {}).items():
                found.append((name, model, measure, *_numbers(estimate)))
    return _csv(("training_set", "model", "measure", "mean", "sd", "n", "low", "high"), found)


def _numbers(estimate: Estimate) -> tuple[float | int | None, ...]:
    return estimate.mean, estimate.sd, estimate.n, estimate.low, estimate.high


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
