"""What a run directory that is already there means for a recipe: reading only, nothing here writes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmdc_hub.catalog import read_recipe_file, stored_recipe_text
from hmdc_hub.cli.result import Part
from hmdc_hub.errors import FormatError, RunExistsError, UsageError
from hmdc_hub.publish.verify import verify
from hmdc_hub.schema import Recipe
from hmdc_hub.store import RunDir, read_info, read_scores
from hmdc_hub.store.files import json_text

if TYPE_CHECKING:
    from hmdc_hub.cli.flow import Wishes

ELSEWHERE = "Choose another place with --run-dir."


def run_directory(recipe: Recipe, *, overridden: bool, root: Path = Path("runs")) -> RunDir:
    """Choose where a recipe runs: `runs/<name>`, with overrides `runs/<name>-<hash8>`.

    The hash is that of the recipe before its source is looked up, so that a dataset that moves on does not move the
    directory.
    """
    if not overridden:
        return RunDir(root / recipe.name)
    digest = hashlib.sha256((recipe.condense_hash() + recipe.protocol_hash()).encode()).hexdigest()
    return RunDir(root / f"{recipe.name}-{digest[:8]}")


def refuse_place(run: RunDir) -> None:
    """Find out before any work whether the directory can be written, without writing."""
    there = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{run.path} cannot be a run directory: {there} is a file.", hint=ELSEWHERE)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{run.path} cannot be a run directory: no permission to write in {there}.", hint=ELSEWHERE)


def stored_recipe(run: RunDir) -> Recipe | None:
    """Read the recipe of a run directory; None if there is none."""
    if not run.recipe.is_file():
        return None
    try:
        return read_recipe_file(run.recipe)
    except FormatError as error:
        raise RunExistsError(
            f"{run.path} holds a run that this program cannot go on with: {error.message}",
            hint=f"{error.hint} --force removes that run and starts again; --run-dir takes another directory.".lstrip(),
        ) from error


def missing(recipe: Recipe, run: RunDir, wishes: Wishes) -> list[Part]:
    """Say which parts of a recipe are still to do in a directory, reading only.

    Args:
        recipe: With its source settled.
        run: The directory.
        wishes: As for `carry_out`.

    Raises:
        RunExistsError: The directory is in the way.
    """
    wanted: list[Part] = ["condense", "evaluate", "package"] if wishes.evaluate else ["condense", "package"]
    stored = None if wishes.force else stored_recipe(run)
    if stored is None:
        if not wishes.force:
            _refuse_strangers(run)
        return wanted
    if stored.condense_hash() != recipe.condense_hash():
        raise _other_recipe(run, stored, recipe)
    state = run.state()
    if state == "unfinished":
        if not wishes.resume:
            raise RunExistsError(
                f"{run.path} holds an unfinished run of this recipe.",
                hint="--resume goes on from its last checkpoint, --force removes it and starts again.",
            )
        return wanted
    scored = state != "condensed" and read_scores(run.scores).protocol_hash == recipe.protocol_hash()
    if wishes.evaluate and not (scored and wishes.reuse):
        return ["evaluate", "package"]
    return [] if package_is_current(recipe, run) else ["package"]


def package_is_current(recipe: Recipe, run: RunDir) -> bool:
    """Tell whether the package of a complete run is of this recipe, these images and these scores, and in order."""
    folder = run.package / recipe.publish.config
    info = read_info(run.info)
    wanted = {
        "recipe.yaml": stored_recipe_text(recipe.without_paths(info.source)).encode(),
        "info.json": json_text(info.without_paths()).encode(),
    }
    there = {path: _bytes(folder / path) for path in wanted}
    scores = run.public_scores() if run.scores.is_file() else None
    return (
        there == wanted
        and _bytes(folder / "scores.json") == scores
        and all(finding.ok for finding in verify(run.package))
    )


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _refuse_strangers(run: RunDir) -> None:
    inside = sorted(path.name for path in run.path.iterdir() if path != run.lock_file) if run.path.is_dir() else []
    if inside:
        raise RunExistsError(
            f"{run.path} is not empty and holds no run: {', '.join(inside[:5])}.",
            hint=ELSEWHERE,
        )


def _other_recipe(run: RunDir, stored: Recipe, recipe: Recipe) -> RunExistsError:
    lines = [f"  {key}: {there} there, {here} here" for key, there, here in differences(stored, recipe)]
    rest = [f"  and {len(lines) - 8} more"] if len(lines) > 8 else []
    return RunExistsError(
        f"{run.path} holds a run of another recipe (condense hash {stored.condense_hash()[:8]}, this one is "
        f"{recipe.condense_hash()[:8]}); they differ in\n" + "\n".join(lines[:8] + rest),
        hint="--run-dir takes another directory, --force removes that run and starts this one.",
    )


_DECIDING = ("seed", "source", "pool", "condense")


def differences(one: Recipe, other: Recipe) -> list[tuple[str, str, str]]:
    """List where two recipes differ in what decides the condensed images: dotted key, value of each ("-": absent)."""
    left, right = (_flat({k: r.model_dump(mode="json")[k] for k in _DECIDING}) for r in (one, other))
    keys = [*left, *(key for key in right if key not in left)]
    return [(key, left.get(key, "-"), right.get(key, "-")) for key in keys if left.get(key, "-") != right.get(key, "-")]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        children = [(f"{prefix}.{key}" if prefix else key, child) for key, child in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        children = [(f"{prefix}.{index}", child) for index, child in enumerate(value)]
    else:
        return {prefix: str(value)}
    return {key: text for name, child in children for key, text in _flat(child, name).items()}
