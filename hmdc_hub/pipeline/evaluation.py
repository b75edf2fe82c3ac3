"""Scoring a run by its own protocol or another one, and sets of other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hmdc_hub.catalog import protocol_name, protocol_overrides, read_recipe_file
from hmdc_hub.errors import UsageError
from hmdc_hub.evaluator import EvaluatedSet, evaluated_set, of_run
from hmdc_hub.events import Note, Stage
from hmdc_hub.models import build_for, settle
from hmdc_hub.pipeline.job import Job, disk_errors, score, told_of
from hmdc_hub.pipeline.recipe import changed, load_recipe
from hmdc_hub.pipeline.target import Agreement, agreement, find_or_adopt
from hmdc_hub.processes import Work
from hmdc_hub.schema import EvaluateSpec, Recipe, sha256_of
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store.files import read_scores
from hmdc_hub.store.rundir import RunDir


class Found(NamedTuple):
    """Where the scores are; whether they are a run's own; how they compare with those that came with it."""

    where: RunDir
    of_run: bool = False
    published: Agreement | None = None
    parts: tuple[RunDir, ...] = ()  # where the scores of several sizes are, if those are not the run's own


@dataclass(frozen=True)
class EvaluateRequest:
    """What is scored, and how its protocol differs from its recipe's: the arguments of `hmdc_hub.evaluate`."""

    target: Any = None
    like: str | os.PathLike[str] | Recipe | None = None
    protocol: str | Path | Mapping[str, Any] | None = None
    models: Any = None  # one or several, or their names with commas between; `baselines` likewise
    baselines: str | Sequence[str] | None = None
    seeds: int | None = None
    config: str | None = None
    revision: str | None = None
    run_dir: str | os.PathLike[str] | None = None
    root: str | os.PathLike[str] = "runs"
    normalised: bool = False
    holdout: float | None = None
    overrides: Sequence[str] = ()

    def changes(self) -> tuple[list[str], dict[str, Any]]:
        """Write how the protocol differs from the recipe's, as overrides and as sections of a recipe.

        NotFoundError if there is no such protocol; UsageError if it is none, or an override is about something else.
        """
        others = [text for text in self.overrides if not text.strip().startswith("evaluate.")]
        if others:
            raise UsageError(
                f"-o {others[0]}: evaluating changes keys of the protocol alone, such as evaluate.epochs=200.",
                hint="`hmdc-hub condense` takes the others.",
            )
        section = dict(self.protocol) if isinstance(self.protocol, Mapping) else {}
        given = protocol_overrides(str(self.protocol)) if isinstance(self.protocol, str | os.PathLike) else []
        for key in ("models", "baselines", "seeds", "holdout"):
            value = getattr(self, key)
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

    def score(self, work: Work) -> Found:
        """Score a run, a published set or a set of another program."""
        value = os.fspath(self.target) if isinstance(self.target, os.PathLike) else self.target
        if self.like is not None:
            return Found(self._score_set(value, self.like, work))
        if self.normalised:
            raise UsageError(
                "--normalised is about sets of other programs.", hint="Name a recipe with --recipe (like=)."
            )
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
        self.changes()  # a mistake in it is found before anything is downloaded
        own = Path(self.run_dir) if self.run_dir else None
        run, published = find_or_adopt(value, Path(self.root), self.config, self.revision, own)
        parts = self._score_run(run, work)
        if parts != run.sizes or not all(part.scores.is_file() for part in parts):
            return Found(parts[0]) if parts[:1] == parts else Found(run, parts=tuple(parts))
        return Found(run, True, None if published is None else agreement(published, read_scores(run.scores)))

    def _score_run(self, run: RunDir, work: Work) -> list[RunDir]:
        """Score all sizes of a run; by its own protocol into it, by another one into directories below `evaluations`.

        Gives where the scores of each size are.
        """
        recipe = read_recipe_file(run.recipe)
        wanted = own = _settled(recipe.evaluate)
        changes = self.changes()
        if any(changes):
            wanted = _settled(changed(recipe, str(run.recipe), *changes).evaluate)
        same = own.protocol_hash() == wanted.protocol_hash()
        if same and not work.assists:
            Job(recipe, run, work).prepared().do()
            return run.sizes
        recipe = recipe.model_copy(update={"evaluate": wanted})
        work.callback(Stage("source", recipe.source.id))
        source = load_source(recipe.source, callback=work.callback)
        # One of several processes cannot have the lock; what it writes is then the same bytes as the others write.
        job = Job(recipe, run, work)
        with nullcontext() if work.assists else run.lock():
            job.complete(source)
        places = {size: size if same else self._directory(size.path, wanted) for size in run.sizes}
        for of_size, size in sorted(job.sets, key=lambda pair: -pair[0].condense.size):  # as `Job` does
            told = replace(work, callback=told_of(size, work.callback))
            _score(of_run(of_size, size), wanted, source, places[size], told, size)
        return list(places.values())

    def _score_set(self, value: Any, like: str | os.PathLike[str] | Recipe, work: Work) -> RunDir:
        """Score a set of another program on a recipe's source, by its protocol."""
        root = Path(self.root)
        if isinstance(value, str) and any(os.path.isfile(path / "info.json") for path in (Path(value), root / value)):
            raise UsageError(
                f"--recipe is for a set of another program; {value} is a run, which is scored on its own source.",
                hint=f"By that recipe's protocol: --protocol {like}",
            )
        overrides, sections = self.changes()
        if isinstance(like, Recipe):
            recipe = changed(like, like.name, overrides, sections)
        else:
            recipe = load_recipe(like, *overrides, **sections)
        spec, wanted = recipe.source, _settled(recipe.evaluate)
        work.callback(Stage("source", spec.id))
        source = load_source(resolve_source(spec), callback=work.callback)
        subject = evaluated_set(
            value, source, config=self.config, revision=self.revision, normalised=self.normalised,
            fit=spec.fit, background=spec.background,
        )  # fmt: skip
        for note in subject.notes:
            work.callback(Note(note))
        out = [name for name in wanted.baselines if subject.lacks(name)]
        if out and self.baselines is None:  # asked for by name, they are refused
            work.callback(Note(f"{subject.name} has no {', '.join(out)}: left out"))
            left = [name for name in wanted.baselines if name not in out]
            wanted = EvaluateSpec.model_validate(wanted.model_dump() | {"baselines": left})
        # Two files of one name, or one file on two sources, are two sets.
        digest = sha256_of([subject.sha256, source.info.fingerprint])[:8]
        base = Path(self.run_dir) if self.run_dir else root / f"{subject.name}-{digest}"
        return _score(subject, wanted, source, self._directory(base, wanted), work, None)

    def _directory(self, base: Path, protocol: EvaluateSpec) -> RunDir:
        named = isinstance(self.protocol, str | os.PathLike)
        label = protocol_name(str(self.protocol)) if named else "custom"
        return RunDir(base / "evaluations" / f"{label}-{protocol.protocol_hash()[:8]}")


def _score(
    subject: EvaluatedSet, protocol: EvaluateSpec, source: Source, where: RunDir, work: Work, shown: RunDir | None
) -> RunDir:
    for spec in protocol.settled().models:
        build_for(spec, source)  # one that cannot be built is found before anything is written
    with disk_errors(where.path), nullcontext() if work.assists else where.lock():
        score(subject, protocol, source, where, work, shown)
    return where


def _settled(protocol: EvaluateSpec) -> EvaluateSpec:
    return protocol.model_copy(update={"models": [settle(model) for model in protocol.models]})
