"""The environment of all tests: one thread per process, a Hub of this process's own, no GPU tests without a GPU.

huggingface_hub and datasets read their settings when they are imported, so these stand here, before anything else.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from tests.hub import LocalHub
    from tests.hub.state import State

# The suite runs in several processes, and small things gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


PORT = _free_port()
HOME = tempfile.mkdtemp(prefix="hmdc-tests-hf-")
HUB_ENVIRONMENT = {
    "HF_ENDPOINT": f"http://127.0.0.1:{PORT}",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
os.environ |= HUB_ENVIRONMENT | {"HF_HOME": HOME, "HMDC_HUB_CACHE": f"{HOME}/hmdc-hub"}
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN_PATH",
):
    os.environ.pop(_name, None)
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

_hubs: list[LocalHub] = []
_published: list[State] = []
"""What `published` begins with, once it was made."""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """The Hub that HF_ENDPOINT of this process names, empty."""
    from tests.hub import LocalHub

    if not _hubs:
        _hubs.append(LocalHub(PORT))
    _hubs[0].reset()
    yield _hubs[0]
    _hubs[0].reset()


@pytest.fixture
def published(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> LocalHub:
    """The Hub with two configurations, ipc2 and ipc5, of `tests.publish.pushing.made_run`; nobody is logged in."""
    from tests.publish.pushing import made_run, prepare, push

    if not _published:
        made = tmp_path_factory.mktemp("published")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_TOKEN", prepare(hub))
            for ipc in (2, 5):
                push(made_run(made / str(ipc), ipc))
        _published.append(hub.snapshot())
    hub.restore(_published[0])
    hub.requests.clear()
    for cache in ("hub", "datasets"):  # the commits are those of the test before, and may lie there
        shutil.rmtree(Path(HOME) / cache, ignore_errors=True)
    return hub


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    """What an earlier test trained must not save this one the work."""
    with pytest.MonkeyPatch.context() as patch:  # not the test's own, which may undo everything
        patch.setenv("HMDC_HUB_CACHE", str(tmp_path / "hmdc-hub-cache"))
        yield


@pytest.fixture
def child_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a child process that talks to `hub` with a cache of its own."""
    return dict(os.environ) | {"HF_HOME": str(tmp_path / "hf-home")}


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Make a folder once in a session, for all of its processes; a test that writes into it takes a copy."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, make: Callable[[Path], object]) -> Path:
        place, beginning = root / f"shared-{name}", root / f"beginning-{name}"
        with FileLock(f"{place}.lock"):
            if not place.exists():
                shutil.rmtree(beginning, ignore_errors=True)
                beginning.mkdir()
                make(beginning)
                beginning.rename(place)
        return place

    return once


@pytest.fixture(scope="session")
def finished_run(shared: Shared) -> Path:
    """A folder with `tiny.yaml` and its finished run `runs/tiny`, made by the real command; not to be written to."""

    def condense(place: Path) -> None:
        from hmdc_hub.cli.main import run
        from tests.cli import tiny

        tiny.write(place / "tiny.yaml")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            assert run(["condense", "tiny.yaml", "--workers", "1"]) == 0

    return shared("finished-run", condense)


@pytest.fixture(scope="session")
def sound_package(shared: Shared) -> Path:
    """The package of a run with random images (`tests.builders.make_run`); not to be written to."""

    def build(place: Path) -> None:
        from hmdc_hub.publish.build import package
        from tests.builders import make_run

        shutil.move(package(make_run(place / "run")), place / "package")

    return shared("sound-package", build) / "package"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use several processes for the whole suite if pytest-xdist is there; one file is done sooner in this one."""
    whole = [path.rstrip("/") for path in config.args] == config.getini("testpaths") and not config.option.usepdb
    worker = hasattr(config, "workerinput")
    if whole and not worker and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        # worksteal: some tests take a minute, most a hundredth of a second. A process takes 2 GB.
        config.option.numprocesses, config.option.dist = "auto", "worksteal"
        config.option.maxprocesses = config.option.maxprocesses or 8


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "exhaustive" not in config.option.markexpr:
        dropped = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
