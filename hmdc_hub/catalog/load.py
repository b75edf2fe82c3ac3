"""Load recipes and pool entries: names resolved, overrides applied, everything that is wrong said at once."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmdc_hub.catalog.entries import MODELS, find, find_recipe, given_as_file, read_document, read_text, shipped
from hmdc_hub.catalog.problems import check, close, did_you_mean, example_line, line_of, node_at, unknown_key
from hmdc_hub.catalog.yaml12 import Document, parse, read_value, show, write_yaml
from hmdc_hub.errors import FormatError, FormerNameWarning, NotFoundError, Problem, RecipeError, UsageError
from hmdc_hub.schema import FORMER_BASELINES, NAME, ModelSpec, Recipe, Strict

_LISTS_OF_MODELS = (("pool",), ("evaluate", "models"))
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_HEAD = "# Every default is filled in and every model written out; this file is a recipe like any other.\n"
_SEAL = "# SHA-256 of the lines above: "
_PYTHON = "is only there in a Python session: give load_recipe() the object; a file cannot name it"


def load_recipe(
    name_or_path: str | os.PathLike[str], overrides: Sequence[str] = (), sections: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, apply overrides and resolve it: every default filled in, every model written out.

    Args:
        name_or_path: A path, or a shipped recipe as `x`, `x.yaml` or `recipes/x.yaml`.
        overrides: Such as `condense.ipc=10` or `pool.0.lr.condense=0.1`, applied in order.
        sections: More of them, as nested dicts that are applied last: `{"condense": {"ipc": 1}, "seed": 3}`. A list
            replaces the whole list; entries of lists of models may be names, mappings or `ModelSpec`.

    Raises:
        RecipeError: The file or an override breaks the schema; it holds every problem.
        NotFoundError: There is no such recipe.

    Warns:
        FormerNameWarning: A key or value has a name of an earlier version; it is read.
    """
    where = os.fspath(name_or_path)
    path = find_recipe(where)
    text = read_text(path, where)
    document = rename(Recipe, parse(text, where))
    stored = text.startswith(_HEAD)  # a program wrote it: nobody need be told of its names
    if stored:
        document.notes.clear()
    for override in overrides:
        _apply_text(document, override, path.parent)
    if not stored:
        _refuse_python(document)
    for keys, value in flat(sections or {}):
        _apply(document, keys, _plain(value), path.parent)
    if "name" not in document.data:
        document.data["name"] = path.stem
        if re.match(NAME, path.stem) is None:
            why = "is no name, and comes from the file's, so rename the file or give the recipe a name"
            document.problems.append(Problem("name", None, path.stem, why))
    return _resolve(document, where, path.parent)


