"""The recipe that is proposed for a dataset: which models, how much work, which rows to score on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal, NamedTuple

from hmdc_hub.catalog import write_yaml
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Detection, held_out_count, undividable

Preset = Literal["cpu", "gpu", "paper"]
PRESETS: tuple[Preset, ...] = ("cpu", "gpu", "paper")

SIZES = (32, 64, 128, 224)
"""Sides that are proposed: each a multiple of every patch and factor that ships, with room for four training images."""
LARGEST_SMALL_SIDE = 64
"""Up to this side networks see images as they are; the others see every image at 224 pixels."""
ENLARGED = 1.25
"""Images may become this much larger before the next smaller side is taken."""
TEST_FRACTION = 0.2
CLASSES_AT_ONCE = 10
"""Classes in an image step of the presets for one machine: its time does not grow with their number."""


class Work(NamedTuple):
    """How much a recipe does: two models at least are in `models` and not in the `pool`."""

    pool: tuple[str, ...]
    models: tuple[str, ...]
    condense: str  # lines of the section, below `factor`
    evaluate: str  # likewise, below `models`
    cost: str
    more: str  # what more time would buy


_QUICK_CONDENSE = """\
  resets: 2             # sets of fresh networks; time grows in proportion
  batch: 32             # real images per class and step; time grows in proportion
  images: {lr: 0.02}    # four times the paper's, as a run has 40 image steps, not 10,000
  cluster: {candidates: 256}
  networks: {reset_every: 20, batches_per_step: 4, batch: 64}
  projection: {batches_per_step: 2}
"""
_QUICK_EVALUATE = """\
  seeds: 2
  random_draws: 1
  baselines: [random, random-encoded, initialisation, k-means]
  steps: 150            # of every training, however many classes there are; the paper: 2000 epochs
  batch: 64
  schedule: cosine
"""
_HOUR_CONDENSE = """\
  resets: {resets}            # sets of fresh networks; time grows in proportion; the paper: 100
  batch: {batch}            # real images per class and step; memory grows in proportion
  cluster: {{candidates: 1000}}
  networks: {{reset_every: 100, batches_per_step: 17, batch: 128}}
"""
_HOUR_EVALUATE = """\
  seeds: 3
  steps: 2000           # of every training, however many classes there are; the paper: 2000 epochs
  schedule: cosine
"""
_PAPER_CONDENSE = """\
  resets: 100           # T: sets of fresh networks; time grows in proportion
  batch: 128            # B: real images per class and step; memory grows in proportion
  networks: {reset_every: 100, batches_per_step: 17, batch: 128}
  projection: {lr: 0.01, batches_per_step: 17}
"""
_PAPER_EVALUATE = """\
  seeds: 5
  random_draws: 3
  epochs: 2000
"""


def work_of(preset: Preset, size: int) -> Work:
    """Choose models and amount of work for images of a side."""
    small = size <= LARGEST_SMALL_SIDE
    if preset == "paper":
        convnet = "convnet3" if size < LARGEST_SMALL_SIDE else "convnet4"
        return Work(
            (convnet, "vit_tiny_imagenet"),
            (convnet, "vit_tiny_imagenet", "resnet18_imagenet", "resnet50_imagenet"),
            _PAPER_CONDENSE,
            _PAPER_EVALUATE,
            "the paper's 10,000 image steps: some ten hours on an H100 for ten small classes",
            "less time: --preset gpu",
        )
    if preset == "gpu":
        pool = ("convnet3", "vit_micro") if small else ("resnet18", "vit_tiny")
        others = ("resnet18_narrow", "swin_micro") if small else ("densenet121", "regnet_y_400mf")
        resets, batch = (20, 128) if small else (5, 64)
        return Work(
            pool,
            (*pool, *others),
            _HOUR_CONDENSE.format(resets=str(resets).ljust(2), batch=str(batch).ljust(3)),
            _HOUR_EVALUATE,
            f"{100 * resets:,} image steps, made for an hour or so on one GPU (estimated)",
            "better images: more condense.resets, the paper's are 100; its models: --preset paper",
        )
    pool = ("convnet3_narrow", "vit_micro") if small else ("resnet18", "vit_tiny")
    others = ("resnet_narrow", "mlp") if small else ("mobilenet_v3_small", "regnet_y_400mf")
    return Work(
        pool,
        (*pool, *others),
        _QUICK_CONDENSE,
        _QUICK_EVALUATE,
        "40 image steps, some minutes on two CPU cores" if size == SIZES[0] else "40 image steps",
        "better images: more condense.resets; sharper ones: --size 64, in four times the time",
    )


class Proposal(NamedTuple):
    """What goes into the recipe; `notes` are what the user should know, one sentence each."""

    name: str
    dataset: str  # name of the package
    ipc: int
    source: SourceSpec
    preset: Preset
    work: Work
    flip: bool  # whether mirrored images still belong to their class
    notes: tuple[str, ...]


def preset_here() -> Preset:
    """Choose the preset for this machine."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def propose(found: Detection, ipc: int, preset: Preset, size: int | None = None, name: str | None = None) -> Proposal:
    """Choose models and amount of work by the size of images and dataset.

    Args:
        found: What `hmdc_hub.sources.describe` saw.
        ipc: Synthetic images per class; no class can have more than the largest one has images.
        preset: What it is to run on.
        size: Side of the images; None: the largest of `SIZES` that they need, and that the preset is made for.
        name: Of the data; None: the last part of their id.

    Raises:
        SourceError: There is no split to score on, and a class has a single image.
    """
    notes: list[str] = []
    counts, source = found.train_counts, found.spec
    if source.test_split is None and source.test_fraction is None:
        if alone := [name for name, count in zip(found.class_names, counts, strict=True) if count < 2]:
            raise undividable(alone)
        counts = tuple(count - held_out_count(count, TEST_FRACTION) for count in counts)
        source = source.model_copy(update={"test_fraction": TEST_FRACTION})
        notes.append(
            f"there is no split to score on: a fifth of every class of {source.train_split} is kept apart for it "
            "(source.test_fraction)"
        )
    chosen = size or _size(found, preset)
    if size is None and chosen < _size(found, "paper"):
        notes.append(
            f"the images' shorter side is {found.sides[1]} pixels or so and they are condensed at {chosen}, since a "
            "CPU's time grows with their area: --size 64 takes four times as long"
        )
    if preset == "cpu" and chosen > LARGEST_SMALL_SIDE:
        notes.append(f"images of {chosen} pixels take hours to days on a CPU: --size 32 takes minutes")
    if ipc > max(counts):
        notes.append(f"ipc {ipc} is more than any class has to condense, {max(counts)}: the recipe says {max(counts)}")
        ipc = max(counts)
    if (need := 4 * ipc) > min(counts):
        notes.append(
            f"the smallest class has {min(counts)} image{'s' * (min(counts) > 1)} to condense, ipc {ipc} shows {need} "
            "of each class: some will stand there more than once"
        )
    if found.spec.background != "white":
        notes.append(
            "the images are transparent and show nothing on white: they are laid over black (source.background)"
        )
    if found.facts.license is None:
        notes.append("the dataset names no licence: look for one before you publish, and put it in publish.license")
    base = _plain_name(found.facts.id if name is None else name)
    return Proposal(
        name=f"{base}_ipc{ipc}",
        dataset=f"{base}-hmdc",
        ipc=ipc,
        source=source.model_copy(update={"size": chosen}),
        preset=preset,
        work=work_of(preset, chosen),
        flip=found.spec.channels == 3,
        notes=tuple(notes),
    )


