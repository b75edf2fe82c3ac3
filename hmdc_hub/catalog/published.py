"""Recipes that came from the Hub: data of a stranger, in which nothing may name a file of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hmdc_hub.catalog.entries import read_document
from hmdc_hub.catalog.load import rename
from hmdc_hub.catalog.problems import check
from hmdc_hub.catalog.yaml12 import show
from hmdc_hub.errors import FormatError, NotFoundError, Problem, RecipeError, UsageError
from hmdc_hub.schema import HUB_DATASET, LOCAL, Recipe, is_local_path

_HINT = "Nothing in it was read or run. Look at the file; if you trust it, copy it and edit that line."

# What stands for a local source is a base name, in whatever alphabet.
_SOURCE = rf"builtin:\w+|torchvision:\w+|local:[^/\\\x00-\x1f\x7f]+|{HUB_DATASET}"
_MODEL = rf"{HUB_DATASET}(@[\w.-]+)?|local:[^/\\~.\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*"

_MODULE = r"[\w.<>]+@[0-9a-f]{8}"  # of a Python session: no program looks it up
_SOURCE_FILES = {".parquet"}  # what `sources` takes for a file even if it is not there
_MODEL_FILES = {
    ".bin", ".ckpt", ".gguf", ".gz", ".h5", ".json", ".msgpack", ".npy", ".npz", ".onnx", ".pickle", ".pkl", ".pt",
    ".pth", ".py", ".safetensors", ".tar", ".tgz", ".yaml", ".yml", ".zip",
}  # fmt: skip
_TAKEN = (
    "names a local path: a folder or file of that name is in the current folder, and would be read instead of what the "
    "author meant; run the command in another folder"
)
_ONLY_READ = {"name", "description", "license"}  # texts of a model that no program opens


def read_published_recipe(path: Path, *, where: str | None = None, here: bool = True) -> Recipe:
    """Read a recipe that came from the Hub; messages call it `where`.

    FormatError: it is damaged, has unknown keys, or names a local path or a file of weights, all of it in one message.
    `here`: names of the Hub that are a folder or file in the current folder are refused, too, as that would be read in
    their place; False where nothing will be read.
    """
    where = where or str(path)
    if not path.is_file():
        raise NotFoundError(f"{where} does not exist.")
    try:
        recipe = check(Recipe, rename(Recipe, read_document(path, where)), where)
        if problems := list(_local_names(recipe, here)):
            raise RecipeError(where, problems)
    except UsageError as error:
        raise FormatError(error.message, hint=_HINT) from error
    return recipe


def _local_names(recipe: Recipe, here: bool) -> Iterator[Problem]:
    source = recipe.source.id
    rule = _TAKEN if here and ":" not in source and os.path.exists(source) else ""
    file = PurePosixPath(source).suffix in _SOURCE_FILES and ":" not in source
    if file or not re.fullmatch(_SOURCE, source, re.ASCII):
        rule = "names a local path; a published recipe names builtin:, torchvision: or a Hub dataset, or local:<name>"
    if rule:
        yield Problem("source.id", None, show(source), rule)
    for place, models in (("pool", recipe.pool), ("evaluate.models", recipe.evaluate.models)):
        for number, model in enumerate(models):
            for key, text in _texts("", model.model_dump(mode="json", exclude=_ONLY_READ)):
                if key == "id" and not model.reproducible:
                    wrong = re.fullmatch(_MODULE, text, re.ASCII) is None
                elif key in ("id", "weights"):
                    wrong = _may_be_opened(text, here)
                else:  # a setting that is written like a path; branches such as refs/pr/3 are not
                    wrong = is_local_path(text) or any(part in text for part in ("\\", "..", "\0"))
                if wrong:
                    rule = "names a local path or file, which a published recipe may not"
                    yield Problem(f"{place}.{number}.{key}", None, show(text), rule)


def _may_be_opened(text: str, here: bool) -> bool:
    """Tell whether an id or weights could make a program open a file of this machine."""
    # A placeholder for an author's file keeps that file's name; nothing opens it.
    suffix = "" if text.startswith(LOCAL) else PurePosixPath(text.partition("@")[0]).suffix.lower()
    # A bare name such as `mlp` is a folder's by chance; a file of that name, or a path, would be opened.
    taken = here and (os.path.isfile(text) or ("/" in text and os.path.exists(text)))
    return suffix in _MODEL_FILES or taken or not re.fullmatch(_MODEL, text, re.ASCII)


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Give every text of a model that a program may act upon, names in mappings included, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    for name, part in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        inner = f"{key}.{name}".lstrip(".")
        if key and isinstance(name, str):
            yield inner, name
        yield from _texts(inner, part)
