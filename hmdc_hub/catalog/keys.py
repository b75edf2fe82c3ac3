"""What the schema allows at each dotted key, in plain words: error messages and the recipe reference come from here."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hmdc_hub.schema import ModelSpec
from hmdc_hub.schema.base import NAME
from hmdc_hub.yaml12 import show

_LIMITS = ("ge", "gt", "le", "lt", "min_length", "pattern", "max_length")


@dataclass(frozen=True)
class Key:
    """One place in a file.

    Attributes:
        path: The parts of the dotted key; entries of a list by index.
        kind: Type that stands there, limits and "or null" included.
        field: Field of the schema; for an entry of a list or mapping the one that holds the list or mapping.
        entry: Whether the key is such an entry.
    """

    path: tuple[str, ...]
    kind: Any
    field: FieldInfo
    entry: bool = False

    @property
    def dotted(self) -> str:
        """The key as text, such as `pool.0.lr.condense`."""
        return ".".join(self.path)


def bare(kind: Any) -> tuple[Any, dict[str, Any]]:
    """Take the limits off a type: `Annotated[int, Ge(1)]` is int and `{"ge": 1}`; "or null" stays."""
    limits: dict[str, Any] = {}
    while get_origin(kind) is Annotated:
        kind, *metadata = get_args(kind)
        flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        for part in flat:
            limits |= {name: getattr(part, name) for name in _LIMITS if getattr(part, name, None) is not None}
    return kind, limits


def choices(kind: Any) -> list[Any]:
    """List the alternatives of a type: `int | None` has two, `int` one."""
    inner, _ = bare(kind)
    return list(get_args(inner)) if get_origin(inner) in (Union, types.UnionType) else [kind]


def section(kind: Any) -> type[BaseModel] | None:
    """Return the model of a type that is a section of its own, None for any other."""
    for choice in choices(kind):
        inner, _ = bare(choice)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def is_list(kind: Any) -> bool:
    """Tell whether a type takes a list."""
    return any(get_origin(bare(choice)[0]) is list for choice in choices(kind))


def kind_of(field: FieldInfo) -> Any:
    """Return the type of a field with the limits that pydantic keeps beside it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def children(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[Key]:
    """List the keys of one section."""
    return [Key((*path, name), kind_of(field), field) for name, field in model.model_fields.items()]


def key_at(model: type[BaseModel], path: Sequence[str | int]) -> Key | None:
    """Find what stands at a path, None if the schema has no such key.

    Args:
        model: Schema of the whole file.
        path: Parts of a dotted key, list entries as numbers or text.
    """
    here: Key | None = None
    inside: type[BaseModel] | None = model
    for part in map(str, path):
        done = here.path if here else ()
        if inside is not None:
            if part not in inside.model_fields:
                return None
            field = inside.model_fields[part]
            here = Key((*done, part), kind_of(field), field)
        elif here is not None and (item := _entry_kind(here.kind, part)) is not None:
            here = Key((*done, part), item, here.field, entry=True)
        else:
            return None
        inside = section(here.kind)
    return here


def _entry_kind(kind: Any, part: str) -> Any:
    for choice in choices(kind):
        inner, _ = bare(choice)
        if get_origin(inner) is list and part.isdecimal():
            return get_args(inner)[0]
        if get_origin(inner) is dict:
            return get_args(inner)[1]
    return None


def all_keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Go through every key of a file, sections before what is in them; entries of lists are left out."""
    for key in children(model, path):
        yield key
        inner = section(key.kind)
        if inner is not None:
            yield from all_keys(inner, key.path)


def expected(kind: Any) -> str:
    """Say what a type takes, as the rest of "must be ...": "a whole number of at least 1"."""
    options = choices(kind)
    if float in options and int in options:
        options.remove(int)  # "a number" says it
    # A list comes last: "null or a list, each a number" has one meaning.
    parts = [_expected_one(option) for option in sorted(options, key=is_list)]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _expected_one(kind: Any) -> str:
    inner, limits = bare(kind)
    origin = get_origin(inner)
    if inner is ModelSpec:
        return "a name in model_pool/ or a mapping"
    if section(inner) is not None:
        return "a section of keys and values, indented below it"
    if origin is Literal:
        values = ", ".join(show(value) for value in get_args(inner))
        return values if len(get_args(inner)) == 1 else f"one of {values}"
    if origin is list:
        least = "a list of at least 1 entry" if limits.get("min_length") else "a list"
        return f"{least}, each {expected(get_args(inner)[0])}"
    if origin is dict:
        return f"a mapping of names to values, each {expected(get_args(inner)[1])}"
    if inner is str:
        return _text(limits)
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return words[inner] + _range(limits)


def _text(limits: dict[str, Any]) -> str:
    if limits.get("pattern") == NAME:
        most = f"at most {limits['max_length']} " if "max_length" in limits else ""
        return f"a name of {most}letters, digits, '.', '_' and '-' that begins with a letter or digit"
    return "text that is not empty" if limits.get("min_length") else "text"


def _range(limits: dict[str, Any]) -> str:
    match limits:
        case {"ge": low, "le": high}:
            return f" from {low} to {high}"
        case {"ge": low, "lt": high}:
            return f" of at least {low} and below {high}"
        case {"gt": low}:
            return f" above {low}"
        case {"ge": low}:
            return f" of at least {low}"
    return ""


def example_value(key: Key) -> str:
    """Write a value that would be right at a key, as YAML; empty if the schema has none."""
    if key.entry:
        return ""
    if key.field.examples:
        first = key.field.examples[0]
        return first if isinstance(first, str) else show(first)
    inner = section(key.kind)
    if inner is None:
        return ""
    needed = [child for child in children(inner) if child.field.is_required()] or children(inner)[:1]
    return "{" + ", ".join(f"{child.path[-1]}: {example_value(child)}" for child in needed) + "}"


def close(word: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Pick up to three names that look like the word, best first; case is no matter."""
    lower = {name.lower(): name for name in names}
    return [lower[match] for match in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=cutoff)]


def did_you_mean(names: Sequence[str]) -> str:
    """Turn close names, one or more, into "did you mean a, b or c?"."""
    first = ", ".join(names[:-1])
    return f"did you mean {first} or {names[-1]}?" if first else f"did you mean {names[-1]}?"


def similar_keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Find what somebody who wrote an unknown key may have meant, best first, as dotted keys; empty if nothing is near.

    Args:
        schema: Schema of the whole file.
        path: Parts of the unknown key.
    """
    *parent, word = path
    here = key_at(schema, parent)
    inside = section(here.kind) if here else None if parent else schema
    if inside is not None and (near := close(word, inside.model_fields)):
        return [".".join((*parent, near[0]))]
    dotted = [key.dotted for key in all_keys(schema)]
    if near := close(".".join(path), dotted, cutoff=0.85):
        return near[:1]
    last = [name.split(".")[-1] for name in dotted]
    words = [word] if word in last else close(word, last, cutoff=0.75)[:1]
    return [name for name, other in zip(dotted, last, strict=True) if other in words][:3]
