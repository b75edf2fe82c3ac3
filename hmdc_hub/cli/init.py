"""`hmdc-hub init`: look at a dataset and write a recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli import output
from hmdc_hub.errors import UsageError

if TYPE_CHECKING:
    from hmdc_hub.sources import Detection

EPILOG = """\b
hmdc-hub init uoft-cs/cifar10 --ipc 10 -O cifar10_ipc10.yaml
hmdc-hub init ./my_images --ipc 1 -O mine_ipc1.yaml
hmdc-hub init torchvision:FashionMNIST --ipc 10 > fashion_ipc10.yaml"""


@click.command(short_help="Write a recipe for a dataset of your own.", epilog=EPILOG)
@click.argument("source")
@click.option("--ipc", type=click.IntRange(min=1), required=True, metavar="N", help="Stored images per class.")
@click.option("--config", metavar="NAME", help="Configuration of the dataset, where it has several.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.  [default: the newest]")
@click.option(
    "-O",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write there, with the schema for editors beside it.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(source: str, ipc: int, config: str | None, revision: str | None, file: Path | None, force: bool) -> None:
    """Look at SOURCE and print a recipe that condenses it.

    SOURCE is a dataset of the Hub, a folder or parquet file, or torchvision:Name. Columns, splits, size, classes,
    licence and revision are found out, which downloads the dataset if it is not here yet.
    """
    if file is not None:
        _refuse_target(file, force)
    from hmdc_hub.sources import describe

    output.talk(f"looking at {source} ...")
    found = describe(source, revision=revision, config=config)
    output.talk(summary(found))
    from hmdc_hub.catalog import json_schema
    from hmdc_hub.cli.proposal import propose, render
    from hmdc_hub.store import write_text_atomic

    proposal = propose(found, ipc)
    for note in proposal.notes:
        output.talk(f"note: {note}")
    text = render(found, proposal, file)
    if file is None:
        output.data(text)
        output.hint("save it as a file, then hmdc-hub condense FILE --dry-run")
    else:
        write_text_atomic(file, text)
        schema = file.with_name("hmdc-recipe.schema.json")
        if not schema.exists():
            write_text_atomic(schema, json_schema())
        output.talk(f"wrote {file}")
        output.hint(f"hmdc-hub condense {file} --dry-run")


def _refuse_target(file: Path, force: bool) -> None:
    """Find out before a download whether the file can be written."""
    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--output: a recipe's file ends in .yaml, {str(file)!r} does not")
    if file.is_dir() or (file.exists() and not force):
        raise UsageError(f"{file} exists already", hint="Choose another name, or overwrite it with --force.")
    if not file.parent.is_dir():
        raise UsageError(f"--output: there is no folder {file.parent}")


def summary(found: Detection) -> str:
    """Say in a few lines what was found."""
    facts, counts = found.facts, found.train_counts
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    names = ", ".join(found.class_names[:8]) + (", ..." if len(found.class_names) > 8 else "")
    smallest, median, largest = found.sides
    sides = f"{median}" if smallest == largest else f"{smallest} to {largest}, median {median}"
    rows = {
        "classes": f"{len(counts)} ({names})",
        "train": f"{found.train_split}: {sum(counts)} images, {each} per class",
        "test": f"{found.test_split}: {found.test_count} images" if found.test_split else "none found",
        "columns": f"{found.image_column}, {found.label_column}",
        "images": f"shorter side {sides} pixels, {'grey' if found.channels == 1 else 'colour'}",
        "licence": (facts.license or "unknown") + (", gated" if facts.gated else ""),
    }
    if facts.revision:
        rows["revision"] = facts.revision
    return "\n".join(f"  {name.ljust(8)}  {value}" for name, value in rows.items())
