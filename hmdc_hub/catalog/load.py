"""Load recipes and pool entries: names resolved, overrides applied, everything that is wrong said at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hmdc_hub.catalog.entries import MODELS, find, find_recipe, read_document, shipped
from hmdc_hub.catalog.keys import close, did_you_mean
from hmdc_hub.catalog.overrides import apply_overrides
from hmdc_hub.catalog.problems import check, line_of
from hmdc_hub.errors import FormatError, NotFoundError, Problem, RecipeError, UsageError
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.yaml12 import Document, write_yaml

_LISTS_OF_MODELS = (("pool",), ("evaluate", "models"))


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides and resolve it: every default filled in, every model written out.

    Args:
        name_or_path: A path, or a shipped recipe as `x`, `x.yaml` or `recipes/x.yaml`.
        overrides: Such as `condense.ipc=10` or `pool.0.lr.condense=0.1`, applied in order.

    Raises:
        RecipeError: The file or an override breaks the schema; it holds every problem.
        NotFoundError: There is no such recipe.
    """
    where = os.fspath(name_or_path)
    path = find_recipe(where)
    document = read_document(path, where)
    named = "name" in document.data
    document.data.setdefault("name", path.stem)

    def expand(document: Document, place: tuple[str, ...]) -> None:
        _expand(document, place, path.parent)

    apply_overrides(Recipe, document, overrides, expand)
    for place in _model_names(document.data):
        expand(document, place)
    recipe, problems = check(Recipe, document)
    if recipe is None:
        if not named:
            problems = [_from_file_name(problem) for problem in problems]
        raise RecipeError(where, problems)
    return recipe


def load_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """Read a pool entry.

    Args:
        name_or_path: The name of one in model_pool/, or a path.

    Raises:
        RecipeError: The file breaks the schema; it holds every problem.
        NotFoundError: There is no such entry.
    """
    where = os.fspath(name_or_path)
    return _check_model(find(MODELS, where), where)[0]


_SEAL = "# SHA-256 of the lines above: "


def dump_recipe(recipe: Recipe) -> str:
    """Write a resolved recipe as YAML; `read_recipe_file` gives it back equal."""
    head = "# Every default is filled in and every model written out; this file is a recipe like any other.\n"
    return head + write_yaml(recipe.model_dump(mode="json"))


def stored_recipe_text(recipe: Recipe) -> str:
    """Write a resolved recipe as run directories and packages store it: with a checksum as its last line."""
    text = dump_recipe(recipe)
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def read_recipe_file(path: Path) -> Recipe:
    """Read the recipe of a run directory as it stands: no name is looked up, and no default has changed since.

    A checksum in its last line is compared; one that an older program wrote has none.

    Raises:
        FormatError: The file is damaged, or another version of hmdc-hub wrote it.
        NotFoundError: There is no such file.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist", hint="A run directory has it as soon as condensing has begun.")
    try:
        document = read_document(path, str(path))
        recipe, problems = check(Recipe, document)
        if recipe is None:
            raise RecipeError(str(path), problems)
    except UsageError as error:
        message = f"the stored recipe is damaged, or another version of hmdc-hub wrote it\n{error.message}"
        raise FormatError(message, hint="Condense into a new run directory.") from error
    _compare_checksum(path)
    return recipe


def _compare_checksum(path: Path) -> None:
    text, found, checksum = path.read_bytes().rpartition(_SEAL.encode())
    if found and hashlib.sha256(text).hexdigest().encode() != checksum.strip():
        raise FormatError(
            f"{path} was changed or damaged since it was written: its checksum is another.",
            hint=f"If you changed it on purpose, delete its last line, which begins with {_SEAL.split(':')[0]!r}.",
        )


def _model_names(data: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Go through the places where a recipe names a model of the pool."""
    for path in _LISTS_OF_MODELS:
        models: Any = data
        for part in path:
            models = models.get(part) if isinstance(models, dict) else None
        for index, model in enumerate(models if isinstance(models, list) else []):
            if isinstance(model, str):
                yield (*path, str(index))


def expand_models(document: Document, place: tuple[str, ...], folder: Path) -> None:
    """Replace the names in a list of models by the mappings they stand for.

    Args:
        document: With the list; what is wrong is added to its problems.
        place: Of the list.
        folder: Where relative paths begin.
    """
    models: Any = document.data
    for part in place:
        models = models.get(part) if isinstance(models, dict) else None
    for index, model in enumerate(models if isinstance(models, list) else []):
        if isinstance(model, str):
            _expand(document, (*place, str(index)), folder)


def _expand(document: Document, place: tuple[str, ...], folder: Path) -> None:
    """Replace the name at a place by the mapping it stands for; if that fails, note why in the document."""
    models: Any = document.data
    for part in place[:-1]:
        models = models[part]
    index = int(place[-1])
    name: str = models[index]
    key, line = ".".join(place), line_of(document.lines, place)
    try:
        models[index] = _model_mapping(name, folder)
    except RecipeError as error:
        document.problems += [Problem(key, line, name, _inner(error.where, inner)) for inner in error.problems]
    except NotFoundError:
        document.problems.append(Problem(key, line, name, _unknown_model(name, folder)))
    except UsageError as error:
        document.problems.append(Problem(key, line, name, error.message))


def _model_mapping(name: str, folder: Path) -> dict[str, Any]:
    """Read the mapping that a name in a recipe stands for; a path begins at the recipe's folder or the current one."""
    path = find(MODELS, name, (folder, Path())) if _is_path(name) else shipped(MODELS).get(name)
    if path is None:
        raise NotFoundError(f"there is no pool entry {name!r}")
    return _check_model(path, name if _is_path(name) else f"model_pool/{path.name}")[1].data


def _check_model(path: Path, where: str) -> tuple[ModelSpec, Document]:
    document = read_document(path, where)
    document.data.setdefault("name", path.stem)
    model, problems = check(ModelSpec, document)
    if model is None:
        raise RecipeError(where, problems)
    return model, document


def _is_path(name: str) -> bool:
    return "/" in name or os.sep in name or name.endswith((".yaml", ".yml"))


def _inner(where: str, problem: Problem) -> str:
    at = f"{where}, line {problem.line}" if problem.line else where
    what = " = ".join(part for part in (problem.key, problem.value) if part)
    return f"{at}: {what}: {problem.rule}" if what else f"{at}: {problem.rule}"


def _unknown_model(name: str, folder: Path) -> str:
    if _is_path(name):
        return f"is no file, neither beside the recipe ({folder}) nor in the current folder"
    if os.path.isfile(folder / f"{name}.yaml"):  # False also for a name that is too long for a file
        return f"is not in the model pool; did you mean ./{name}.yaml, the file beside the recipe?"
    names = shipped(MODELS)
    near = close(name, names)
    return f"is not in the model pool; {did_you_mean(near) if near else 'it holds ' + (', '.join(names) or 'nothing')}"


def _from_file_name(problem: Problem) -> Problem:
    if problem.key != "name":
        return problem
    rule = f"{problem.rule}; it comes from the file's name, so rename the file or give the recipe a name"
    return Problem(problem.key, problem.line, problem.value, rule, problem.example)
