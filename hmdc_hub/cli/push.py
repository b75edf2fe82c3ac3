"""`hmdc-hub package` and `push`: a run becomes a dataset on the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, ROOT, YES
from hmdc_hub.errors import Interrupted, UsageError
from hmdc_hub.text import amount, count

if TYPE_CHECKING:
    from hmdc_hub.publish.plan import PushPlan

PACKAGE_EPILOG = """\b
hmdc-hub package
hmdc-hub package digits_ipc1 --config one_per_class"""
PUSH_EPILOG = """\b
hmdc-hub push                       the newest finished run, under your name
hmdc-hub push --dry-run             what it would do; nothing is sent
hmdc-hub push cifar10_ipc10 --repo-id lab/cifar10-hmdc --private
hmdc-hub push --scores-only --yes   new scores of images that are published"""


@click.command(short_help="Build what a Hub dataset will hold from a run.", epilog=PACKAGE_EPILOG)
@click.argument("run", required=False)
@ROOT
@click.option("--config", metavar="NAME", help="Name of the configuration.  [default: the recipe's publish.config]")
@JSON
def package(run: str | None, root: Path, config: str | None, as_json: bool) -> None:
    """Build the package of RUN, or of the newest finished run: the files that a Hub dataset will hold.

    `hmdc-hub condense` has done that already, and `hmdc-hub push` does it again; doing it twice gives the same bytes.
    What `hmdc-hub verify` would not pass is refused.
    """
    from hmdc_hub.pipeline.target import named_or_newest
    from hmdc_hub.publish.card import read_facts

    folder = named_or_newest(run, root).package(config)
    facts = read_facts(folder)
    rows = [[file.path, amount(file.size), file.sha256[:12]] for one in facts for file in one.manifest.files]
    manifests = [one.manifest.model_dump(mode="json") for one in facts]
    output.emit(
        as_json,
        lambda: {"package": str(folder), **({"configs": manifests} if facts[1:] else manifests[0])},
        lambda: f"package    {folder}\n" + output.columns(["FILE", "SIZE", "SHA-256"], rows),
        f'load_dataset("{folder.as_posix()}", "{facts[0].name}"), hmdc-hub push {run or ""}'.rstrip(),
    )


@click.command(short_help="Publish a run as a dataset on the Hugging Face Hub.", epilog=PUSH_EPILOG)
@click.argument("run", required=False)
@ROOT
@click.option("--repo-id", metavar="ID", help="OWNER/NAME or NAME.  [default: you / the recipe's publish.name]")
@click.option(
    "--config",
    metavar="NAME",
    help="Configuration to fill; of several sizes the one to push.  [default: the recipe's publish.config; all sizes]",
)
@click.option("--private/--public", default=None, help="Visibility of a new dataset; never changed afterwards.")
@click.option("--default", is_flag=True, help="Make this the configuration that load_dataset(ID) gives.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--revision", "branch", metavar="BRANCH", default="main", show_default=True, help="Branch to commit to.")
@click.option("--tag", metavar="NAME", help="A tag besides CONFIG-HASH; tags never move.")
@click.option("--scores-only", is_flag=True, help="Publish new scores of images that are there already.")
@click.option("--dry-run", is_flag=True, help="Print the plan; change nothing.")
@YES
@click.option("--force", is_flag=True, help="Replace what is in the way: other people's changes, a foreign card.")
@JSON
def push(run: str | None, root: Path, dry_run: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Publish RUN, or the newest finished run, as a dataset on the Hugging Face Hub.

    Shows what will change and asks first. Everything, all sizes of a run of several, goes in one commit, is tagged, and
    is read back and checked as a stranger would load it. You are whoever `hf auth login` or HF_TOKEN says.
    """
    from hmdc_hub.pipeline.progress import reporting
    from hmdc_hub.pipeline.target import named_or_newest
    from hmdc_hub.publish.plan import PushOptions
    from hmdc_hub.publish.push import Push

    found, wanted = named_or_newest(run, root, whole=yes), PushOptions(**options)
    with reporting(None) as show, found.directory.lock(), Push(found.directory, wanted, callback=show) as pushing:
        plan = pushing.plan()
        shown = plan_text(plan, str(found.path))
        if as_json or not dry_run:  # the result follows on stdout
            output.talk(shown)
        if dry_run:
            output.emit(as_json, lambda: {"plan": plan_document(plan), "result": None}, lambda: shown)
            return
        _ask(plan, yes)
        try:
            published = pushing.apply(plan)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; {plan.repo_id} is as it was or as planned, nothing between",
                signal_number=2,
                hint="push again: it goes on from what is there",
            ) from error
    result = {**vars(published), "rows": dict(published.loads)}
    del result["loads"]
    changed, loads = published.changed, ", ".join(f"{name} {rows} rows" for name, rows in published.loads.items())
    lines = [f"published  {published.url}" if changed else f"{published.url} was there already"]
    lines += [f"commit     {published.commit}"] + [f"tags       {', '.join(published.tags)}"] * bool(published.tags)
    lines += [f"read back  every hash; loaded {loads}"]
    output.emit(as_json, lambda: {"plan": plan_document(plan), "result": result}, lambda: "\n".join(lines))
    config = next(iter(published.loads))
    output.hint(f'load_dataset("{published.repo_id}", "{config}", revision="{published.revision}")')


