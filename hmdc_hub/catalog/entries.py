"""Find and list what ships with us: recipes/*.yaml, recipes/protocols/*.yaml and model_pool/*.yaml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmdc_hub.catalog.keys import close, did_you_mean
from hmdc_hub.errors import NotFoundError, RecipeError, UsageError
from hmdc_hub.yaml12 import Document, decode, parse

_PACKAGE = Path(__file__).resolve().parent.parent
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Kind:
    """Recipes, protocols or pool entries.

    Attributes:
        word: What messages call one of them.
        folder: Folder that they ship in.
        listing: Command that lists them.
        schema: File with their JSON schema, in the same folder.
    """

    word: str
    folder: str
    listing: str
    schema: str


RECIPES = Kind("recipe", "recipes", "hmdc-hub recipes ls", "hmdc-recipe.schema.json")
PROTOCOLS = Kind("protocol", "recipes/protocols", "hmdc-hub evaluate --help", "")
MODELS = Kind("pool entry", "model_pool", "hmdc-hub pool ls", "hmdc-model.schema.json")


@dataclass(frozen=True)
class Entry:
    """A recipe or pool entry that ships with us, as far as a listing needs it.

    Attributes:
        name: What it is called on the command line.
        path: Its file.
        description: One sentence; for a file that cannot be read, why.
        header: The comment lines that the file begins with, without their `#`: the runbook.
        source: Of a recipe the id of its dataset, of a pool entry library and id, such as `builtin:convnet`.
        ipc: Stored images per class of a recipe, None if it cannot be told.
        pool: Names of the models that a recipe condenses with.
    """

    name: str
    path: Path
    description: str
    header: str
    source: str = ""
    ipc: int | None = None
    pool: tuple[str, ...] = ()


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of our recipes or pool entries.

    In a checkout, which an editable install is, too, it is the one beside the package; a wheel carries it inside. The
    project file must be ours: `site-packages/recipes` may belong to anybody.
    """
    root = _PACKAGE.parent
    try:
        name = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    return (root if name == "hmdc-hub" else _PACKAGE) / kind.folder


def shipped(kind: Kind) -> dict[str, Path]:
    """Map the names of our recipes or pool entries to their files, in alphabetical order."""
    return {path.stem: path for path in sorted(shipped_folder(kind).glob("*.yaml")) if path.name[0] != "."}


def find(kind: Kind, name_or_path: str, folders: tuple[Path, ...] = (Path(),)) -> Path:
    """Find a recipe or pool entry.

    Args:
        kind: Which of the two.
        name_or_path: A path, the name of a shipped entry with or without `.yaml`, or `recipes/x.yaml` for one that does
            not exist there but ships with us.
        folders: Where relative paths begin, in this order; the current folder by default.

    Raises:
        NotFoundError: There is none; it lists those that ship with us, close matches first.
        UsageError: The path is a folder.
    """
    given = Path(name_or_path)
    for path in (folder / given for folder in folders):
        if _is(path.is_file):
            return path
    names = shipped(kind)
    stem = given.stem if given.suffix in _YAML else given.name
    if name_or_path and given.parts in {(stem,), (given.name,), (kind.folder, given.name)} and stem in names:
        return names[stem]
    for path in (folder / given for folder in folders):
        if name_or_path and _is(path.is_dir):
            recipe = path / "recipe.yaml"
            inside = f"The recipe of a run is inside: {recipe}" if _is(recipe.is_file) else f"See {kind.listing}"
            raise UsageError(f"{name_or_path} is a folder; a {kind.word} is a YAML file", hint=inside)
    raise _not_found(kind, name_or_path, stem, names, folders)


def _not_found(
    kind: Kind, name_or_path: str, stem: str, names: dict[str, Path], folders: tuple[Path, ...]
) -> NotFoundError:
    for path in (folder / f"{name_or_path}{suffix}" for folder in folders for suffix in _YAML):
        if name_or_path and _is(path.is_file):
            return NotFoundError(f"there is no {kind.word} {name_or_path!r}; did you mean the file {path}?")
    named = given_as_file(name_or_path)
    message = (
        f"there is no file {name_or_path}, and no {kind.word} of that name"
        if named
        else (f"there is no {kind.word} {name_or_path!r}")
    )
    if near := close(stem, names):
        message += f"; {did_you_mean(near)}"
    known = ", ".join(names) or "none"
    return NotFoundError(
        f"{message}\n{kind.folder}/ that ships with hmdc-hub holds: {known}", hint=f"See {kind.listing}"
    )


def given_as_file(name: str) -> bool:
    """Tell whether a name is written like a path: with a folder, or an ending."""
    return "/" in name or Path(name).suffix in _YAML


def _is(question: Any) -> bool:
    try:
        return bool(question())
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        return False


def read_document(path: Path, where: str) -> Document:
    """Read a YAML file with its line numbers; what can be read past is left in the problems of the result.

    Args:
        path: The file.
        where: What error messages call it.

    Raises:
        RecipeError: It is no YAML file, or too large.
        UsageError: It cannot be opened.
    """
    return parse(_read_text(path, where), where)


def _read_text(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            return decode(file.read(1 << 17), where)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error


def header_of(text: str) -> str:
    """Return the comment lines that a file begins with, without their `#` and without the editor's line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "yaml-language-server:" not in line:
            lines.append(line[1:].removeprefix(" ").rstrip())
    return "\n".join(lines).strip("\n")


def list_recipes() -> list[Entry]:
    """List the recipes that ship with us, by name, without checking them."""
    return [_entry(path, RECIPES) for path in shipped(RECIPES).values()]


def list_models() -> list[Entry]:
    """List the pool entries that ship with us, by name, without checking them."""
    return [_entry(path, MODELS) for path in shipped(MODELS).values()]


def _entry(path: Path, kind: Kind) -> Entry:
    try:
        text = _read_text(path, path.name)
        data = parse(text, path.name).data
    except (RecipeError, UsageError) as error:
        return Entry(path.stem, path, f"cannot be read: {error.message.splitlines()[-1].strip()}", "")
    description = str(data.get("description", ""))
    if kind is MODELS:
        return Entry(path.stem, path, description, header_of(text), f"{data.get('source', '?')}:{data.get('id', '?')}")
    source, condense, pool = (data.get(key) for key in ("source", "condense", "pool"))
    ipc = condense.get("ipc") if isinstance(condense, dict) else None
    return Entry(
        path.stem,
        path,
        description,
        header_of(text),
        source=str(source.get("id", "")) if isinstance(source, dict) else "",
        ipc=ipc if isinstance(ipc, int) else None,
        pool=tuple(_name_of(item) for item in pool) if isinstance(pool, list) else (),
    )


def _name_of(item: object) -> str:
    """Return what a recipe calls a model: a name, the stem of a path, or the name in an inline mapping."""
    if isinstance(item, dict):
        return str(item.get("name", "?"))
    path = Path(str(item))
    return path.stem if path.suffix in _YAML else path.name


def find_recipe(name: str) -> Path:
    """Find the file of a recipe.

    Args:
        name: A path, the name of a shipped recipe with or without `.yaml`, or `recipes/x.yaml` of a shipped one.

    Raises:
        NotFoundError: There is none.
    """
    return find(RECIPES, name)
