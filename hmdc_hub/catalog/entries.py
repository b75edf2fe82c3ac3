"""Find, list and copy what ships with us: recipes/*.yaml, recipes/protocols/*.yaml and model_pool/*.yaml."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hmdc_hub.catalog.problems import close, did_you_mean
from hmdc_hub.catalog.yaml12 import Document, decode, parse, show
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.schema import NAME

_PACKAGE = Path(__file__).resolve().parent.parent
_YAML = (".yaml", ".yml")
_EDITOR_LINE = "# yaml-language-server: $schema="


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
        ipc: Synthetic images per class of a recipe, None if it cannot be told.
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
    given, names = Path(name_or_path), shipped(kind)
    paths = [folder / given for folder in folders] if name_or_path else []
    # os.path answers False for a name that is too long for the file system, or has a NUL in it.
    for path in paths:
        if os.path.isfile(path):
            return path
    stem = given.stem if given.suffix in _YAML else given.name
    if name_or_path and given.parts in {(stem,), (given.name,), (kind.folder, given.name)} and stem in names:
        return names[stem]
    for path in paths:
        if os.path.isdir(path):
            recipe = path / "recipe.yaml"
            inside = f"The recipe of a run is inside: {recipe}" if recipe.is_file() else f"See {kind.listing}"
            raise UsageError(f"{name_or_path} is a folder; a {kind.word} is a YAML file", hint=inside)
    for path in (Path(f"{path}{suffix}") for path in paths for suffix in _YAML):
        if os.path.isfile(path):
            raise NotFoundError(f"there is no {kind.word} {name_or_path!r}; did you mean the file {path}?")
    message = f"there is no {kind.word} {name_or_path!r}"
    if given_as_file(name_or_path):
        message = f"there is no file {name_or_path}, and no {kind.word} of that name"
    if near := close(stem, names):
        message += f"; {did_you_mean(near)}"
    known = ", ".join(names) or "none"
    message += f"\n{kind.folder}/ that ships with hmdc-hub holds: {known}"
    raise NotFoundError(message, hint=f"See {kind.listing}")


def given_as_file(name: str) -> bool:
    """Tell whether a name is written like a path: with a folder, or an ending."""
    return "/" in name or os.sep in name or name.endswith(_YAML)


def find_recipe(name: str) -> Path:
    """Find the file of a recipe; errors as `find`.

    Args:
        name: A path, the name of a shipped recipe with or without `.yaml`, or `recipes/x.yaml` of a shipped one.
    """
    return find(RECIPES, name)


def read_text(path: Path, where: str) -> str:
    """Read a YAML file as text.

    Raises:
        RecipeError: It is too large, or not UTF-8.
        UsageError: It cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return decode(file.read(1 << 17), where)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error


def read_document(path: Path, where: str) -> Document:
    """Read a YAML file with its line numbers; what can be read past is left in the problems of the result.

    Args:
        path: The file.
        where: What error messages call it.

    Raises:
        RecipeError: It is no YAML file, or too large.
        UsageError: It cannot be opened.
    """
    return parse(read_text(path, where), where)


def header_of(text: str) -> str:
    """Return the comment lines that a file begins with, without their `#` and without the editor's line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(_EDITOR_LINE):
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
        text = read_text(path, path.name)
        data = parse(text, path.name).data
    except UsageError as error:
        return Entry(path.stem, path, f"cannot be read: {error.message.splitlines()[-1].strip()}", "")
    description, header = str(data.get("description", "")), header_of(text)
    if kind is MODELS:
        return Entry(path.stem, path, description, header, f"{data.get('source', '?')}:{data.get('id', '?')}")
    source, condense, pool = (data.get(key) for key in ("source", "condense", "pool"))
    ipc = condense.get("ipc") if isinstance(condense, dict) else None
    # A recipe calls a model by a name, a path, or a mapping with a name in it.
    models = pool if isinstance(pool, list) else []
    called = [str(item.get("name", "?") if isinstance(item, dict) else item) for item in models]
    return Entry(
        path.stem,
        path,
        description,
        header,
        source=str(source.get("id", "")) if isinstance(source, dict) else "",
        ipc=ipc if isinstance(ipc, int) else None,
        pool=tuple(Path(name).name.removesuffix(".yaml").removesuffix(".yml") for name in called),
    )


def copy_recipe(name: str, destination: Path, force: bool = False) -> list[Path]:
    """Copy a recipe, with the JSON schema that editors complete and check it by beside it.

    Args:
        name: A shipped recipe, or a path.
        destination: An existing folder, or a file ending in .yaml; its folder is made.
        force: Overwrite what is there.

    Returns:
        The files written, the recipe first. A schema of ours that is there already is brought up to date.

    Raises:
        NotFoundError: There is no such recipe.
        UsageError: A file is in the way, or cannot be written.
    """
    return _copy(RECIPES, name, destination, force)


def copy_model(name: str, destination: Path, force: bool = False) -> list[Path]:
    """Copy a pool entry in the same way; a recipe beside it names it as `./x.yaml`."""
    return _copy(MODELS, name, destination, force)


def _copy(kind: Kind, name: str, destination: Path, force: bool) -> list[Path]:
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
    """Return the text of a copy, comments and layout as they are.

    Its first line points at the schema beside it, its name is the new file's, and the commands of its runbook name the
    copy: `recipes/x.yaml` would go on meaning the original, `runs/x` its run.
    """
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
