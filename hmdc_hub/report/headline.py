"""The result of an evaluation in a few numbers and sentences: what terminal, card, report and push say first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import attrgetter

from hmdc_hub.catalog import protocol_overrides
from hmdc_hub.catalog.entries import PROTOCOLS, shipped
from hmdc_hub.metrics import MEAN, by_seed, estimate
from hmdc_hub.report.tables import (
    NONE,
    TO_BEAT,
    Outcome,
    outcome,
    points,
    scored_on,
    set_label,
    stands_out,
    training_sets,
)
from hmdc_hub.schema import CONDENSED, FULL, MIN_SEEDS, RANDOM_ENCODED, Estimate, EvaluateSpec, Scores
from hmdc_hub.text import count, one_line


@dataclass(frozen=True)
class Part:
    """The condensed set on some of the models: its accuracy, and that minus the strongest baseline's."""

    models: tuple[str, ...]
    accuracy: Estimate
    gain: Estimate | None  # None without a baseline


@dataclass(frozen=True)
class Headline:
    """One evaluation in numbers, shares in [0, 1], all over the same models; and the sentences that people read."""

    column: str  # of the tables: `mean` over models, or the only model
    models: int
    protocol: str  # in words: `protocol quick, 200 epochs`
    condensed: Estimate
    baselines: dict[str, float]  # means of the other training sets, `full` not among them, in the order of tables
    gains: dict[str, Estimate]  # over those of `TO_BEAT` that there are, paired by seed
    chance: float  # one in as many as there are classes
    full: Estimate | None
    recovered: float | None  # condensed / full: the share of the full set's accuracy, means over the same models
    strongest: str | None  # baseline of the same storage with the best mean
    seen: Part | None  # on the models that took part in condensing; None if none of them was scored
    unseen: Part | None  # on the others
    sentence: str  # the result; plain text, like all here
    verdict: str  # which baselines it beats, and which not
    seen_line: str  # seen against unseen models
    beats_all: bool  # whether it is better than every baseline of `TO_BEAT` that there is: only then is it bold


def headline(scores: Scores) -> Headline:
    """Say in a few numbers and sentences what scores say, no more than intervals allow."""
    models = [model.name for model in scores.protocol.models]
    column = MEAN if len(models) > 1 else models[0]
    table = {name: scores.table[name][column] for name in training_sets(scores)}
    condensed, full = table[CONDENSED], table.get(FULL)
    gains = {name: scores.gain[name][column] for name in TO_BEAT if name in scores.gain}
    # Of the same storage as the condensed set; `exact` is that set itself.
    rivals = {name: found.mean for name, found in table.items() if name not in (CONDENSED, "exact", FULL)}
    strongest = max(rivals, key=lambda name: rivals[name], default=None)
    inside = [name for name in models if name in scores.condensed_by]
    seen, unseen = (_part(scores, of, strongest) for of in (inside, [name for name in models if name not in inside]))
    recovered = condensed.mean / full.mean if full is not None and full.mean else None
    protocol, chance = protocol_in_words(scores.protocol), 1 / len(scores.class_names)
    verdict, seen_line = _verdict(gains, condensed.n), _seen_line(seen, unseen, strongest)
    return Headline(
        column=column,
        models=len(models),
        protocol=protocol,
        condensed=condensed,
        baselines={name: found.mean for name, found in table.items() if name not in (CONDENSED, FULL)},
        gains=gains,
        chance=chance,
        full=full,
        recovered=recovered,
        strongest=strongest,
        seen=seen,
        unseen=unseen,
        sentence=_sentence(scores, condensed, gains, recovered),
        verdict=verdict,
        seen_line=seen_line,
        beats_all=stands_out(scores),
    )


