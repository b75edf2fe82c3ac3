"""Atomic writes, hashes, and JSON that checks itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, RunError
from hmdc_hub.schema import FORMAT_VERSION, Scores, SetHeader
from hmdc_hub.store.files import (
    MAX_KEYS,
    MAX_RECORD,
    atomic,
    parse_record,
    read_info,
    read_record,
    read_scores,
    sha256_file,
    write_json_atomic,
    write_text_atomic,
)
from tests.builders import make_run


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert not path.exists() and not list(path.parent.iterdir())
    write_text_atomic(path, "whole")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "whole"
        raise ZeroDivisionError
    assert path.read_text() == "whole" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a", "one\r\ntwo\n\u00e9")
    assert (tmp_path / "a").read_bytes() == "one\r\ntwo\n\u00e9".encode()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="unchanged"):
        write_text_atomic(tmp_path / "file" / "a", "y")


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json_atomic(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(NotFoundError, match="nothing"):
        sha256_file(tmp_path / "nothing")


def test_records_are_read_as_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path, read in ((run.info, read_info), (run.scores, read_scores)):
        record = read(path)
        write_json_atomic(tmp_path / "copy.json", record)
        assert read(tmp_path / "copy.json") == record and (tmp_path / "copy.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1}', '{"format_version": "1"}', "\xff"])
def test_damage_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "info.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"info\.json is damaged") as caught:
        read_info(tmp_path / "info.json")
    assert not isinstance(caught.value, NewerFormatError)


def test_unknown_keys_and_wrong_types_are_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    good = json.loads(run.info.read_text())
    for change, word in (({"extra": 1}, "extra"), ({"ipc": "2"}, "ipc"), ({"seconds": "long"}, "seconds")):
        run.info.write_text(json.dumps(good | change))
        with pytest.raises(FormatError, match=word):
            read_info(run.info)


def test_every_changed_digit_is_noticed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path, read in ((run.info, read_info), (run.scores, read_scores)):
        good = path.read_text()
        places = [place for place, letter in enumerate(good) if letter.isdigit()]
        for place in places[:: max(1, len(places) // 40)]:
            changed = good[:place] + str((int(good[place]) + 1) % 10) + good[place + 1 :]
            if json.loads(changed) == json.loads(good):
                continue  # the last of too many digits
            path.write_text(changed)
            with pytest.raises(FormatError):
                read(path)


def test_how_a_file_is_written_is_no_damage_and_older_ones_have_no_checksum(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    info, plain = read_info(run.info), json.loads(run.info.read_text())
    run.info.write_text(json.dumps(plain, sort_keys=True, ensure_ascii=True))
    assert read_info(run.info) == info
    run.info.write_text(json.dumps(plain | {"seconds": 1.0}))
    with pytest.raises(FormatError, match="its checksum is another"):
        read_info(run.info)
    run.info.write_text(json.dumps(plain | {"checksum": 1}))
    with pytest.raises(FormatError, match="its checksum is another"):
        read_info(run.info)
    del plain["checksum"]
    run.info.write_text(json.dumps(plain | {"seconds": 1.0}))
    assert read_info(run.info).seconds == 1.0


def test_a_newer_version_is_no_damage_whatever_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "news": True}))
    with pytest.raises(NewerFormatError, match="pip install -U"):
        read_info(tmp_path / "info.json")


@pytest.mark.parametrize("name", ["a b", "a|b", "", "../x", "a\nb"])
def test_names_in_scores_are_names(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    scores = json.loads(run.scores.read_text())
    scores["cells"][0]["training_set"] = name
    run.scores.write_text(json.dumps(scores))
    with pytest.raises(FormatError, match="training_set"):
        read_scores(run.scores)


def scores(**keys: str) -> bytes:
    """Every key that scores.json has, none of them right, but these."""
    parts = dict.fromkeys(Scores.model_fields, "0") | keys
    return b"{" + b",".join(f'"{name}":{value}'.encode() for name, value in parts.items()) + b"}"


@pytest.mark.parametrize("key", ["cells", "per_class", "class_names"])
def test_a_list_of_wrong_things_makes_one_complaint(key: str) -> None:
    wrong = f"[{'[],' * 20_000}[]]"
    wrong = f'{{"a":{{"b":{wrong}}}}}' if key == "per_class" else wrong
    with pytest.raises(FormatError, match="damaged") as caught:
        parse_record(scores(**{key: wrong}), Scores, "scores.json")
    cause = caught.value.__cause__
    assert isinstance(cause, ValidationError) and cause.error_count() <= len(Scores.model_fields)


def test_a_missing_key_keeps_no_copy_of_the_file() -> None:
    with pytest.raises(FormatError, match="condense_hash: Field required") as caught:
        parse_record('{"name": "a", "ipc": 1, "factor": 1, "class_names": [], "mean": [], "std": []}', SetHeader, "x")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b" " * (MAX_RECORD + 1),
        b"{" + b'"a":1,' * MAX_KEYS + b'"b":2}',
        b"[" + b"1," * 500_001 + b"1]",
    ],
)
def test_json_of_absurd_size_or_depth(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(FormatError, match="a.json is damaged"):
        read_record(tmp_path / "a.json", Scores)
