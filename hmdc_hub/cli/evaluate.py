"""`hmdc-hub evaluate`: score a run, a package, a published set or anybody's images."""

from __future__ import annotations

from typing import Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import DEVICE, JSON, PATH, ROOT, SHARE, VERBOSE, WORKERS, ProtocolCommand, overrides
from hmdc_hub.schema import BASELINES

EPILOG = """\b
hmdc-hub evaluate digits_ipc1                    a run without scores
hmdc-hub evaluate digits_ipc1 --protocol quick   by another protocol
hmdc-hub evaluate someone/cifar10-hmdc           does its table hold?
hmdc-hub evaluate theirs.parquet --recipe cifar10_ipc10"""


@click.command(cls=ProtocolCommand, short_help="Score a run, a published set, or anybody's images.", epilog=EPILOG)
@click.argument("target")
@ROOT
@click.option(
    "--recipe",
    "like",
    metavar="RECIPE",
    help="TARGET is a set of another program: score it on this recipe's source, by its protocol.",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="quick, paper, strong, idc, or a file: some keys of a recipe's evaluate section, a recipe, or a scores.json.",
)
@click.option("--models", metavar="A,B", help="Architectures to train, as `hmdc-hub pool ls` lists them.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Trainings of each.")
@click.option("--baselines", "--against", metavar="A,B", help=f"{', '.join(BASELINES)}; or '' for none.")
@click.option(
    "--tune-split",
    "holdout",
    type=SHARE,
    metavar="SHARE",
    help="Score on this share of the train split: for choosing settings without the test split.",
)
@overrides("protocol", "evaluate.schedule=cosine")
@click.option("--config", metavar="NAME", help="Configuration of a package or dataset.  [default: its default]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a dataset on the Hub.")
@click.option(
    "--normalised", is_flag=True, help="The floats of TARGET are source-normalised, not pixels (with --recipe)."
)
@click.option("--run-dir", type=PATH, metavar="DIR", help="Where to score what is no run.  [default: runs/<name>]")
@click.option(
    "--resume/--fresh", default=True, help="Go on with trainings that are done, the default, or train all again."
)
@click.option(
    "--share",
    metavar="K/N",
    help="Do this share of the trainings only; the same command without it puts the scores together.",
)
@DEVICE
@WORKERS
@VERBOSE
@JSON
def evaluate(target: str, verbose: bool, as_json: bool, **options: Any) -> None:
    """Train architectures on TARGET and on what it must beat, and score them on the test split.

    TARGET is a run, a package folder, or a dataset on the Hub of ours; with --recipe also a parquet file, a folder of
    images, a safetensors file, or any dataset on the Hub. Without further options the protocol is the one of the set's
    recipe, and a published set's scores are compared with the published ones. Scores by another protocol get a
    directory of their own below `evaluations` in the run's. An interrupted evaluation goes on when the same command is
    given again. Several devices or machines can share it: `torchrun --nproc-per-node 4 -m hmdc_hub evaluate ...`, or
    --share.
    """
    from hmdc_hub.pipeline import api
    from hmdc_hub.processes import launched

    found = api.evaluate(target, progress="verbose" if verbose else None, **options)
    started = launched()
    share = options["share"] if started is None or started.leads else str(started)
    if share is not None:  # another process puts the scores together
        if as_json:
            output.emit(True, lambda: {"directory": str(found.path), "share": share}, str)
        return
    run, same = found.run, found.published

    def document() -> dict[str, Any]:
        if run is None:
            return output.evaluation_document(found)
        means = {} if same is None else {name: {"published": a, "here": b} for name, a, b in same.rows}
        agreement = same and {"identical": same.identical, "trainings": same.trainings, "means": means}
        return {**output.run_document(run), "agreement": agreement}

    def text() -> str:
        summary = found.summary() if run is None else run.summary()
        return summary if same is None else f"{summary}\n{same}"

    output.emit(as_json, document, text, f"hmdc-hub runs show {found.path}")
