"""`hmdc-hub recipes`: list, show, copy and validate. Only `validate` needs torch, for recipes without a mistake."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, OVERRIDES, RecipeCommand
from hmdc_hub.errors import Problem, RecipeError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.catalog import Entry
    from hmdc_hub.pipeline.validation import Validation
    from hmdc_hub.schema import Recipe


@click.group(short_help="List, show, copy and validate recipes.")
def recipes() -> None:
    """List, show, copy and validate recipes.

    A recipe is a small YAML file: copy one that is near to what you want, edit it, validate it, run it.
    """


@recipes.command("ls", short_help="List the recipes that come with hmdc-hub.")
@JSON
def list_(as_json: bool) -> None:
    """List the recipes that come with hmdc-hub."""
    from hmdc_hub.catalog import RECIPES, list_entries

    print_entries(list_entries(RECIPES), as_json, "hmdc-hub recipes show NAME, hmdc-hub condense NAME")


@recipes.command("show", cls=RecipeCommand, short_help="Print a recipe.")
@click.argument("recipe")
@click.option("--resolved", is_flag=True, help="Every default filled in, models written out, as a run keeps it.")
@OVERRIDES
@JSON
def show(recipe: str, resolved: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE as it was written, with its header."""
    from hmdc_hub.catalog import RECIPES, dump_recipe, find, load_recipe

    if as_json:
        output.document(load_recipe(recipe, overrides).model_dump(mode="json"))
    elif resolved:
        output.data(dump_recipe(load_recipe(recipe, overrides)))
    elif overrides:
        raise click.UsageError("-o changes the resolved recipe, not the file: add --resolved.")
    else:
        output.data(find(RECIPES, recipe).read_text(encoding="utf-8"))


@recipes.command("cp", short_help="Copy a recipe to edit it.")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), default=".")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def copy(name: str, destination: Path, force: bool) -> None:
    """Copy recipe NAME to DESTINATION, a file or a folder (default: here), with the schema that editors check it by."""
    from hmdc_hub.catalog import RECIPES, copy_entry

    written = copy_entry(RECIPES, name, destination, force=force)
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


def print_entries(entries: Sequence[Entry], as_json: bool, hint: str) -> None:
    """List recipes or pool entries."""
    if as_json:
        output.document([vars(entry) | {"path": str(entry.path), "pool": list(entry.pool)} for entry in entries])
        return
    output.data(output.columns(["NAME", "DESCRIPTION"], [[entry.name, entry.description] for entry in entries]))
    output.hint(hint)


class Verdict(NamedTuple):
    """What was found out about a recipe; the last two are None where its own words are wrong already."""

    error: UsageError | None
    recipe: Recipe | None = None
    found: Validation | None = None


def _checked(name: str, overrides: tuple[str, ...]) -> Verdict:
    from hmdc_hub.catalog import load_recipe

    try:
        recipe = load_recipe(name, overrides)
    except UsageError as error:
        return Verdict(error)
    from hmdc_hub.pipeline.validation import validate_recipe

    found = validate_recipe(recipe)
    if not found.problems:
        return Verdict(None, recipe, found)
    problems = [Problem("", None, "", problem.message) for problem in found.problems]
    hint = "\n".join(dict.fromkeys(problem.hint for problem in found.problems if problem.hint))
    return Verdict(RecipeError(name, problems, hint=hint), recipe, found)


def _lines(name: str, verdict: Verdict) -> list[str]:
    error, recipe, found = verdict
    if error is not None or recipe is None or found is None:
        return []
    return [
        f"{name}: valid (condense {recipe.condense_hash()[:8]}, protocol {recipe.protocol_hash()[:8]})",
        *(f"  {line}" for line in (found.rows.lines() if found.rows else ())),
        *(f"  not looked at: {what}" for what in found.unseen),
    ]


def _document(name: str, verdict: Verdict) -> dict[str, Any]:
    error, recipe, found = verdict
    problems: list[Any] = []
    if isinstance(error, RecipeError):
        problems = [vars(problem) for problem in error.problems]
    elif error is not None:
        problems = [{"rule": error.message}]
    document: dict[str, Any] = {"recipe": name, "valid": error is None, "problems": problems}
    if recipe is not None:
        document |= {"condense_hash": recipe.condense_hash(), "protocol_hash": recipe.protocol_hash()}
    if found is not None:
        document["source"] = found.rows.document() if found.rows else None
        document["not_looked_at"] = list(found.unseen)
    return document
