"""`hmdc-hub recipes`: list, show, copy and validate. Only `validate` needs torch, for recipes without a mistake."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, OVERRIDES, OVERWRITE, PATH, RecipeCommand
from hmdc_hub.errors import Problem, RecipeError, UsageError


@click.group(short_help="List, show, copy and validate recipes.")
def recipes() -> None:
    """List, show, copy and validate recipes.

    A recipe is a small YAML file: copy one that is near to what you want, edit it, validate it, run it.
    """


def add_ls_and_cp(group: click.Group, what: str, *, after_ls: str, after_cp: Callable[[Path], str]) -> None:
    """Give `recipes` and `pool` the commands that list and copy what comes with hmdc-hub: recipes, or models."""
    one = "recipe" if what == "recipes" else "pool entry"
    where = f"Copy {one} NAME to DESTINATION, a file or a folder (default: here)"

    @group.command("ls", help=f"List the {what} that come with hmdc-hub.")
    @JSON
    def list_(as_json: bool) -> None:
        from hmdc_hub.catalog import MODELS, RECIPES, list_entries

        entries = list_entries(RECIPES if what == "recipes" else MODELS)
        rows = [[entry.name, entry.description] for entry in entries]
        output.emit(
            as_json,
            lambda: [vars(entry) | {"path": str(entry.path), "pool": list(entry.pool)} for entry in entries],
            lambda: output.columns(["NAME", "DESCRIPTION"], rows),
            after_ls,
        )

    @group.command(
        "cp", short_help=f"Copy a {one} to edit it.", help=f"{where}, with the schema that editors check it by."
    )
    @click.argument("name")
    @click.argument("destination", type=PATH, default=".")
    @OVERWRITE
    def copy(name: str, destination: Path, force: bool) -> None:
        from hmdc_hub.catalog import MODELS, RECIPES, copy_entry

        written = copy_entry(RECIPES if what == "recipes" else MODELS, name, destination, force=force)
        output.data("\n".join(str(path) for path in written))
        output.hint(f"edit it, then {after_cp(written[0])}")


add_ls_and_cp(
    recipes,
    "recipes",
    after_ls="hmdc-hub recipes show NAME, hmdc-hub condense NAME",
    after_cp=lambda written: f"hmdc-hub recipes validate {shlex.quote(str(written))}",
)


@recipes.command("show", cls=RecipeCommand, short_help="Print a recipe.")
@click.argument("recipe")
@click.option("--resolved", is_flag=True, help="Every default filled in, models written out, as a run keeps it.")
@OVERRIDES
@JSON
def show(recipe: str, resolved: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE as it was written, with its header."""
    from hmdc_hub.catalog import RECIPES, dump_recipe, find, load_recipe

    if overrides and not (resolved or as_json):
        raise click.UsageError("-o changes the resolved recipe, not the file: add --resolved.")
    output.emit(
        as_json,
        lambda: load_recipe(recipe, overrides).model_dump(mode="json"),
        lambda: dump_recipe(load_recipe(recipe, overrides)) if resolved else find(RECIPES, recipe).read_text("utf-8"),
    )


@recipes.command("validate", cls=RecipeCommand, short_help="Check recipes without running them.")
@click.argument("recipe", nargs=-1, required=True)
@OVERRIDES
@JSON
def validate(recipe: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check each RECIPE, with overrides if given, and report every problem of all of them; exit status 2 if any.

    All is looked at that needs no pixels: splits, columns, labels and class sizes of the source, and whether each model
    can be built for it. Nothing is downloaded; what is not on this machine is named.
    """
    verdicts = [_verdict(name, overrides) for name in recipe]
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    if as_json:
        output.emit(True, lambda: [verdict.document for verdict in verdicts], str)
        click.get_current_context().exit(2 if errors else 0)
    if lines := [line for verdict in verdicts for line in verdict.lines]:
        output.data("\n".join(lines))
    if errors:
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        raise UsageError("\n".join(error.message for error in errors), hint="\n".join(hints))
    output.hint(f"hmdc-hub condense {shlex.quote(recipe[0])}")


class Verdict(NamedTuple):
    """What was found out about a recipe."""

    document: dict[str, Any]
    error: UsageError | None
    lines: Sequence[str] = ()  # that it is valid, what was read and what not


def _verdict(name: str, overrides: tuple[str, ...]) -> Verdict:
    from hmdc_hub.catalog import load_recipe

    document: dict[str, Any] = {"recipe": name, "valid": False}
    try:
        recipe = load_recipe(name, overrides)
    except UsageError as error:  # its own words are wrong already: nothing that needs torch is looked at
        wrong = [vars(one) for one in error.problems] if isinstance(error, RecipeError) else [{"rule": error.message}]
        return Verdict(document | {"problems": wrong}, error)
    from hmdc_hub.pipeline.validation import validate_recipe

    found = validate_recipe(recipe)
    problems = [Problem("", None, "", problem.message) for problem in found.problems]
    hashes = {"condense_hash": recipe.condense_hash(), "protocol_hash": recipe.protocol_hash()}
    document |= {"valid": not problems, "problems": [vars(problem) for problem in problems], **hashes}
    document |= {"source": found.rows and found.rows.document(), "not_looked_at": list(found.unseen)}
    if problems:
        hint = "\n".join(dict.fromkeys(problem.hint for problem in found.problems if problem.hint))
        return Verdict(document, RecipeError(name, problems, hint=hint))
    lines = [
        f"{name}: valid (condense {hashes['condense_hash'][:8]}, protocol {hashes['protocol_hash'][:8]})",
        *(f"  {line}" for line in (found.rows.lines() if found.rows else ())),
        *(f"  not looked at: {what}" for what in found.unseen),
    ]
    return Verdict(document, None, lines)
