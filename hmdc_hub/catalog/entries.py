"""Find, list and copy what ships with us: recipes/*.yaml, recipes/protocols/*.yaml and model_pool/*.yaml."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path

from hmdc_hub.catalog.yaml12 import Document, decode, parse, show
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.schema import NAME
from hmdc_hub.text import close, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent
_YAML = (".yaml", ".yml")
_EDITOR_LINE = "# yaml-language-server: $schema="


@dataclass(frozen=True)
class Kind:
    """Recipes, protocols or pool entries."""

    word: str  # what messages call one of them
    folder: str  # that they ship in
    listing: str  # the command that lists them
    schema: str  # file with their JSON schema, in the same folder


RECIPES = Kind("recipe", "recipes", "hmdc-hub recipes ls", "hmdc-recipe.schema.json")
PROTOCOLS = Kind("protocol", "recipes/protocols", "hmdc-hub evaluate --help", "")
MODELS = Kind("pool entry", "model_pool", "hmdc-hub pool ls", "hmdc-model.schema.json")


@dataclass(frozen=True)
class Entry:
    """A recipe or pool entry that ships with us, as far as a listing needs it."""

    name: str
    path: Path
    description: str  # one sentence; for a file that cannot be read, why
    header: str  # the comment lines that the file begins with, without their `#`: the runbook
    source: str = ""  # of a recipe the id of its dataset, of a pool entry library and id, such as `builtin:convnet`
    ipc: int | None = None  # of a recipe; None also if it cannot be told
    pool: tuple[str, ...] = ()  # names of the models that a recipe condenses with


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of our recipes or pool entries.

    In a checkout, which an editable install is, too, it is the one beside the package; a wheel carries it inside. The
    project file must be ours: `site-packages/recipes` may belong to anybody.
    """
    root = _PACKAGE.parent
    return (root if _is_checkout(root) else _PACKAGE) / kind.folder


@cache  # asked for by every name that is looked up
def _is_checkout(root: Path) -> bool:
    try:
        name = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(name == "hmdc-hub")


def shipped(kind: Kind) -> dict[str, Path]:
    """Map the names of our recipes or pool entries to their files, in alphabetical order."""
    return {path.stem: path for path in sorted(shipped_folder(kind).glob("*.yaml")) if path.name[0] != "."}


def find(kind: Kind, name: str, folders: tuple[Path, ...] = (Path(),)) -> Path:
    """Find a file: by a path from one of `folders`, by a shipped name, `x.yaml` or `recipes/x.yaml` of a shipped one.

    NotFoundError names those that ship with us, close ones first; UsageError: it is a folder.
    """
    given, names = Path(name), shipped(kind)
    paths = [folder / given for folder in folders] if name else []
    # os.path answers False for a name that is too long for the file system, or has a NUL in it.
    for path in paths:
        if os.path.isfile(path):
            return path
    stem = given.stem if given.suffix in _YAML else given.name
    if name and given.parts in {(stem,), (given.name,), (kind.folder, given.name)} and stem in names:
        return names[stem]
    for path in paths:
        if os.path.isdir(path):
            recipe = path / "recipe.yaml"
            inside = f"The recipe of a run is inside: {recipe}" if recipe.is_file() else f"See {kind.listing}"
            raise UsageError(f"{name} is a folder; a {kind.word} is a YAML file", hint=inside)
    for path in (Path(f"{path}{suffix}") for path in paths for suffix in _YAML):
        if os.path.isfile(path):
            raise NotFoundError(f"there is no {kind.word} {name!r}; did you mean the file {path}?")
    message = f"there is no {kind.word} {name!r}"
    if given_as_file(name):
        message = f"there is no file {name}, and no {kind.word} of that name"
    message += f"; {meant}" if (meant := did_you_mean(close(stem, names))) else ""
    message += f"\n{kind.folder}/ that ships with hmdc-hub holds: {', '.join(names) or 'none'}"
    raise NotFoundError(message, hint=f"See {kind.listing}")


def given_as_file(name: str) -> bool:
    """Tell whether a name is written like a path: with a folder, or an ending."""
    return "/" in name or os.sep in name or name.endswith(_YAML)


def read_text(path: Path, where: str) -> str:
    """Read a YAML file as text; UsageError, or RecipeError if it is too large or not UTF-8, calls it `where`."""
    try:
        with path.open("rb") as file:
            return decode(file.read(1 << 17), where)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error


