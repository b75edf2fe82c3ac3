"""What the tests of pushing share: an account, a run, a push without waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmdc_hub.publish.hub import Hub
from hmdc_hub.publish.plan import PushOptions, PushPlan
from hmdc_hub.publish.push import Published, Push, publish
from hmdc_hub.store.rundir import RunDir
from tests.builders import make_recipe, make_run
from tests.hub import LocalHub

REPO = "ann/tiny-hmdc"
SOURCE = "someone/tiny"


def prepare(hub: LocalHub) -> str:
    """Make the account `ann`, the organisation `lab` and the public source; returns ann's token."""
    for user in ("ann", "bob", "someone"):
        hub.add_user(user)
    hub.add_org("lab", {"ann": "write", "bob": "admin"})
    hub.create_repo(SOURCE, files={"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    return hub.token("ann")


def made_run(path: Path, ipc: int = 2, *, seed: int = 0, scored: bool = True, **recipe: Any) -> RunDir:
    """Make a complete run with random images."""
    return make_run(path, recipe=make_recipe(name=f"tiny_ipc{ipc}", ipc=ipc, **recipe), seed=seed, scored=scored)


def no_wait(seconds: float) -> None:
    """Stand in for `time.sleep`."""


def options(**keys: Any) -> PushOptions:
    """Make options."""
    return PushOptions(**keys)


def plan(run: RunDir, **keys: Any) -> PushPlan:
    """PushPlan a push without doing it."""
    with Push(run, options(**keys), hub=Hub(no_wait)) as pushing:
        return pushing.plan()


def push(run: RunDir, **keys: Any) -> Published:
    """Push a run."""
    return publish(run, options(**keys), hub=Hub(no_wait))
