"""`hmdc-hub package`: build what a Hub dataset will hold from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import ROOT, named_or_newest

EPILOG = """\b
hmdc-hub package
hmdc-hub package digits_ipc1 --config one_per_class"""


@click.command(short_help="Build what a Hub dataset will hold from a run.", epilog=EPILOG)
@click.argument("run", required=False)
@ROOT
@click.option("--config", metavar="NAME", help="Name of the configuration.  [default: the recipe's publish.config]")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON document.")
def package(run: str | None, root: Path, config: str | None, as_json: bool) -> None:
    """Build the package of RUN, or of the newest finished run: the files that a Hub dataset will hold.

    `hmdc-hub condense` has done that already, and `hmdc-hub push` does it again; doing it twice gives the same bytes.
    What `hmdc-hub verify` would not pass is refused.
    """
    from hmdc_hub.publish.facts import read_facts

    folder = named_or_newest(run, root).package(config)
    (facts,) = read_facts(folder)
    document: dict[str, Any] = {"package": str(folder), **facts.manifest.model_dump(mode="json")}
    if as_json:
        output.document(document)
        return
    rows = [[file.path, output.amount(file.size), file.sha256[:12]] for file in facts.manifest.files]
    output.data(f"package    {folder}\n" + output.columns(["FILE", "SIZE", "SHA-256"], rows))
    output.hint(f'load_dataset("{folder.as_posix()}", "{facts.name}"), hmdc-hub push {run or ""}'.rstrip())
