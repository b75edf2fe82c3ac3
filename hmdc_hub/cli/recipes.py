"""`hmdc-hub recipes`: list, show, copy and validate. Only `validate` needs torch, for recipes without a mistake."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import output
from hmdc_hub.cli.overrides import OVERRIDES, RecipeCommand
from hmdc_hub.errors import Problem, RecipeError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.catalog import Entry
    from hmdc_hub.cli.validation import Looked
    from hmdc_hub.schema import Recipe

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(short_help="List, show, copy and validate recipes.")
def recipes() -> None:
    """List, show, copy and validate recipes.

    A recipe is a small YAML file: copy one that is near to what you want, edit it, validate it, run it.
    """


@recipes.command("ls", short_help="List the recipes that come with hmdc-hub.")
@JSON
def list_(as_json: bool) -> None:
    """List the recipes that come with hmdc-hub."""
    from hmdc_hub.catalog import list_recipes

    entries = list_recipes()
    if as_json:
        output.document(entries_document(entries))
        return
    output.data(output.columns(["NAME", "DESCRIPTION"], [[entry.name, entry.description] for entry in entries]))
    output.hint("hmdc-hub recipes show NAME, hmdc-hub condense NAME")


@recipes.command("show", cls=RecipeCommand, short_help="Print a recipe.")
@click.argument("recipe")
@click.option("--resolved", is_flag=True, help="Every default filled in, models written out, as a run keeps it.")
@OVERRIDES
@JSON
def show(recipe: str, resolved: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE as it was written, with its header."""
    from hmdc_hub.catalog import dump_recipe, find_recipe, load_recipe

    if as_json:
        output.document(load_recipe(recipe, overrides).model_dump(mode="json"))
    elif resolved:
        output.data(dump_recipe(load_recipe(recipe, overrides)))
    elif overrides:
        raise click.UsageError("-o changes the resolved recipe, not the file: add --resolved.")
    else:
        output.data(find_recipe(recipe).read_text(encoding="utf-8"))


@recipes.command("cp", short_help="Copy a recipe to edit it.")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), default=".")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def copy(name: str, destination: Path, force: bool) -> None:
    """Copy recipe NAME to DESTINATION, a file or a folder (default: here), with the schema that editors check it by."""
    from hmdc_hub.catalog import copy_recipe

    written = copy_recipe(name, destination, force=force)
    output.data("\n".join(str(path) for path in written))
    output.hint(f"edit it, then hmdc-hub recipes validate {shlex.quote(str(written[0]))}")


@recipes.command("validate", cls=RecipeCommand, short_help="Check recipes without running them.")
@click.argument("recipe", nargs=-1, required=True)
@OVERRIDES
@JSON
def validate(recipe: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check each RECIPE, with overrides if given, and report every problem of all of them; exit status 2 if any.

    All is looked at that needs no pixels: splits, columns, labels and class sizes of the source, and whether each model
    can be built for it. Nothing is downloaded; what is not on this machine is named.
    """
    results = {name: _checked(name, overrides) for name in recipe}
    failed = [verdict for verdict in results.values() if verdict.error is not None]
    if as_json:
        output.document([_document(name, verdict) for name, verdict in results.items()])
        if failed:
            click.get_current_context().exit(2)
        return
    lines = [line for name, verdict in results.items() for line in _lines(name, verdict)]
    if lines:
        output.data("\n".join(lines))
    if failed:
        errors = [verdict.error for verdict in failed if verdict.error is not None]
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        raise UsageError("\n".join(error.message for error in errors), hint="\n".join(hints))
    output.hint(f"hmdc-hub condense {shlex.quote(recipe[0])}")


def entries_document(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Write a listing of recipes or pool entries as plain data for `--json`."""
    return [vars(entry) | {"path": str(entry.path), "pool": list(entry.pool)} for entry in entries]


@dataclass(frozen=True)
class Verdict:
    """What was found out about a recipe; `recipe` and `looked` are None where its own words are wrong already."""

    error: UsageError | None
    recipe: Recipe | None = None
    looked: Looked | None = None


def _checked(name: str, overrides: tuple[str, ...]) -> Verdict:
    from hmdc_hub.catalog import load_recipe

    try:
        recipe = load_recipe(name, overrides)
    except UsageError as error:
        return Verdict(error)
    from hmdc_hub.cli.validation import look

    looked = look(recipe)
    if not looked.problems:
        return Verdict(None, recipe, looked)
    problems = [Problem("", None, "", problem.message) for problem in looked.problems]
    hint = "\n".join(dict.fromkeys(problem.hint for problem in looked.problems if problem.hint))
    return Verdict(RecipeError(name, problems, hint=hint), recipe, looked)


def _lines(name: str, verdict: Verdict) -> list[str]:
    if verdict.error is not None or verdict.recipe is None or verdict.looked is None:
        return []
    recipe, looked = verdict.recipe, verdict.looked
    return [
        f"{name}: valid (condense {recipe.condense_hash()[:8]}, protocol {recipe.protocol_hash()[:8]})",
        *(f"  {line}" for line in (looked.rows.said() if looked.rows else ())),
        *(f"  not looked at: {what}" for what in looked.unseen),
    ]


def _document(name: str, verdict: Verdict) -> dict[str, Any]:
    error, looked = verdict.error, verdict.looked
    problems: list[Any] = []
    if isinstance(error, RecipeError):
        problems = [vars(problem) for problem in error.problems]
    elif error is not None:
        problems = [{"rule": error.message}]
    found: dict[str, Any] = {"recipe": name, "valid": error is None, "problems": problems}
    if verdict.recipe is not None:
        found |= {"condense_hash": verdict.recipe.condense_hash(), "protocol_hash": verdict.recipe.protocol_hash()}
    if looked is not None:
        found["source"] = looked.rows.document() if looked.rows else None
        found["not_looked_at"] = list(looked.unseen)
    return found
