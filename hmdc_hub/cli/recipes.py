"""`hmdc-hub recipes`: list, show, copy and validate. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import output
from hmdc_hub.cli.overrides import OVERRIDES, RecipeCommand
from hmdc_hub.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.catalog import Entry

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
    output.hint(f"edit it, then hmdc-hub recipes validate {written[0]}")


@recipes.command("validate", cls=RecipeCommand, short_help="Check recipes without running them.")
@click.argument("recipe", nargs=-1, required=True)
@OVERRIDES
@JSON
def validate(recipe: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check each RECIPE, with overrides if given, and report every problem of all of them; exit status 2 if any.

    Whether the dataset is there and the models fit it is found out by `hmdc-hub condense RECIPE --dry-run`.
    """
    results = {name: _checked(name, overrides) for name in recipe}
    failed = {name: error for name, error in results.items() if isinstance(error, UsageError)}
    if as_json:
        output.document([_verdict(name, checked) for name, checked in results.items()])
        if failed:
            click.get_current_context().exit(2)
        return
    lines = [_line(name, checked) for name, checked in results.items() if not isinstance(checked, UsageError)]
    if lines:
        output.data("\n".join(lines))
    if failed:
        hints = dict.fromkeys(error.hint for error in failed.values() if error.hint)
        raise UsageError("\n".join(error.message for error in failed.values()), hint="\n".join(hints))
    output.hint(f"hmdc-hub condense {recipe[0]}")


def entries_document(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Write a listing of recipes or pool entries as plain data for `--json`."""
    return [vars(entry) | {"path": str(entry.path), "pool": list(entry.pool)} for entry in entries]


def _checked(name: str, overrides: tuple[str, ...]) -> Any:
    from hmdc_hub.catalog import load_recipe

    try:
        return load_recipe(name, overrides)
    except UsageError as error:
        return error


def _line(name: str, recipe: Any) -> str:
    return f"{name}: valid (condense {recipe.condense_hash()[:8]}, protocol {recipe.protocol_hash()[:8]})"


def _verdict(name: str, checked: Any) -> dict[str, Any]:
    if isinstance(checked, RecipeError):
        problems: list[Any] = [vars(problem) for problem in checked.problems]
        return {"recipe": name, "valid": False, "problems": problems}
    if isinstance(checked, UsageError):
        return {"recipe": name, "valid": False, "problems": [{"rule": checked.message}]}
    hashes = {"condense_hash": checked.condense_hash(), "protocol_hash": checked.protocol_hash()}
    return {"recipe": name, "valid": True, "problems": [], **hashes}
