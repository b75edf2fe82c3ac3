"""What `hmdc-hub evaluate` does: score a run by its own protocol, by another one, or a set of another program."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmdc_hub.cli import output
from hmdc_hub.cli.progress import progress
from hmdc_hub.cli.signals import stop_on_signals
from hmdc_hub.errors import UsageError
from hmdc_hub.events import Listener, Note, Stage, StopFlag
from hmdc_hub.schema import sha256_of

if TYPE_CHECKING:
    import torch

    from hmdc_hub.cli.result import Result
    from hmdc_hub.cli.scoring import Protocol
    from hmdc_hub.evaluate import Share, Subject
    from hmdc_hub.schema import EvaluateSpec, Scores
    from hmdc_hub.sources import Source
    from hmdc_hub.store import RunDir

    Prepare = Callable[[Listener, torch.device], tuple[Subject, EvaluateSpec, Source, RunDir]]


@dataclass(frozen=True)
class Work:
    """How to work and how to tell: options that have nothing to do with what is scored."""

    device: str
    workers: int | None
    resume: bool
    as_json: bool
    share: Share | None

    @property
    def assists(self) -> bool:
        """Whether another process puts the scores together."""
        return self.share is not None and not self.share.waits


def share_of(text: str | None, *, resume: bool) -> Share | None:
    """Give the share that `--share` or torchrun names; None: all of the work."""
    from hmdc_hub.evaluate.share import parse_share, share_of_torchrun

    started = share_of_torchrun()
    if text is not None and started is not None:
        raise UsageError("--share and torchrun are two ways to the same.", hint="Leave --share out.")
    found = parse_share(text) if text is not None else started
    if found is not None and not resume:
        raise UsageError(
            "--fresh removes what other processes may be working on.",
            hint="Call once with --fresh and without sharing, or remove the evaluation's directory first.",
        )
    return found


def score_run(run: RunDir, published: Scores | None, work: Work) -> None:
    """Score a run by its own protocol: scores and package of the run."""
    from hmdc_hub.cli.adopt import agreement_text, compare
    from hmdc_hub.cli.result import result_document, result_text
    from hmdc_hub.cli.scoring import Protocol

    if work.assists:
        score_otherwise(run, Protocol(), work)
        return
    result = _carry_out(run, work)
    agreement = compare(published, result.scores) if published is not None and result.scores is not None else None
    if work.as_json:
        document: dict[str, Any] = result_document(result)
        document["agreement"] = agreement and {
            "identical": agreement.identical,
            "trainings": agreement.trainings,
            "means": {name: {"published": a, "here": b} for name, a, b in agreement.rows},
        }
        output.document(document)
        return
    output.data(result_text(result))
    if agreement is not None:
        output.data("\n" + agreement_text(agreement))


def score_otherwise(run: RunDir, wishes: Protocol, work: Work) -> None:
    """Score a run by another protocol, in a directory of its own."""
    from hmdc_hub.catalog import read_recipe_file
    from hmdc_hub.cli.flow import complete
    from hmdc_hub.cli.scoring import directory, protocol_of
    from hmdc_hub.evaluate import of_run
    from hmdc_hub.sources import load_source

    own, wanted = protocol_of(run.recipe, wishes)
    same = own.protocol_hash() == wanted.protocol_hash()
    if same and not work.assists:
        score_run(run, None, work)
        return
    recipe = read_recipe_file(run.recipe).model_copy(update={"evaluate": wanted})

    def prepare(listener: Listener, device: torch.device) -> tuple[Subject, EvaluateSpec, Source, RunDir]:
        listener(Stage("source", recipe.source.id))
        source = load_source(recipe.source, listener=listener)
        # One of several processes cannot have the lock; what it writes is then the same bytes as the others write.
        with nullcontext() if work.assists else run.lock():
            complete(recipe, source, run, device, listener)
        where = run if same else directory(run.path, wanted, wishes.label)
        return of_run(recipe, run), wanted, source, where

    _score(prepare, work, run.preview)


def score_foreign(
    target: str,
    recipe: str,
    wishes: Protocol,
    root: Path,
    run_dir: Path | None,
    work: Work,
    config: str | None,
    revision: str | None,
    normalised: bool,
) -> None:
    """Score a set of another program on a recipe's source."""
    from hmdc_hub.catalog import load_recipe
    from hmdc_hub.cli.scoring import directory, possible, protocol_of
    from hmdc_hub.evaluate.foreign import read_set
    from hmdc_hub.sources import load_source, resolve_source

    if any((path / "info.json").is_file() for path in (Path(target), root / target)):
        raise UsageError(
            f"--recipe is for a set of another program; {target} is a run, which is scored on its own source.",
            hint=f"By that recipe's protocol: --protocol {recipe}",
        )
    _, wanted = protocol_of(recipe, wishes)
    spec = load_recipe(recipe).source

    def prepare(listener: Listener, device: torch.device) -> tuple[Subject, EvaluateSpec, Source, RunDir]:
        listener(Stage("source", spec.id))
        source = load_source(resolve_source(spec), listener=listener)
        subject = read_set(
            target,
            source,
            config=config,
            revision=revision,
            normalised=normalised,
            fit=spec.fit,
            background=spec.background,
        )
        for note in subject.notes:
            listener(Note(note))
        protocol = possible(wanted, subject, asked=wishes.against is not None, listener=listener)
        # Two files of one name, or one file on two sources, are two sets.
        digest = sha256_of([subject.sha256, source.info.fingerprint])[:8]
        base = run_dir or root / f"{subject.name}-{digest}"
        return subject, protocol, source, directory(base, protocol, wishes.label)

    _score(prepare, work, None)