def protocol_in_words(protocol: EvaluateSpec) -> str:
    """Name a protocol with its length: `protocol quick, 200 epochs`; one of a recipe's own has its length alone."""
    for name in shipped(PROTOCOLS):
        keys = (text.removeprefix("evaluate.").split("=", 1) for text in protocol_overrides(name))
        if all(attrgetter(key)(protocol) == json.loads(value) for key, value in keys):
            return f"protocol {name}, {protocol.length}"
    return f"the recipe's protocol, {protocol.length}"


def _part(scores: Scores, models: list[str], strongest: str | None) -> Part | None:
    own, gain = by_seed(scores.cells, CONDENSED, models) if models else [], None
    if not own:
        return None
    if strongest is not None:
        other = by_seed(scores.cells, strongest, models)
        gain = estimate([a - b for a, b in zip(own, other, strict=True)])
    return Part(tuple(models), estimate(own), gain)


def _sentence(scores: Scores, condensed: Estimate, gains: dict[str, Estimate], recovered: float | None) -> str:
    models = [model.name for model in scores.protocol.models]
    who = models[0] if len(models) == 1 else f"{len(models)} models"
    if condensed.low is None or condensed.high is None:
        few = "1 seed" if condensed.n == 1 else f"{condensed.n} seeds"
        spread = f"{few}: too few for an interval"
    else:
        spread = f"95 % interval {100 * condensed.low:.1f} to {100 * condensed.high:.1f}, n = {condensed.n}"
    beside = [f"{_apart(gain)} {TO_BEAT[name]}" for name, gain in gains.items() if name != RANDOM_ENCODED]
    if recovered is not None:
        beside.append(f"{100 * recovered:.0f} % of what the full set gives")
    return (
        f"Trained on {count(scores.budgets[CONDENSED].stored, 'condensed image')}, {one_line(who)} "
        f"{'reaches' if len(models) == 1 else 'reach'} {100 * condensed.mean:.1f} % accuracy "
        f"on the {scored_on(scores)} images"
        f"{' on average' if len(models) > 1 else ''} ({spread})" + (f": {', '.join(beside)}." if beside else ".")
    )


def _apart(gain: Estimate) -> str:
    amount = points(abs(gain.mean))[1:]
    return "as much as" if amount == "0.0" else f"{amount} points {'above' if gain.mean > 0 else 'below'}"


def _verdict(gains: dict[str, Estimate], n: int) -> str:
    """Say plainly which of the baselines the set beats."""
    if not gains:
        return "Whether condensing was worth it is not known: no baseline was trained beside the condensed set."
    found: dict[Outcome, list[str]] = {}
    for name, gain in gains.items():
        shown = outcome(gain)
        apart = f" ({points(gain.mean)})" if shown in ("worse", "not shown") else ""
        found.setdefault(shown, []).append(TO_BEAT[name] + apart)
    said = []
    if "worse" in found:
        said.append(f"The condensed set is worse than {_or(found['worse'])}.")
    if "not shown" in found:
        said.append(f"The condensed set is not shown to beat {_or(found['not shown'])}.")
    if "better" in found:
        said.append(f"{'It' if said else 'The condensed set'} beats {_or(found['better'], 'and')}.")
    if "unknown" in found:
        few = f"{count(n, 'seed')} are too few" if n > 1 else "one seed is too few"
        said.append(f"Whether it beats {_or(found['unknown'])}, {few} to say: {MIN_SEEDS} are needed.")
    return " ".join(said)


def _or(names: list[str], word: str = "or") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _seen_line(seen: Part | None, unseen: Part | None, strongest: str | None) -> str:
    """Say how the set does on the models that condensed and on the others, each beside the strongest baseline."""

    def said(part: Part) -> str:
        return f"{100 * part.accuracy.mean:.1f}" + (f" ({points(part.gain.mean)})" if part.gain is not None else "")

    over = f"; in brackets: over {set_label(strongest)}, the strongest baseline" if strongest is not None else ""
    if unseen is None:
        return f"seen {said(seen) if seen else NONE}, unseen: none scored; every model took part in condensing{over}"
    return f"seen {said(seen) if seen else 'none scored'}, unseen {said(unseen)}{over}"
