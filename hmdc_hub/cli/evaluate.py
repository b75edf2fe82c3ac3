"""`hmdc-hub evaluate`: score a run, a package, a published set or anybody's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli.choose import ROOT
from hmdc_hub.errors import UsageError
from hmdc_hub.events import Listener

if TYPE_CHECKING:
    import torch

    from hmdc_hub.evaluate import Subject
    from hmdc_hub.schema import EvaluateSpec
    from hmdc_hub.sources import Source
    from hmdc_hub.store import RunDir

    Prepare = Callable[[Listener, torch.device], tuple[Subject, EvaluateSpec, Source, RunDir]]

EPILOG = """\b
hmdc-hub evaluate digits_ipc1                    a run without scores
hmdc-hub evaluate digits_ipc1 --protocol quick   by another protocol
hmdc-hub evaluate someone/cifar10-hmdc           does its table hold?
hmdc-hub evaluate theirs.parquet --recipe cifar10_ipc10"""


@click.command(short_help="Score a run, a published set, or anybody's images.", epilog=EPILOG)
@click.argument("target")
@ROOT
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="TARGET is a set of another program: score it on this recipe's source, by its protocol.",
)
@click.option(
    "--protocol",
    "file",
    metavar="NAME",
    help="quick, paper, or a file: some keys of a recipe's evaluate section, a recipe, or a scores.json.",
)
@click.option("--models", metavar="A,B", help="Architectures to train, as `hmdc-hub pool ls` lists them.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Trainings of each.")
@click.option(
    "--against",
    metavar="A,B",
    help="exact, random, random-encoded, start, k-means, herding, full; or '' for none.",
)
@click.option(
    "--tune-split",
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="CPU processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def evaluate(
    target: str,
    root: Path,
    recipe: str | None,
    file: str | None,
    models: str | None,
    seeds: int | None,
    against: str | None,
    tune_split: float | None,
    overrides: tuple[str, ...],
    config: str | None,
    revision: str | None,
    normalised: bool,
    run_dir: Path | None,
    resume: bool,
    share: str | None,
    device: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Train architectures on TARGET and on what it must beat, and score them on the test split.

    TARGET is a run, a package folder, or a dataset on the Hub of ours; with --recipe also a parquet file, a folder of
    images, a safetensors file, or any dataset on the Hub. Without further options the protocol is the one of the set's
    recipe, and a published set's scores are compared with the published ones. Scores by another protocol get a
    directory of their own below `evaluations` in the run's. An interrupted evaluation goes on when the same command is
    given again. Several devices or machines can share it: `torchrun --nproc-per-node 4 -m hmdc_hub evaluate ...`, or
    --share.
    """
    from hmdc_hub.cli.evaluating import Work, score_foreign, score_otherwise, score_run, share_of
    from hmdc_hub.cli.scoring import Protocol
    from hmdc_hub.cli.target import run_of

    wishes = Protocol(file, models, against, seeds, tune_split, overrides)
    work = Work(device, workers, resume, as_json, share_of(share, resume=resume))
    if recipe is not None:
        score_foreign(target, recipe, wishes, root, run_dir, work, config, revision, normalised)
        return
    if normalised:
        raise UsageError("--normalised is about sets of other programs.", hint="Name a recipe with --recipe.")
    wishes.as_overrides()  # a mistake in it is found before anything is downloaded
    run, published = run_of(target, root, config, revision, run_dir)
    if wishes == Protocol():
        score_run(run, published, work)
    else:
        score_otherwise(run, wishes, work)
