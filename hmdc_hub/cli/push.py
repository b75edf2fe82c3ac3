"""`hmdc-hub push`: publish a run as a dataset on the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import ROOT, named_or_newest
from hmdc_hub.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from hmdc_hub.publish.plan import PushPlan
    from hmdc_hub.publish.push import Published

EPILOG = """\b
hmdc-hub push                       the newest finished run, under your name
hmdc-hub push --dry-run             what it would do; nothing is sent
hmdc-hub push cifar10_ipc10 --repo-id lab/cifar10-hmdc --private
hmdc-hub push --scores-only --yes   new scores of images that are published"""


@click.command(short_help="Publish a run as a dataset on the Hugging Face Hub.", epilog=EPILOG)
@click.argument("run", required=False)
@ROOT
@click.option("--repo-id", metavar="ID", help="OWNER/NAME or NAME.  [default: you / the recipe's publish.name]")
@click.option("--config", metavar="NAME", help="Configuration to fill.  [default: the recipe's publish.config]")
@click.option("--private/--public", default=None, help="Visibility of a new dataset; never changed afterwards.")
@click.option("--default", is_flag=True, help="Make this the configuration that load_dataset(ID) gives.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--revision", "branch", metavar="BRANCH", default="main", show_default=True, help="Branch to commit to.")
@click.option("--tag", metavar="NAME", help="A tag besides CONFIG-HASH; tags never move.")
@click.option("--scores-only", is_flag=True, help="Publish new scores of images that are there already.")
@click.option("--dry-run", is_flag=True, help="Print the plan; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Replace what is in the way: other people's changes, a foreign card.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and result as one JSON document.")
def push(run: str | None, root: Path, dry_run: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Publish RUN, or the newest finished run, as a dataset on the Hugging Face Hub.

    Shows what will change and asks first. Everything goes in one commit, is tagged, and is read back and checked as a
    stranger would load it. You are whoever `hf auth login` or HF_TOKEN says.
    """
    found = named_or_newest(run, root)
    from hmdc_hub.pipeline.progress import reporting
    from hmdc_hub.publish.plan import PushOptions, Wanted
    from hmdc_hub.publish.push import Push

    content = Wanted(**{name: options.pop(name) for name in ("default", "scores_only", "force")})
    wanted = PushOptions(**options, content=content)
    with reporting(None) as show, found.directory.lock(), Push(found.directory, wanted, callback=show) as pushing:
        plan = pushing.plan()
        # The plan is what a dry run is for; before a question it is talk, as the result follows on stdout.
        (output.data if dry_run and not as_json else output.talk)(plan_text(plan, str(found.path)))
        if dry_run:
            if as_json:
                output.document({"plan": plan_document(plan), "result": None})
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
    if as_json:
        output.document({"plan": plan_document(plan), "result": result_document(published)})
    else:
        output.data(result_text(published))
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
    """Write a plan for a person."""
    staged, remote = plan.staged, plan.remote
    visible = "private" if plan.private else "public"
    place = "a new dataset" if remote is None else f"at {remote.head[:12]}"
    there = {} if remote is None else remote.files
    # The card last: it is about all the others.
    paths = sorted(staged.uploads, key=lambda path: (path == "README.md", path))
    width = max(map(len, paths), default=0)
    rows = [("replace" if path in there else "add", path, output.amount(_size(staged.uploads[path]))) for path in paths]
    rows += [("delete", path, "") for path in staged.deletes]
    lines = [
        f"push       {run}",
        f"to         {plan.repo_id} ({visible}), branch {plan.branch}, {place}",
        *(["by         a pull request"] if plan.create_pr else []),
        *(f"           {note}" for note in plan.notes),
        *(f"  {what:<8} {path:<{width}}  {size}".rstrip() for what, path, size in rows),
    ]
    others = [name for name in plan.configs if name != staged.config]
    if others:
        lines.append(f"  keep     {', '.join(others)}")
    lines.append(f"default    {staged.default}")
    lines += [f"tag        {', '.join(plan.tags)}"] if plan.tags else []
    total = output.amount(sum(map(_size, staged.uploads.values())))
    count = "1 file" if len(staged.uploads) == 1 else f"{len(staged.uploads)} files"
    return "\n".join([*lines, f"to send    {f'{count}, {total}' if plan.changes else 'nothing'}"])


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def plan_document(plan: PushPlan) -> dict[str, Any]:
    """Write a plan as plain data for `--json`."""
    staged, remote = plan.staged, plan.remote
    return {
        "repo_id": plan.repo_id,
        "new": remote is None,
        "private": plan.private,
        "branch": plan.branch,
        "create_pr": plan.create_pr,
        "parent_commit": remote and remote.head,
        "config": staged.config,
        "configs": list(plan.configs),
        "default": staged.default,
        "uploads": sorted(staged.uploads),
        "deletes": list(staged.deletes),
        "tags": list(plan.tags),
        "notes": list(plan.notes),
    }


def result_document(published: Published) -> dict[str, Any]:
    """Write what a push came to as plain data."""
    return {
        "repo_id": published.repo_id,
        "url": published.url,
        "commit": published.commit,
        "changed": published.changed,
        "revision": published.revision,
        "tags": list(published.tags),
        "rows": dict(published.loads),
    }


def result_text(published: Published) -> str:
    """Write what a push came to for a person."""
    url, changed = published.url, published.changed
    rows = ", ".join(f"{name} {count} rows" for name, count in published.loads.items())
    lines = [f"published  {url}" if changed else f"{url} was there already", f"commit     {published.commit}"]
    lines += [f"tags       {', '.join(published.tags)}"] if published.tags else []
    return "\n".join([*lines, f"read back  every hash; loaded {rows}"])
