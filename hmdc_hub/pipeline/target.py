"""What TARGET means: a run, an evaluation, a package or a published set; and sets that become runs."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from hmdc_hub.catalog import read_published_recipe, stored_recipe_text
from hmdc_hub.errors import FormatError, NotFoundError, RunExistsError, UsageError
from hmdc_hub.publish.card import PARQUET, ConfigFacts, read_config, read_facts
from hmdc_hub.report.tables import MEAN, training_sets
from hmdc_hub.schema import Scores, is_hub_id
from hmdc_hub.store.configs import choose, read_card, read_card_text, refuse_links
from hmdc_hub.store.files import TEMPORARY, atomic, read_info, sha256_file, write_bytes_atomic
from hmdc_hub.store.rundir import RunDir, is_run, list_runs
from hmdc_hub.text import some

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Run

Kind = Literal["run", "evaluation", "package", "folder", "file", "hub"]
_TAKES = {"run": (), "hub": ("config", "revision", "run_dir")}
_CALLED = {"run": "a run", "hub": "a dataset on the Hub", "file": "a file here"}


class Target(NamedTuple):
    """What a name or a path means."""

    kind: Kind  # an `evaluation` holds scores and is no run, a `folder` nothing of ours
    path: Path  # of a dataset on the Hub its id, owner/name
    config: str | None = None  # named with it: a configuration's folder, owner/name:config

    def refuse(self, **options: object) -> None:
        """Refuse options that are given (not None) and say nothing about such a target, with a UsageError."""
        takes = set(_TAKES.get(self.kind, ("config", "run_dir"))) - ({"config"} if self.config else set())
        for name, value in options.items():
            if value is not None and name not in takes:
                called = "one configuration" if self.config else _CALLED.get(self.kind, "a folder here")
                raise UsageError(
                    f"{self.path} is {called}: --{name.replace('_', '-')} does not apply to it.", hint="Leave it out."
                )

    def run(self, *needed: str) -> RunDir:
        """Give the run, once these of its files say that it is condensed; else a NotFoundError."""
        if not all((size.path / name).is_file() for size in RunDir(self.path).sizes for name in needed):
            raise NotFoundError(
                f"{self.path} is not completely condensed.",
                hint="`hmdc-hub condense` with its recipe and --resume does that.",
            )
        return RunDir(self.path)

    def open(self, config: str | None = None, revision: str | None = None) -> tuple[Path, ConfigFacts]:
        """Open a package at the named, the only or the default configuration; one on the Hub is downloaded."""
        config = self.config or config
        if self.kind == "hub":
            from hmdc_hub.store.hub import download_package

            got = download_package(self.path.as_posix(), config=config, revision=revision)
            return got.folder, read_config(got.folder / got.configs[0])
        refuse_links(self.path, [path.parent.name for path in self.path.glob("*/manifest.json")])
        facts = {found.name: found for found in read_facts(self.path)}
        card = self.path / "README.md"
        default = read_card(read_card_text(card))[1] if card.is_file() else None
        return self.path, facts[choose(list(facts), default, config, str(self.path))]


def find_target(text: str, root: Path) -> Target:
    """Find what a path, the name of a run below `root` or its beginning, or owner/name[:config] means.

    Nothing is downloaded. What is here goes before what is on the Hub, what is ours before a folder that merely has the
    name. A name that is nothing here and can be no dataset on the Hub either (`nope`, `./someone/nope`) is a
    NotFoundError.
    """
    # os.path answers False for a name that is too long for the file system.
    found = [_look(path) for path in (Path(text), root / text) if os.path.exists(path)]
    if found:
        return next((one for one in found if one.kind != "folder"), found[0])
    if run := _beginning(text, root):
        return _look(run)
    base, _, config = text.partition(":")
    if config and os.path.isdir(base) and any(Path(base).glob("*/manifest.json")):
        return Target("package", Path(base), config)
    if not is_hub_id(base):  # as it was written: of a path, `./someone` is another thing than `someone`
        raise NotFoundError(
            f"there is no run {text!r} in {root} and no folder {text!r}; a dataset on the Hub is owner/name",
            hint=f"`hmdc-hub runs ls --root {root}` lists the runs.",
        )
    return Target("hub", Path(base), config or None)


def _look(path: Path) -> Target:
    if path.is_file():
        if path.name != "scores.json":
            return Target("file", path)
        path = path.parent
    if (path / "manifest.json").is_file():
        named = path if path.name not in ("", "..") else path.resolve()
        return Target("package", named.parent, named.name)
    # The folder of a configuration has a recipe and an info.json, too, and a manifest.
    if is_run(path) or (path / "info.json").is_file():
        return Target("run", path)
    if any(path.glob("*/manifest.json")):
        return Target("package", path)
    return Target("evaluation" if (path / "scores.json").is_file() else "folder", path)


def find_run(name: str, root: Path, *, whole: bool = False) -> Path:
    """Find the directory of a run by its name below `root`, by the beginning of it, or by its path.

    `whole`: the beginning is not enough, as for what cannot be taken back and nobody is asked about. NotFoundError if
    there is none; UsageError if several begin so.
    """
    for path in (root / name, Path(name)):
        if os.path.isdir(path):
            return path
    hint = f"`hmdc-hub runs ls --root {root}` lists them."
    if run := _beginning(name, root):
        if not whole:
            return run
        hint = f"With --yes the name must be whole: {run.name}"
    raise NotFoundError(f"there is no run {name!r} in {root}", hint=hint)


def _beginning(name: str, root: Path) -> Path | None:
    """Find the one run below `root` whose name begins so; UsageError if there are several."""
    if not name or not root.is_dir():
        return None
    found = sorted(path.name for path in root.iterdir() if path.name.startswith(name) and is_run(path))
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} runs in {root} begin with {name!r}: {some(found, 10)}", hint="Write more of the name."
        )
    return root / found[0] if found else None


def named_or_newest(name: str | None, root: Path, *, whole: bool = False) -> Run:
    """Find a run as `find_run` does; without a name, that which was finished last: condensed, scored and packaged."""
    from hmdc_hub.pipeline.api import Run

    if name is not None:
        return Run(find_run(name, root, whole=whole))
    finished = [entry.run for entry in list_runs(root) if entry.state == "finished"]
    if not finished:
        raise NotFoundError(
            f"there is no finished run in {root}",
            hint="`hmdc-hub condense` makes one, `hmdc-hub runs ls` lists what there is; or name the run.",
        )
    return Run(max(finished, key=lambda run: (run.scores.stat().st_mtime, run.path.name)).whole.path)


def find_or_adopt(
    target: str, root: Path, config: str | None, revision: str | None, run_dir: Path | None
) -> tuple[RunDir, Scores | None]:
    """Find the run that is meant, or make one of a package or published set; with the scores that came with it."""
    found = find_target(target, root)
    if found.kind in ("file", "folder", "evaluation"):
        raise UsageError(
            f"{target} is no run and no package of ours: as a set of another program it needs a recipe that names its "
            "source, the models and the protocol.",
            hint=f"hmdc-hub evaluate {shlex.quote(target)} --recipe cifar10_ipc10  (`hmdc-hub recipes ls` lists them; "
            "in Python: like=)",
        )
    found.refuse(config=config, revision=revision, run_dir=run_dir)
    if found.kind == "run":
        return found.run("info.json", "train.parquet"), None
    package, facts = found.open(config, revision)
    name = found.path.name if found.kind == "hub" else package.resolve().name
    run = RunDir(run_dir or root / f"{name}-{facts.name}")
    adopt(package, facts, run)
    return run, facts.scores


def adopt(package: Path, facts: ConfigFacts, run: RunDir) -> None:
    """Copy a published set into a run directory of its own; a directory that holds the same set is left as it is.

    A directory in which an earlier try ended on the way is gone on with: every file comes into it whole.
    RunExistsError: the directory holds something else. UsageError: only its author has the data of the set.
    """
    from hmdc_hub.pipeline.job import disk_errors

    recipe = read_published_recipe(package / facts.name / "recipe.yaml")
    if recipe.source.id.startswith("local:"):
        raise UsageError(
            f"{facts.name} was made from data on its author's disk ({recipe.source.id}): there is nothing to score on.",
            hint="If you have the data: copy its recipe.yaml, let source.id name them, and condense that.",
        )
    text, info = stored_recipe_text(recipe).encode(), (package / facts.name / "info.json").read_bytes()
    digests = {
        run.parquet: facts.info.parquet_sha256,
        run.condensed: facts.info.tensors_sha256,
        run.recipe: hashlib.sha256(text).hexdigest(),
    }
    files = {run.parquet: package / facts.name / PARQUET, run.condensed: package / facts.name / run.condensed.name}
    with disk_errors(run.path):
        if _adopted(facts, run, digests):
            return
        for place, file in files.items():
            if not file.is_file():
                raise NotFoundError(f"{package} has no {facts.name}/{file.name}.", hint=_WHOLE)
            if sha256_file(file) != digests[place]:
                raise FormatError(f"{file} is damaged: info.json beside it names another SHA-256.", hint=_WHOLE)
        with run.lock():
            if _adopted(facts, run, digests):  # by a process that was faster
                return
            for place, file in files.items():
                with atomic(place) as temporary:
                    shutil.copyfile(file, temporary)
            write_bytes_atomic(run.recipe, text)
            write_bytes_atomic(run.info, info)  # last: it says that the set is complete


_WHOLE = "`hmdc-hub pull` gets the whole set."


def _adopted(facts: ConfigFacts, run: RunDir, digests: Mapping[Path, str]) -> bool:
    """Tell whether the directory holds the set (False: nothing, or a part of exactly this set) and nothing else."""
    other = "--run-dir (run_dir=) takes another directory."
    if run.info.is_file():
        if read_info(run.info).tensors_sha256 == facts.info.tensors_sha256 and run.recipe.is_file():
            return True
        raise RunExistsError(f"{run.path} holds another set.", hint=other)
    for path in sorted(run.path.iterdir()) if run.path.is_dir() else []:
        leftover = path == run.lock_file or (path.name.startswith(".") and path.name.endswith(TEMPORARY))
        if not leftover and (not path.is_file() or sha256_file(path) != digests.get(path)):
            raise RunExistsError(f"{run.path} is not empty: {path.name} is in it.", hint=other)
    return False


@dataclass(frozen=True)
class Agreement:
    """How scores made here compare with published ones of the same protocol."""

    identical: int  # trainings with exactly the published accuracy, of `trainings`
    trainings: int
    rows: tuple[tuple[str, float, float], ...]  # training set, published mean over models, mean here; in [0, 1]

    def __str__(self) -> str:
        if self.identical == self.trainings:
            return f"All {self.trainings} trainings have exactly the published accuracy."
        lines = [
            f"{self.identical} of {self.trainings} trainings have exactly the published accuracy; other library "
            "versions or devices change the others.",
            "mean over models, published -> here, in percent:",
        ]
        return "\n".join(lines + [f"  {name:<15} {100 * a:5.1f} -> {100 * b:5.1f}" for name, a, b in self.rows])


def agreement(published: Scores, here: Scores) -> Agreement | None:
    """Compare scores training by training; None if they follow different protocols or are about other images."""
    if (published.protocol_hash, published.parquet_sha256) != (here.protocol_hash, here.parquet_sha256):
        return None
    key = {(c.model, c.training_set, c.draw, c.seed): c.accuracy for c in published.cells}
    same = sum(key.get((c.model, c.training_set, c.draw, c.seed)) == c.accuracy for c in here.cells)
    rows = [
        (name, published.table[name][MEAN].mean, here.table[name][MEAN].mean)
        for name in training_sets(here)
        if MEAN in published.table.get(name, {}) and MEAN in here.table[name]
    ]
    return Agreement(same, len(here.cells), tuple(rows))
