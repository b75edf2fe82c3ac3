from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.catalog.yaml12 import MAX_BYTES, Document, decode, parse, plain, read_value, read_yaml, show, write_yaml
from hmdc_hub.errors import RecipeError

LOADERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])]


def complaint(text: str, loader: Any = yaml.SafeLoader) -> str:
    """Return the message of a text that must be refused."""
    with pytest.raises(RecipeError) as caught:
        document = parse(text, "x.yaml", loader=loader)
        if document.problems:
            raise RecipeError("x.yaml", document.problems)
    return caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("5e-4", 5e-4), (".5", 0.5), ("1.", 1.0), ("-1.5", -1.5), ("+2", 2),
        ("-0.0", -0.0),
        ("010", 10), ("0x1F", 31), ("0o17", 15), ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)),
        ("true", True), ("True", True), ("FALSE", False), ("false", False),
        ("null", None), ("~", None), ("Null", None), ("", None),
        ("off", "off"), ("on", "on"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("tRUE", "tRUE"), ("nULL", "nULL"),
        ("12:30", "12:30"), ("1:30:00.5", "1:30:00.5"), ("1_000", "1_000"), ("0b11", "0b11"),
        ("2024-01-01", "2024-01-01"),
        ("inf", "inf"), ("nan", "nan"), ("1e", "1e"), ("e5", "e5"), (".", "."), ("1.2.3", "1.2.3"), ("=", "="),
        ("'10'", "10"), ('"true"', "true"), ("'null'", "null"), ("train[:80%]", "train[:80%]"),
        ("builtin:digits", "builtin:digits"), ("größe 漢字", "größe 漢字"),
        ("[a, 1, 2.0, null]", ["a", 1, 2.0, None]), ("{a: 1, b: {c: [x]}}", {"a": 1, "b": {"c": ["x"]}}),
        ("[]", []), ("{}", {}), ("- a\n- b", ["a", "b"]), ("| \n  x\n", "x\n"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    got = read_value(text)
    assert got == value
    assert type(got) is type(value)
    assert str(got) == str(value)  # -0.0 is not 0.0


@pytest.mark.parametrize("loader", LOADERS)
def test_every_key_has_its_line(loader: Any) -> None:
    text = "# head\na: 1\n\nb:\n  - x\n  - name: y\n    args: {depth: 3,\n      width: 4}\nc: {d: [1,\n  2]}\n"
    document = parse(text, "x.yaml", loader=loader)
    assert document == Document(
        {"a": 1, "b": ["x", {"name": "y", "args": {"depth": 3, "width": 4}}], "c": {"d": [1, 2]}},
        {
            "a": 2, "b": 4, "b.0": 5, "b.1": 6, "b.1.name": 6, "b.1.args": 7, "b.1.args.depth": 7, "b.1.args.width": 8,
            "c": 9, "c.d": 9, "c.d.0": 9, "c.d.1": 10,
        },
    )  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: b.c: stands here a second time; the first is on line 3"),
        ("a: &x 1\n", "line 1: a = &x: anchors are not read"),
        ("a: 1\nb: [&x {c: 1}]\n", "line 2: b.0 = &x: anchors are not read"),
        ("a: 1\nb: *x\n", "line 2: b = *x: aliases are not read; write the value out"),
        ("*x : 1\n", "a key must be text"),
        ("&x a: 1\n", "line 1: a = &x: anchors"),
        ("a: !!str 1\n", "line 1: a = !!str: tags are not read"),
        ("a: !!python/object:os.system x\n", "line 1: a = !!python/object:os.system: tags are not read"),
        ("a: ! x\n", "line 1: a = !: tags"),
        ("a: !mine {b: 1}\n", "line 1: a = !mine: tags"),
        ("a: 1\n<<: {b: 2}\n", "line 2: <<: merge keys are not read"),
        ("a: {<<: [{b: 1}, {c: 2}], d: 1}\n", "line 1: a.<<: merge keys"),
        ("1: a\n", "line 1: 1: a key must be text; put it in quotes"),
        ("a: {null: 1}\n", "line 1: a.null: a key must be text"),
        ("? [a, {b: c}]\n: 1\n", "a key must be text"),
        ("a: {depth:3, width: 4}\n", "line 1: a.depth:3: needs a space after the colon"),
        ("a: .inf\n", "line 1: a = .inf: must be a finite number"),
        ("a: -.INF\n", "line 1: a = -.INF: must be a finite number"),
        ("a: [.nan]\n", "line 1: a.0 = .nan: must be a finite number"),
        ("a: 1e999\n", "line 1: a = 1e999: must be a finite number"),
        ("a: 9223372036854775808\n", "line 1: a = 9223372036854775808: is too large; whole numbers have 64 bits"),
        ("a: -9223372036854775809\n", "whole numbers have 64 bits"),
        ("a: " + "9" * 5000 + "\n", "must be a finite number"),
        ("a: 1\n---\nb: 2\n", "line 2: a second document begins here"),
        ("%YAML 1.1\n---\na: 1\n", "%YAML and %TAG lines are not read"),
        ("", "x.yaml: 1 problem\n  is empty"),
        ("# only a comment\n", "is empty"),
        ("---\n", "is empty"),
        ("null\n", "is empty"),
        ("- a\n- b\n", "line 1: holds a list; keys and values are expected"),
        ("ipc:10\n", "line 1: ipc:10: holds a single value; keys and values are expected, with a space after each"),
        ("a:\n\tb: 1\n", "line 2: b: 1: is indented with a tab; YAML takes spaces only"),
        ("a:\n  b: 1\n\tc: 1\n", "line 3: c: 1: is indented with a tab"),
        ("a: b: c\n", "line 1: a: b: c: a colon stands where none can"),
        ("a: 1\n b: 2\n", "line 2: b: 2: a colon stands where none can; is the line indented like its neighbours"),
        ("a:\n  b: 1\n c: 2\n", "line 3: c: 2: does not continue what is above; is it indented like its neighbours?"),
        ("a: 1\nb:2\nc: 3\n", "line 2: b:2: is neither a key nor a value; a key needs a colon and a space after it"),
        ("a: 1\n- b\n", "line 2: - b: does not continue what is above"),
        ("a: 1\nb: 'x\nc: 2\n", "line 2: b: 'x: a quote opens here and is never closed"),
        ("a: 1\nb: [x, y\nc: 2\n", "line 2: b: [x, y: a bracket [ opens here and is not closed"),
        ("a: 1\nb: {x: 1\nc: 2\n", "line 2: b: {x: 1: a brace { opens here and is not closed"),
        ("a: - b\n", "line 1: a: - b: a list entry cannot begin here"),
        ("a: @x\n", "line 1: a: @x: text that begins with @, ` or % must be in quotes"),
        ("a: `x`\n", "must be in quotes"),
        ("a: [1,,2]\n", "line 1: a: [1,,2]: a value is missing"),
        ('a: "C:\\data"\n', "holds an escape that does not exist"),
        ('a: "\\ud800"\n', "half a surrogate pair"),
        ("a: 1\nb: \x07\n", "line 2: U+0007: holds a control character"),
        ("a: \x00\n", "U+0000"),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_with_its_line(text: str, words: str, loader: Any) -> None:
    assert words in complaint(text, loader)


@pytest.mark.parametrize("loader", LOADERS)
def test_what_can_be_read_past_is_reported_together(loader: Any) -> None:
    document = parse("a: &x 1\nb: *x\nc: .inf\na: 2\nd: 5\n", "x.yaml", loader=loader)
    assert [(problem.key, problem.line) for problem in document.problems] == [("a", 1), ("b", 2), ("c", 3), ("a", 4)]
    assert document.data["d"] == 5
    assert document.data["a"] == 1


def test_read_yaml_raises_what_parse_collects() -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml("a: 1\na: 2\n", "x.yaml")
    assert len(caught.value.problems) == 1
    assert read_yaml("a: {b: 1e-3}\n", "x.yaml").data == {"a": {"b": 1e-3}}


def test_depth_is_limited() -> None:
    assert parse("a: " + "[" * 15 + "]" * 15, "x.yaml").problems == []
    for loader in LOADERS:
        assert "nested more than 16 levels deep" in complaint("a: " + "[" * 16 + "]" * 16, loader)
        assert "nested more than 16 levels deep" in complaint("a: " + "{b: " * 500 + "}" * 500, loader)


def test_aliases_do_not_multiply() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "aliases are not read" in complaint("\n".join(lines))


def test_size_is_limited() -> None:
    assert MAX_BYTES == 65536
    fits = b"a: " + b"x" * (MAX_BYTES - 3)
    assert parse(decode(fits, "x.yaml"), "x.yaml").data["a"].startswith("xxx")
    with pytest.raises(RecipeError, match="larger than 64 KiB"):
        decode(fits + b"x", "x.yaml")
    with pytest.raises(RecipeError, match="larger than 64 KiB"):
        read_yaml("a: " + "ü" * (MAX_BYTES // 2), "x.yaml")


def test_bytes_must_be_utf8() -> None:
    assert decode("\ufeffa: ü\r\n".encode(), "x.yaml") == "a: ü\r\n"
    for wrong in ("a: 1\nb: ü\n".encode("latin-1"), "a: 1\n".encode("utf-16")):
        with pytest.raises(RecipeError, match="is not UTF-8 text; save the file as UTF-8"):
            decode(wrong, "x.yaml")
    with pytest.raises(RecipeError, match="line 2"):
        decode("a: 1\nb: ü\n".encode("latin-1"), "x.yaml")


def test_windows_line_ends_count_once() -> None:
    assert read_yaml("a: 1\r\nb: 2\r\n", "x.yaml").lines == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [("[a", "a bracket [ opens here and is not closed"), ("[", "not closed"), ("{a: 1", "not closed"),
     ("'a", "a quote opens"),
     ("*x", "aliases"), (".nan", "finite"), ("a\n---\nb", "second document"), ("]", "a value is missing")],
)  # fmt: skip
def test_single_values_are_refused_in_the_same_words(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_value(text)
    assert words in caught.value.problems[0].rule


@pytest.mark.parametrize(
    ("value", "text"),
    [("abc", "abc"), ("10", '"10"'), ("", '""'), (" a", '" a"'), ("a\nb", '"a\\nb"'), (None, "null"), (True, "true"),
     (1.0, "1.0"), (1e-5, "1e-05"), ([1, "x", None], "[1, x, null]"), ({"a": [True]}, "{a: [true]}"),
     ("x" * 100, "x" * 59 + "…"), ("größe", "größe")],
)  # fmt: skip
def test_values_are_shown_short_and_without_doubt(value: Any, text: str) -> None:
    assert show(value) == text


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | FINITE
    | st.text()
    | st.sampled_from(["1e3", "1e-3", "0o17", "off", "12:30", "~", "null", "1_0", "- a", "a: b", "#", "<<", "=", "*x"])
)
KEYS = st.text(max_size=20) | st.sampled_from(["on", "1", "<<", "null", "a:1", "? x", "1e3"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_what_is_written_is_read_back_the_same(data: dict[str, Any]) -> None:
    text = write_yaml(data)
    assert repr(read_yaml(text, "x.yaml").data if data else {}) == repr(data)


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.lists(SCALARS, max_size=3), max_size=3))
def test_yaml_1_1_readers_read_the_same(data: dict[str, Any]) -> None:
    assert repr(yaml.safe_load(write_yaml(data))) == repr(data)


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{},#&*!|>'\"%@` \n\t.1e~?<", max_size=40))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        document = read_yaml(text, "x.yaml")
    except RecipeError as error:
        assert all(problem.rule for problem in error.problems)
    else:
        assert read_yaml(write_yaml(document.data), "x.yaml").data == document.data if document.data else True


@settings(deadline=None)
@given(FINITE)
def test_floats_keep_every_bit(value: float) -> None:
    assert math.copysign(1, read_value(repr(value))) == math.copysign(1, value)
    assert plain(repr(value)) == value
