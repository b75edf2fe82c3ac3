"""Check a file that was read against its schema and say everything that is wrong in plain words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hmdc_hub.catalog.keys import (
    Key,
    bare,
    choices,
    close,
    did_you_mean,
    example_value,
    expected,
    is_list,
    key_at,
    section,
    similar_keys,
)
from hmdc_hub.errors import Problem
from hmdc_hub.yaml12 import Document, plain, show

Model = TypeVar("Model", bound=BaseModel)
Path = tuple[str | int, ...]

_YES_NO = {"yes", "no", "on", "off", "y", "n"}


def check(schema: type[Model], document: Document) -> tuple[Model | None, list[Problem]]:
    """Check a file against its schema.

    Args:
        schema: What the file must be.
        document: The file, overrides applied; its own problems are among those returned, and what follows from them
            is left out.

    Returns:
        The checked values, None if anything is wrong; all problems in the order of their lines, overrides last.
    """
    checked: Model | None = None
    found = list(_wrong_type_in_choice(schema, document))
    try:
        checked = schema.model_validate(document.data)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            found.append(_problem(schema, document.lines, one["loc"], one["type"], one["input"], one.get("ctx", {})))
    spoiled = [problem.key for problem in document.problems if problem.key]
    problems = list(dict.fromkeys(document.problems))
    reported = set(spoiled)
    for problem in found:
        if problem.key in reported or _follows(problem, spoiled):
            continue
        problems.append(problem)
        if problem.key:
            reported.add(problem.key)
    ordered = sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))
    return (None if ordered else checked), ordered


def line_of(lines: Mapping[str, int | None], path: Sequence[str | int]) -> int | None:
    """Find the line of a key, or of the nearest section around it; None if an override set it or no line is known."""
    for length in range(len(path), 0, -1):
        dotted = ".".join(map(str, path[:length]))
        if dotted in lines:
            return lines[dotted]
    return None


def unknown_key(schema: type[BaseModel], path: Sequence[str], *, full: bool = False) -> str:
    """Say that a key is not known, and which one may have been meant.

    Args:
        schema: Schema of the whole file.
        path: Parts of the key.
        full: Name a key of the same section in full, too.
    """
    if near := similar_keys(schema, path):
        beside = [name for name in near if not full and name.split(".")[:-1] == list(path[:-1])]
        return f"is not a known key; {did_you_mean([beside[0].split('.')[-1]] if beside else near)}"
    parent = key_at(schema, path[:-1])
    inside = section(parent.kind) if parent else schema
    return f"is not a known key; the keys here are {', '.join(inside.model_fields)}" if inside else "is not a known key"


def example_line(key: Key, lines: Mapping[str, int | None]) -> str:
    """Write a line that would be right at a key: `ipc: 10`, or `-o condense.ipc=10` where an override set it."""
    value = example_value(key)
    if not value:
        return ""
    if _is_overridden(lines, key.path):
        return f"-o {shlex.quote(f'{key.dotted}={value}')}"
    return f"{key.path[-1]}: {value}"


def _is_overridden(lines: Mapping[str, int | None], path: Sequence[str]) -> bool:
    for length in range(len(path), 0, -1):
        dotted = ".".join(path[:length])
        if dotted in lines:
            return lines[dotted] is None
    return False


def _follows(problem: Problem, spoiled: Sequence[str]) -> bool:
    """Tell whether a problem only says again that a value could not be read."""
    again = any(problem.key.startswith(f"{key}.") for key in spoiled)
    around = bool(problem.key) and any(key.startswith(f"{problem.key}.") for key in spoiled)
    return again or (around and "known key" not in problem.rule)


def _problem(
    schema: type[BaseModel], lines: Mapping[str, int | None], loc: Path, kind: str, value: Any, context: dict[str, Any]
) -> Problem:
    """Turn one complaint of pydantic into a problem in plain words."""
    path = tuple(map(str, loc))
    if kind == "extra_forbidden":
        return Problem(".".join(path), line_of(lines, path), show(value), unknown_key(schema, path))
    if kind == "value_error":
        return _broken_rule(lines, path, str(context["error"]))
    key = key_at(schema, path)
    while key is None:  # pydantic adds the alternatives of a union to the path
        path = path[:-1]
        key = key_at(schema, path) if path else None
        if not path:
            return Problem("", 1, show(value), "must be keys and values")
    example = example_line(key, lines)
    if kind == "missing":
        rule = f"is missing; it must be {expected(key.kind)}"
        return Problem(key.dotted, line_of(lines, path[:-1]), "", rule, example)
    rule = f"must be {expected(key.kind)}{_remark(key, value)}"
    return Problem(key.dotted, line_of(lines, path), show(value), rule, example)


def _broken_rule(lines: Mapping[str, int | None], path: tuple[str, ...], message: str) -> Problem:
    """Place a rule about several keys; a message that begins with a dotted key stands at that key."""
    word, _, rest = message.partition(" ")
    name = word.rstrip(":")
    if re.fullmatch(r"\w+(\.\w+)+", name) and name.split(".")[: len(path)] == list(path):
        return Problem(name, line_of(lines, name.split(".")), "", rest)
    return Problem(".".join(path), line_of(lines, path or (name,)), "", message)


def _remark(key: Key, value: Any) -> str:
    """Say what this value should probably have been; empty if that is not clear."""
    kinds = [bare(choice)[0] for choice in choices(key.kind)]
    if value is None:
        optional = not key.entry and not key.field.is_required() and section(key.kind) is None
        return f"; leave the key out for the default, {show(_default(key))}" if optional else "; it is empty"
    if is_list(key.kind) and not isinstance(value, list | dict):
        return f"; write [{show(value)}]"
    if isinstance(value, str):
        return _remark_on_text(value, kinds)
    if str in kinds and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if int in kinds and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def _remark_on_text(text: str, kinds: list[Any]) -> str:
    options = [option for kind in kinds if get_origin(kind) is Literal for option in get_args(kind)]
    if near := close(text, [option for option in options if isinstance(option, str)]):
        return f"; {did_you_mean(near[:1])}"
    if bool in kinds and text.lower() in _YES_NO:
        return f"; {text} is text in YAML 1.2"
    if (kinds[0] in (int, float, bool) or options) and not isinstance(plain(text), str):
        return "; write it without quotes"
    if kinds[0] in (int, float) and re.fullmatch(r"[-+]?\d+([_, ]\d+)+", text):
        return f"; write {re.sub('[_, ]', '', text)}"
    return "; write a space after each colon" if ":" in text and section(kinds[0]) is not None else ""


def _default(key: Key) -> Any:
    return key.field.get_default(call_default_factory=True, validated_data={})


def _wrong_type_in_choice(schema: type[BaseModel], document: Document) -> Iterator[Problem]:
    """Find `channels: true`, which pydantic takes for 1 although it is strict, and `channels: 3.0`."""
    for path, value in _leaves(document.data, ()):
        if not isinstance(value, bool | float):
            continue
        key = key_at(schema, path)
        for choice in choices(key.kind) if key else []:
            kind, _ = bare(choice)
            if key and get_origin(kind) is Literal and type(value) not in {type(option) for option in get_args(kind)}:
                rule = f"must be {expected(key.kind)}"
                line = line_of(document.lines, path)
                yield Problem(key.dotted, line, show(value), rule, example_line(key, document.lines))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict | list):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, str(part)))
    else:
        yield path, value
