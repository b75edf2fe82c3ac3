"""`hmdc-hub init`: look at a dataset and write a recipe for it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import OVERWRITE, PATH, SHARE
from hmdc_hub.errors import SourceError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.pipeline.proposal import Preset

EPILOG = """\b
hmdc-hub init uoft-cs/cifar10 -O cifar10_ipc10.yaml
hmdc-hub init ./my_images --ipc 1 --preset cpu -O mine_ipc1.yaml
hmdc-hub init table.parquet --label-column species -O table.yaml
hmdc-hub init torchvision:FashionMNIST --preset paper > fashion_ipc10.yaml"""

AS_IMAGES = """\
from pathlib import Path; import numpy as np; from PIL import Image
images, labels = np.load("images.npy"), np.load("labels.npy")  # uint8, N x height x width (x 3); N class numbers
for k, (image, label) in enumerate(zip(images, labels)):
    place = Path("my_images", "train", str(label)); place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(place / f"{k}.png")  # then: hmdc-hub init my_images"""

# Errors of sources name keys of a recipe, which those who call `init` have not written.
_KEY = re.compile(r"\b(train_split|test_split|test_fraction|image_column|label_column|config|revision): +(?=\S)")


@click.command(short_help="Write a recipe for a dataset of your own.", epilog=EPILOG)
@click.argument("source")
@click.option("--ipc", type=click.IntRange(min=1), default=10, show_default=True, help="Synthetic images per class.")
@click.option(
    "--preset",
    type=click.Choice(["cpu", "gpu", "paper"]),
    help="How much work: minutes on a CPU, an hour on a GPU, or the paper's numbers.  [default: what is here]",
)
@click.option(
    "--size",
    type=click.Choice(["32", "64", "128", "224"]),
    help="Side in pixels of every image.  [default: by the images and the preset]",
)
@click.option("--train-split", metavar="NAME", help="Split to condense, or a slice of one.  [default: found]")
@click.option("--test-split", metavar="NAME", help="Split to score on.  [default: found]")
@click.option(
    "--test-fraction", type=SHARE, metavar="SHARE", help="In place of --test-split: this share of every class."
)
@click.option("--image-column", metavar="NAME", help="Column with the images.  [default: found]")
@click.option("--label-column", metavar="NAME", help="Column with the labels.  [default: found]")
@click.option("--config", metavar="NAME", help="Configuration of the dataset, where it has several.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.  [default: the newest]")
@click.option(
    "-O", "--output", "file", type=PATH, metavar="FILE", help="Write there, with the schema for editors beside it."
)
@OVERWRITE
def init(
    source: str, ipc: int, preset: Preset | None, size: str | None, file: Path | None, force: bool, **keys: Any
) -> None:
    """Look at SOURCE and print a recipe that condenses it.

    SOURCE is a dataset of the Hub, a folder or parquet file, or torchvision:Name. Columns, splits, size, classes,
    licence and revision are found out, which downloads the dataset if it is not here yet; options go before what is
    found.
    """
    if file is not None:  # whether it can be written is found out before a download
        if file.suffix not in (".yaml", ".yml"):
            raise UsageError(f"--output: a recipe's file ends in .yaml, {str(file)!r} does not")
        if file.is_dir() or (file.exists() and not force):
            raise UsageError(f"{file} exists already", hint="Choose another name, or overwrite it with --force.")
        if not file.parent.is_dir():
            raise UsageError(f"--output: there is no folder {file.parent}")
    if keys["test_split"] is not None and keys["test_fraction"] is not None:
        raise UsageError("--test-split and --test-fraction both say what is scored on.", hint="Leave one out.")
    from hmdc_hub.catalog import RECIPES, shipped_folder
    from hmdc_hub.pipeline.proposal import preset_here, propose, render
    from hmdc_hub.sources import describe
    from hmdc_hub.store.files import write_text_atomic

    output.talk(f"looking at {source} ...")
    try:
        found = describe(source, **keys)
        output.talk("\n".join(f"  {line}" for line in found.lines()))
        proposal = propose(found, ipc, preset or preset_here(), None if size is None else int(size))
    except SourceError as error:
        from hmdc_hub.evaluator import refuse_arrays

        refuse_arrays(Path(source).expanduser(), AS_IMAGES)
        hint = _KEY.sub(lambda key: f"--{key[1].replace('_', '-')} ", error.hint)
        raise SourceError(error.message, hint=hint) from error
    for note in proposal.notes:
        output.talk(f"note: {note}")
    text = render(found, proposal, file)
    if file is None:
        output.data(text)
        output.hint("save it as FILE.yaml, then hmdc-hub recipes validate FILE.yaml")
    else:
        write_text_atomic(file, text)
        schema = file.with_name(RECIPES.schema)
        if not schema.exists():
            write_text_atomic(schema, (shipped_folder(RECIPES) / RECIPES.schema).read_text(encoding="utf-8"))
        output.talk(f"wrote {file}")
        output.hint(f"hmdc-hub condense {shlex.quote(str(file))} --dry-run")
