"""What was scored, how, where, and how to do it again: the parts of a report that are no results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from hmdc_hub.report.page import Section, command, folded, html_table, paragraph, picture
from hmdc_hub.report.tables import CONDENSED, TOOK_PART, training_sets
from hmdc_hub.report.text import amount, one_line
from hmdc_hub.schema import Scores, Strict

WHAT = {
    CONDENSED: "what is scored, in 8 bits",
    "exact": "the same before it was rounded to 8 bits",
    "random": "real images, drawn at random",
    "random-encoded": "random real images, stored the way the condensed ones are",
    "start": "what is scored, before the first image step",
    "k-means": "real images in the middle of clusters of their class",
    "herding": "real images whose mean is that of their class, as a network sees them",
    "full": "every training image of the source",
}

UNKNOWN = "unknown: a set of another program"


def subject(scores: Scores, preview: bytes | None) -> Section:
    """Write what was scored, and what every training set costs.

    Args:
        scores: What was found.
        preview: Picture of the condensed set, PNG or SVG.
    """
    facts = [
        ["condensed by", ", ".join(scores.condensed_by) or UNKNOWN],
        ["condensing seed", UNKNOWN if scores.condense_seed is None else str(scores.condense_seed)],
        ["source", f"fingerprint {scores.fingerprint[:8]}, {len(scores.class_names)} classes"],
        ["scored on", f"{scores.test_count} {scored_on(scores)}"],
    ]
    budgets = [
        [name, WHAT.get(name, ""), str(budget.stored), str(budget.images), amount(budget.bytes)]
        for name in training_sets(scores)
        if (budget := scores.budgets.get(name)) is not None
    ]
    parts = [
        html_table(["set", scores.name], facts, words=[1]),
        html_table(
            ["training set", "what it is", "stored images", "training images", "bytes"],
            budgets,
            strong=CONDENSED,
            words=[1],
            caption="What is stored and what is trained on; one stored image may hold several training images. Bytes "
            "are those of uncompressed pixels.",
        ),
    ]
    if preview is not None:
        shown = picture(preview, "Images of the condensed set, one row for each class.")
        parts.append(folded("What it looks like", shown))
    return Section("What was scored", "\n".join(parts))


def protocol(scores: Scores) -> Section:
    """Write every key of the protocol with its meaning, and every model as it was trained."""
    models = []
    for model in (model.without_paths() for model in scores.protocol.models):
        models.append(
            [
                f"{model.name} {TOOK_PART}" if model.name in scores.condensed_by else model.name,
                f"{model.source} {model.id}",
                ", ".join(f"{key} {_plain(value)}" for key, value in model.args.items()),
                model.weights + (f" @ {model.revision}" if model.revision else ""),
                model.train,
                f"{model.input_size or 'source'}",
                model.batch_norm,
                f"{model.lr.evaluate:g}",
                "yes" if model.cutmix and scores.protocol.cutmix.evaluate else "no",
            ]
        )
    header = ["model", "built by", "args", "weights", "trained", "input size", "batch norm", "learning rate", "CutMix"]
    parts = [
        html_table(["key", "value", "what it is"], list(_settings(scores.protocol)), words=[1, 2]),
        html_table(header, models, words=[1, 2, 3, 4, 5, 6, 8], caption=f"{TOOK_PART} took part in condensing."),
    ]
    return Section("Protocol", "\n".join(parts))


def _settings(spec: Strict, prefix: str = "") -> Iterator[list[str]]:
    """List all keys with their values and meanings, those of sections as `section.key`."""
    for key, field in type(spec).model_fields.items():
        value = getattr(spec, key)
        if isinstance(value, Strict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            shown = [getattr(part, "name", part) for part in value] if isinstance(value, list) else value
            yield [prefix + key, _plain(shown), field.description or ""]


def versions(scores: Scores) -> Section:
    """Write what trained, on what, and the hashes of what it trained on."""
    facts = [
        ["device", scores.device],
        ["hmdc-hub", scores.hmdc_hub_version],
        *([name, version] for name, version in sorted(scores.versions.items())),
        ["protocol hash", scores.protocol_hash],
        ["condense hash", scores.condense_hash or UNKNOWN],
        ["SHA-256 of the images", scores.parquet_sha256],
        ["fingerprint of the source", scores.fingerprint],
    ]
    return Section("Versions and device", html_table(["what", "which"], facts, words=[1]))


def again(scores: Scores) -> Section:
    """Write the command that makes the same scores."""
    ours = scores.condense_hash is not None
    target = shlex.quote(one_line(scores.name)) if ours else "TARGET --recipe RECIPE"
    what = (
        f"{scores.name} stands for the run, its package, or the set on the Hub"
        if ours
        else "TARGET is the file, folder or dataset that was scored, RECIPE a recipe with the source it was scored on"
    )
    words = [
        f"{what}; scores.json is the file this report was made of, which lies beside the report's folder and holds the "
        "whole protocol. With --fresh trainings that are there already are done again."
    ]
    local = [model.name for model in scores.protocol.models if model.local_names()]
    if local:
        words.append(f"The weights or code of {', '.join(local)} lay on the machine that scored.")
    line = command(f"hmdc-hub evaluate {target} --protocol scores.json")
    return Section("Do it again", f"{line}\n{paragraph(' '.join(words))}")


def scored_on(scores: Scores) -> str:
    """Name the images that were scored on."""
    return "test images" if scores.protocol.holdout is None else "images held out of the train split"


def _plain(value: Any) -> str:
    """Write a value as a recipe has it."""
    if isinstance(value, list):
        return f"[{', '.join(_plain(part) for part in value)}]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
