"""Load recipes, models, protocols: names resolved, overrides applied, everything that is wrong said at once."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmdc_hub.catalog.entries import MODELS, PROTOCOLS, RECIPES, find, given_as_file, read_document, read_text, shipped
from hmdc_hub.catalog.problems import all_keys, check, example_line, line_of, node_at, schema_of, unknown_key
from hmdc_hub.catalog.yaml12 import Document, parse, read_value, show, write_yaml
from hmdc_hub.errors import FormatError, FormerNameWarning, NotFoundError, Problem, RecipeError, UsageError
from hmdc_hub.schema import FORMER_BASELINES, NAME, NEW_ENCODING, EvaluateSpec, ModelSpec, Recipe, Strict
from hmdc_hub.text import close, did_you_mean, flat

_LISTS_OF_MODELS = (("pool",), ("evaluate", "models"))
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_HEAD = "# Every default is filled in and every model written out; this file is a recipe like any other.\n"
_SEAL = "# SHA-256 of the lines above: "
_PYTHON = "is only there in a Python session: give load_recipe() the object; a file cannot name it"


def load_recipe(
    name_or_path: str | os.PathLike[str], overrides: Sequence[str] = (), sections: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, apply overrides and resolve it: every default filled in, every model written out.

    Overrides such as `condense.ipc=10` or `pool.0.lr.condense=0.1` are applied in order, then `sections`, nested dicts
    such as `{"condense": {"ipc": 1}}`: a list replaces the whole list, and entries of lists of models may be names,
    mappings or `ModelSpec`. RecipeError holds every problem; former names of keys and values give FormerNameWarning.
    """
    where = os.fspath(name_or_path)
    path = find(RECIPES, where)
    text = read_text(path, where)
    document = rename(Recipe, parse(text, where))
    stored = text.startswith(_HEAD)  # a program wrote it: nobody need be told of its names
    if stored:
        document.notes.clear()
    for override in overrides:
        _apply_text(document, override, path.parent)
    if not stored:
        _refuse_python(document)
    for key, value in flat(sections or {}):
        _apply(document, key, _plain(value), path.parent)
    if not stored:
        _new_defaults(document)
    if "name" not in document.data:
        document.data["name"] = path.stem
        if re.match(NAME, path.stem) is None:
            why = "is no name, and comes from the file's, so rename the file or give the recipe a name"
            document.problems.append(Problem("name", None, path.stem, why))
    return _resolve(document, where, path.parent)


