"""Reading published sets with the unpatched client: one commit, every hash, clear words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hmdc_hub
from hmdc_hub.errors import FormatError, HmdcError, NetworkError, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.publish.build import package
from hmdc_hub.schema import FORMAT_VERSION, sealed
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.hub import download_package, translated
from hmdc_hub.store.rundir import RunDir
from tests.builders import make_recipe, make_run
from tests.hub import Fault, LocalHub, Request
from tests.publish.pushing import made_run, push

REPO = "ann/tiny-hmdc"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run")


def get(tmp_path: Path, name: str = "cache", **keys: object) -> object:
    return download_package(REPO, cache=tmp_path / name, **keys)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_set_is_loaded_as_it_was_made(published: LocalHub, run: RunDir) -> None:
    images, _, header = read_condensed(run.condensed)
    loaded = hmdc_hub.load(REPO)
    assert torch.equal(loaded.synthetic_images, images) and loaded.header == header
    assert hmdc_hub.load(REPO, "ipc5").header.ipc == 5
    assert not [request for request in published.requests if request.path.endswith(".parquet")]


@pytest.mark.slow
def test_an_old_state_is_loaded_by_its_tag(
    published: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = next(name for name in published.tags(REPO) if name.startswith("ipc2"))
    before = hmdc_hub.load(REPO, "ipc2", tag).images
    monkeypatch.setenv("HF_TOKEN", published.token("ann"))
    push(made_run(tmp_path / "other", seed=7))
    assert not torch.equal(hmdc_hub.load(REPO, "ipc2").images, before)
    assert torch.equal(hmdc_hub.load(REPO, "ipc2", revision=tag).images, before)


@pytest.mark.slow
def test_what_is_loaded_comes_from_one_commit(published: LocalHub, tmp_path: Path, run: RunDir) -> None:
    other = package(made_run(tmp_path / "other", seed=7))
    files = {p.relative_to(other).as_posix(): p.read_bytes() for p in other.rglob("*") if p.is_file()}
    del files["README.md"]

    def push_in_between(request: Request) -> None:
        if request.label == "resolve" and "info.json" in request.path:
            published.before = None
            published.commit(REPO, files)

    published.before = push_in_between
    assert torch.equal(hmdc_hub.load(REPO, "ipc2").synthetic_images, read_condensed(run.condensed)[0])
    assert published.before is None


def test_whole_configurations_come_from_one_commit(published: LocalHub, tmp_path: Path, run: RunDir) -> None:
    before = published.head(REPO)

    def push_in_between(request: Request) -> None:
        if request.label != "resolve":
            published.before = None
            published.commit(REPO, {"ipc2/recipe.yaml": b"theirs"})

    published.before = push_in_between
    found = download_package(REPO, cache=tmp_path / "a")
    assert published.before is None and published.head(REPO) != before == found.commit
    assert (found.folder / "ipc2" / "recipe.yaml").read_bytes() == (package(run) / "ipc2" / "recipe.yaml").read_bytes()


def test_whole_configurations_are_downloaded(published: LocalHub, tmp_path: Path) -> None:
    found = download_package(REPO, everything=True, cache=tmp_path / "a")
    assert (found.configs, found.default, found.commit) == (("ipc2", "ipc5"), "ipc2", published.head(REPO))
    assert (found.folder / "ipc5" / "train-00000-of-00001.parquet").is_file()
    one = download_package(REPO, config="ipc5", cache=tmp_path / "b")
    assert one.configs == ("ipc5",) and one.default is None and not (one.folder / "ipc2").exists()
    assert download_package(REPO, cache=tmp_path / "c").configs == ("ipc2",)


@pytest.mark.parametrize(("label", "path"), [("lfs-download", ""), ("resolve", "recipe.yaml")])
def test_a_flipped_byte_is_fetched_again_once(published: LocalHub, tmp_path: Path, label: str, path: str) -> None:
    published.faults.append(Fault(label=label, action="flip", times=1, path=path))
    assert download_package(REPO, cache=tmp_path / "a").configs == ("ipc2",)
    assert published.faults[0].times == 0
    published.faults[:] = [Fault(label=label, action="flip", times=1000, path=path)]
    with pytest.raises(FormatError, match="hmdc-hub verify"):
        get(tmp_path, "b")


def test_a_damaged_cache_does_not_stay(published: LocalHub, tmp_path: Path, run: RunDir) -> None:
    found = download_package(REPO, config="ipc2", cache=tmp_path / "cache")
    blob = (found.folder / "ipc2" / "condensed.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    again = download_package(REPO, config="ipc2", cache=tmp_path / "cache")
    assert (again.folder / "ipc2" / "condensed.safetensors").read_bytes() == run.condensed.read_bytes()


def test_a_damaged_cache_is_said_offline(published: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = download_package(REPO, config="ipc2", cache=tmp_path / "cache")
    blob = (found.folder / "ipc2" / "condensed.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FormatError, match="condensed.safetensors of .* is damaged in the cache") as caught:
        download_package(REPO, config="ipc2", cache=tmp_path / "cache")
    assert "Unset HF_HUB_OFFLINE" in caught.value.hint


def test_words_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-0123456789")
    for error, words in (
        (TimeoutError(), "the Hub cannot be reached (TimeoutError)."),
        (OSError("at https://ann:pw@host/x\nwith secret-0123456789"), "(at https://host/x with (token))."),
        (
            OSError("Client error '403 Forbidden' for url 'https://x/y?signature=1'\nFor more, look"),
            "'403 Forbidden').",
        ),
        (OSError(28, "No space left on device", "/cache/x"), "reading a/b: No space left on device: /cache/x."),
    ):
        found = translated(error, "reading a/b", "a/b")
        assert found.message.endswith(words) and found.hint


def test_missing_things_are_named(published: LocalHub) -> None:
    for keys, words in (({"config": "ipc7"}, "ipc2, ipc5"), ({"revision": "v9"}, "v9")):
        with pytest.raises(NotFoundError, match=words):
            hmdc_hub.load(REPO, **keys)
    with pytest.raises(NotFoundError, match="hf auth login"):
        hmdc_hub.load("ann/nothing")
    with pytest.raises(UsageError):
        hmdc_hub.load(REPO, "../ipc2")


def test_a_dataset_of_others_is_no_condensed_set(hub: LocalHub) -> None:
    hub.create_repo("bob/raw", files={"README.md": b"---\nconfigs:\n- config_name: a\n---\n", "a.csv": b"x"})
    with pytest.raises(NotFoundError, match="load_dataset"):
        hmdc_hub.load("bob/raw")
    hub.create_repo("bob/bare")
    with pytest.raises(NotFoundError, match="no condensed set"):
        hmdc_hub.load("bob/bare")


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_no_access(published: LocalHub, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = published.files(REPO)
    published.create_repo(f"ann/{kind}", gated=kind == "gated", private=kind == "private", files=files)
    with pytest.raises(NotFoundError, match="hf auth login"):
        hmdc_hub.load(f"ann/{kind}")
    monkeypatch.setenv("HF_TOKEN", published.token("ann"))
    assert hmdc_hub.load(f"ann/{kind}").header.ipc == 2


def test_an_expired_token_is_hinted_at_and_not_repeated(published: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    token = published.token("ann", role="expired")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HmdcError, match="expired") as caught:
        hmdc_hub.load(REPO, revision="main~0")
    assert token not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["503", "drop-before"])
def test_a_hub_that_is_down(published: LocalHub, tmp_path: Path, action: str) -> None:
    published.faults.append(Fault(label="resolve", action=action, times=1000))  # type: ignore[arg-type]
    with pytest.raises(NetworkError):
        get(tmp_path)


def test_a_newer_format_names_the_way_out(published: LocalHub, tmp_path: Path) -> None:
    card = published.files(REPO)["README.md"]
    card = card.replace(b"format_version: %d" % FORMAT_VERSION, b"format_version: %d" % (FORMAT_VERSION + 1))
    published.commit(REPO, {"README.md": card})
    with pytest.raises(NewerFormatError, match="pip install -U"):
        get(tmp_path)
    with pytest.raises(NewerFormatError):
        hmdc_hub.load(REPO)


def test_a_manifest_that_reaches_outside_is_refused(published: LocalHub, tmp_path: Path) -> None:
    manifest = json.loads(published.files(REPO)["ipc2/manifest.json"])
    manifest["files"][0]["path"] = "../../../outside"
    published.commit(REPO, {"ipc2/manifest.json": json.dumps(sealed(manifest)).encode()})
    with pytest.raises(FormatError, match="no file of the configuration"):
        get(tmp_path)


@pytest.mark.slow
def test_offline(published: LocalHub, tmp_path: Path, child_environment: dict[str, str]) -> None:
    code = f"import hmdc_hub; print(hmdc_hub.load({REPO!r}, 'ipc5').header.ipc)"

    def child(**environment: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code]
        return subprocess.run(line, env=child_environment | environment, capture_output=True, text=True)

    cold = child(HF_HUB_OFFLINE="1")
    assert "NetworkError" in cold.stderr and "HF_HUB_OFFLINE" in cold.stderr
    assert child().stdout == "5\n"
    published.requests.clear()
    assert child(HF_HUB_OFFLINE="1").stdout == "5\n" and not published.requests


def test_local_folders_win_over_hub_ids(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "ann" / "run", recipe=make_recipe())
    monkeypatch.chdir(tmp_path)
    assert hmdc_hub.load("ann/run").header.ipc == 2 and not hub.requests
    assert run.info.is_file()
