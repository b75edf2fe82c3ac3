"""Links in a package: within it they are read, out of it they are refused by everything that reads packages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hmdc_hub import load
from hmdc_hub.errors import FormatError
from hmdc_hub.publish.verify import verify
from hmdc_hub.store.configs import refuse_links

PLACES = [
    "README.md",
    "ipc2",
    "ipc2/info.json",
    "ipc2/condensed.safetensors",
    "ipc2/train-00000-of-00001.parquet",
    "ipc2/manifest.json",
    "ipc2/new",
    "assets",
    "assets/ipc2/preview.png",
    "scores",
    "scores/ipc2.parquet",
]


@pytest.fixture
def folder(sound_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_package, tmp_path / "package"))


def lead_out(folder: Path, place: str) -> None:
    """Move a part of the package elsewhere, with a link to it in its place: everything is there to be read."""
    outside = folder.parent / "outside"
    if (folder / place).exists():
        (folder / place).rename(outside)
    else:
        outside.mkdir()
    (folder / place).symlink_to(outside)


@pytest.mark.parametrize("place", PLACES)
def test_what_leads_out_is_refused_and_nothing_is_read(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_out(folder, place)
    monkeypatch.setattr("hmdc_hub.publish.verify._looked", lambda *_: pytest.fail("read"))
    (finding,) = verify(folder)
    assert not finding.ok and f"{place} is a link that leads out" in finding.detail
    if place.startswith("ipc2"):
        with pytest.raises(FormatError, match="is a link that leads out"):
            load(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "../../../../../etc/passwd", "nowhere/at/all/..", "/"])
def test_wherever_it_leads(folder: Path, target: str) -> None:
    (folder / "ipc2/info.json").unlink()
    (folder / "ipc2/info.json").symlink_to(target)
    if target.startswith("nowhere"):
        assert not all(finding.ok for finding in verify(folder)), "a link to nothing is a missing file"
        return
    with pytest.raises(FormatError, match="leads out"):
        refuse_links(folder, ["ipc2"])


def test_a_link_to_itself_is_no_trap(folder: Path) -> None:
    (folder / "ipc2/info.json").unlink()
    (folder / "ipc2/info.json").symlink_to("info.json")
    (folder / "ipc2/round").symlink_to(".")
    assert not all(finding.ok for finding in verify(folder))


def test_links_within_are_read(folder: Path, tmp_path: Path) -> None:
    (folder / "kept").mkdir()
    (folder / "ipc2/info.json").rename(folder / "kept" / "info.json")
    (folder / "ipc2/info.json").symlink_to(os.path.join("..", "kept", "info.json"))
    (tmp_path / "elsewhere").symlink_to(folder)
    for place in (folder, tmp_path / "elsewhere"):
        assert all(finding.ok for finding in verify(place))
        assert load(place).header.ipc == 2


def test_a_snapshot_of_the_client_is_read(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = Path(shutil.copytree(folder, tmp_path / "cache" / "snapshots" / "abc"))
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert all(finding.ok for finding in verify(snapshot))
    lead_out(snapshot, "ipc2/info.json")
    assert not all(finding.ok for finding in verify(snapshot))


def test_what_is_not_read_may_be_a_link(folder: Path) -> None:
    (folder / "notes").symlink_to("/")
    assert all(finding.ok for finding in verify(folder))
