"""Tables, pictures and pages of scores, and scored sets side by side: pure functions of what the files say."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmdc_hub.report.compared import comparison_document, comparison_html, comparison_markdown, comparison_text
    from hmdc_hub.report.comparison import Comparison, ScoredSet, compare
    from hmdc_hub.report.plots import pictures, plot_scores
    from hmdc_hub.report.preview import preview_of
    from hmdc_hub.report.scored import report_html, write_report
    from hmdc_hub.report.tables import (
        FROM_PYTHON,
        MEAN,
        TRAINING_SETS,
        cells_frame,
        means_frame,
        set_label,
        table_markdown,
        table_text,
        training_sets,
    )  # fmt: skip
    from hmdc_hub.report.text import amount, escape_markdown, one_line

__all__ = [
    "FROM_PYTHON", "MEAN", "TRAINING_SETS", "Comparison", "ScoredSet", "amount", "cells_frame", "compare",
    "comparison_document", "comparison_html", "comparison_markdown", "comparison_text", "escape_markdown",
    "means_frame", "one_line", "pictures", "plot_scores", "preview_of", "report_html", "set_label", "table_markdown",
    "table_text", "training_sets", "write_report",
]  # fmt: skip

_MODULES = ("text", "tables", "comparison", "plots", "preview", "scored", "compared")


def __getattr__(name: str) -> Any:
    # Imported on first use, light ones first: who wants a table must not wait for torch and matplotlib.
    if name in __all__:
        for module in _MODULES:
            if hasattr(found := importlib.import_module(f"hmdc_hub.report.{module}"), name):
                return getattr(found, name)
    raise AttributeError(f"module 'hmdc_hub.report' has no attribute {name!r}")
