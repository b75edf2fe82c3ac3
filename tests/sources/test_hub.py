"""The Hub, with stand-ins at the two calls that leave the process: `hub.dataset_info` and `datasets`' builder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from huggingface_hub import constants, errors

from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, hub, load_source, resolve_source
from tests.sources.files import parquet_folder, rows

SHA = "0123456789abcdef" * 2 + "01234567"
OTHER = "f" * 40
ID = "someone/CamelPets"


def answer(status: int = 404) -> Any:
    """Make an HTTP answer of whichever library huggingface_hub stands on."""
    network = __import__(errors.HTTPError.__module__.split(".")[0])  # type: ignore[attr-defined]
    return network.Response(status, request=network.Request("GET", "http://localhost/api"))


class FakeHub:
    """Answers for one dataset, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = SHA
        self.card = SimpleNamespace(license="cc-by-4.0")
        self.gated: bool | str = False
        self.private = False
        self.info_error: Exception | None = None
        self.builder_error: Exception | None = None
        self.asked: list[str | None] = []
        self.built: list[tuple[str, Any]] = []
        self._real = datasets.load_dataset_builder

    def dataset_info(self, source: str, revision: str | None) -> Any:
        self.asked.append(revision)
        if self.info_error:
            raise self.info_error
        return SimpleNamespace(sha=SHA, card_data=self.card, gated=self.gated, private=self.private)

    def builder(self, path: str, **keys: Any) -> Any:
        if path != ID:
            return self._real(path, **keys)
        self.built.append((path, keys.pop("revision")))
        if self.builder_error:
            raise self.builder_error
        made = self._real(str(self.folder), **keys)
        made.hash = self.commit
        return made


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.chdir(tmp_path)
    made = FakeHub(parquet_folder(tmp_path / "files"))
    monkeypatch.setattr(hub, "dataset_info", made.dataset_info)
    monkeypatch.setattr(datasets, "load_dataset_builder", made.builder)
    return made


def load(**keys: Any) -> Source:
    return load_source(SourceSpec.model_validate({"id": ID, "size": 8, "channels": 1} | keys))


def test_the_revision_is_resolved_to_a_commit_and_that_is_read(fake: FakeHub) -> None:
    info = load(revision="main").info
    assert fake.asked == ["main"]
    assert fake.built == [(ID, SHA)]
    assert (info.id, info.kind, info.revision, info.license, info.gated) == (ID, "hub", SHA, "cc-by-4.0", False)


def test_resolving_pins_the_newest_commit(fake: FakeHub) -> None:
    resolved = resolve_source(SourceSpec(id=ID, size=8))
    assert fake.asked == [None]
    assert (resolved.revision, resolved.config) == (SHA, "default")
    assert (resolved.image_column, resolved.test_split) == ("image", "test")


@pytest.mark.parametrize(
    ("given", "text"), [("mit", "mit"), (["mit", "cc0-1.0"], "mit, cc0-1.0"), ([], None), (None, None)]
)
def test_licence_and_gating_come_from_the_hub(fake: FakeHub, given: Any, text: str | None) -> None:
    fake.card, fake.gated = SimpleNamespace(license=given), "manual"
    info = load().info
    assert (info.license, info.gated) == (text, True)


def test_a_dataset_without_a_card_has_no_licence(fake: FakeHub) -> None:
    fake.card = None  # type: ignore[assignment]
    assert load().info.license is None


@pytest.mark.parametrize(
    ("error", "kind", "words", "next_step"),
    [
        (
            errors.RepositoryNotFoundError("x", response=answer()),
            SourceError,
            "no dataset of that name",
            "hf auth login",
        ),
        (errors.GatedRepoError("x", response=answer(403)), SourceError, "gated", "hf auth login"),
        (
            errors.RevisionNotFoundError("x", response=answer()),
            SourceError,
            "no branch, tag or commit 'v9'",
            "revision",
        ),
        (errors.HFValidationError("x"), SourceError, "no dataset of that name", "spelling"),
        (errors.HfHubHTTPError("503", response=answer(503)), NetworkError, "could not be asked", "HF_HUB_OFFLINE=1"),
        (errors.HTTPError("name not known"), NetworkError, "could not be asked", "network"),  # type: ignore[attr-defined]
        (ConnectionError("refused"), NetworkError, "could not be asked", "network"),
        (TimeoutError("slow"), NetworkError, "could not be asked", "network"),
    ],
)
def test_what_the_hub_answers_is_explained(
    fake: FakeHub, error: Exception, kind: type[Exception], words: str, next_step: str
) -> None:
    fake.info_error = error
    with pytest.raises(kind, match=words) as caught:
        load(revision="v9")
    assert isinstance(caught.value, SourceError | NetworkError)
    assert next_step in caught.value.hint


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), SourceError, "no code of a dataset"),
        (datasets.exceptions.DatasetNotFoundError("'x' is a gated dataset on the Hub."), SourceError, "gated"),
        (datasets.exceptions.DataFilesNotFoundError("No files"), SourceError, "no files that can be read"),
        (ConnectionError("Couldn't reach it"), NetworkError, "could not be downloaded"),
        (errors.HfHubHTTPError("502", response=answer(502)), NetworkError, "could not be downloaded"),
        (caused(RuntimeError("x"), errors.GatedRepoError("x", response=answer(403))), SourceError, "gated"),
        (caused(OSError("x"), TimeoutError("slow")), NetworkError, "slow"),
        (caused(ValueError("odd"), errors.RemoteEntryNotFoundError("x", response=answer())), SourceError, "be read"),
    ],
)
def test_what_datasets_raises_is_explained(fake: FakeHub, error: Exception, kind: type[Exception], words: str) -> None:
    fake.builder_error = error
    with pytest.raises(kind, match=words) as caught:
        load()
    assert isinstance(caught.value, SourceError | NetworkError)
    assert caught.value.hint


