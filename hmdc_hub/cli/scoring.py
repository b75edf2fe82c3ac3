"""Scoring by another protocol than the recipe's, or sets of other programs: into a directory of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmdc_hub.catalog import load_recipe, protocol_name, protocol_overrides
from hmdc_hub.errors import UsageError
from hmdc_hub.events import Listener, Note, Stage, StopFlag
from hmdc_hub.schema import EvaluateSpec, Scores
from hmdc_hub.store import RunDir

if TYPE_CHECKING:
    import torch

    from hmdc_hub.evaluate import Share, Subject
    from hmdc_hub.sources import Source


@dataclass(frozen=True)
class Protocol:
    """What the command line says about the protocol.

    Attributes:
        file: `--protocol`: a name or path.
        models: `--models`, `against` and `seeds` likewise; None: as the protocol says.
        holdout: `--tune-split`.
        overrides: `-o`, of keys below `evaluate`.
    """

    file: str | None = None
    models: str | None = None
    against: str | None = None
    seeds: int | None = None
    holdout: float | None = None
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A word for it in the name of a directory."""
        return "custom" if self.file is None else protocol_name(self.file)

    def as_overrides(self) -> list[str]:
        """Write it as overrides of a recipe, those of `-o` last.

        Raises:
            NotFoundError: There is no such protocol.
            UsageError: It is none, or an override is about something else than `evaluate`.
        """
        others = [text for text in self.overrides if not text.strip().startswith("evaluate.")]
        if others:
            raise UsageError(
                f"-o {others[0]}: evaluating changes keys of the protocol alone, such as evaluate.epochs=200.",
                hint="`hmdc-hub condense` takes the others.",
            )
        given = [] if self.file is None else protocol_overrides(self.file)
        for key, names in (("models", self.models), ("against", self.against)):
            if names is not None:
                given.append(f"evaluate.{key}=[{', '.join(part.strip() for part in names.split(',') if part.strip())}]")
        for key, number in (("seeds", self.seeds), ("holdout", self.holdout)):
            if number is not None:
                given.append(f"evaluate.{key}={number}")
        return [*given, *self.overrides]


def protocol_of(recipe: str | Path, wishes: Protocol) -> tuple[EvaluateSpec, EvaluateSpec]:
    """Give the protocol of a recipe, and what it is as the command line wants it; both with settled models.

    Raises:
        NotFoundError: There is no such recipe or protocol.
        UsageError: Something in them is wrong.
    """
    from hmdc_hub.models import settle

    own = load_recipe(recipe).evaluate
    wanted = load_recipe(recipe, wishes.as_overrides()).evaluate
    own, wanted = (
        spec.model_copy(update={"models": [settle(model) for model in spec.models]}) for spec in (own, wanted)
    )
    return own, wanted


def directory(base: Path, protocol: EvaluateSpec, label: str) -> RunDir:
    """Name the directory of an evaluation: `<base>/evaluations/<label>-<hash8>`."""
    return RunDir(base / "evaluations" / f"{label}-{protocol.protocol_hash()[:8]}")


def possible(protocol: EvaluateSpec, subject: Subject, *, asked: bool, listener: Listener) -> EvaluateSpec:
    """Leave out the baselines that a set of another program does not have, unless they were asked for by name.

    Args:
        protocol: Of a recipe of ours.
        subject: The set.
        asked: Whether the command line names the baselines.
        listener: Told what was left out.
    """
    lacking = {"exact": subject.exact is None, "start": subject.start is None, "random-encoded": subject.factor == 1}
    out = [name for name in protocol.against if lacking.get(name)]
    if asked or not out:
        return protocol
    listener(Note(f"{subject.name} has no {', '.join(out)}: left out"))
    left = [name for name in protocol.against if name not in out]
    return EvaluateSpec.model_validate(protocol.model_dump() | {"against": left})


def score(
    subject: Subject,
    protocol: EvaluateSpec,
    source: Source,
    where: RunDir,
    *,
    device: torch.device,
    workers: int | None,
    listener: Listener,
    stop: StopFlag,
    reuse: bool = True,
    share: Share | None = None,
    preview: bytes | None = None,
) -> Scores:
    """Score a set, and write the report of it.

    Args:
        subject: The set.
        protocol: Settled.
        source: Loaded.
        where: Directory for scores and report.
        device: Where trainings run.
        workers: CPU processes.
        listener: Told about everything.
        stop: Looked at between trainings.
        reuse: Take trainings on real images from earlier evaluations.
        share: Which part of the trainings is this process's; the others assist.
        preview: Picture of the set for the report, PNG.
    """
    from hmdc_hub.evaluate import evaluate
    from hmdc_hub.report.scored import write_report
    from hmdc_hub.store.confusion import read_confusion

    names = ", ".join(model.name for model in protocol.models)
    listener(Stage("evaluate", f"{names}, {protocol.length} each, protocol {protocol.protocol_hash()[:8]}"))
    scores = evaluate(
        subject,
        protocol,
        source,
        where,
        device=device,
        workers=workers,
        listener=listener,
        stop=stop,
        reuse=reuse,
        share=share,
    )
    write_report(where.report, scores, read_confusion(where.confusion), preview)
    return scores


def forget(where: RunDir) -> None:
    """Remove finished trainings and scores of an evaluation; whoever calls holds the directory's lock."""
    from hmdc_hub.evaluate.ledger import ledgers

    for path in (*ledgers(where.path), where.scores, where.confusion):
        path.unlink(missing_ok=True)


def scores_text(scores: Scores, where: RunDir) -> str:
    """Write what an evaluation came to."""
    from hmdc_hub.report.tables import table_text

    return "\n".join(
        [
            f"set        {scores.name}",
            textwrap.fill(f"protocol   {protocol_text(scores.protocol)}", 80, subsequent_indent=" " * 11),
            f"scores     {where.scores}",
            f"report     {where.report / 'report.html'}",
            "",
            table_text(scores),
        ]
    )


def protocol_text(protocol: EvaluateSpec) -> str:
    """Write a protocol on one line, its hash first."""
    augmented = [name for name, value in protocol.augment.model_dump().items() if value]
    return ", ".join(
        [
            protocol.protocol_hash()[:8],
            f"{protocol.length} of batch {protocol.batch}",
            f"{protocol.optimizer}, {protocol.schedule} rate",
            f"CutMix {'on' if protocol.cutmix.evaluate else 'off'}",
            f"augmented by {' '.join(augmented)}" if augmented else "not augmented",
            *([] if protocol.holdout is None else [f"scored on {protocol.holdout:.0%} of the train split"]),
        ]
    )


def scores_document(scores: Scores, where: RunDir) -> dict[str, Any]:
    """Write the same as plain data for `--json`."""
    plain = scores.model_dump(mode="json")
    return {"directory": str(where.path), **{key: plain[key] for key in _SHOWN}}


_SHOWN: Sequence[str] = (
    "name",
    "condense_hash",
    "protocol_hash",
    "protocol",
    "test_count",
    "budgets",
    "table",
    "gain",
    "gap",
    "ranking",
)
