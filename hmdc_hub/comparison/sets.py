"""Which scored sets can be compared, and what to do about those that cannot."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.measures import CONDENSED
from hmdc_hub.schema import EvaluateSpec, Scores
from hmdc_hub.schema.model import plain_models

MAX_KEYS = 8
"""Differences between two protocols that a message lists."""
LABEL = 48
"""Characters of a label; names come from files of others."""
VALUE = 40
"""Characters of a value in a message."""


@dataclass(frozen=True)
class ScoredSet:
    """One scored set.

    Attributes:
        label: What reports call it.
        scores: Its scores, which may be a stranger's.
        target: What `hmdc-hub evaluate` would be given to score it again, for hints; empty: the label.
        file: Its scores.json, likewise.
    """

    label: str
    scores: Scores
    target: str = ""
    file: str = ""


def checked(sets: Sequence[ScoredSet]) -> list[ScoredSet]:
    """Give the sets labels of their own, if they can be compared.

    Raises:
        UsageError: There are fewer than two, or they were scored on other data or by another protocol than the first.
        FormatError: Trainings of a set are missing, or are none that its protocol has.
    """
    if len(sets) < 2:
        raise UsageError(
            f"Comparing takes two scored sets or more; there is {len(sets) or 'none'}.",
            hint="`hmdc-hub runs ls` lists runs and their scores.",
        )
    labels = distinct([plain(one.label) for one in sets])
    named = [replace(one, label=label) for one, label in zip(sets, labels, strict=True)]
    for one in named:
        _check_whole(one)
    first, *others = named
    problems = [found for other in others if (found := _difference(first, other)) is not None]
    if problems:
        raise UsageError(
            "\n".join(message for message, _ in problems), hint="\n".join(dict.fromkeys(hint for _, hint in problems))
        )
    return named


def plain(text: str) -> str:
    """Make a label: printable, on one line, short."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= LABEL else shown[: LABEL - 1].rstrip() + "…"


def distinct(names: Sequence[str]) -> list[str]:
    """Number names that stand more than once: `a`, `a (2)`; an empty one is `set`."""
    taken: list[str] = []
    for name in names:
        new, n = name or "set", 1
        while new in taken:
            n += 1
            new = f"{name or 'set'} ({n})"
        taken.append(new)
    return taken


def unlike(sets: Sequence[ScoredSet]) -> dict[str, tuple[str, ...]]:
    """Find out what may make trainings of one seed differ, apart from what they train on."""
    facts = {
        "device": [one.scores.device for one in sets],
        "torch": [one.scores.versions.get("torch", "unknown") for one in sets],
        "hmdc-hub": [one.scores.hmdc_hub_version for one in sets],
    }
    values = {name: tuple(dict.fromkeys(plain(value) for value in found)) for name, found in facts.items()}
    return {name: found for name, found in values.items() if len(found) > 1}


def _check_whole(one: ScoredSet) -> None:
    """Refuse scores whose trainings are not those of their protocol: every mean is computed from them again."""
    scores, protocol = one.scores, one.scores.protocol
    draws = {name: protocol.random_draws if name.startswith("random") else 1 for name in (CONDENSED, *protocol.against)}
    wanted = sum(draws.values()) * len(protocol.models) * protocol.seeds
    there = {(cell.training_set, cell.model, cell.draw, cell.seed) for cell in scores.cells}
    # Counted first: a protocol may claim any number of seeds, its file holds only so many trainings.
    if wanted != len(scores.cells) or there != {
        (name, model.name, draw, seed)
        for name, count in draws.items()
        for model in protocol.models
        for draw in range(count)
        for seed in range(protocol.seeds)
    }:
        why = f"its {len(scores.cells)} trainings are not the {wanted} of its protocol"
    elif lacking := [name for name in draws if name not in scores.budgets]:
        why = f"it does not say how many images {lacking[0]} has"
    elif wrong := [cell.accuracy for cell in scores.cells if not 0 <= cell.accuracy <= 1]:
        why = f"{wrong[0]} is no accuracy"
    else:
        return
    raise FormatError(
        f"The scores of {one.label} are damaged: {why}.",
        hint=f"`hmdc-hub evaluate {one.target or one.label}` scores it again.",
    )


def _difference(first: ScoredSet, other: ScoredSet) -> tuple[str, str] | None:
    """Say why a set cannot be compared with the first, and what to do; None: it can."""
    one, two = first.scores, other.scores
    if one.fingerprint != two.fingerprint:
        facts = [
            f"{len(scores.class_names)} classes, {scores.test_count} test images, {plain(scores.fingerprint)[:8]}"
            for scores in (one, two)
        ]
        return (
            f"{other.label} ({facts[1]}) was scored on other data than {first.label} ({facts[0]}).",
            "Only sets of one source can be compared; the last of these is the source's fingerprint.",
        )
    # Computed here: a hash that stands in a file is what its author says.
    if _rules(one.protocol) == _rules(two.protocol):
        return None
    found = differences(one.protocol, two.protocol)
    keys = [f"  {key}: {a} in {first.label}, {b} in {other.label}" for key, a, b in found[:MAX_KEYS]]
    rest = [f"  and {len(found) - MAX_KEYS} more"] if len(found) > MAX_KEYS else []
    command = f"hmdc-hub evaluate {other.target or other.label} --protocol {first.file or first.label}"
    return (
        "\n".join([f"{other.label} was scored by another protocol than {first.label}:", *keys, *rest]),
        f"`{command}` scores {other.label} by that of {first.label}; compare with the scores that it writes.",
    )


def _rules(protocol: EvaluateSpec) -> str:
    """Hash what a training depends on: with which baselines a set was compared is none of it."""
    return protocol.model_copy(update={"against": []}).protocol_hash()


def differences(one: EvaluateSpec, other: EvaluateSpec) -> list[tuple[str, str, str]]:
    """List where two protocols differ in what is hashed: dotted key, value of each as text.

    Of models that only one of them trains the names alone are listed.
    """
    shared = {model.name for model in one.models} & {model.name for model in other.models}
    left, right = (_settings(protocol, shared) for protocol in (one, other))
    keys = dict.fromkeys([*left, *right])
    return [(key, left.get(key, "-"), right.get(key, "-")) for key in keys if left.get(key) != right.get(key)]


def _settings(protocol: EvaluateSpec, shared: Container[str]) -> dict[str, str]:
    whole = protocol.settled().model_dump(mode="json", exclude={"against"})
    models = {model["name"]: model for model in plain_models(whole["models"])}
    found = _flat(whole | {"models": list(models)}, "evaluate")
    for name, model in models.items():
        if name in shared:
            found |= _flat(model, f"evaluate.models.{name}")
    return found


def _flat(value: dict[str, Any], path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, child in value.items():
        found |= _flat(child, f"{path}.{key}") if isinstance(child, dict) else {f"{path}.{key}": _shown(child)}
    return found


def _shown(value: Any) -> str:
    """Write a value without a character that a terminal would obey."""
    parts = [json.dumps(part).strip('"') for part in (value if isinstance(value, list) else [value])]
    text = f"[{', '.join(parts)}]" if isinstance(value, list) else parts[0]
    return text if len(text) <= VALUE else text[: VALUE - 1] + "…"
