"""Overrides of single keys: `-o condense.ipc=10`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from hmdc_hub.catalog.keys import Key, example_value, is_list, key_at, section
from hmdc_hub.catalog.problems import unknown_key
from hmdc_hub.errors import Problem, RecipeError
from hmdc_hub.yaml12 import Document, read_value

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")

Expand = Callable[[Document, tuple[str, ...]], None]
"""Replaces the name of a pool entry at a path by the mapping it stands for."""


class _Wrong(Exception):  # noqa: N818  (one override's problem, caught below)
    def __init__(self, rule: str, example: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.example = example


def looks_like_override(text: str) -> bool:
    """Tell whether a command line argument reads like `condense.ipc=10`, whose `-o` was forgotten."""
    key, equals, _ = text.partition("=")
    return bool(equals) and _KEY.fullmatch(key) is not None


def apply_overrides(schema: type[BaseModel], document: Document, overrides: Sequence[str], expand: Expand) -> None:
    """Change a file that was read, in place; what is wrong with the overrides is added to its problems.

    Args:
        schema: What the file must be; keys that it knows can be set whether or not the file has them.
        document: The file.
        overrides: `KEY=VALUE` each, in order; list entries by index, such as `pool.0.lr.condense=0.1`.
        expand: Called with the path of a pool entry that is a name, before a key below it is set.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        try:
            if not equals or not _KEY.fullmatch(key):
                example = f"-o {shlex.quote(override.replace(':', '=', 1))}" if ":" in override and not equals else ""
                key = ""
                raise _Wrong("must be KEY=VALUE with a dotted key", example or "-o condense.ipc=10")
            _apply(schema, document, tuple(key.split(".")), text, expand)
        except _Wrong as wrong:
            document.problems.append(Problem(key, None, text.strip() if key else override, wrong.rule, wrong.example))


def _apply(schema: type[BaseModel], document: Document, path: tuple[str, ...], text: str, expand: Expand) -> None:
    place = key_at(schema, path)
    if place is None:
        raise _Wrong(_not_a_key(schema, path))
    try:
        value = read_value(text)
    except RecipeError as error:
        raise _Wrong(error.problems[0].rule, _example(place)) from None
    container: Any = document.data
    for length, part in enumerate(path[:-1], start=1):
        container = _step_into(schema, document, container, path[:length], part, expand)
    if isinstance(container, list):
        container[_index(schema, container, path)] = value
    elif isinstance(container, dict):
        container[path[-1]] = value
    else:
        return  # the file has something else where a section belongs, and that is reported
    dotted = ".".join(path)
    for line in [line for line in document.lines if line.startswith(f"{dotted}.")]:
        del document.lines[line]
    document.lines[dotted] = None


def _step_into(
    schema: type[BaseModel], document: Document, container: Any, path: tuple[str, ...], part: str, expand: Expand
) -> Any:
    """Return what stands at a path, a new section if there is none yet."""
    if isinstance(container, list):
        index = _index(schema, container, path)
        if isinstance(container[index], str):
            expand(document, path)
        return container[index]
    if not isinstance(container, dict):
        return None
    if container.get(part) is None:
        key = key_at(schema, path)
        if key is not None and is_list(key.kind):
            raise _Wrong(f"{key.dotted} has no entries here; give the whole list", _example(key))
        container[part] = {}
    return container[part]


def _index(schema: type[BaseModel], items: list[Any], path: tuple[str, ...]) -> int:
    name, part = ".".join(path[:-1]), path[-1]
    if int(part) >= len(items):
        key = key_at(schema, path[:-1])
        count = "1 entry, 0" if len(items) == 1 else f"{len(items)} entries, 0 to {len(items) - 1}"
        raise _Wrong(f"{name} has {count}; to make it longer give the whole list", _example(key))
    return int(part)


def _not_a_key(schema: type[BaseModel], path: tuple[str, ...]) -> str:
    here = next((key for length in range(len(path) - 1, 0, -1) if (key := key_at(schema, path[:length]))), None)
    if here is not None and section(here.kind) is None:
        what = "is a list; its entries are numbered from 0" if is_list(here.kind) else "has no keys below it"
        return f"is not a known key; {here.dotted} {what}"
    return unknown_key(schema, path, full=True)


def _example(key: Key | None) -> str:
    value = example_value(key) if key else ""
    return f"-o {shlex.quote(f'{key.dotted}={value}')}" if key and value else ""
