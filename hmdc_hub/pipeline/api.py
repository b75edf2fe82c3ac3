"""What Python users call: `condense`, `evaluate`, and the `Run` and the `Evaluation` that they give."""

from __future__ import annotations

import hashlib
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from hmdc_hub import schema
from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.events import Callback, StopFlag
from hmdc_hub.metrics import MEAN
from hmdc_hub.pipeline.ending import score_lines, size_lines
from hmdc_hub.pipeline.recipe import Recipe, load_recipe
from hmdc_hub.processes import Work, launched, parse_share, stop_on_signals
from hmdc_hub.report import soft_labels
from hmdc_hub.report.tables import table_text
from hmdc_hub.schema import CONDENSED, ArtifactInfo, EvaluateSpec, Scores
from hmdc_hub.store.files import read_info, read_scores
from hmdc_hub.store.rundir import RunDir, RunState
from hmdc_hub.text import close, duration

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from PIL.Image import Image

    from hmdc_hub.pipeline.job import Job, StageName
    from hmdc_hub.pipeline.progress import Shown
    from hmdc_hub.pipeline.target import Agreement
    from hmdc_hub.publish.push import Published
    from hmdc_hub.store.dataset import CondensedDataset

RUNS = Path("runs")  # folder of runs, in the current one


class Run:
    """A run directory: what was condensed, its scores, its package. Everything is read when it is asked for.

    Of a run of several sizes, `sizes` has a run for each, which has `info`, `condensed`, `scores` and `preview`; asked
    for those, the whole is a UsageError. State, package, push, summary and evaluation are of all sizes.

    Args:
        path: The directory.
        seconds: Wall time of the stages that ran just now.

    Raises:
        NotFoundError: There is no such directory.

    Example:
        >>> run = Run("runs/digits_ipc1")
        >>> run.state, len(run.condensed)
    """

    def __init__(self, path: str | os.PathLike[str], seconds: Mapping[StageName, float] | None = None) -> None:
        self.directory = RunDir(Path(path))
        self.seconds = dict(seconds or {})
        if not self.path.is_dir():
            raise NotFoundError(f"there is no run directory {path}", hint="`hmdc-hub runs ls` lists the runs.")

    @property
    def path(self) -> Path:
        """The directory."""
        return self.directory.path

    @property
    def recipe(self) -> Recipe:
        """The recipe, with everything filled in that it had left open."""
        return Recipe.of(read_recipe_file(self.directory.recipe))

    @property
    def sizes(self) -> list[Run]:
        """A run for each size, in the order of the recipe; itself alone if `condense.ipc` is one number."""
        found = self.directory.sizes
        return [self] if found == [self.directory] else [Run(size.path) for size in found if size.path.is_dir()]

    @property
    def several(self) -> bool:
        """Whether its recipe lists several sizes."""
        return self.directory.sizes != [self.directory]

    def _one(self, what: str) -> RunDir:
        if self.several:
            names = ", ".join(size.path.name for size in self.directory.sizes)
            raise UsageError(
                f"{self.path} is a run of several sizes, {names}: {what} is of one of them.",
                hint=f"`sizes` has a run for each: [run.{what} for run in run.sizes].",
            )
        return self.directory

    @property
    def info(self) -> ArtifactInfo:
        """Provenance of the condensed set."""
        return read_info(self._one("info").info)

    @property
    def state(self) -> RunState:
        """How far it came: empty, unfinished, condensed, scored or finished (packaged with its scores)."""
        return self.directory.state(verify=False)

    @property
    def condensed(self) -> CondensedDataset:
        """The condensed set, as a torch dataset."""
        from hmdc_hub.store.dataset import load

        return load(self._one("condensed").path)

    @property
    def scored(self) -> bool:
        """Whether it has scores by its own protocol, of every size."""
        return self.state in ("scored", "finished")

    @property
    def scores(self) -> Scores | None:
        """The scores by its own protocol; None if there are none."""
        found = self._one("scores").scores
        return read_scores(found) if self.scored else None

    @property
    def package_folder(self) -> Path | None:
        """The folder to publish or load; None if there is none of the present images and scores."""
        unscored = self.state == "condensed" and (self.directory.package / "README.md").is_file()
        return self.directory.package if unscored or self.state == "finished" else None

    def preview(self) -> Image:
        """Draw the condensed images, a row per class."""
        import PIL.Image

        from hmdc_hub.pipeline.job import pictures

        return PIL.Image.open(io.BytesIO(pictures(self._one("preview()")).preview))

    def package(self, config: str | None = None) -> Path:
        """Build the folder that a Hub dataset will hold; doing it twice gives the same bytes.

        Args:
            config: Name of the configuration; None: the recipe's `publish.config`. Of several sizes all are packaged.
        """
        from hmdc_hub.publish.build import package

        with self.directory.lock():
            return package(self.directory, config=config)

    def push_to_hub(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        config: str | None = None,
        default: bool = False,
        create_pr: bool = False,
        revision: str = "main",
        tag: str | None = None,
        scores_only: bool = False,
        force: bool = False,
        progress: bool | None = None,
    ) -> Published:
        """Publish as a dataset on the Hub, in one commit that is tagged, read back and checked.

        Args:
            repo_id: `owner/name` or `name`; None: you / the recipe's `publish.name`.
            private: Visibility of a new dataset; None: public, unless the source is not.
            config: Configuration to fill; None: the recipe's `publish.config`. Of several sizes: the one to push; None:
                all, in one commit.
            default: Make it the configuration that `load_dataset(repo_id)` gives.
            create_pr: Open a pull request instead of committing.
            revision: Branch to commit to.
            tag: A tag besides `<config>-<hash>`.
            scores_only: Publish new scores of images that are there already.
            force: Replace what is in the way: other people's changes, a foreign card.
            progress: Whether to show what is done; None: yes.

        Raises:
            AccessError: Not logged in, or no write access.
            UsageError: What was asked for does not go with the run or the repository.
            FormatError: A file of the run or on the Hub is damaged.
            NetworkError: The Hub failed; calling it again goes on.
        """
        from hmdc_hub.pipeline.progress import reporting
        from hmdc_hub.publish.plan import PushOptions
        from hmdc_hub.publish.push import publish

        options = PushOptions(
            repo_id=repo_id, config=config, private=private, default=default, branch=revision,
            create_pr=create_pr, tag=tag, scores_only=scores_only, force=force,
        )  # fmt: skip
        with reporting(progress) as callback, self.directory.lock():
            return publish(self.directory, options, callback=callback)

    def evaluate(self, **options: Any) -> Evaluation:
        """Score it; arguments as those of `hmdc_hub.evaluate`."""
        return evaluate(self, **options)

    def summary(self) -> str:
        """Write in five lines what it came to: accuracy beside baselines, gains, unseen and seen models, its files.

        Of several sizes a line each, with the accuracy beside baselines.
        """
        if self.several:
            return "\n".join(self._size_lines())
        info, scores = self.info, self.scores
        lines = [f"condensed  {info.source.id}, {info.ipc} per class: {info.synthetic_images} synthetic images"]
        if scores is not None:
            lines = score_lines(scores, self.directory.report / "report.html")
        preview = self.directory.preview
        return "\n".join(lines + [f"preview    {preview}"] * preview.is_file())

    def _size_lines(self) -> list[str]:
        each = f"{self.path}/{{{','.join(run.path.name for run in self.sizes)}}}"
        lines = [f"{run.path.name:<10} {run.info.source.id}, {_held(run.info)}" for run in self.sizes]
        if self.scored:
            scores = {run.path.name: read_scores(run.directory.scores) for run in self.sizes}
            lines = size_lines(scores, f"{each}/report/report.html")
        shown = all(run.directory.preview.is_file() for run in self.sizes)
        return lines + [f"preview    {each}/preview.png"] * shown

    def details(self, width: int = 80) -> str:
        """Write all that it came to in lines of `width`: directory, protocol, score table, gains, time, package."""
        if self.several:
            return "\n\n".join(run.details(width) for run in self.sizes)
        info, scores, package = self.info, self.scores, self.package_folder
        spent = {"condense": info.seconds} | {name: s for name, s in self.seconds.items() if name != "condense"}
        return "\n".join(
            [
                f"run        {self.path}",
                f"condensed  {info.source.id}, {_held(info)}",
                *([] if scores is None else [*_scored(scores, self.directory, width), "", table_text(scores, width)]),
                *([soft_labels.text(scores)] if scores is not None and scores.soft_labels else []),
                f"time       {', '.join(f'{name} {duration(seconds)}' for name, seconds in spent.items())}",
                *([] if package is None else [f'package    load_dataset("{package.as_posix()}"{self._named()})']),
            ]
        )

    def _named(self) -> str:
        """Write which configuration of the package this is, where it has several."""
        whole, own = self.directory.whole, self.directory
        return "" if whole == own else next(f', "{name}"' for name, one in whole.sets().items() if one == own)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        means = ""
        for run in self.sizes if self.scored else ():
            scores = read_scores(run.directory.scores)
            means += f", {f'{run.path.name} ' * self.several}{100 * scores.table[CONDENSED][MEAN].mean:.1f} %"
        return f"Run({str(self.path)!r}, {self.state}{means})"

    def _repr_html_(self) -> str:
        if self.state in ("empty", "unfinished"):
            return f"<code>{escape(repr(self))}</code>"
        return f"<pre>{escape(self.summary())}</pre>{''.join(run.condensed._repr_html_() for run in self.sizes)}"