def _ask(plan: PushPlan, yes: bool) -> None:
    """Get consent for what cannot be taken back; a plan without changes needs none."""
    if yes or not plan.changes:
        return
    where = f"{plan.repo_id} ({'private' if plan.private else 'public'})"
    if not sys.stdin.isatty():
        raise UsageError(
            f"There is nobody here to ask whether to publish to {where}; nothing was sent.",
            hint="--yes publishes without asking, --dry-run only shows the plan.",
        )
    if not click.confirm(f"publish to {where}?", err=True):
        raise UsageError("Nothing was published.", hint="`hmdc-hub push --dry-run` shows the plan again.")


def plan_text(plan: PushPlan, run: str) -> str:
    """Write a plan for a person; of a set that does not beat all that it must beat it says so."""
    from hmdc_hub.report.headline import headline

    remote, heads = plan.remote, {one.name: headline(one.facts.scores) for one in plan.pushed if one.facts.scores}
    visible, place, there = "private" if plan.private else "public", "a new dataset", frozenset[str]()
    if remote is not None:
        place, there = f"at {remote.head[:12]}", frozenset(remote.files)
    # The card last: it is about all the others.
    paths = sorted(plan.uploads, key=lambda path: (path == "README.md", path))
    width = max(map(len, paths), default=0)
    rows = [("replace" if path in there else "add", path, amount(_size(plan.uploads[path]))) for path in paths]
    rows += [("delete", path, "") for path in plan.deletes]
    lines = [
        f"push       {run}",
        f"to         {plan.repo_id} ({visible}), branch {plan.options.branch}, {place}",
        *(["by         a pull request"] if plan.options.create_pr else []),
        *(f"           {note}" for note in plan.notes),
        *(
            f"verdict    {f'{name}: ' if plan.pushed[1:] else ''}{head.verdict}"
            for name, head in heads.items()
            if not head.beats_all
        ),
        *(f"  {what:<8} {path:<{width}}  {size}".rstrip() for what, path, size in rows),
    ]
    others = [name for name in plan.configs if name not in {one.name for one in plan.pushed}]
    if others:
        lines.append(f"  keep     {', '.join(others)}")
    lines.append(f"default    {plan.default}")
    lines += [f"tag        {', '.join(plan.tags)}"] if plan.tags else []
    total = f"{count(len(plan.uploads), 'file')}, {amount(sum(map(_size, plan.uploads.values())))}"
    return "\n".join([*lines, f"to send    {total if plan.changes else 'nothing'}"])


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def plan_document(plan: PushPlan) -> dict[str, Any]:
    """Write a plan as plain data for `--json`."""
    remote = plan.remote
    return {
        "repo_id": plan.repo_id,
        "new": remote is None,
        "private": plan.private,
        "branch": plan.options.branch,
        "create_pr": plan.options.create_pr,
        "parent_commit": remote and remote.head,
        "pushed": [one.name for one in plan.pushed],
        "configs": list(plan.configs),
        "default": plan.default,
        "uploads": sorted(plan.uploads),
        "deletes": list(plan.deletes),
        "tags": list(plan.tags),
        "notes": list(plan.notes),
    }