def recipe_from_dict(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of nested dicts as a file has them; paths of pool entries begin at the current folder."""
    document = rename(Recipe, Document(_plain(data)))
    _new_defaults(document)
    return _resolve(document, where, Path())


def change(recipe: Recipe, overrides: Sequence[str], sections: Mapping[str, Any], where: str) -> Recipe:
    """Change keys of a recipe that was loaded before, as `load_recipe` changes those of a file."""
    document = Document(recipe.model_dump(mode="json"))
    for override in overrides:
        _apply_text(document, override, Path())
    for key, value in flat(sections):
        _apply(document, key, _plain(value), Path())
    return _resolve(document, where, Path())


def _new_defaults(document: Document) -> None:
    """Fill in what a recipe of today means that does not say it, and a stored one does not mean."""
    for name in ("condense", "evaluate"):
        if isinstance(section := document.data.get(name), dict):
            section.setdefault("encode", NEW_ENCODING)


def _resolve(document: Document, where: str, folder: Path) -> Recipe:
    _tell(document, where)
    for place in _LISTS_OF_MODELS:
        _expand_models(document, place, folder)
    return check(Recipe, document, where)


def load_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """Read a pool entry, by the name of one in model_pool/ or by its path."""
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

    A checksum in its last line is compared; one that an older program wrote has none. FormatError: it is damaged.
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
        hint = f"If you changed it on purpose, delete its last line, which begins with {_SEAL.split(':')[0]!r}."
        raise FormatError(f"{path} was changed or damaged since it was written: its checksum is another.", hint=hint)
    return recipe


# changes


def recipe_keys() -> list[str]:
    """List every key of a recipe, dotted; entries of lists are left out."""
    return [key for key, _ in all_keys(schema_of(Recipe))]


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
    try:
        value = read_value(text)
    except RecipeError as error:
        document.lines[key] = None
        example = example_line(Recipe, document, key.split("."))
        document.problems.append(Problem(key, None, text, error.problems[0].rule, example))
        return
    _apply(document, key, value, folder, text=text)


def _apply(document: Document, key: str, value: Any, folder: Path, text: str | None = None) -> None:
    """Put a value in its place; sections that are missing are made, models that are named on the way written out."""
    for former, today in Recipe.former_keys().items():
        if key == former or key.startswith(f"{former}."):
            key = today + key.removeprefix(former)
            _note(document, None, former, today)
    path, shown = key.split("."), show(value) if text is None else text
    if node_at(Recipe, path) is None:
        document.problems.append(Problem(key, None, shown, unknown_key(Recipe, path)))
        return
    container: Any = document.data
    place: Any
    for length, part in enumerate(path, start=1):
        if isinstance(container, list) and part.isdecimal():
            size, place = len(container), int(part)
            if place >= size:
                has = {0: "no entries", 1: "1 entry, 0"}.get(size, f"{size} entries, 0 to {size - 1}")
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


def _plain(value: Any) -> Any:
    """Turn Python values into what YAML would give: pydantic models and mappings into dicts, tuples into lists."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


# former names


def rename(model: type[Strict], document: Document) -> Document:
    """Give keys and values their names of today, in place, and note which had former ones."""
    for old, new in model.former_keys().items():
        *parents, word = old.split(".")
        today, section, line = new.rpartition(".")[2], _inside(document.data, parents), document.lines.get(old)
        if not isinstance(section, dict) or word not in section:
            continue
        value = section.pop(word)
        if today in section:
            rule = f"is what {new} was called; that stands here too, so leave one of them out"
            document.problems.append(Problem(old, line, "", rule))
            continue
        section[today] = value
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


def _tell(document: Document, where: str) -> None:
    for note in dict.fromkeys(document.notes):
        warnings.warn(f"{where}: {note}", FormerNameWarning, stacklevel=_outside())


def _outside() -> int:
    """Count the stack levels from our caller up to the first frame that is not of this package: it wrote the name."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "hmdc_hub":
        frame, level = frame.f_back, level + 1
    return level


# models by name


def _expand_models(document: Document, place: tuple[str, ...], folder: Path) -> None:
    """Replace the names in a list of models by the mappings they stand for; paths begin at the folder, or here."""
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


def _expand(document: Document, place: Sequence[str], folder: Path) -> None:
    """Replace the name at a place by the mapping it stands for; if that fails, note why in the document."""
    models, index = _list_in(document.data, place[:-1]), int(place[-1])
    name: str = models[index]
    is_path, names = given_as_file(name), shipped(MODELS)
    try:
        # A path begins at the recipe's folder or at the current one.
        path = find(MODELS, name, (folder, Path())) if is_path else names.get(name)
        if path is None:
            raise NotFoundError(name)
        models[index] = _check_model(path, name if is_path else f"model_pool/{path.name}")[1].data
        return
    except RecipeError as error:
        rules = [f"{error.where}{', ' if inner.line else ': '}{inner}" for inner in error.problems]
    except NotFoundError:
        if is_path:
            rules = [f"is no file, neither beside the recipe ({folder}) nor in the current folder"]
        elif os.path.isfile(folder / f"{name}.yaml"):  # False also for a name that is too long for a file
            rules = [f"is not in the model pool; did you mean ./{name}.yaml, the file beside the recipe?"]
        else:
            meant = did_you_mean(close(name, names)) or f"it holds {', '.join(names) or 'nothing'}"
            rules = [f"is not in the model pool; {meant}"]
    except UsageError as error:
        rules = [error.message]
    line = line_of(document, place)
    document.problems += [Problem(".".join(place), line, name, rule) for rule in rules]


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


# protocols: recipes/protocols/*.yaml, the `evaluate` section of a recipe, or that of scores


def protocol_overrides(name_or_path: str) -> list[str]:
    """Read a protocol as overrides of a recipe, such as `evaluate.epochs=2000`.

    It is the name of a shipped protocol (quick, paper, strong, idc) or recipe, or the path of a YAML file with some
    keys of a recipe's `evaluate` section, of a recipe, or of a scores.json. UsageError: it holds none, or a wrong one.
    """
    try:
        path = find(PROTOCOLS, name_or_path)
    except NotFoundError:
        if name_or_path not in shipped(RECIPES):
            raise
        path = shipped(RECIPES)[name_or_path]
    section = (_scored if path.suffix == ".json" else _written)(path, name_or_path)
    keys = {key: value for key, value in flat(section) if not key.startswith("model_lr.")}
    if "model_lr" in section:  # whole, so that no rate of the recipe's stays
        keys["model_lr"] = section["model_lr"]
    return [f"evaluate.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]


def protocol_name(name_or_path: str) -> str:
    """Give a short name of a protocol, for directories."""
    path = Path(name_or_path)
    name = path.resolve().parent.name if path.name in ("scores.json", "recipe.yaml") else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "custom"


def _scored(path: Path, where: str) -> dict[str, Any]:
    try:
        protocol = EvaluateSpec.model_validate(json.loads(path.read_text(encoding="utf-8"))["protocol"])
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{where} is no scores.json of this version of hmdc-hub: it holds no protocol.",
            hint="A protocol is also a recipe, or a YAML file with some keys of a recipe's evaluate section.",
        ) from error
    local = [name for model in protocol.models for name in model.local_names().values()]
    if local:  # scores may be a stranger's, and are data
        hint = "If it is yours: --protocol takes the run's recipe.yaml, too."
        raise UsageError(f"{where} names {local[0]}, a file of whoever made the scores.", hint=hint)
    return _keys(protocol)


def _written(path: Path, where: str) -> dict[str, Any]:
    document = rename(EvaluateSpec, read_document(path, where))
    data = document.data
    if "evaluate" in data:
        return _keys(load_recipe(path).evaluate)
    _tell(document, where)
    for key in ("name", "description"):
        data.pop(key, None)
    # Models may stay as a recipe has them; whether the rest is right is found with any.
    without_models = "models" not in data
    data.setdefault("models", [{"name": "any", "source": "builtin", "id": "mlp"}])
    _expand_models(document, ("models",), path.parent)
    keys = _keys(check(EvaluateSpec, document, where), written=True)
    if without_models:
        del keys["models"]
    return keys


def _keys(protocol: EvaluateSpec, *, written: bool = False) -> dict[str, Any]:
    """Give a protocol's keys as plain data, or those that somebody wrote.

    Those that files leave out at their defaults are among them: they take the place of what a recipe says.
    """
    keys = protocol.model_dump(mode="json", exclude_unset=written)
    for name in (protocol.model_fields_set if written else set(EvaluateSpec.model_fields)) - keys.keys():
        value = getattr(protocol, name)
        keys[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return keys
