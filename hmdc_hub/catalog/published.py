"""Recipes that came from the Hub: data of a stranger, in which nothing may name a file of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hmdc_hub.catalog.entries import read_document
from hmdc_hub.catalog.problems import check
from hmdc_hub.errors import FormatError, NotFoundError, Problem, RecipeError, UsageError
from hmdc_hub.schema import LOCAL, ModelSpec, Recipe, is_local_path
from hmdc_hub.yaml12 import show

_HINT = "Nothing in it was read or run. Look at the file; if you trust it, copy it and edit that line."

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
# What stands for a local source is a base name, in whatever alphabet.
_SOURCE = rf"builtin:\w+|torchvision:\w+|local:[^/\\\x00-\x1f\x7f]+|{_HUB_ID}"
_MODEL = rf"{_HUB_ID}(@[\w.-]+)?|local:[^/\\~.\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*"

_SOURCE_FILES = {".parquet"}
"""What `sources` takes for a file even if it is not there."""

_MODEL_FILES = {
    ".bin", ".ckpt", ".gguf", ".gz", ".h5", ".json", ".msgpack", ".npy", ".npz", ".onnx", ".pickle", ".pkl", ".pt",
    ".pth", ".py", ".safetensors", ".tar", ".tgz", ".yaml", ".yml", ".zip",
}  # fmt: skip

_TAKEN = (
    "names a local path: a folder or file of that name is in the current folder, and would be read instead of what the "
    "author meant; run the command in another folder"
)

_ONLY_READ = {"name", "description", "license"}
"""Texts of a model that no program opens."""


def read_published_recipe(path: Path, *, where: str | None = None, here: bool = True) -> Recipe:
    """Read a recipe that came from the Hub.

    Args:
        path: The file.
        where: What messages call it; None: the path.
        here: Also refuse names of the Hub that are a folder or file in the current folder, as that would be read in
            their place. False: what lies in the current folder does not matter, since nothing will be read.

    Raises:
        FormatError: It is damaged, has unknown keys, or names a local path or a file of weights; all of it in one
            message.
        NotFoundError: There is no such file.
    """
    where = where or str(path)
    if not path.is_file():
        raise NotFoundError(f"{where} does not exist.")
    try:
        recipe, problems = check(Recipe, read_document(path, where))
    except UsageError as error:
        raise FormatError(error.message, hint=_HINT) from error
    if recipe is not None:
        problems = [*_about_source(recipe.source.id, here), *_about_models(recipe, here)]
    if recipe is None or problems:
        raise FormatError(RecipeError(where, problems).message, hint=_HINT)
    return recipe


def _about_source(source: str, here: bool) -> Iterator[Problem]:
    file = PurePosixPath(source).suffix in _SOURCE_FILES and ":" not in source
    if file or not re.fullmatch(_SOURCE, source, re.ASCII):
        rule = "names a local path; a published recipe names builtin:, torchvision: or a Hub dataset, or local:<name>"
        yield Problem("source.id", None, show(source), rule)
    elif here and ":" not in source and _exists(Path(source)):
        yield Problem("source.id", None, show(source), _TAKEN)


def _about_models(recipe: Recipe, here: bool) -> Iterator[Problem]:
    for place, models in (("pool", recipe.pool), ("evaluate.models", recipe.evaluate.models)):
        for number, model in enumerate(models):
            for key, text in _texts(model):
                if _may_be_opened(text, here) if key in ("id", "weights") else _is_path(text):
                    rule = "names a local path or file, which a published recipe may not"
                    yield Problem(f"{place}.{number}.{key}", None, show(text), rule)


def _may_be_opened(text: str, here: bool) -> bool:
    """Tell whether an id or weights could make a program open a file of this machine."""
    # A placeholder for an author's file keeps that file's name; nothing opens it.
    suffix = "" if text.startswith(LOCAL) else PurePosixPath(text.partition("@")[0]).suffix.lower()
    # A bare name such as `mlp` is a folder's by chance; a file of that name, or a path, would be opened.
    taken = here and (_is_file(Path(text)) or ("/" in text and _exists(Path(text))))
    return suffix in _MODEL_FILES or taken or not re.fullmatch(_MODEL, text, re.ASCII)


def _is_path(text: str) -> bool:
    """Tell whether a setting is written like a path; branches such as refs/pr/3 are not."""
    return is_local_path(text) or "\\" in text or ".." in text or "\0" in text


def _texts(model: ModelSpec) -> Iterator[tuple[str, str]]:
    """Give every text of a model that a program may act upon, keys of later versions included."""

    def walk(key: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            for name, part in value.items():
                yield f"{key}.{name}", str(name)
                yield from walk(f"{key}.{name}", part)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                yield from walk(f"{key}.{number}", part)

    for name, value in model.model_dump(mode="json").items():
        if name not in _ONLY_READ:
            yield from walk(name, value)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for the file system: nothing of that name can be there
        return False


def _is_file(path: Path) -> bool:
    return _exists(path) and path.is_file()
