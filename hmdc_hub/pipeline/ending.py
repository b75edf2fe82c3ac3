"""The end of a run in a few lines: what it scored beside what it must beat, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hmdc_hub.report.headline import Headline, Part, headline
from hmdc_hub.report.tables import percent, points, scored_on, set_label, short
from hmdc_hub.schema import Scores


def score_lines(scores: Scores, report: Path) -> list[str]:
    """Write the mean beside its baselines, the gains over them, unseen beside seen models, the report and its protocol.

    Where the set does not beat all that it must beat, that is a line of its own.
    """
    found = headline(scores)
    lines = [f"accuracy   {_accuracy(found, _on(scores))}"]
    if found.gains:
        lines.append(f"gain over  {', '.join(f'{_label(name)} {short(gain)}' for name, gain in found.gains.items())}")
    over = "" if found.strongest is None else f" over {_label(found.strongest)}"
    lines.append(f"unseen     {_part(found.unseen, over)}, seen {_part(found.seen, '' if found.unseen else over)}")
    if not found.beats_all:
        lines.append(f"verdict    {found.verdict}")
    return [*lines, f"report     {report} ({found.protocol})"]


def size_lines(sizes: Mapping[str, Scores], report: str) -> list[str]:
    """Write for each size its mean beside its baselines, then which of them do not beat all that they must."""
    lines, verdicts, protocol = list[str](), list[str](), ""
    for name, scores in sizes.items():
        found = headline(scores)
        lines.append(f"{name:<10} {_accuracy(found, _on(scores))}")
        if not found.beats_all:
            verdicts.append(f"verdict    {name}: {found.verdict}")
        protocol = found.protocol
    return [*lines, *verdicts, f"report     {report} ({protocol})"]


def _on(scores: Scores) -> str:
    """Say what was scored on, where that is not the test split."""
    return "" if scores.protocol.holdout is None else f" on {scores.test_count} {scored_on(scores)} images"


def _accuracy(found: Headline, on: str) -> str:
    full = "" if found.recovered is None else f", {100 * found.recovered:.0f} % of full"
    beside = {name: mean for name, mean in found.baselines.items() if name != "exact"}  # the set itself
    others = [f"{_label(name)} {100 * mean:.1f}" for name, mean in beside.items()]
    # Where chance is all that it stands beside, or it comes close.
    others += [f"chance {100 * found.chance:.1f}"] * (not others or found.condensed.mean < 2 * found.chance)
    return f"{percent(found.condensed)} %{on} (n = {found.condensed.n}){full}; {', '.join(others)}"


def _part(part: Part | None, over: str) -> str:
    if part is None:
        return "none scored"
    return f"{100 * part.accuracy.mean:.1f}" + ("" if part.gain is None else f" ({points(part.gain.mean)}{over})")


def _label(training_set: str) -> str:
    """Name a training set in a list: `random (same storage)`."""
    first, _, rest = set_label(training_set).partition(", ")
    return f"{first} ({rest})" if rest else first
