"""The recipe that `hmdc-hub init` proposes for a dataset: which models, how much work, which rows to score on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Detection
from hmdc_hub.yaml12 import write_yaml

LARGEST_SMALL_SIDE = 64
"""Up to this side the networks for small images fit; the others see every image at 224 pixels."""
FEW_IMAGES = 10_000
"""Up to this many train images of at most 32 pixels a run is made to finish on a CPU."""
PATCH = 4
"""Side of a patch of vit_micro: the image's side must be a multiple."""
SMALLEST_SIDE = 16
"""Smaller images are enlarged: a stored image holds four, and half of 8 pixels would show nothing."""
MOST_SLICES = 20


@dataclass(frozen=True)
class Work:
    """How much a recipe does, as the values of its keys."""

    pool: tuple[str, ...]
    models: tuple[str, ...]
    resets: int
    reset_every: int
    batches_per_step: int
    batch: int
    network_batch: int
    epochs: int
    seeds: int


FEW = Work(("convnet3_narrow", "vit_micro"), ("convnet3_narrow", "vit_micro", "mlp"), 4, 10, 4, 32, 64, 150, 3)
SMALL = Work(("convnet3", "vit_micro"), ("convnet3", "vit_micro", "resnet_narrow"), 100, 100, 17, 128, 128, 300, 3)
LARGE = Work(("resnet18", "vit_tiny"), ("resnet18", "vit_tiny"), 100, 100, 17, 128, 128, 300, 3)


@dataclass(frozen=True)
class Proposal:
    """What goes into the recipe.

    Attributes:
        name: Of the recipe, such as `cifar10_ipc10`.
        dataset: Of the package, such as `cifar10-hmdc`.
        source: The section; its test split is None where none could be proposed.
        work: How much is done.
        flip: Whether mirrored images still belong to their class.
        notes: What the user should know, one sentence each.
    """

    name: str
    dataset: str
    ipc: int
    source: SourceSpec
    work: Work
    flip: bool
    notes: tuple[str, ...]


