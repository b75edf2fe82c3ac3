"""A working directory, the command line beside the Python API, and a Hub to push to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import call, folder  # noqa: F401  (fixtures of these tests, too)
from tests.hub import LocalHub
from tests.publish.pushing import prepare


@pytest.fixture
def account(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The Hub, logged in as `ann`."""
    monkeypatch.setenv("HF_TOKEN", prepare(hub))
    return hub


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
