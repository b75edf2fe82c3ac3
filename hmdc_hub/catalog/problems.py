"""Check a file that was read against its schema: pydantic's sentences, with line, value and a line that is right.

What may stand where, and what would be right there, is looked up in the JSON schema of the pydantic model.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hmdc_hub.catalog.yaml12 import Document, plain, show
from hmdc_hub.errors import Problem, RecipeError
from hmdc_hub.schema import NAME
from hmdc_hub.text import close, did_you_mean

Model = TypeVar("Model", bound=BaseModel)
Node = Mapping[str, Any]  # a part of a JSON schema: what may stand at one key


@cache
def schema_of(model: type[BaseModel]) -> Node:
    """Return the JSON schema of a model with its references written out; `summary` is what a section says of itself."""
    whole = model.model_json_schema()

    def written_out(node: Any) -> Any:
        if isinstance(node, list):
            return [written_out(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            target = whole["$defs"][node["$ref"].rpartition("/")[2]]
            node = {**target, "summary": target["description"], **node}
        return {key: written_out(item) for key, item in node.items() if key not in ("$ref", "$defs")}

    return dict(written_out(whole))


def options(node: Node) -> list[Node]:
    """List the alternatives of a key: `int | None` has two, a section one."""
    return list(node.get("anyOf") or node.get("oneOf") or [node])


def section(node: Node) -> Node | None:
    """Return the keys below a key, None if it has none of its own."""
    return next((option["properties"] for option in options(node) if "properties" in option), None)


def node_at(model: type[BaseModel], path: Sequence[str | int]) -> Node | None:
    """Find what may stand at a path, entries of lists as numbers or text; None if the schema has no such key."""
    node: Node | None = schema_of(model)
    for part in map(str, path):
        inside = [(option, option.get("additionalProperties")) for option in options(node or {})]
        found = [option["properties"].get(part) if "properties" in option else more for option, more in inside]
        found += [option["items"] for option, _ in inside if "items" in option and part.isdecimal()]
        node = next((one for one in found if isinstance(one, dict)), None)
        if node is None:
            return None
    return node


def all_keys(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Go through every key of a file, dotted, sections before what is in them; entries of lists are left out."""
    for name, inner in (section(node) or {}).items():
        yield prefix + name, inner
        yield from all_keys(inner, f"{prefix}{name}.")


def example_value(node: Node) -> str:
    """Write a value that would be right at a key, as YAML; empty if the schema has none."""
    if node.get("examples"):
        first = node["examples"][0]
        return first if isinstance(first, str) else show(first)
    if (inner := section(node)) is not None:
        names = node.get("required") or list(inner)[:1]
        return "{" + ", ".join(f"{name}: {example_value(inner[name])}" for name in names) + "}"
    return "" if node.get("default") in (None, "") else show(node["default"])


def unknown_key(model: type[BaseModel], path: Sequence[str]) -> str:
    """Say that a key is not known, and which one may have been meant: one beside it, else one of the whole file."""
    *parent, word = path
    above = node_at(model, parent)
    here = section(above or {})
    near = [".".join((*parent, name)) for name in close(word, here or (), most=1)]
    if not near:
        dotted = [name for name, _ in all_keys(schema_of(model))]
        last = [name.rpartition(".")[2] for name in dotted]
        words = [word] if word in last else close(word, last, most=1, cutoff=0.75)
        near = close(".".join(path), dotted, most=1, cutoff=0.85)
        near = near or [name for name, other in zip(dotted, last, strict=True) if other in words][:3]
    if near:
        return f"is not a known key; {did_you_mean(near)}"
    if here is not None:
        return f"is not a known key; the keys here are {', '.join(here)}"
    if above is not None and any("items" in option for option in options(above)):
        return f"is not a known key; {'.'.join(parent)} is a list; its entries are numbered from 0"
    return "is not a known key" + (f"; {'.'.join(parent)} has no keys below it" if above is not None else "")


def check(model: type[Model], document: Document, where: str) -> Model:
    """Check a file, overrides applied, against its schema.

    RecipeError holds all problems in the order of their lines, overrides last; those of the document, and of the
    others what does not follow from them.
    """
    checked: Model | None = None
    found: dict[tuple[str, ...], list[Any]] = {}
    try:
        checked = model.model_validate(document.data)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            path = tuple(map(str, one["loc"]))
            while one["type"] != "extra_forbidden" and node_at(model, path) is None:
                path = path[:-1]  # pydantic adds the alternatives of a union to the path
            found.setdefault(path, []).append(one)
    problems = list(dict.fromkeys(document.problems))
    spoiled = [problem.key for problem in problems if problem.key]
    for path, errors in found.items():
        problem = _problem(model, document, path, errors)
        below = any(problem.key == key or problem.key.startswith(f"{key}.") for key in spoiled)
        around = problem.key and any(key.startswith(f"{problem.key}.") for key in spoiled)
        if not below and not (around and errors[0]["type"] != "extra_forbidden"):
            problems.append(problem)
    if checked is None or problems:
        raise RecipeError(where, sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0)))
    return checked


