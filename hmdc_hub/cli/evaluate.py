"""`hmdc-hub evaluate`: score a run, a package, a published set or anybody's images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import DEVICE, ROOT
from hmdc_hub.schema import BASELINES

if TYPE_CHECKING:
    from hmdc_hub.pipeline.api import Evaluation

EPILOG = """\b
hmdc-hub evaluate digits_ipc1                    a run without scores
hmdc-hub evaluate digits_ipc1 --protocol quick   by another protocol
hmdc-hub evaluate someone/cifar10-hmdc           does its table hold?
hmdc-hub evaluate theirs.parquet --recipe cifar10_ipc10"""

SHOWN = {
    "name",
    "condense_hash",
    "protocol_hash",
    "protocol",
    "test_count",
    "budgets",
    "table",
    "gain",
    "gap",
    "ranking",
}
"""Of scores.json, for `--json`."""


@click.command(short_help="Score a run, a published set, or anybody's images.", epilog=EPILOG)
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
    help="quick, paper, or a file: some keys of a recipe's evaluate section, a recipe, or a scores.json.",
)
@click.option("--models", metavar="A,B", help="Architectures to train, as `hmdc-hub pool ls` lists them.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Trainings of each.")
@click.option("--baselines", "--against", metavar="A,B", help=f"{', '.join(BASELINES)}; or '' for none.")
@click.option(
    "--tune-split",
    "holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Score on this share of the train split: for choosing settings without the test split.",
)
@click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the protocol, such as evaluate.schedule=cosine; may stand several times.",
)
@click.option("--config", metavar="NAME", help="Configuration of a package or dataset.  [default: its default]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a dataset on the Hub.")
@click.option(
    "--normalised", is_flag=True, help="The floats of TARGET are source-normalised, not pixels (with --recipe)."
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to score what is no run.  [default: runs/<name>]",
)
@click.option(
    "--resume/--fresh", default=True, help="Go on with trainings that are done, the default, or train all again."
)
@click.option(
    "--share",
    metavar="K/N",
    help="Do this share of the trainings only; the same command without it puts the scores together.",
)
@DEVICE
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="CPU processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def evaluate(target: str, as_json: bool, **options: Any) -> None:
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

    found = api.evaluate(target, **options)
    started, share = launched(), options["share"]
    if started is not None:
        share = f"{started.index + 1}/{started.count}" if started.index > 0 else None
    if share is not None:  # another process puts the scores together
        if as_json:
            output.document({"directory": str(found.path), "share": share})
    elif as_json:
        output.document(_document(found))
    else:
        output.data(found.summary() if found.run is None else found.run.summary())
        if found.published is not None:
            output.data(f"\n{found.published}")


def _document(found: Evaluation) -> dict[str, Any]:
    if found.run is None:
        plain = found.scores.model_dump(mode="json")
        return {"directory": str(found.path), **{key: value for key, value in plain.items() if key in SHOWN}}
    same = found.published
    return {
        **output.run_document(found.run),
        "agreement": same
        and {
            "identical": same.identical,
            "trainings": same.trainings,
            "means": {name: {"published": a, "here": b} for name, a, b in same.rows},
        },
    }