def propose(found: Detection, ipc: int) -> Proposal:
    """Choose models and amount of work by the size of images and dataset.

    Args:
        found: What `hmdc_hub.sources.describe` saw.
        ipc: Stored images per class.
    """
    notes: list[str] = []
    small = found.size <= LARGEST_SMALL_SIDE
    size = max(SMALLEST_SIDE, -(-found.size // PATCH) * PATCH) if small else found.size
    few = size <= 32 and sum(found.train_counts) <= FEW_IMAGES
    source = found.spec().model_copy(update={"size": size})
    if source.test_split is None:
        source, note = _with_test_split(source)
        notes.append(note)
    if (need := 4 * ipc) > min(found.train_counts):
        notes.append(
            f"the smallest class has {min(found.train_counts)} images, ipc {ipc} shows {need} of each class: some will "
            "stand there more than once"
        )
    if found.facts.license is None:
        notes.append("the dataset names no licence: look for one before you publish, and put it in publish.license")
    base = _plain_name(found.facts.id)
    return Proposal(
        name=f"{base}_ipc{ipc}",
        dataset=f"{base}-hmdc",
        ipc=ipc,
        source=source,
        work=FEW if few else SMALL if small else LARGE,
        flip=found.channels == 3,
        notes=tuple(notes),
    )


def _plain_name(source: str) -> str:
    """Make a name of the last part of an id or path: letters, digits, `.`, `_` and `-`."""
    last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1].removesuffix(".parquet")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")
    return name[:40].rstrip("._-").lower() or "mine"


def _with_test_split(source: SourceSpec) -> tuple[SourceSpec, str]:
    """Divide the train split 80 to 20 so that every class is in both parts, if slices can do that."""
    split = source.train_split
    for train, test in _divisions(source):
        return (
            source.model_copy(update={"train_split": train, "test_split": test}),
            f"there is no split to score on, so a fifth of {split} is kept apart for it",
        )
    return source, (
        f"there is no split to score on, and the rows of {split} are in an order that slices cannot divide: the recipe "
        "does not run before source.test_split names one"
    )


def _divisions(source: SourceSpec) -> list[tuple[str, str]]:
    """List the ways that work: by percent where rows are mixed, a slice per class where they are sorted by class."""
    from hmdc_hub.sources import open_reader
    from hmdc_hub.sources.labels import read_labels
    from hmdc_hub.sources.splits import parse_split

    split = str(source.train_split)
    reader = open_reader(source.id, source.revision, source.config)
    names, labels, _ = read_labels(reader, parse_split(reader, split, "train_split"), (), str(source.label_column))
    cut = len(labels) * 4 // 5
    if len(set(labels[:cut].tolist())) == len(set(labels[cut:].tolist())) == len(names):
        return [(f"{split}[:{cut}]", f"{split}[{cut}:]")]
    starts = [0, *(row for row in range(1, len(labels)) if labels[row] != labels[row - 1]), len(labels)]
    runs = list(zip(starts, starts[1:], strict=False))
    if len(runs) != len(names) or len(runs) > MOST_SLICES or min(stop - start for start, stop in runs) < 2:
        return []
    cuts = [min(stop - 1, start + (stop - start) * 4 // 5) for start, stop in runs]
    train = "+".join(f"{split}[{start}:{max(cut, start + 1)}]" for (start, _), cut in zip(runs, cuts, strict=True))
    test = "+".join(f"{split}[{max(cut, start + 1)}:{stop}]" for (start, stop), cut in zip(runs, cuts, strict=True))
    return [(train, test)]


def render(found: Detection, proposal: Proposal, file: Path | None) -> str:
    """Write the recipe as YAML with its runbook.

    Args:
        found: What was seen.
        proposal: What goes in.
        file: Where it will be, for the commands in its header; None: a name is made up.
    """
    work, source = proposal.work, proposal.source
    path = str(file) if file is not None else f"{proposal.name}.yaml"
    steps = work.resets * work.reset_every
    small = work is FEW
    rows: dict[str, Any] = {k: v for k, v in source.model_dump(mode="json").items() if v is not None}
    if source.test_split is None:
        rows["test_split"] = None
    section = "".join(f"  {line}\n" for line in write_yaml(rows).splitlines())
    images = "one stored image" if proposal.ipc == 1 else f"{proposal.ipc} stored images"
    augment = f"  augment: {{flip: {'true' if proposal.flip else 'false'}}}"
    flip = "" if proposal.flip else "      # grey images are often characters, which have no mirror image"
    return f"""\
# yaml-language-server: $schema=hmdc-recipe.schema.json
#
# {_one_line(found.facts.id)}: {len(found.class_names)} classes, {images} per class, with 4 \
training images in each.
#
#   hmdc-hub condense {path} --dry-run      what it would cost on this machine
#   hmdc-hub condense {path}
#
# {steps} image steps: {"minutes to an hour on a CPU" if small else "made for a GPU; the numbers are the paper's"}. \
A first try:
#
#   hmdc-hub condense {path} -o condense.resets=1 -o condense.networks.reset_every=2 -o evaluate.epochs=5
name: {proposal.name}
description: {_text(f"{_last(found.facts.id)}, {images} per class")}
seed: 0
source:
{section}pool: [{", ".join(work.pool)}]      # hmdc-hub pool ls
condense:
  ipc: {proposal.ipc}
  factor: 2             # one stored image holds 2 x 2 training images
  resets: {work.resets}{"             # more is better; the paper: 100" if small else ""}
  batch: {work.batch}
  networks: {{reset_every: {work.reset_every}, batches_per_step: {work.batches_per_step}, batch: {work.network_batch}}}
{augment}{flip}
evaluate:
  models: [{", ".join(work.models)}]
  seeds: {work.seeds}
  epochs: {work.epochs}           # the paper: 2000
{augment}
publish:
  name: {proposal.dataset}
  config: ipc{proposal.ipc}
  license: {_text(found.facts.license) if found.facts.license else "null        # unknown"}
"""


def _text(text: str) -> str:
    """Quote text where YAML needs it."""
    return write_yaml({"x": _one_line(text)}).removeprefix("x: ").rstrip("\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _last(source: str) -> str:
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]