def read_document(path: Path, where: str) -> Document:
    """Read a YAML file with its line numbers; what can be read past is left in the problems of the result."""
    return parse(read_text(path, where), where)


def list_entries(kind: Kind) -> list[Entry]:
    """List the recipes or pool entries that ship with us, by name, without checking them."""
    return [_entry(path, kind) for path in shipped(kind).values()]


def _entry(path: Path, kind: Kind) -> Entry:
    try:
        text = read_text(path, path.name)
        data = parse(text, path.name).data
    except UsageError as error:
        return Entry(path.stem, path, f"cannot be read: {error.message.splitlines()[-1].strip()}", "")
    comments = takewhile(lambda line: line.startswith("#"), text.splitlines())
    runbook = [line[1:].removeprefix(" ").rstrip() for line in comments if not line.startswith(_EDITOR_LINE)]
    entry = Entry(path.stem, path, str(data.get("description", "")), "\n".join(runbook).strip("\n"))
    if kind is MODELS:
        return replace(entry, source=f"{data.get('source', '?')}:{data.get('id', '?')}")
    source, condense, pool = (data.get(key) for key in ("source", "condense", "pool"))
    ipc = condense.get("ipc") if isinstance(condense, dict) else None
    # A recipe calls a model by a name, a path, or a mapping with a name in it.
    models = pool if isinstance(pool, list) else []
    called = (item.get("name", "?") if isinstance(item, dict) else item for item in models)
    return replace(
        entry,
        source=str(source.get("id", "")) if isinstance(source, dict) else "",
        ipc=ipc if isinstance(ipc, int) else None,
        pool=tuple(re.sub(r"\.ya?ml$", "", Path(str(name)).name) for name in called),
    )


def copy_entry(kind: Kind, name: str, destination: Path, force: bool = False) -> list[Path]:
    """Copy a recipe or pool entry, with the JSON schema that editors complete and check it by beside it.

    The destination is an existing folder, or a file ending in .yaml, whose folder is made. Returns the files written,
    the copy first; a schema of ours that is there already is brought up to date. UsageError: a file is in the way, and
    there is no `force`, or it cannot be written.
    """
    original = find(kind, name)
    target = destination / original.with_suffix(".yaml").name if destination.is_dir() else destination
    if target.suffix not in _YAML:
        raise UsageError(f"{target} is neither an existing folder nor a file that ends in .yaml")
    if re.match(NAME, target.stem) is None:
        raise UsageError(f"{target.name} cannot name a {kind.word}: letters, digits, '.', '_' and '-' can")
    schema, new_schema = shipped_folder(kind) / kind.schema, target.parent / kind.schema
    in_the_way = target if target.exists() else new_schema if not _is_ours(schema, new_schema) else None
    if in_the_way is not None and not force:
        raise UsageError(f"{in_the_way} exists already", hint="Choose another name, or overwrite it with --force.")
    text = _for_its_new_place(read_text(original, str(original)), original.stem, target, kind)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        if not (new_schema.exists() and new_schema.samefile(schema)):
            shutil.copyfile(schema, new_schema)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from error
    return [target, new_schema]


def _is_ours(schema: Path, other: Path) -> bool:
    """Tell whether a file that may be there is some version of the same schema, which can be brought up to date."""
    try:
        return bool(json.loads(other.read_bytes())["title"] == json.loads(schema.read_bytes())["title"])
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _for_its_new_place(text: str, stem: str, target: Path, kind: Kind) -> str:
    """Point the first line at the schema beside the copy, and give name and commands of the runbook the new name."""
    lines = [_EDITOR_LINE + kind.schema]
    for line in text.splitlines():
        if re.fullmatch(rf"name:\s+[\"']?{re.escape(stem)}[\"']?\s*(#.*)?", line):
            line = f"name: {show(target.stem)}"
        elif line.startswith("#"):
            line = line.replace(f"{kind.folder}/{stem}.yaml", target.name)
            line = line.replace(f"runs/{stem}/", f"runs/{target.stem}/")
            # What else ships is found by its name, wherever the copy lies.
            line = re.sub(rf"{kind.folder}/([\w-]+)\.yaml", r"\1", line)
        if not line.startswith(_EDITOR_LINE):
            lines.append(line)
    return "\n".join(lines) + "\n"