def _score(prepare: Prepare, work: Work, picture: Path | None) -> None:
    """Score what `prepare` reads, with progress on stderr and signals watched."""
    from hmdc_hub.cli.device import pick
    from hmdc_hub.cli.failures import disk_errors
    from hmdc_hub.cli.scoring import forget, score, scores_document, scores_text
    from hmdc_hub.evaluate import assist
    from hmdc_hub.models import build_for

    device, show, stop = pick(work.device, work.share), progress(), StopFlag()
    try:
        with stop_on_signals(stop, show.urgent):
            subject, protocol, source, where = prepare(show, device)
            for spec in protocol.settled().models:
                build_for(spec, source)  # one that cannot be built is found before anything is written
            if work.share is not None and work.assists:
                with disk_errors(where.path):
                    assist(
                        subject,
                        protocol,
                        source,
                        where,
                        work.share,
                        device=device,
                        workers=work.workers,
                        listener=show,
                        stop=stop,
                    )
                show(Note(f"share {work.share} of the trainings is done"))
                if work.as_json:
                    output.document({"directory": str(where.path), "share": str(work.share)})
                return
            with disk_errors(where.path), where.lock():
                if not work.resume:
                    forget(where)
                scores = score(
                    subject,
                    protocol,
                    source,
                    where,
                    device=device,
                    workers=work.workers,
                    listener=show,
                    stop=stop,
                    reuse=work.resume,
                    share=work.share,
                    preview=picture.read_bytes() if picture is not None and picture.is_file() else None,
                )
    finally:
        show.close()
    if work.as_json:
        output.document(scores_document(scores, where))
    else:
        output.data(scores_text(scores, where))


def _carry_out(run: RunDir, work: Work) -> Result:
    from hmdc_hub.catalog import read_recipe_file
    from hmdc_hub.cli.device import pick
    from hmdc_hub.cli.flow import Wishes, carry_out

    recipe, wishes = (
        read_recipe_file(run.recipe),
        Wishes(pick(work.device, work.share), workers=work.workers, share=work.share, reuse=work.resume),
    )
    show, stop = progress(), StopFlag()
    try:
        with stop_on_signals(stop, show.urgent):
            return carry_out(recipe, run, wishes, listener=show, stop=stop)
    finally:
        show.close()
