"""Options and arguments that several verbs have: `--root`, `--json`, `-o key=value`, the name of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.errors import NotFoundError

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Run

ROOT = click.option(
    "--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
OVERRIDES = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the recipe, such as condense.ipc=1; may stand several times.",
)


class RecipeCommand(click.Command):
    """A command whose stray `key=value` is met with the right spelling, as people know it from other tools."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as usual, but look at left-over arguments before complaining about them."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        named = ctx.params.get("recipe", ())
        for text in [*([named] if isinstance(named, str) else named), *rest]:
            if "=" in text and not Path(text).exists():
                from hmdc_hub.catalog import looks_like_override

                if looks_like_override(text):
                    raise click.UsageError(f"Got unexpected extra argument ({text}). Did you mean -o {text}?", ctx)
        if rest:
            raise click.UsageError(f"Got unexpected extra argument ({' '.join(rest)}).", ctx)
        return rest


def run_folder(name: str, root: Path) -> Path:
    """Find a run by its name below a folder, or by its path.

    Raises:
        NotFoundError: There is none.
    """
    for path in (root / name, Path(name)):
        if path.is_dir():
            return path
    raise NotFoundError(f"there is no run {name!r} in {root}", hint=f"`hmdc-hub runs ls --root {root}` lists them.")


def named_or_newest(name: str | None, root: Path) -> Run:
    """Find a run by its name; without one, that which was finished last: condensed, scored and packaged.

    Raises:
        NotFoundError: There is none.
    """
    from hmdc_hub.pipeline.api import Run
    from hmdc_hub.store.rundir import list_runs

    if name is not None:
        return Run(run_folder(name, root))
    finished = [entry.run for entry in list_runs(root) if entry.state == "finished"]
    if not finished:
        raise NotFoundError(
            f"there is no finished run in {root}",
            hint="`hmdc-hub condense` makes one, `hmdc-hub runs ls` lists what there is; or name the run.",
        )
    return Run(max(finished, key=lambda run: (run.scores.stat().st_mtime, run.path.name)).path)
