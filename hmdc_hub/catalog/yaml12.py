"""Read YAML 1.2 with a line number for every key, and write YAML that 1.1 and 1.2 readers take for the same values.

PyYAML takes the text apart into events; what an unquoted scalar means is decided here, by the core schema of YAML 1.2.2
(section 10.3.2): PyYAML's YAML 1.1 reads `1e-3` as text, `off` as false, `12:30` as 750, and keeps the last of two
equal keys. (ruamel.yaml reads `1_000`, `0b11` and `2024-01-01` as no text, fails at `=`, and is forty times slower.)
Anchors, aliases, tags and merge keys are refused: people read recipes. (Nodes, as `yaml.compose` gives them, no longer
know of anchors.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml
from yaml import events

from hmdc_hub.errors import Problem, RecipeError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16

_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TOO_LARGE = "is larger than 64 KiB, the most that is read"

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def plain(text: str) -> Any:
    """Say what an unquoted scalar means: None, a bool, an int, a float (maybe not finite) or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        # int() refuses thousands of digits; that many are too large whatever they are.
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base) if len(text) < 100 else math.inf
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return float(re.sub(r"\.(?=[a-z])", "", text.lower()))
    return text


def show(value: Any, limit: int = 60) -> str:
    """Write a value on one line as YAML would have it, shortened: text that looks like something else quoted."""
    if isinstance(value, str):
        bare = plain(value) == value and value == value.strip() and value.isprintable()
        text = value if bare else '"' + value.encode("unicode_escape", "replace").decode().replace('"', '\\"') + '"'
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass
class Document:
    """A YAML mapping that was read; keys are dotted, such as `pool.0.args.depth`."""

    data: dict[str, Any]  # plain values: dicts with text keys, lists, text, numbers, booleans, None
    # 1-based line of each key; None where `-o` set it, 0 where Python code did
    lines: dict[str, int | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)  # what is refused but could be read past, in order of lines
    former: dict[str, str] = field(default_factory=dict)  # the names that keys had in the file, by those of today
    notes: list[str] = field(default_factory=list)  # what the user should be told of such names, a sentence each