def test_another_commit_from_the_cache_is_refused(fake: FakeHub) -> None:
    fake.commit = OTHER
    with pytest.raises(NetworkError, match=f"could not be read at commit {SHA}.*holds {OTHER[:12]} instead"):
        load()


@pytest.mark.parametrize("name", ["imagefolder", "parquet"])
def test_names_of_file_formats_are_no_datasets(fake: FakeHub, name: str) -> None:
    with pytest.raises(SourceError, match="no dataset of that name on the Hub"):
        load_source(SourceSpec(id=name, size=8))


def prepare(fake: FakeHub, cache: Path, commit: str, first: int = 0, config: str = "default") -> None:
    """Lay out the cache as `datasets` does after it prepared a Hub dataset at a commit."""
    folder = fake.folder.parent / f"{commit}-{config}"
    builder = fake._real(str(parquet_folder(folder, train=rows(9, first))))
    builder.download_and_prepare()
    target = cache / "datasets" / "someone___camel_pets" / config / "0.0.0" / commit
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(builder.cache_dir, target)
    for file in target.glob("*.arrow"):
        file.rename(file.with_name(file.name.replace(builder.dataset_name, "camel_pets")))
    state = target / "dataset_info.json"
    state.write_text(state.read_text().replace('"config_name": "default"', f'"config_name": "{config}"'))


def card(cache: Path, commit: str, text: str) -> None:
    """Put a dataset card into huggingface_hub's cache."""
    folder = cache / "hub" / "datasets--someone--CamelPets" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(text)


def test_offline_reads_the_very_commit_from_the_cache(
    fake: FakeHub, own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(fake, own_caches, SHA, first=0)
    prepare(fake, own_caches, OTHER, first=50)  # prepared last: what datasets would take
    card(own_caches, SHA, "---\nlicense: mit\nextra_gated_prompt: Agree?\n---\n")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = load(revision=SHA)
    assert source.train.of_class(0)[:, 0, 0, 0].tolist() == [2, 5, 8]
    info = source.info
    assert (info.revision, info.config, info.license, info.gated) == (SHA, "default", "mit", True)
    assert load(revision=OTHER).train.of_class(0)[:, 0, 0, 0].tolist() == [52, 55, 58]
    assert not fake.asked


def test_an_unreachable_hub_does_not_matter_for_a_cached_commit(fake: FakeHub, own_caches: Path) -> None:
    prepare(fake, own_caches, SHA)
    fake.info_error = ConnectionError("no route")
    assert load(revision=SHA).info.license is None
    with pytest.raises(NetworkError, match="not in the cache.*no route"):
        load(revision=OTHER)
    with pytest.raises(NetworkError, match="could not be asked"):
        load(revision="main")


@pytest.mark.parametrize("revision", [None, "main", SHA[:12]])
def test_offline_needs_a_full_commit(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="full commit") as caught:
        load(revision=revision)
    assert "recipe.yaml" in caught.value.hint


def test_offline_and_not_in_the_cache(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        load(revision=SHA)


def test_offline_with_two_configurations(
    fake: FakeHub, own_caches: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(fake, own_caches, SHA, config="big", first=50)
    prepare(fake, own_caches, SHA, config="small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING), pytest.raises(SourceError, match="several configurations.*big, small"):
        load(revision=SHA)
    source = load(revision=SHA, config="big")
    assert source.train.of_class(0)[:, 0, 0, 0].tolist() == [52, 55, 58]
    assert source.info.config == "big"
    with pytest.raises(NetworkError, match=r"\(huge\) is not in the cache"):
        load(revision=SHA, config="huge")
