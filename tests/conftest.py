"""The environment of all tests: one thread per process, a Hub of this process's own, no GPU tests without a GPU.

huggingface_hub and datasets read their settings when they are imported, so these stand here, before anything else.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.hub import LocalHub

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


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """The Hub that HF_ENDPOINT of this process names, empty."""
    from tests.hub import LocalHub

    if not _hubs:
        _hubs.append(LocalHub(PORT))
    _hubs[0].reset()
    yield _hubs[0]
    _hubs[0].reset()


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