def decode(data: bytes, where: str) -> str:
    """Turn the bytes of a YAML file into text; RecipeError if they are more than 64 KiB, or not UTF-8."""
    if len(data) > MAX_BYTES:
        raise RecipeError(where, [Problem("", None, "", _TOO_LARGE)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        value = repr(data[error.start : error.start + 1])[1:].strip("'")
        raise RecipeError(where, [Problem("", line, value, "is not UTF-8 text; save the file as UTF-8")]) from None


def parse(text: str, where: str, *, loader: Any = _FAST) -> Document:
    """Read a YAML mapping; what can be read past is left in `problems` of the result, anything else is RecipeError."""
    reader = _Reader(text, where, loader)
    data = reader.document()
    if data is None:
        raise reader.unreadable(None, "is empty; keys and values are expected, such as `seed: 0`")
    if not isinstance(data, dict):
        kind, value = ("a list", "") if isinstance(data, list) else ("a single value", show(data))
        rule = f"holds {kind}; keys and values are expected, with a space after each colon, such as `seed: 0`"
        raise reader.unreadable(1, rule, value)
    return Document(data, dict(reader.lines), reader.problems)


def read_yaml(text: str, where: str) -> Document:
    """Read a YAML mapping strictly: RecipeError holds everything that this reader refuses."""
    document = parse(text, where)
    if document.problems:
        raise RecipeError(where, document.problems)
    return document


def read_value(text: str) -> Any:
    """Read one value as it stands behind a key, such as `1e-3`, `[a, b]` or `{every: 5}`; empty text is null."""
    reader = _Reader(text, text, _FAST)
    value = reader.document()
    if reader.problems:
        raise RecipeError(text, reader.problems)
    return value


class _Reader:
    """Builds plain values from the events of one YAML text, which need no stack: depth is limited here."""

    def __init__(self, text: str, where: str, loader: Any) -> None:
        self.where = where
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise self.unreadable(None, _TOO_LARGE)
        if wrong := _NOT_TEXT.search(text):
            line, value = text.count("\n", 0, wrong.start()) + 1, f"U+{ord(wrong.group()):04X}"
            raise self.unreadable(line, "holds a control character, which text files do not", value)
        self.events = self._events(text, loader)

    def unreadable(self, line: int | None, rule: str, value: str = "", key: str = "") -> RecipeError:
        return RecipeError(self.where, [Problem(key, line, value, rule)])

    def document(self) -> Any:
        """Read the one document of the text; None if there is none."""
        event = next(self.events)
        while isinstance(event, events.StreamStartEvent | events.DocumentStartEvent):
            if isinstance(event, events.DocumentStartEvent) and (event.version or event.tags):
                raise self.unreadable(1, "%YAML and %TAG lines are not read; leave them out")
            event = next(self.events)
        if isinstance(event, events.StreamEndEvent):
            return None
        value = self._node(event, "", 0)
        next(self.events)
        if isinstance(event := next(self.events), events.DocumentStartEvent):
            raise self.unreadable(_line(event), "a second document begins here (---); a file holds one")
        return value

    def _events(self, text: str, loader: Any) -> Iterator[events.Event]:
        try:
            yield from yaml.parse(text, Loader=loader)
        except yaml.MarkedYAMLError as error:
            said, lines = error.problem or "", text.splitlines()
            begins = any(part in said for part in ("end of stream", "',' or", "could not find expected ':'"))
            mark = (error.context_mark if begins else None) or error.problem_mark
            number = mark.line + 1 if mark is not None else 1
            line = lines[number - 1] if number <= len(lines) else ""
            rule = next((rule for part, rule in _SYNTAX.items() if part in said), f"is not YAML: {said}")
            if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in said:
                rule = "is indented with a tab; YAML takes spaces only"
            elif "node content" in said and mark is not None and not "".join(lines[mark.line :])[mark.column :].strip():
                rule = "a bracket or brace opens and is not closed"
            raise self.unreadable(number, rule, line.strip()[:60]) from None

    def _refuse(self, key: str, event: events.Event, rule: str, value: str = "") -> None:
        self.problems.append(Problem(key, _line(event), value, rule))

    def _node(self, event: events.Event, key: str, depth: int) -> Any:
        if isinstance(event, events.AliasEvent):
            self._refuse(key, event, "aliases are not read; write the value out", f"*{event.anchor}")
            return None
        if isinstance(event, events.NodeEvent) and event.anchor is not None:
            self._refuse(key, event, "anchors are not read; write the value without it", f"&{event.anchor}")
        if isinstance(event, events.ScalarEvent | events.CollectionStartEvent) and event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(key, event, "tags are not read; write the value without it", tag)
        if isinstance(event, events.ScalarEvent):
            value = plain(event.value) if _is_plain(event) else event.value
            if isinstance(value, float) and not math.isfinite(value):
                self._refuse(key, event, "must be a finite number", event.value[:60])
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                self._refuse(key, event, "is too large; whole numbers have 64 bits", event.value[:60])
            elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
                self._refuse(key, event, "holds half a surrogate pair, which is no character")
            return value
        if depth == MAX_DEPTH:
            raise self.unreadable(_line(event), f"is nested more than {MAX_DEPTH} levels deep", key=key[:60])
        if isinstance(event, events.MappingStartEvent):
            return self._mapping(key, depth)
        items: list[Any] = []
        while not isinstance(event := next(self.events), events.CollectionEndEvent):
            item = _join(key, str(len(items)))
            self.lines.setdefault(item, _line(event))
            items.append(self._node(event, item, depth + 1))
        return items

    def _mapping(self, where: str, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), events.CollectionEndEvent):
            before, written = len(self.problems), getattr(event, "value", "?")[:60]
            merge = _is_plain(event) and event.value == "<<"
            name = "<<" if merge else self._node(event, _join(where, written), depth + 1)
            key = _join(where, name if isinstance(name, str) else written)
            value = next(self.events)
            if merge:
                self._refuse(key, event, "merge keys are not read; write the keys out")
            elif not isinstance(name, str):
                del self.problems[before:]
                self._refuse(key, event, "a key must be text; put it in quotes if it is meant")
            elif name in mapping:
                self._refuse(key, event, f"stands here a second time; the first is on line {self.lines[key]}")
            else:
                self.lines.setdefault(key, _line(event))
                mapping[name] = self._node(value, key, depth + 1)
                if ":" in name and _is_plain(event) and _is_plain(value) and not value.value:
                    self._refuse(key, event, "needs a space after the colon")
                continue
            before = len(self.problems)
            self._node(value, key, depth + 1)  # read past, with whatever is wrong in it
            del self.problems[before:]
        return mapping


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _line(event: events.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def _is_plain(event: events.Event) -> TypeGuard[events.ScalarEvent]:
    return isinstance(event, events.ScalarEvent) and bool(event.implicit[0])


# What PyYAML (both its parsers) says, and what it means to somebody who writes a recipe; the first that fits.
_SYNTAX = {
    "mapping values are": "a colon stands where none can; is the line indented like its neighbours, and is text that "
    "holds a colon in quotes?",
    "could not find expected ':'": "is neither a key nor a value; a key needs a colon and a space after it, a list "
    "entry a dash and a space",
    "unexpected end of stream": "a quote opens here and is never closed",
    "',' or ']'": "a bracket [ opens here and is not closed",
    "',' or '}'": "a brace { opens here and is not closed",
    "sequence entries": "a list entry cannot begin here; begin it on a line of its own",
    "node content": "a value is missing before this",
    "unknown escape character": "holds an escape that does not exist; single quotes take a backslash as it is",
    "Unicode character escape": "holds half a surrogate pair, which is no character",
    "cannot start any token": "text that begins with @, ` or % must be in quotes",
    "expected": "does not continue what is above; is it indented like its neighbours?",
}


class _Writer(yaml.SafeDumper):
    """Block mappings, lists of plain values on one line, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # entries of a list stand below its key, which PyYAML does not ask for


def _represent_text(writer: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML quotes what YAML 1.1 would take for something else; what only YAML 1.2 would is left to us. It also writes
    # the line breaks of YAML 1.1 (NEL, LS, PS) bare, and reads them back as spaces; in double quotes they are escapes.
    style = "'" if not isinstance(plain(text), str) else None
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else style
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(writer: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, dict | list) for item in items)
    return writer.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Writer.add_representer(str, _represent_text)
_Writer.add_representer(list, _represent_list)


def write_yaml(data: dict[str, Any]) -> str:
    """Write plain values as YAML that `read_yaml`, and readers of YAML 1.1, read as the same; keys keep their order."""
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=False)
