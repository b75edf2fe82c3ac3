"""Scoring a run by its own protocol or another one, and sets of other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hmdc_hub.catalog import protocol_name, protocol_overrides, read_recipe_file
from hmdc_hub.errors import UsageError
from hmdc_hub.evaluator import EvaluatedSet, assist, evaluated_set, of_run, parse_shard, shard_of_torchrun
from hmdc_hub.events import Callback, Note, Stage, StopFlag
from hmdc_hub.models import build_for, settle
from hmdc_hub.pipeline.adopt import Agreement, agreement, find_or_adopt
from hmdc_hub.pipeline.device import pick
from hmdc_hub.pipeline.job import RunOptions, complete, disk_errors, forget, prepared, run_recipe, score
from hmdc_hub.pipeline.recipe import changed, load_recipe
from hmdc_hub.schema import EvaluateSpec, Recipe, sha256_of
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store.files import read_scores
from hmdc_hub.store.rundir import RunDir

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ProtocolChanges:
    """How the protocol differs from that of the recipe; None: as the recipe says.

    Attributes:
        protocol: Name or path of a protocol, or keys of a recipe's `evaluate` section.
        models: Architectures, one or several, or their names with commas between; `baselines` likewise.
        seeds: Trainings of each architecture.
        holdout: Share of the train split to score on, in place of the test split.
        overrides: Of keys below `evaluate`, in the form of the command line.
    """

    protocol: str | Path | Mapping[str, Any] | None = None
    models: Any = None
    baselines: str | Sequence[str] | None = None
    seeds: int | None = None
    holdout: float | None = None
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A word for it in the name of a directory."""
        named = isinstance(self.protocol, str | os.PathLike)
        return protocol_name(str(self.protocol)) if named else "custom"

    def keys(self) -> tuple[list[str], dict[str, Any]]:
        """Write it as overrides and as sections of a recipe.

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
        section = dict(self.protocol) if isinstance(self.protocol, Mapping) else {}
        given = protocol_overrides(str(self.protocol)) if isinstance(self.protocol, str | os.PathLike) else []
        for key, value in (
            ("models", self.models),
            ("baselines", self.baselines),
            ("seeds", self.seeds),
            ("holdout", self.holdout),
        ):
            if value is None:
                continue
            if not isinstance(value, int | float):
                # A torch.nn.Sequential can be iterated over, and is one model.
                names = value.split(",") if isinstance(value, str) else [value] if callable(value) else value
                value = [one.strip() if isinstance(one, str) else one for one in names]
                value = [one for one in value if one != ""]
            # What is an object of this process cannot be written as text; and sections go before overrides.
            if key in section or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
                section[key] = value
            else:
                given.append(f"evaluate.{key}=" + (f"[{', '.join(value)}]" if isinstance(value, list) else str(value)))
        return [*given, *self.overrides], {"evaluate": section} if section else {}


@dataclass(frozen=True)
class Target:
    """What is scored; the fields are arguments of `hmdc_hub.evaluate`, `value` its `target`."""

    value: Any
    like: str | os.PathLike[str] | Recipe | None
    config: str | None
    revision: str | None
    root: str | os.PathLike[str]
    run_dir: str | os.PathLike[str] | None
    normalised: bool


class Found(NamedTuple):
    """Where the scores are; whether they are a run's own; how they compare with those that came with it."""

    where: RunDir
    of_run: bool = False
    published: Agreement | None = None


def work_options(device: str | torch.device, workers: int | None, share: str | None, *, resume: bool) -> RunOptions:
    """Put together how to work, and which part of the trainings is this process's: `--share` or torchrun names it.

    Raises:
        UsageError: There is no such device or share, or these do not go together.
    """
    started = shard_of_torchrun()
    if share is not None and started is not None:
        raise UsageError("--share and torchrun are two ways to the same.", hint="Leave --share out.")
    shard = parse_shard(share) if share is not None else started
    if shard is not None and not resume:
        raise UsageError(
            "--fresh removes what other processes may be working on.",
            hint="Call once with --fresh and without sharing, or remove the evaluation's directory first.",
        )
    return RunOptions(pick(device, 0 if shard is None else shard.local), workers=workers, reuse=resume, shard=shard)


def evaluate_target(
    target: Target, changes: ProtocolChanges, options: RunOptions, callback: Callback, stop: StopFlag
) -> Found:
    """Score a run, a published set or a set of another program."""
    value = os.fspath(target.value) if isinstance(target.value, os.PathLike) else target.value
    if target.like is not None:
        return Found(_evaluate_set(value, target.like, target, changes, options, callback, stop))
    if target.normalised:
        raise UsageError("--normalised is about sets of other programs.", hint="Name a recipe with --recipe (like=).")
    if isinstance(value, Recipe):
        raise UsageError(
            f"the recipe {value.name} has no images to score; a run of it has.",
            hint="evaluate(condense(recipe)); to score other images on its source: evaluate(images, like=recipe)",
        )
    if not isinstance(value, str):
        raise UsageError(
            f"a {type(value).__name__} alone cannot be scored: a recipe names its source, models and protocol.",
            hint="For example: evaluate(..., like='cifar10_ipc10')",
        )
    changes.keys()  # a mistake in it is found before anything is downloaded
    own = Path(target.run_dir) if target.run_dir else None
    run, published = find_or_adopt(value, Path(target.root), target.config, target.revision, own)
    where = _evaluate_run(run, changes, options, callback, stop)
    if where != run or not run.scores.is_file():
        return Found(where)
    return Found(run, True, None if published is None else agreement(published, read_scores(run.scores)))