def _held(info: ArtifactInfo) -> str:
    return f"{info.ipc} per class: {info.synthetic_images} synthetic images that hold {info.training_images}"


class Evaluation:
    """What an evaluation came to; of several sizes, `sizes` has one for each.

    Args:
        path: Directory with scores.json.
        run: The run, if it was scored by its own protocol.
        published: How the scores compare with published ones of the same protocol.
        parts: Of several sizes of the run in `path`: the directories with the scores of each, if they are not its own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: Run | None = None,
        published: Agreement | None = None,
        parts: Sequence[Path] = (),
    ) -> None:
        self.path, self.run, self.published = Path(path), run, published
        own = [Evaluation(one.path, one) for one in run.sizes] if run is not None and run.several else []
        self._sizes = [Evaluation(part) for part in parts] or own

    @property
    def sizes(self) -> list[Evaluation]:
        """An evaluation for each size of a run of several, in the order of its recipe; itself alone of one set."""
        return self._sizes or [self]

    @cached_property
    def scores(self) -> Scores:
        """The scores: every training, the table of means with intervals, and the protocol."""
        if self._sizes:
            raise UsageError(
                f"{self.path} is a run of several sizes: there are scores of each.",
                hint="`sizes` has an evaluation for each: [one.scores for one in evaluation.sizes].",
            )
        return read_scores(self.path / "scores.json")

    @property
    def report(self) -> Path:
        """The report, a page with pictures."""
        return RunDir(self.path).report / "report.html"

    def to_pandas(self) -> pd.DataFrame:
        """Give a row for each training: model, training set, draw, seed, accuracy; of several sizes `name` first."""
        from hmdc_hub.metrics import scores_frame

        if not self._sizes:
            return scores_frame(self.scores)
        import pandas as pd

        frames = {one.scores.name: scores_frame(one.scores) for one in self._sizes}
        return pd.concat(frames, names=["name"]).reset_index("name").reset_index(drop=True)

    def summary(self) -> str:
        """Write in four lines what it came to: accuracy beside baselines, gains, unseen and seen models, its report."""
        if self._sizes:
            each = {one.scores.name: one.scores for one in self._sizes}
            return "\n".join(size_lines(each, ", ".join(str(one.report) for one in self._sizes)))
        return "\n".join(score_lines(self.scores, self.report))

    def details(self, width: int = 80) -> str:
        """Write the protocol and the table of means in lines of `width`, with gains over what the set must beat."""
        if self._sizes:
            return "\n\n".join(one.details(width) for one in self._sizes)
        about = _scored(self.scores, RunDir(self.path), width)
        soft = [soft_labels.text(self.scores)] if self.scores.soft_labels else []
        return "\n".join([f"set        {self.scores.name}", *about, "", table_text(self.scores, width), *soft])

    def __repr__(self) -> str:
        if self._sizes:
            return f"Evaluation({', '.join(map(repr, self._sizes))})"
        means = (f"{name} {100 * row[MEAN].mean:.1f}" for name, row in self.scores.table.items())
        return f"Evaluation({self.scores.name}: {', '.join(means)})"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"


def _scored(scores: Scores, where: RunDir, width: int) -> list[str]:
    """Say by what protocol, and where the scores are."""
    protocol = scores.protocol
    augmented = [name for name, value in protocol.augment.model_dump().items() if value]
    words = [
        protocol.protocol_hash()[:8],
        f"{protocol.length} of batch {protocol.batch}",
        f"{protocol.optimizer}, {protocol.schedule} rate",
        f"CutMix {'on' if protocol.cutmix.evaluate else 'off'}",
        f"augmented by {' '.join(augmented)}" if augmented else "not augmented",
        *([] if protocol.holdout is None else [f"scored on {protocol.holdout:.0%} of the train split"]),
    ]
    return [
        textwrap.fill(f"protocol   {', '.join(words)}", width, subsequent_indent=" " * 11),
        f"scores     {where.scores}",
        f"report     {where.report / 'report.html'}",
    ]


def condense(
    recipe: schema.Recipe | str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    resume: bool = True,
    force: bool = False,
    evaluate: bool = False,
    callbacks: Callback | Sequence[Callback] = (),
    report_to: str | Sequence[str] = (),
    progress: Shown = None,
    workers: int | None = None,
    stop: StopFlag | None = None,
) -> Run:
    """Condense a recipe's dataset into a run directory, and package it; what is there already is not done again.

    Under torchrun all processes call it and work on one run. It is what `hmdc-hub condense` calls.

    Args:
        recipe: Such as `load_recipe` gives, or its name or path.
        run_dir: Where to work; None: `runs/<name>`, and `runs/<name>-<hash>` for a recipe with changed keys.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, or a torch.device.
        resume: Go on with an unfinished run from its last checkpoint.
        force: Remove the run that is in the directory and start again.
        evaluate: Score it, too.
        callbacks: A function, or several, called with every event (`hmdc_hub.events`).
        report_to: Trackers: `trackio`, `wandb`, `tensorboard`.
        progress: Whether to show progress on stderr, `verbose` with every figure; None: yes.
        workers: CPU processes of the evaluation; None: one per core.
        stop: Set it, from a callback, say, to stop at the next safe place; None: Ctrl-C, SIGTERM and a notebook's stop
            button do, where this is the main thread.

    Raises:
        RunExistsError: What is in the directory is in the way.
        UsageError: The recipe, its source or a model is broken; nothing was written.
        RunError: Something failed on the way; what was done before is kept.
        Interrupted: It was stopped at a safe place; the same call goes on from there.
    """
    from hmdc_hub.pipeline.device import pick
    from hmdc_hub.pipeline.job import Job

    found = recipe if isinstance(recipe, schema.Recipe) else load_recipe(recipe)
    started = launched()
    chosen = pick(device, started.local if started else 0)
    name = found.name
    if isinstance(found, Recipe) and found.overridden:
        # Before its source is looked up: a dataset that moves on does not move the directory.
        digest = hashlib.sha256((found.condense_hash() + found.protocol_hash()).encode()).hexdigest()
        name = f"{name}-{digest[:8]}"
    where = RunDir(RUNS / name if run_dir is None else Path(run_dir))
    grids = bool(report_to) or bool(callbacks)
    with stop_on_signals(stop) as flag:
        work = Work(chosen, workers, stop=flag, share=started)
        job = Job(found, where, work, resume=resume, force=force, evaluate=evaluate, image_grids=grids)
        if started is None:
            return _condense(job, callbacks, report_to, progress)
        from hmdc_hub.condenser import Ranks

        # The first of several processes of torchrun tells the others what is to be done.
        ranks = Ranks.of_torchrun(chosen)
        job = replace(job, ranks=ranks)
        if started.index == 0:
            done = _condense(job, callbacks, report_to, progress)
        else:
            job.assist()
            done = Run(where.path)
        ranks.close()
        return done


def _condense(
    job: Job, callbacks: Callback | Sequence[Callback], report_to: str | Sequence[str], progress: Shown
) -> Run:
    from hmdc_hub.pipeline.progress import reporting
    from hmdc_hub.trackers import make_callbacks

    make_callbacks(report_to, job.run.path, job.recipe)  # one that is not there is found before anything is asked for
    job = job.prepared()
    trackers = make_callbacks(report_to, job.run.path, job.recipe)
    try:
        with reporting(progress, callbacks, trackers) as callback:
            return Run(job.run.path, replace(job, work=replace(job.work, callback=callback)).do())
    finally:
        for tracker in trackers:
            tracker.close()


def evaluate(
    target: Any,
    *,
    models: Any = None,
    protocol: str | Path | Mapping[str, Any] | None = None,
    baselines: str | Sequence[str] | None = None,
    seeds: int | None = None,
    like: str | os.PathLike[str] | schema.Recipe | Run | None = None,
    config: str | None = None,
    revision: str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    progress: Shown = None,
    holdout: float | None = None,
    overrides: Sequence[str] = (),
    normalised: bool = False,
    root: str | os.PathLike[str] = RUNS,
    resume: bool = True,
    share: str | None = None,
    stop: StopFlag | None = None,
    **unknown: Never,
) -> Evaluation:
    """Train architectures on a condensed set and on what it must beat, and score them on the test split.

    By its own protocol a run gets scores and a package with them; by another one, a directory below its `evaluations`.
    Trainings that are done are not done again. It is what `hmdc-hub evaluate` calls.

    Args:
        target: A run (or its name or path), a package folder, or a dataset of ours on the Hub. With `like` any set: a
            path or dataset id, (images, labels) tensors with images N x ch x H x W as uint8 or as floats in [0, 1], a
            datasets.Dataset, a torch dataset, a `CondensedDataset`.
        models: Architectures to train, one or a list: names as `hmdc-hub pool ls` lists them, paths, an nn.Module, a
            class or function that makes one; None: those of the protocol, like `baselines` and `seeds`.
        protocol: `quick`, `paper`, a file, or keys of a recipe's `evaluate` section; None: that of the set's recipe.
        baselines: What stands beside it, of `hmdc_hub.schema.BASELINES`.
        seeds: Trainings of each architecture.
        like: The recipe (or a run of it) on whose source and by whose protocol a set of another program is scored.
        config: Configuration of a package or dataset; None: its default.
        revision: Branch, tag or commit of a dataset on the Hub.
        run_dir: Where to score what is no run; None: `runs/<name>`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, or a torch.device.
        workers: CPU processes; None: one per core.
        callbacks: A function, or several, called with every event.
        progress: Whether to show progress on stderr, `verbose` with all that is said; None: yes.
        holdout: Score on this share of the train split, for choosing settings without the test split.
        overrides: Keys of the protocol in the form of the command line, `"evaluate.epochs=200"`.
        normalised: The floats of a safetensors file are source-normalised, not pixels.
        root: Folder of the runs.
        resume: False trains all again in place of taking trainings that are done.
        share: Do this part of the trainings only, `"1/4"`; the same call without it puts the scores together.
        stop: Set it to stop at the next safe place.
        **unknown: There are no others; a key of the protocol is met with how to change it.

    Raises:
        UsageError: The target, the protocol or a model is not as it must be; nothing was written.
        Interrupted: It was stopped; trainings that are done are kept.
    """
    from hmdc_hub.pipeline.device import pick
    from hmdc_hub.pipeline.evaluation import EvaluateRequest
    from hmdc_hub.pipeline.progress import reporting

    if unknown:
        raise _unknown_argument(min(unknown))
    shared = launched()
    if share is not None:
        if shared is not None:
            raise UsageError("--share and torchrun are two ways to the same.", hint="Leave --share out.")
        shared = parse_share(share)
    if shared is not None and not resume:
        raise UsageError(
            "--fresh removes what other processes may be working on.",
            hint="Call once with --fresh and without sharing, or remove the evaluation's directory first.",
        )
    chosen = pick(device, 0 if shared is None else shared.local)
    request = EvaluateRequest(
        target.path if isinstance(target, Run) else target,
        like.recipe if isinstance(like, Run) else like,
        protocol, models, baselines, seeds, config, revision, run_dir, root, normalised, holdout, overrides,
    )  # fmt: skip
    with stop_on_signals(stop) as flag, reporting(progress, callbacks) as callback:
        found = request.score(Work(chosen, workers, callback, flag, resume, shared))
    own = Run(found.where.path) if found.of_run else None
    return Evaluation(found.where.path, own, found.published, [part.path for part in found.parts])


def _unknown_argument(name: str) -> UsageError:
    if name in EvaluateSpec.model_fields:
        return UsageError(
            f"evaluate() has no argument {name!r}: it is a key of the protocol.",
            hint=f"Write  protocol={{{name!r}: ...}} , or  overrides=['evaluate.{name}=...'] .",
        )
    known = [*signature(evaluate).parameters][1:-1]
    near = close(name, known, most=1)
    return UsageError(
        f"evaluate() has no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."),
        hint=f"It takes {', '.join(known)}.",
    )