def _size(found: Detection, preset: Preset) -> int:
    """Choose the largest side that images of the usual shorter side need and the preset is made for."""
    most = SIZES[0] if preset == "cpu" else SIZES[-1]
    return max((side for side in SIZES if side <= min(most, ENLARGED * found.sides[1])), default=SIZES[0])


def _plain_name(source: str) -> str:
    """Make a name of the last part of an id or path: letters, digits, `.`, `_` and `-`."""
    path = Path(source).expanduser()
    source = path.resolve().name if path.exists() else source  # `.` is called as its folder is
    last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1].removesuffix(".parquet")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")
    return name[:40].rstrip("._-").lower() or "mine"


def render(found: Detection, proposal: Proposal, file: Path | None) -> str:
    """Write the recipe as YAML with its runbook; `file`, where it will be, is named in the commands of its header."""
    work, source, classes = proposal.work, proposal.source, len(found.class_names)
    path = shlex.quote(str(file) if file is not None else f"{proposal.name}.yaml")
    rows = source.model_dump(mode="json", exclude_defaults=True) | {"channels": source.channels}
    section = "".join(f"  {line}\n" for line in write_yaml(rows).splitlines())
    last = re.split(r"[/\\]", found.facts.id.rstrip("/\\"))[-1]
    images = "one synthetic image" if proposal.ipc == 1 else f"{proposal.ipc} synthetic images"
    augment = f"  augment: {{flip: {'true' if proposal.flip else 'false'}}}"
    flip = "" if proposal.flip else "      # grey images are often characters, which have no mirror image"
    some = ""
    if proposal.preset != "paper" and classes > CLASSES_AT_ONCE:
        some = f"  classes_per_step: {CLASSES_AT_ONCE}  # of {classes}; with more resets each has more turns\n"
    return f"""\
# yaml-language-server: $schema=hmdc-recipe.schema.json
#
# {_one_line(found.facts.id)}: {classes} classes, {images} per class, with 4 training images in each.
#
#   check      hmdc-hub recipes validate {path}
#   plan       hmdc-hub condense {path} --dry-run
#   run        hmdc-hub condense {path}
#   first try  hmdc-hub condense {path} -o condense.resets=1 \\
#              -o condense.networks.reset_every=2 -o evaluate.steps=5
#
# --preset {proposal.preset}: {work.cost}.
# {work.more[0].upper()}{work.more[1:]}.
name: {proposal.name}
description: {_text(f"{last}, {images} per class")}
seed: 0
source:
{section}pool: [{", ".join(work.pool)}]      # hmdc-hub pool ls
condense:
  ipc: {proposal.ipc}
  factor: 2             # one synthetic image holds 2 x 2 training images
{work.condense}{some}{augment}{flip}
evaluate:
  # {" and ".join(work.models[len(work.pool) :])} took no part in condensing
  models: [{", ".join(work.models)}]
{work.evaluate}{augment}
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
