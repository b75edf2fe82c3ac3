"""Turning a published set into a run, so that it can be scored here, and comparing those scores with the published."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmdc_hub.catalog import read_published_recipe, stored_recipe_text
from hmdc_hub.cli.failures import disk_errors
from hmdc_hub.errors import FormatError, NotFoundError, RunExistsError, UsageError
from hmdc_hub.publish import ConfigFacts, read_facts
from hmdc_hub.publish.facts import PARQUET
from hmdc_hub.report.tables import MEAN, training_sets
from hmdc_hub.schema import Scores
from hmdc_hub.store import RunDir, atomic, read_info, sha256_file, write_bytes_atomic
from hmdc_hub.store.configs import choose, read_card, read_card_text
from hmdc_hub.store.files import TEMPORARY


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

    Args:
        package: Verified folder with the configuration's files.
        facts: The configuration.
        run: Where to.

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
    with disk_errors(run.path):
        if _adopted(facts, run, digests):
            return
        files = {run.parquet: package / facts.name / PARQUET, run.condensed: package / facts.name / run.condensed.name}
        for place, file in files.items():
            _refuse_damaged(file, digests[place])
        with run.lock():
            if _adopted(facts, run, digests):  # by a process that was faster
                return
            for place, file in files.items():
                with atomic(place) as temporary:
                    shutil.copyfile(file, temporary)
            write_bytes_atomic(run.recipe, text)
            write_bytes_atomic(run.info, info)  # last: it says that the set is complete


def _adopted(facts: ConfigFacts, run: RunDir, digests: Mapping[Path, str]) -> bool:
    """Tell whether the directory holds the set; False: nothing, or a part of exactly this set.

    Raises:
        RunExistsError: It holds something else.
    """
    other = "--run-dir takes another directory."
    if run.info.is_file():
        if read_info(run.info).tensors_sha256 == facts.info.tensors_sha256 and run.recipe.is_file():
            return True
        raise RunExistsError(f"{run.path} holds another set.", hint=other)
    for path in sorted(run.path.iterdir()) if run.path.is_dir() else []:
        leftover = path == run.lock_file or (path.name.startswith(".") and path.name.endswith(TEMPORARY))
        if not leftover and (not path.is_file() or sha256_file(path) != digests.get(path)):
            raise RunExistsError(f"{run.path} is not empty: {path.name} is in it.", hint=other)
    return False


def _refuse_damaged(file: Path, digest: str) -> None:
    again = "`hmdc-hub pull` gets the whole set."
    if not file.is_file():
        raise NotFoundError(f"{file.parent.parent} has no {file.parent.name}/{file.name}.", hint=again)
    if sha256_file(file) != digest:
        raise FormatError(f"{file} is damaged: info.json beside it names another SHA-256.", hint=again)


def compare(published: Scores, here: Scores) -> Agreement | None:
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


def agreement_text(found: Agreement) -> str:
    """Write a comparison for a person."""
    if found.identical == found.trainings:
        return f"All {found.trainings} trainings have exactly the published accuracy."
    lines = [
        f"{found.identical} of {found.trainings} trainings have exactly the published accuracy; other library versions "
        "or devices change the others.",
        "mean over models, published -> here, in percent:",
    ]
    return "\n".join(lines + [f"  {name:<15} {100 * a:5.1f} -> {100 * b:5.1f}" for name, a, b in found.rows])
