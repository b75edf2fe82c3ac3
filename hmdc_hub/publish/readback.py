"""Reading a push back as a stranger would: a cache of its own, every hash, every touched configuration loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hmdc_hub.errors import HmdcError, RunError
from hmdc_hub.publish.hub import Hub
from hmdc_hub.publish.hub_errors import AGAIN
from hmdc_hub.publish.plan import Plan
from hmdc_hub.store import sha256_file
from hmdc_hub.store.configs import SCORES_CONFIG


def check(hub: Hub, plan: Plan, revision: str, work: Path) -> dict[str, int]:
    """Download what was published and load it.

    Args:
        hub: The Hub.
        plan: What was published.
        revision: The commit or the ref of the pull request.
        work: An empty folder; neither the Hub's nor the datasets library's shared cache is asked or filled.

    Returns:
        Rows of each configuration that was loaded.

    Raises:
        RunError: The Hub serves other bytes, or they do not load; the commit is there all the same.
        NetworkError: The Hub failed.
    """
    files = plan.staged.files
    names = [*files, *(["scores/*.parquet"] if _has_scores(plan) else [])]
    try:
        checks = {name: partial(_has, digest) for name, digest in files.items()}
        folder, wrong = hub.download(plan.repo_id, revision, names, work / "hub", checks)
    except HmdcError as error:
        raise type(error)(f"Published, but not read back: {error.message}", hint=AGAIN) from error
    if wrong:
        raise RunError(
            f"Published, but what the Hub serves is not what was sent: {', '.join(wrong[:3])} of {plan.repo_id}.",
            hint="Run the same command again; if it stays so, tell the Hub's support before anybody trains on it.",
        )
    _stand_in(plan, folder)
    return _load(plan, folder, work)


def _has(digest: str, path: Path) -> bool:
    return sha256_file(path) == digest


def _has_scores(plan: Plan) -> bool:
    return plan.staged.facts.scores is not None


def _stand_in(plan: Plan, folder: Path) -> None:
    """Put empty files where the repository has others: `datasets` looks for those of every configuration.

    It reads only those of the one that it is asked for, so the others need not be downloaded.
    """
    for path in plan.existing.files:
        place = folder / path
        if ".." not in Path(path).parts and not Path(path).is_absolute() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


def _load(plan: Plan, folder: Path, work: Path) -> dict[str, int]:
    """Load every configuration that the push touched with the library that readers use."""
    import datasets

    rows = {}
    for config in [plan.staged.config, *([SCORES_CONFIG] if _has_scores(plan) else [])]:
        try:
            with _without_bars():
                loaded = datasets.load_dataset(str(folder), config, split="train", cache_dir=str(work / "datasets"))
        except Exception as error:  # whatever a loader raises means the same here: others cannot load it either
            raise RunError(
                f'Published, but load_dataset("{plan.repo_id}", "{config}") fails: {type(error).__name__}: {error}',
                hint="Look at the card's front matter on the Hub, and report this with what `hmdc-hub env` prints.",
            ) from error
        rows[config] = loaded.num_rows
    expected = plan.staged.facts.manifest.rows
    if rows[plan.staged.config] != expected:
        raise RunError(
            f"Published, but {plan.staged.config} loads {rows[plan.staged.config]} rows instead of {expected}."
        )
    return rows


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch off the bars of `datasets`: thousands of small images load at once."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
