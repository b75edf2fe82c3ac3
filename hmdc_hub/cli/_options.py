"""Options that several verbs have: `--root`, `--json`, `-o key=value` and the like."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hmdc_hub.text import did_you_mean

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

PATH = click.Path(path_type=Path)
ROOT = click.option("--root", type=PATH, default=Path("runs"), show_default=True, help="Folder of the runs.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
WORKERS = click.option("--workers", type=click.IntRange(min=1), metavar="N", help="CPU processes of the evaluation.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Show all figures while it runs.")
OVERWRITE = click.option("--force", is_flag=True, help="Write over a file that is there.")
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


def overrides(what: str, example: str) -> Callable[[FC], FC]:
    """Make `-o KEY=VALUE` for the keys of something."""
    help = f"Change one key of the {what}, such as {example}; may stand several times."
    return click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help=help)


OVERRIDES = overrides("recipe", "condense.ipc=1")


class RecipeCommand(click.Command):
    """A command that takes `-o key=value`: what people write in its place is met with the right spelling."""

    section = ""  # of the recipe, that its keys are in

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as usual, but look at left-over arguments and unknown options before complaining about them."""
        given = list(args)
        if whole := _taken_apart(given):
            raise click.UsageError(f"The shell took a list apart at its spaces. Quote it: -o {whole}", ctx)
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if keys := _keys_called(error.option_name, self.section):
                value = _value_of(error.option_name, given)
                meant = did_you_mean([f"-o {shlex.quote(f'{key}={value}')}" for key in keys[:3]])
                raise click.UsageError(f"{error.message} {meant[0].upper()}{meant[1:]}", ctx) from error
            raise
        named = ctx.params.get("recipe", ())
        for text in [*([named] if isinstance(named, str) else named), *rest]:
            if "=" in text and not Path(text).exists():
                from hmdc_hub.catalog import looks_like_override

                if looks_like_override(text):
                    raise click.UsageError(f"Got unexpected extra argument ({text}). Did you mean -o {text}?", ctx)
        if rest:
            raise click.UsageError(f"Got unexpected extra argument ({' '.join(rest)}).", ctx)
        return rest


class ProtocolCommand(RecipeCommand):
    """The same for keys of a protocol."""

    section = "evaluate."


def _taken_apart(args: list[str]) -> str:
    """Put `key=[a,` and `b]` together, quoted; empty if there is no such thing."""
    for first, text in enumerate(args):
        if "=" not in text or not _is_open(text):
            continue
        for end in range(first + 1, len(args)):
            if args[end] == "-o" or args[end].startswith("--"):
                break
            whole = " ".join(args[first : end + 1])
            if not _is_open(whole):
                return shlex.quote(whole)
    return ""


def _is_open(text: str) -> bool:
    return any(text.count(one) > text.count(other) for one, other in ("[]", "{}"))


def _keys_called(option: str, section: str) -> list[str]:
    """List the keys of a recipe that an option such as `--ipc` or `--condense.ipc` may mean."""
    from hmdc_hub.catalog import recipe_keys

    word = option.lstrip("-").replace("-", "_")
    keys = [key for key in recipe_keys() if key.startswith(section)]
    return [word] if word in keys else [key for key in keys if key.rpartition(".")[2] == word]


def _value_of(option: str, args: list[str]) -> str:
    """Find what was given to an option, `VALUE` if nothing was."""
    for text, after in zip(args, [*args[1:], "-"], strict=True):
        name, equals, value = text.partition("=")
        if name == option:
            return value if equals else "VALUE" if after.startswith("-") else after
    return "VALUE"