def _evaluate_run(
    run: RunDir, changes: ProtocolChanges, options: RunOptions, callback: Callback, stop: StopFlag
) -> RunDir:
    """Score a run; by its own protocol into it, by another one into a directory below `evaluations`."""
    recipe, assists = read_recipe_file(run.recipe), _assists(options)
    wanted = own = _settled(recipe.evaluate)
    if changes != ProtocolChanges():
        wanted = _settled(changed(recipe, str(run.recipe), *changes.keys()).evaluate)
    same = own.protocol_hash() == wanted.protocol_hash()
    if same and not assists:
        run_recipe(prepared(recipe, run), run, options, callback=callback, stop=stop)
        return run
    recipe = recipe.model_copy(update={"evaluate": wanted})
    callback(Stage("source", recipe.source.id))
    source = load_source(recipe.source, callback=callback)
    # One of several processes cannot have the lock; what it writes is then the same bytes as the others write.
    with nullcontext() if assists else run.lock():
        complete(recipe, source, run, options.device, callback)
    where = run if same else _directory(run.path, wanted, changes.label)
    preview = run.preview.read_bytes() if run.preview.is_file() else None
    return _score(of_run(recipe, run), wanted, source, where, options, callback, stop, preview)


def _evaluate_set(
    value: Any,
    like: str | os.PathLike[str] | Recipe,
    target: Target,
    changes: ProtocolChanges,
    options: RunOptions,
    callback: Callback,
    stop: StopFlag,
) -> RunDir:
    """Score a set of another program on a recipe's source, by its protocol."""
    root = Path(target.root)
    if isinstance(value, str) and any((path / "info.json").is_file() for path in (Path(value), root / value)):
        raise UsageError(
            f"--recipe is for a set of another program; {value} is a run, which is scored on its own source.",
            hint=f"By that recipe's protocol: --protocol {like}",
        )
    overrides, sections = changes.keys()
    if isinstance(like, Recipe):
        recipe = changed(like, like.name, overrides, sections)
    else:
        recipe = load_recipe(like, *overrides, **sections)
    spec, wanted = recipe.source, _settled(recipe.evaluate)
    callback(Stage("source", spec.id))
    source = load_source(resolve_source(spec), callback=callback)
    subject = evaluated_set(
        value,
        source,
        config=target.config,
        revision=target.revision,
        normalised=target.normalised,
        fit=spec.fit,
        background=spec.background,
    )
    for note in subject.notes:
        callback(Note(note))
    protocol = _possible(wanted, subject, asked=changes.baselines is not None, callback=callback)
    # Two files of one name, or one file on two sources, are two sets.
    digest = sha256_of([subject.sha256, source.info.fingerprint])[:8]
    base = Path(target.run_dir) if target.run_dir else root / f"{subject.name}-{digest}"
    where = _directory(base, protocol, changes.label)
    return _score(subject, protocol, source, where, options, callback, stop)


def _score(
    subject: EvaluatedSet,
    protocol: EvaluateSpec,
    source: Source,
    where: RunDir,
    options: RunOptions,
    callback: Callback,
    stop: StopFlag,
    preview: bytes | None = None,
) -> RunDir:
    for spec in protocol.settled().models:
        build_for(spec, source)  # one that cannot be built is found before anything is written
    with disk_errors(where.path):
        if options.shard is not None and _assists(options):
            assist(
                subject,
                protocol,
                source,
                where,
                options.shard,
                device=options.device,
                workers=options.workers,
                callback=callback,
                stop=stop,
            )
            callback(Note(f"share {options.shard} of the trainings is done"))
            return where
        with where.lock():
            if not options.reuse:
                forget(where)
            score(subject, protocol, source, where, options, callback, stop, preview)
    return where


def _assists(options: RunOptions) -> bool:
    """Whether another process puts the scores together."""
    return options.shard is not None and not options.shard.waits


def _settled(protocol: EvaluateSpec) -> EvaluateSpec:
    return protocol.model_copy(update={"models": [settle(model) for model in protocol.models]})


def _directory(base: Path, protocol: EvaluateSpec, label: str) -> RunDir:
    return RunDir(base / "evaluations" / f"{label}-{protocol.protocol_hash()[:8]}")


def _possible(protocol: EvaluateSpec, subject: EvaluatedSet, *, asked: bool, callback: Callback) -> EvaluateSpec:
    """Leave out the baselines that a set of another program does not have, unless they were asked for by name."""
    out = [name for name in protocol.baselines if subject.lacks(name)]
    if asked or not out:
        return protocol
    callback(Note(f"{subject.name} has no {', '.join(out)}: left out"))
    left = [name for name in protocol.baselines if name not in out]
    return EvaluateSpec.model_validate(protocol.model_dump() | {"baselines": left})
