"""`hmdc-hub pool`: list, show, copy and check the entries of model_pool/. Only `check` needs torch, once it runs."""

from __future__ import annotations

from pathlib import Path

import click

from hmdc_hub.cli import output
from hmdc_hub.cli.check import check
from hmdc_hub.cli.recipes import JSON, entries_document


@click.group(short_help="List, show, copy and check the models that recipes name.")
def pool() -> None:
    """List, show, copy and check the models that recipes name under `pool` and `evaluate.models`.

    A pool entry is a small YAML file: where a model comes from, its size, its learning rates. A recipe names a copy of
    your own by its path, such as ./mine.yaml.
    """


@pool.command("ls", short_help="List the models that come with hmdc-hub.")
@JSON
def list_(as_json: bool) -> None:
    """List the models that come with hmdc-hub."""
    from hmdc_hub.catalog import list_models

    entries = list_models()
    if as_json:
        output.document(entries_document(entries))
        return
    output.data(output.columns(["NAME", "DESCRIPTION"], [[entry.name, entry.description] for entry in entries]))
    output.hint("hmdc-hub pool show NAME")


@pool.command("show", short_help="Print a pool entry.")
@click.argument("name")
@JSON
def show(name: str, as_json: bool) -> None:
    """Print pool entry NAME as it was written; with --json with every default filled in."""
    from hmdc_hub.catalog import load_model
    from hmdc_hub.catalog.entries import MODELS, find

    if as_json:
        output.document(load_model(name).model_dump(mode="json"))
    else:
        output.data(find(MODELS, name).read_text(encoding="utf-8"))


@pool.command("cp", short_help="Copy a pool entry to edit it.")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), default=".")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def copy(name: str, destination: Path, force: bool) -> None:
    """Copy pool entry NAME to DESTINATION, a file or a folder (default: here), with the schema for editors."""
    from hmdc_hub.catalog import copy_model

    written = copy_model(name, destination, force=force)
    output.data("\n".join(str(path) for path in written))
    output.hint(f"edit it, then name it in a recipe: pool: [./{written[0].name}, ...]")


pool.add_command(check)