def line_of(document: Document, path: Sequence[str]) -> int | None:
    """Find the line of a key, or of the nearest section around it; None if an override set it or no line is known."""
    return _origin(document, path) or None


def _origin(document: Document, path: Sequence[str]) -> int | None:
    known = (document.lines.get(".".join(path[:length]), -1) for length in range(len(path), 0, -1))
    return next((line for line in known if line != -1), 0)


def example_line(model: type[BaseModel], document: Document, path: Sequence[str]) -> str:
    """Write a line that would be right at a key: `ipc: 10`, or `-o condense.ipc=10` where an override set it."""
    node, above = node_at(model, path), node_at(model, path[:-1])
    if node is None or section(above or {}) is None or not (value := example_value(node)):
        return ""
    line, override = _origin(document, path), f"{'.'.join(path)}={value}"
    return f"-o {shlex.quote(override)}" if line is None else f"{path[-1]}: {value}"


def _problem(model: type[BaseModel], document: Document, path: tuple[str, ...], errors: list[Any]) -> Problem:
    """Turn what pydantic says of one key, once for each alternative of a union, into one problem."""
    kind = errors[0]["type"]
    if kind == "value_error":  # a rule about several keys; a message that begins with a dotted key stands at that key
        message = str(errors[0]["ctx"]["error"])
        word, _, rest = message.partition(" ")
        names = word.rstrip(":").split(".")
        if re.fullmatch(r"\w+(\.\w+)+:?", word) and names[: len(path)] == list(path):
            path, message = tuple(names), rest
        key = ".".join(path)
        return Problem(document.former.get(key, key), line_of(document, path or names), "", message)
    key, line = ".".join(path), line_of(document, path)
    if kind == "missing":
        example = example_line(model, document, path)
        return Problem(key, line_of(document, path[:-1]), "", errors[0]["msg"], example)
    value: Any = document.data
    for part in path:
        value = value[int(part) if isinstance(value, list) else part]
    if kind == "extra_forbidden":
        return Problem(key, line, show(value), unknown_key(model, path))
    messages = list(dict.fromkeys(_plain_words(one) for one in errors))
    rule = messages[0] + "".join(f" or {text.removeprefix('Input should be ')}" for text in messages[1:])
    rule += _remark({one["type"] for one in errors}, value, node_at(model, path) or {}, errors[0])
    return Problem(document.former.get(key, key), line, show(value), rule, example_line(model, document, path))


def _plain_words(error: Mapping[str, Any]) -> str:
    """Give pydantic's sentence, or ours where its own speaks of Python and regular expressions."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "model_type" and context["class_name"] == "ModelSpec":
        return "Input should be a name in model_pool/ or a mapping"
    if kind == "model_type":
        return "Input should be a section: keys and values, indented below it"
    if kind == "dict_type":
        return "Input should be a mapping of names to values"
    if kind == "string_pattern_mismatch" and context["pattern"] == NAME:
        return "Name should have letters, digits, '.', '_' and '-' only, and begin with a letter or digit"
    return str(error["msg"])


def _remark(kinds: set[str], value: Any, node: Node, error: Mapping[str, Any]) -> str:
    """Say what this value should probably have been; empty if that is not clear."""
    if value is None:
        return f"; leave the key out for the default, {show(node['default'])}" if "default" in node else "; it is empty"
    if "list_type" in kinds and not isinstance(value, list | dict):
        return f"; write [{show(value)}]"
    if kinds == {"string_type"} and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if "int_type" in kinds and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if not isinstance(value, str):
        return ""
    choices = re.findall(r"'(.*?)'", str(error.get("ctx", {}).get("expected", "")))
    if near := close(value, choices, most=1):
        return f"; {did_you_mean(near)}"
    if "bool_type" in kinds and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"; {value} is text in YAML 1.2, true and false are not"
    if kinds & {"int_type", "float_type", "bool_type", "literal_error"} and not isinstance(plain(value), str):
        return "; write it without quotes"
    lists = any("items" in option for option in options(node))
    if "int_type" in kinds and lists and re.fullmatch(r"[1-9]\d*( *, *[1-9]\d*)+", value):
        return f"; write [{', '.join(re.findall('[0-9]+', value))}]"
    if kinds & {"int_type", "float_type"} and re.fullmatch(r"[-+]?\d+([_, ]\d+)+", value):
        return f"; write {re.sub('[_, ]', '', value)}"
    return "; write a space after each colon" if ":" in value and kinds & {"model_type", "dict_type"} else ""
