"""`hmdc-hub evaluate`: score a run, a package or a published set by the protocol of its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import output
from hmdc_hub.cli.choose import ROOT
from hmdc_hub.cli.progress import progress
from hmdc_hub.cli.signals import stop_on_signals
from hmdc_hub.errors import NotFoundError, UsageError
from hmdc_hub.events import StopFlag

if TYPE_CHECKING:
    from hmdc_hub.cli.result import Result
    from hmdc_hub.schema import Scores
    from hmdc_hub.store import RunDir

EPILOG = """\b
hmdc-hub evaluate digits_ipc1                   a run without scores
hmdc-hub evaluate someone/cifar10-hmdc          does the published table hold?
hmdc-hub evaluate cifar10-hmdc --config ipc10   a folder of `hmdc-hub pull`"""


@click.command(short_help="Score a run, a package or a published set.", epilog=EPILOG)
@click.argument("target")
@ROOT
@click.option("--config", metavar="NAME", help="Configuration of a package or published set.  [default: its default]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a published set.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to score a package or published set.  [default: runs/<name>-<config>]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="CPU processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def evaluate(
    target: str,
    root: Path,
    config: str | None,
    revision: str | None,
    run_dir: Path | None,
    device: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Score TARGET by the protocol of its recipe: a run, a package folder, or a dataset on the Hub.

    A published set becomes a run of its own, is scored against the same baselines, and its scores are compared with
    the published ones. An interrupted evaluation goes on when the same command is given again.
    """
    from hmdc_hub.cli.adopt import agreement_text, compare

    run, published = _run_of(target, root, config, revision, run_dir)
    result = _carry_out(run, device, workers)
    agreement = compare(published, result.scores) if published is not None and result.scores is not None else None
    if as_json:
        from hmdc_hub.cli.result import result_document

        document: dict[str, Any] = result_document(result)
        document["agreement"] = agreement and {
            "identical": agreement.identical,
            "trainings": agreement.trainings,
            "means": {name: {"published": a, "here": b} for name, a, b in agreement.rows},
        }
        output.document(document)
        return
    from hmdc_hub.cli.result import result_text

    output.data(result_text(result))
    if agreement is not None:
        output.data("\n" + agreement_text(agreement))


def _run_of(
    target: str, root: Path, config: str | None, revision: str | None, run_dir: Path | None
) -> tuple[RunDir, Scores | None]:
    """Find the run that is meant, or make one of a package or published set; with the scores that came with it."""
    from hmdc_hub.store import RunDir

    for path in (Path(target), root / target):
        if (path / "info.json").is_file() and (path / "train.parquet").is_file():
            _refuse("a run", config=config, revision=revision, run_dir=run_dir)
            return RunDir(path), None
        if (path / "recipe.yaml").is_file() and (path / ".lock").is_file():
            raise NotFoundError(f"{path} is not completely condensed.", hint="`hmdc-hub condense` goes on with it.")
    from hmdc_hub.cli.adopt import adopt, chosen_config
    from hmdc_hub.publish import read_config

    package = Path(target)
    if package.is_dir():
        _refuse("a folder", revision=revision)
        name, facts = package.resolve().name, chosen_config(package, config)
    else:
        from hmdc_hub.store.download import download_package

        found = download_package(target, config=config, revision=revision)
        package, name = found.folder, target.rpartition("/")[2]
        facts = read_config(package / found.configs[0])
    run = RunDir(run_dir or root / f"{name}-{facts.name}")
    adopt(package, facts, run)
    return run, facts.scores


def _refuse(what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to {what}.", hint="Leave it out.")


def _carry_out(run: RunDir, device: str, workers: int | None) -> Result:
    from hmdc_hub.catalog import read_recipe_file
    from hmdc_hub.cli.device import pick
    from hmdc_hub.cli.flow import Wishes, carry_out

    recipe, wishes = read_recipe_file(run.recipe), Wishes(pick(device), workers=workers)
    show, stop = progress(), StopFlag()
    try:
        with stop_on_signals(stop, show.urgent):
            return carry_out(recipe, run, wishes, listener=show, stop=stop)
    finally:
        show.close()
