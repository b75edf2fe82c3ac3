"""`-o key=value`, and what people write when they forget the `-o`."""

from __future__ import annotations

from pathlib import Path

import click

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
