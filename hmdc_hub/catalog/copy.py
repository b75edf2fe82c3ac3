"""Copy a shipped recipe or pool entry to where its new owner edits it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from hmdc_hub.catalog.entries import MODELS, RECIPES, Kind, find, shipped_folder
from hmdc_hub.errors import UsageError
from hmdc_hub.schema.base import NAME
from hmdc_hub.yaml12 import decode, show

_EDITOR_LINE = "# yaml-language-server: $schema="


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
    if target.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{target} is neither an existing folder nor a file that ends in .yaml")
    if re.match(NAME, target.stem) is None:
        raise UsageError(f"{target.name} cannot name a {kind.word}: letters, digits, '.', '_' and '-' can")
    schema, new_schema = shipped_folder(kind) / kind.schema, target.parent / kind.schema
    _refuse_to_overwrite(target, schema, new_schema, force)
    text = _for_its_new_place(original, target, kind)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        if not (new_schema.exists() and new_schema.samefile(schema)):
            shutil.copyfile(schema, new_schema)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from error
    return [target, new_schema]


def _refuse_to_overwrite(target: Path, schema: Path, new_schema: Path, force: bool) -> None:
    in_the_way = target if target.exists() else new_schema if not _is_ours(schema, new_schema) else None
    if in_the_way is None:
        return
    if not force:
        raise UsageError(f"{in_the_way} exists already", hint="Choose another name, or overwrite it with --force.")
    if in_the_way.is_dir():
        raise UsageError(f"{in_the_way} is a folder")


def _is_ours(schema: Path, other: Path) -> bool:
    """Tell whether a file that may be there is some version of the same schema, which can be brought up to date."""
    try:
        return bool(json.loads(other.read_bytes())["title"] == json.loads(schema.read_bytes())["title"])
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _for_its_new_place(original: Path, target: Path, kind: Kind) -> str:
    """Return the text of a copy.

    Its first line points at the schema beside it, its name is the new file's, and the commands of its runbook name the
    copy: `recipes/x.yaml` would go on meaning the original, `runs/x` its run.
    """
    named = re.compile(rf"name:\s+[\"']?{re.escape(original.stem)}[\"']?\s*(#.*)?")
    lines = []
    for line in decode(original.read_bytes(), str(original)).splitlines():
        if named.fullmatch(line):
            line = f"name: {show(target.stem)}"
        if not line.startswith(_EDITOR_LINE):
            lines.append(_moved(line, original.stem, target, kind) if line.startswith("#") else line)
    return "\n".join([_EDITOR_LINE + kind.schema, *lines]) + "\n"


def _moved(line: str, stem: str, target: Path, kind: Kind) -> str:
    line = line.replace(f"{kind.folder}/{stem}.yaml", target.name).replace(f"runs/{stem}/", f"runs/{target.stem}/")
    # What else ships is found by its name, wherever the copy lies.
    return re.sub(rf"{kind.folder}/([\w-]+)\.yaml", r"\1", line)
