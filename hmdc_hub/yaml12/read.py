"""Read YAML 1.2 text into plain values; anchors, aliases, tags and merge keys are refused: people read recipes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from hmdc_hub.errors import Problem, RecipeError
from hmdc_hub.yaml12.scalars import plain, show

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16

_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INTEGER_LIMIT = 2**63


@dataclass
class Document:
    """A YAML mapping that was read.

    Attributes:
        data: Plain values: dicts with text keys, lists, text, numbers, booleans, None.
        lines: 1-based line of each dotted key, such as `pool.0.args.depth`; None where an override changed it.
        problems: What this reader refuses but could read past, in the order of their lines.
    """

    data: dict[str, Any]
    lines: dict[str, int | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _Unreadable(Exception):  # noqa: N818  (carries the problem to the two public readers, never further)
    def __init__(self, line: int | None, rule: str, value: str = "", key: str = "") -> None:
        super().__init__(rule)
        self.problem = Problem(key, line, value, rule)


def decode(data: bytes, where: str) -> str:
    """Turn the bytes of a YAML file into text.

    Raises:
        RecipeError: They are more than 64 KiB, or not UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise RecipeError(where, [Problem("", None, "", "is larger than 64 KiB, the most that is read")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        value = repr(data[error.start : error.start + 1])[1:].strip("'")
        raise RecipeError(where, [Problem("", line, value, "is not UTF-8 text; save the file as UTF-8")]) from None


def parse(text: str, where: str, *, loader: Any = _FAST) -> Document:
    """Read a YAML mapping; what can be read past is left in `problems` of the result.

    Args:
        text: The whole file.
        where: What error messages call it.
        loader: The PyYAML loader that takes the text apart.

    Raises:
        RecipeError: The text cannot be read: not YAML, empty, no mapping, several documents, too deep, too large.
    """
    try:
        reader = _Reader(text, loader)
        data = reader.document()
        if data is None:
            raise _Unreadable(None, "is empty; keys and values are expected, such as `seed: 0`")
        if not isinstance(data, dict):
            kind = "a list" if isinstance(data, list) else "a single value"
            value = "" if isinstance(data, list) else show(data)
            rule = f"holds {kind}; keys and values are expected, with a space after each colon, such as `seed: 0`"
            raise _Unreadable(1, rule, value)
    except _Unreadable as unreadable:
        raise RecipeError(where, [unreadable.problem]) from None
    return Document(data, dict(reader.lines), reader.problems)


def read_yaml(text: str, where: str) -> Document:
    """Read a YAML mapping strictly.

    Args:
        text: The whole file.
        where: What error messages call it.

    Raises:
        RecipeError: Holds everything that this reader refuses.
    """
    document = parse(text, where)
    if document.problems:
        raise RecipeError(where, document.problems)
    return document


def read_value(text: str) -> Any:
    """Read one value as it stands behind a key, such as `1e-3`, `[a, b]` or `{every: 5}`; empty text is null.

    Raises:
        RecipeError: The text is no YAML value, or one that files may not hold either.
    """
    try:
        reader = _Reader(text, _FAST)
        value = reader.document()
    except _Unreadable as unreadable:
        raise RecipeError(text, [unreadable.problem]) from None
    if reader.problems:
        raise RecipeError(text, reader.problems)
    return value


class _Reader:
    """Builds plain values from the events of one YAML text."""

    def __init__(self, text: str, loader: Any) -> None:
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise _Unreadable(None, "is larger than 64 KiB, the most that is read")
        if wrong := _NOT_TEXT.search(text):
            line = text.count("\n", 0, wrong.start()) + 1
            raise _Unreadable(line, "holds a control character, which text files do not", f"U+{ord(wrong.group()):04X}")
        self.text = text
        self.events = _events(text, loader)
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []

    def document(self) -> Any:
        """Read the one document of the text; None if there is none."""
        event = next(self.events)
        while isinstance(event, StreamStartEvent | DocumentStartEvent):
            if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
                raise _Unreadable(1, "%YAML and %TAG lines are not read; leave them out")
            event = next(self.events)
        if isinstance(event, StreamEndEvent):
            return None
        value = self._node(event, "", 0)
        next(self.events)
        if isinstance(event := next(self.events), DocumentStartEvent):
            raise _Unreadable(_line(event), "a second document begins here (---); a file holds one")
        return value

    def _refuse(self, key: str, event: Event, rule: str, value: str = "") -> None:
        self.problems.append(Problem(key, _line(event), value, rule))

    def _node(self, event: Event, key: str, depth: int) -> Any:
        if isinstance(event, AliasEvent):
            self._refuse(key, event, "aliases are not read; write the value out", f"*{event.anchor}")
            return None
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self._refuse(key, event, "anchors are not read; write the value without it", f"&{event.anchor}")
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(key, event, "tags are not read; write the value without it", tag)
        if isinstance(event, ScalarEvent):
            return self._scalar(event, key)
        if depth == MAX_DEPTH:
            raise _Unreadable(_line(event), f"is nested more than {MAX_DEPTH} levels deep", key=key[:60])
        if isinstance(event, MappingStartEvent):
            return self._mapping(key, depth)
        items: list[Any] = []
        while not isinstance(event := next(self.events), CollectionEndEvent):
            item = _join(key, str(len(items)))
            self.lines[item] = _line(event)
            items.append(self._node(event, item, depth + 1))
        return items

    def _mapping(self, where: str, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), CollectionEndEvent):
            name = self._key(event, where)
            key = _join(where, name or "")
            value = next(self.events)
            if name is None:
                self._skip(value)
            elif name in mapping:
                self._refuse(key, event, f"stands here a second time; the first is on line {self.lines[key]}")
                self._skip(value)
            else:
                self.lines[key] = _line(event)
                mapping[name] = self._node(value, key, depth + 1)
                nothing = isinstance(value, ScalarEvent) and _is_plain(value) and not value.value
                if ":" in name and _is_plain(event) and nothing:
                    self._refuse(key, event, "needs a space after the colon")
        return mapping

    def _key(self, event: Event, where: str) -> str | None:
        """Read a key; None, with the problem noted, if it is none."""
        if not isinstance(event, ScalarEvent):
            self._skip(event)
            self._refuse(_join(where, "?"), event, "a key must be text, not a list or mapping")
            return None
        if _is_plain(event) and event.value == "<<":
            self._refuse(_join(where, "<<"), event, "merge keys are not read; write the keys out")
            return None
        key = _join(where, event.value[:60])
        name = self._node(event, key, 0)
        if not isinstance(name, str):
            self._refuse(key, event, "a key must be text; put it in quotes if it is meant")
            return None
        return name

    def _scalar(self, event: ScalarEvent, key: str) -> Any:
        if not _is_plain(event):
            if any("\ud800" <= character <= "\udfff" for character in event.value):
                self._refuse(key, event, "holds half a surrogate pair, which is no character")
            return event.value
        value = plain(event.value)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(key, event, "must be a finite number", event.value[:60])
        elif isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            self._refuse(key, event, "is too large; whole numbers have 64 bits", event.value[:60])
        return value

    def _skip(self, event: Event) -> None:
        """Read past a node without looking at it."""
        depth = 0
        while True:
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth == 0:
                return
            event = next(self.events)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _line(event: Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def _is_plain(event: Event) -> bool:
    return isinstance(event, ScalarEvent) and bool(event.implicit[0])


def _events(text: str, loader: Any) -> Iterator[Event]:
    try:
        yield from yaml.parse(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text.splitlines()) from None


# What PyYAML (both its parsers) says, and what it means to somebody who writes a recipe.
_SYNTAX = (
    ("mapping values are not allowed", "a colon stands where none can; is the line indented like its neighbours, and "
     "is text that holds a colon in quotes?"),
    ("could not find expected ':'", "is neither a key nor a value; a key needs a colon and a space after it, a list "
     "entry a dash and a space"),
    ("unexpected end of stream", "a quote opens here and is never closed"),
    ("',' or ']'", "a bracket [ opens here and is not closed"),
    ("',' or '}'", "a brace { opens here and is not closed"),
    ("sequence entries are not allowed", "a list entry cannot begin here; begin it on a line of its own"),
    ("node content", "a value is missing before this"),
    ("unknown escape character", "holds an escape that does not exist; single quotes take a backslash as it is"),
    ("invalid Unicode character escape", "holds half a surrogate pair, which is no character"),
    ("cannot start any token", "text that begins with @, ` or % must be in quotes"),
    ("<block end>", "does not continue what is above; is it indented like its neighbours?"),
    ("did not find expected", "does not continue what is above; is it indented like its neighbours?"),
)  # fmt: skip


def _syntax(error: yaml.MarkedYAMLError, lines: list[str]) -> _Unreadable:
    said = error.problem or ""
    opened = any(part in said for part in ("end of stream", "',' or"))
    key_alone = "could not find expected ':'" in said
    mark = (error.context_mark if opened or key_alone else None) or error.problem_mark
    number = mark.line + 1 if mark is not None else 1
    line = lines[number - 1] if number <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in said:
        return _Unreadable(number, "is indented with a tab; YAML takes spaces only", line.strip()[:60])
    if "node content" in said and mark is not None and not "".join(lines[mark.line :])[mark.column :].strip():
        return _Unreadable(number, "a bracket or brace opens and is not closed", line.strip()[:60])
    rule = next((rule for part, rule in _SYNTAX if part in said), f"is not YAML: {said}")
    return _Unreadable(number, rule, line.strip()[:60])
