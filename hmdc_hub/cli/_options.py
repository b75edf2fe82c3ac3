"""Options that several verbs have: `--root`, `--json`, `-o key=value` and the like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

PATH = click.Path(path_type=Path)
ROOT = click.option("--root", type=PATH, default=Path("runs"), show_default=True, help="Folder of the runs.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
WORKERS = click.option("--workers", type=click.IntRange(min=1), metavar="N", help="CPU processes of the evaluation.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
OVERWRITE = click.option("--force", is_flag=True, help="Write over a file that is there.")
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


def overrides(what: str, example: str) -> Callable[[FC], FC]:
    """Make `-o KEY=VALUE` for the keys of something."""
    help = f"Change one key of the {what}, such as {example}; may stand several times."
    return click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help=help)


OVERRIDES = overrides("recipe", "condense.ipc=1")


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