def recipe_from_dict(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of nested dicts as a file has them; models by name, as mappings or as `ModelSpec`.

    Args:
        data: The keys of a recipe; paths of pool entries begin at the current folder.
        where: What error messages call it.

    Raises:
        RecipeError: It breaks the schema; it holds every problem, with the key.
    """
    return _resolve(rename(Recipe, Document(_plain(data))), where, Path())


def _resolve(document: Document, where: str, folder: Path) -> Recipe:
    tell(document, where)
    for place in _LISTS_OF_MODELS:
        expand_models(document, place, folder)
    return check(Recipe, document, where)


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


def dump_recipe(recipe: Recipe) -> str:
    """Write a resolved recipe as YAML; `read_recipe_file` gives it back equal."""
    return _HEAD + write_yaml(recipe.model_dump(mode="json"))


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
        recipe = check(Recipe, rename(Recipe, read_document(path, str(path))), str(path))
    except UsageError as error:
        message = f"the stored recipe is damaged, or another version of hmdc-hub wrote it\n{error.message}"
        raise FormatError(message, hint="Condense into a new run directory.") from error
    text, found, checksum = path.read_bytes().rpartition(_SEAL.encode())
    if found and hashlib.sha256(text).hexdigest().encode() != checksum.strip():
        raise FormatError(
            f"{path} was changed or damaged since it was written: its checksum is another.",
            hint=f"If you changed it on purpose, delete its last line, which begins with {_SEAL.split(':')[0]!r}.",
        )
    return recipe


def looks_like_override(text: str) -> bool:
    """Tell whether a command line argument reads like `condense.ipc=10`, whose `-o` was forgotten."""
    key, equals, _ = text.partition("=")
    return bool(equals) and _KEY.fullmatch(key) is not None


def _apply_text(document: Document, override: str, folder: Path) -> None:
    """Apply `KEY=VALUE`; what is wrong with it is added to the problems of the document."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not _KEY.fullmatch(key):
        meant = shlex.quote(override.replace(":", "=", 1)) if ":" in override and not equals else "condense.ipc=10"
        document.problems.append(Problem("", None, override, "must be KEY=VALUE with a dotted key", f"-o {meant}"))
        return
    path = tuple(key.split("."))
    try:
        value = read_value(text)
    except RecipeError as error:
        document.lines[key] = None
        example = example_line(Recipe, document, path)
        document.problems.append(Problem(key, None, text, error.problems[0].rule, example))
        return
    _apply(document, path, value, folder, text=text)


def _apply(document: Document, path: tuple[str, ...], value: Any, folder: Path, text: str | None = None) -> None:
    """Put a value in its place; sections that are missing are made, models that are named on the way written out."""
    old = ".".join(path)
    for former, today in Recipe.former_keys().items():
        if old == former or old.startswith(f"{former}."):
            path = tuple((today + old.removeprefix(former)).split("."))
            _note(document, None, former, today)
    key, shown = ".".join(path), show(value) if text is None else text
    if node_at(Recipe, path) is None:
        document.problems.append(Problem(key, None, shown, unknown_key(Recipe, path)))
        return
    container: Any = document.data
    place: Any
    for length, part in enumerate(path, start=1):
        if isinstance(container, list) and part.isdecimal():
            count, place = len(container), int(part)
            if place >= count:
                has = {0: "no entries", 1: "1 entry, 0"}.get(count, f"{count} entries, 0 to {count - 1}")
                rule = f"{'.'.join(path[: length - 1])} has {has}; to make it longer give the whole list"
                document.problems.append(Problem(key, None, shown, rule))
                return
            if length < len(path) and isinstance(container[place], str):
                _expand(document, path[:length], folder)
        elif isinstance(container, dict):
            place = part
            if length < len(path) and container.get(part) is None:
                container[part] = [] if path[length].isdecimal() else {}
        else:
            return  # the file has something else where a section belongs, and that is reported
        if length == len(path):
            container[place] = value
        container = container[place]
    for line in [line for line in document.lines if line.startswith(f"{key}.")]:
        del document.lines[line]
    document.lines[key] = 0 if text is None else None
    document.former.pop(key, None)
    _rename_values(document)


def flat(sections: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Go through nested dicts as pairs of path and value; models are in lists, so that their `args` stay whole."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from flat(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _plain(value: Any) -> Any:
    """Turn Python values into what YAML would give: pydantic models and mappings into dicts, tuples into lists."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def tell(document: Document, where: str) -> None:
    """Warn of the former names in a document."""
    for note in dict.fromkeys(document.notes):
        warnings.warn(f"{where}: {note}", FormerNameWarning, stacklevel=4)


def rename(model: type[Strict], document: Document) -> Document:
    """Give keys and values their names of today, in place, and note which had former ones."""
    for old, new in model.former_keys().items():
        *parents, word = old.split(".")
        today, section = new.rpartition(".")[2], _inside(document.data, parents)
        if not isinstance(section, dict) or word not in section:
            continue
        line = document.lines.get(old)
        if today in section:
            rule = f"is what {new} was called; that stands here too, so leave one of them out"
            document.problems.append(Problem(old, line, "", rule))
            del section[word]
            continue
        items = [(today if key == word else key, item) for key, item in section.items()]
        section.clear()
        section.update(items)
        for key in [key for key in document.lines if key == old or key.startswith(f"{old}.")]:
            document.lines[new + key.removeprefix(old)] = document.lines.pop(key)
        document.former[new] = old
        _note(document, line, old, new)
    _rename_values(document)
    return document


def _rename_values(document: Document) -> None:
    for place in ("baselines",), ("evaluate", "baselines"):
        names = _list_in(document.data, place)
        for index, name in enumerate(names):
            if isinstance(name, str) and name in FORMER_BASELINES:
                names[index] = FORMER_BASELINES[name]
                _note(document, line_of(document, (*place, str(index))), f"baseline {name}", names[index])


def _note(document: Document, line: int | None, old: str, new: str) -> None:
    document.notes.append(f"{f'line {line}: ' if line else ''}{old} is now {new}; the old name is still read")


def expand_models(document: Document, place: tuple[str, ...], folder: Path) -> None:
    """Replace the names in a list of models by the mappings they stand for.

    Args:
        document: With the list; what is wrong is added to its problems.
        place: Of the list.
        folder: Where relative paths begin.
    """
    for index, model in enumerate(_list_in(document.data, place)):
        if isinstance(model, str):
            _expand(document, (*place, str(index)), folder)


def _inside(data: Any, place: Sequence[str]) -> Any:
    for part in place:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _list_in(data: Any, place: Sequence[str]) -> list[Any]:
    found = _inside(data, place)
    return found if isinstance(found, list) else []


def _expand(document: Document, place: tuple[str, ...], folder: Path) -> None:
    """Replace the name at a place by the mapping it stands for; if that fails, note why in the document."""
    models, index = _list_in(document.data, place[:-1]), int(place[-1])
    name: str = models[index]
    is_path = given_as_file(name)
    try:
        # A path begins at the recipe's folder or at the current one.
        path = find(MODELS, name, (folder, Path())) if is_path else shipped(MODELS).get(name)
        if path is None:
            raise NotFoundError(name)
        models[index] = _check_model(path, name if is_path else f"model_pool/{path.name}")[1].data
        return
    except RecipeError as error:
        rules = [f"{error.where}{', ' if inner.line else ': '}{inner}" for inner in error.problems]
    except NotFoundError:
        rules = [_unknown_model(name, folder)]
    except UsageError as error:
        rules = [error.message]
    key, line = ".".join(place), line_of(document, place)
    document.problems += [Problem(key, line, name, rule) for rule in rules]


def _check_model(path: Path, where: str) -> tuple[ModelSpec, Document]:
    document = read_document(path, where)
    document.data.setdefault("name", path.stem)
    model = check(ModelSpec, document, where)
    if not model.reproducible:
        raise RecipeError(where, [Problem("source", document.lines.get("source"), "python", _PYTHON)])
    return model, document


def _refuse_python(document: Document) -> None:
    """Note what only an object of a Python session can be, and a file or the command line names."""
    for place in _LISTS_OF_MODELS:
        for index, model in enumerate(_list_in(document.data, place)):
            if isinstance(model, dict) and model.get("source") == "python":
                path = (*place, str(index), "source")
                document.problems.append(Problem(".".join(path), line_of(document, path), "python", _PYTHON))
    source = document.data.get("source")
    if isinstance(source, dict) and str(source.get("id")).startswith("python:"):
        line = line_of(document, ("source", "id"))
        document.problems.append(Problem("source.id", line, str(source["id"]), _PYTHON))


def _unknown_model(name: str, folder: Path) -> str:
    if given_as_file(name):
        return f"is no file, neither beside the recipe ({folder}) nor in the current folder"
    if os.path.isfile(folder / f"{name}.yaml"):  # False also for a name that is too long for a file
        return f"is not in the model pool; did you mean ./{name}.yaml, the file beside the recipe?"
    names = shipped(MODELS)
    near = close(name, names)
    return f"is not in the model pool; {did_you_mean(near) if near else 'it holds ' + (', '.join(names) or 'nothing')}"
