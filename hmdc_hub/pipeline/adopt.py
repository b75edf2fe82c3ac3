"""Runs that are named, and published sets that become runs, so that they can be scored here."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmdc_hub.catalog import read_published_recipe, stored_recipe_text
from hmdc_hub.errors import FormatError, NotFoundError, RunExistsError, UsageError
from hmdc_hub.pipeline.job import disk_errors
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_config, read_facts
from hmdc_hub.report.tables import MEAN, training_sets
from hmdc_hub.schema import Scores
from hmdc_hub.store.configs import choose, read_card, read_card_text
from hmdc_hub.store.files import TEMPORARY, atomic, read_info, sha256_file, write_bytes_atomic
from hmdc_hub.store.rundir import RunDir


def find_or_adopt(
    target: str, root: Path, config: str | None, revision: str | None, run_dir: Path | None
) -> tuple[RunDir, Scores | None]:
    """Find the run that is meant, or make one of a package or published set; with the scores that came with it.

    Raises:
        NotFoundError: There is nothing of that name.
        UsageError: An option does not apply to what it is.
    """
    for path in (Path(target), root / target):
        if (path / "info.json").is_file() and (path / "train.parquet").is_file():
            _refuse("a run", config=config, revision=revision, run_dir=run_dir)
            return RunDir(path), None
        if (path / "recipe.yaml").is_file() and (path / ".lock").is_file():
            raise NotFoundError(f"{path} is not completely condensed.", hint="`hmdc-hub condense` goes on with it.")
    package = Path(target)
    if package.is_file() or (package.is_dir() and not any(package.glob("*/manifest.json"))):
        raise UsageError(
            f"{target} is no run and no package of ours: as a set of another program it needs a recipe that names its "
            "source, the models and the protocol.",
            hint=f"hmdc-hub evaluate {shlex.quote(target)} --recipe cifar10_ipc10  (`hmdc-hub recipes ls` lists them; "
            "in Python: like=)",
        )
    if package.is_dir():
        from hmdc_hub.store.configs import refuse_links

        _refuse("a folder", revision=revision)
        refuse_links(package, [path.parent.name for path in package.glob("*/manifest.json")])
        name, facts = package.resolve().name, chosen_config(package, config)
    else:
        require_hub_id(target, root)
        from hmdc_hub.store.download import download_package

        found = download_package(target, config=config, revision=revision)
        package, name = found.folder, target.rpartition("/")[2]
        facts = read_config(package / found.configs[0])
    run = RunDir(run_dir or root / f"{name}-{facts.name}")
    adopt(package, facts, run)
    return run, facts.scores


def _refuse(what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to {what}.", hint="Leave it out.")


def require_hub_id(target: str, root: Path) -> None:
    """Refuse a name that is nothing here and can be no dataset on the Hub either, before anything is asked for it.

    Raises:
        NotFoundError: It has no owner: `nope` in place of `someone/nope`.
    """
    if "/" not in target:
        raise NotFoundError(
            f"there is no run {target!r} in {root} and no folder {target!r}; a dataset on the Hub is owner/name",
            hint=f"`hmdc-hub runs ls --root {root}` lists the runs.",
        )


def chosen_config(package: Path, config: str | None) -> ConfigFacts:
    """Find the configuration of a package that is meant: the named, the only or the default one.

    Raises:
        NotFoundError: There is none of that name.
        UsageError: There are several and no default.
    """
    facts = {found.name: found for found in read_facts(package)}
    card = package / "README.md"
    default = read_card(read_card_text(card))[1] if card.is_file() else None
    return facts[choose(list(facts), default, config, str(package))]


def adopt(package: Path, facts: ConfigFacts, run: RunDir) -> None:
    """Copy a published set into a run directory of its own; a directory that holds the same set is left as it is.

    A directory in which an earlier try ended on the way is gone on with: every file comes into it whole.

    Raises:
        RunExistsError: The directory holds something else, or another process works in it.
        UsageError: The set was made from data that only its author has.
        FormatError: A file is not the one that info.json names.
        RunError: The directory cannot be written.
    """
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
    """Tell whether the directory holds the set; False: nothing, or a part of exactly this set.

    Raises:
        RunExistsError: It holds something else.
    """
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
    """How scores made here compare with published ones of the same protocol.

    Attributes:
        identical: Trainings with exactly the published accuracy, of `trainings`.
        rows: Training set, published mean over models, mean here; both in [0, 1].
    """

    identical: int
    trainings: int
    rows: tuple[tuple[str, float, float], ...]

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
