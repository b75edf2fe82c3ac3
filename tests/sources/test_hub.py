"""The Hub: a local one that huggingface_hub and `datasets` talk to as to the real one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants, errors

from hmdc_hub.errors import NetworkError, NotFoundError, SourceError, UsageError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, load_source, resolve_source
from tests.hub import Fault, LocalHub
from tests.sources.files import parquet_folder, rows

ID = "someone/CamelPets"
NOWHERE = "f" * 40


def files(root: Path, first: int = 0, under: str = "") -> dict[str, bytes]:
    """Give what a dataset of 9 train and 4 test images consists of."""
    folder = parquet_folder(root, train=rows(9, first))
    return {under + path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.fixture
def pets(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dataset `ID`; gives its commit."""
    monkeypatch.chdir(tmp_path)
    return hub.create_repo(ID, files=files(tmp_path / "files"))


def load(**keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": ID, "size": 8, "channels": 1} | keys))


def first_class(source: Source) -> list[int]:
    return source.train.of_class(0)[:, 0, 0, 0].tolist()


def test_the_revision_is_resolved_to_a_commit_and_that_is_read(hub: LocalHub, pets: str, tmp_path: Path) -> None:
    newer = hub.commit(ID, files(tmp_path / "newer", first=50))
    info = load(revision=pets).info
    assert (info.id, info.kind, info.revision, info.license, info.gated) == (ID, "hub", pets, None, False)
    assert first_class(load(revision=pets)) == [2, 5, 8]
    assert first_class(load(revision="main")) == first_class(load(revision=newer)) == [52, 55, 58]
    resolved = resolve_source(SourceSpec(id=ID, size=8))
    assert (resolved.revision, resolved.config) == (newer, "default")
    assert (resolved.image_column, resolved.test_split) == ("image", "test")


@pytest.mark.parametrize(
    ("given", "text"), [("mit", "mit"), ("[mit, cc0-1.0]", "mit, cc0-1.0"), ("[]", None), ("null", None)]
)
def test_the_licence_is_that_of_the_card(hub: LocalHub, pets: str, given: str, text: str | None) -> None:
    hub.commit(ID, {"README.md": f"---\nlicense: {given}\n---\n".encode()})
    assert load().info.license == text


def test_private_and_gated_datasets_are_known_as_such(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_user("someone")
    monkeypatch.setenv("HF_TOKEN", hub.token("someone"))
    hub.create_repo("someone/three", files=files(tmp_path / "three"), gated=True)
    for name in ("one", "two"):
        hub.create_repo(f"someone/{name}", files=files(tmp_path / name), private=name == "one", gated=name == "two")
        info = load(id=f"someone/{name}").info
        assert (info.private, info.gated) == (name == "one", name == "two")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotFoundError, match="no Hub dataset someone/one") as caught:
        load(id="someone/one")
    assert "hf auth login" in caught.value.hint
    with pytest.raises(SourceError, match="is a gated dataset") as gated:
        load(id="someone/three")
    assert "Accept its terms" in gated.value.hint


def test_what_is_not_there_is_named(pets: str) -> None:
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        load(revision="v9")
    for name in ("someone/else", "imagefolder", "parquet"):  # the last two are file formats to `datasets`
        with pytest.raises(NotFoundError, match=f"no Hub dataset {name}"):
            load(id=name)
    with pytest.raises(UsageError, match="cannot be a Hub dataset id"):
        load(id="-a-/b")


@pytest.mark.parametrize("action", ["500", "drop-before"])
def test_a_hub_that_fails(hub: LocalHub, pets: str, action: Any) -> None:
    hub.faults.append(Fault("repo-info", action, times=99))
    with pytest.raises(NetworkError, match="answered 500|cannot be reached") as caught:
        load(revision="main")
    assert "Run the same command again" in caught.value.hint


def test_a_program_is_refused(hub: LocalHub, pets: str) -> None:
    hub.commit(ID, {"CamelPets.py": b"raise SystemExit('this must never run')"})
    with pytest.raises(SourceError, match="is a program .*no code of a dataset is ever run") as caught:
        load()
    assert "refs/convert/parquet" in caught.value.hint


def answer(status: int) -> Any:
    """Make an HTTP answer of whichever library huggingface_hub stands on."""
    network = __import__(errors.HTTPError.__module__.split(".")[0])  # type: ignore[attr-defined]
    return network.Response(status, request=network.Request("GET", "http://localhost/api"))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (datasets.exceptions.DataFilesNotFoundError("No files"), SourceError, "no files that can be read"),
        (ConnectionError("Couldn't reach it"), NetworkError, "Couldn't reach it"),
        (errors.HfHubHTTPError("502", response=answer(502)), NetworkError, "answered 502"),
        (caused(RuntimeError("x"), errors.GatedRepoError("x", response=answer(403))), NotFoundError, "consent"),
        (caused(OSError("x"), TimeoutError("slow")), NetworkError, "slow"),
        (caused(ValueError("odd"), errors.RemoteEntryNotFoundError("x", response=answer(404))), SourceError, "be read"),
    ],
)
def test_what_datasets_raises_is_explained(
    pets: str, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[UsageError], words: str
) -> None:
    def fail(*arguments: Any, **keys: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(kind, match=words) as caught:
        load()
    assert caught.value.hint


def test_another_commit_from_the_cache_is_refused(
    hub: LocalHub, pets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    newer = hub.commit(ID, files(tmp_path / "newer", first=50))
    real = datasets.load_dataset_builder

    def old(path: str, **keys: Any) -> Any:
        """Do what `datasets` does when its download fails: take what it prepared last."""
        return real(path, **keys | {"revision": pets})

    monkeypatch.setattr(datasets, "load_dataset_builder", old)
    with pytest.raises(NetworkError, match=f"could not be read at commit {newer}.*holds {pets[:12]} instead"):
        load()


def test_offline_reads_the_very_commit_from_the_cache(
    hub: LocalHub, pets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(ID, {"README.md": b"---\nlicense: mit\n---\n"})
    newer = hub.commit(ID, files(tmp_path / "newer", first=50))
    known = [load(revision=revision).info for revision in (newer, pets)]
    hub.delete_repo(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert first_class(load(revision=pets)) == [2, 5, 8]
    assert [load(revision=revision).info for revision in (newer, pets)] == known
    assert (known[0].license, known[0].config) == ("mit", "default")
    with pytest.raises(NetworkError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        load(revision=NOWHERE)
    for revision in (None, "main", pets[:12]):
        with pytest.raises(NetworkError, match="full commit") as caught:
            load(revision=revision)
        assert "recipe.yaml" in caught.value.hint


def test_what_is_gone_from_the_cache_of_datasets(pets: str, own_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    for file in (own_caches / "datasets").rglob("*.arrow"):
        file.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="not in the cache"):
        load(revision=pets)


def test_an_unreachable_hub_does_not_matter_for_a_cached_commit(hub: LocalHub, pets: str) -> None:
    load()
    hub.faults.append(Fault("repo-info", "drop-before", times=99))
    assert first_class(load(revision=pets)) == [2, 5, 8]
    with pytest.raises(NetworkError, match="not in the cache.*cannot be reached"):
        load(revision=NOWHERE)
    with pytest.raises(NetworkError, match="cannot be reached"):
        load(revision="main")


def test_offline_with_two_configurations(
    hub: LocalHub, pets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - {{split: train, path: {name}/data/train*}}\n"
        f"  - {{split: test, path: {name}/data/test*}}\n"
        for name in ("big", "small")
    )
    made = files(tmp_path / "big", 50, "big/") | files(tmp_path / "small", 0, "small/")
    commit = hub.create_repo("someone/two", files=made | {"README.md": f"---\nconfigs:\n{configs}---\n".encode()})
    for name in ("big", "small"):
        load(id="someone/two", config=name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING), pytest.raises(SourceError, match="several configurations.*big, small"):
        load(id="someone/two", revision=commit)
    source = load(id="someone/two", revision=commit, config="big")
    assert first_class(source) == [52, 55, 58]
    assert source.info.config == "big"
    with pytest.raises(NetworkError, match=r"\(huge\) is not in the cache"):
        load(id="someone/two", revision=commit, config="huge")
