"""The recipe that is proposed for a dataset: which models, how much work, which rows to score on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2

from hmdc_hub.catalog import write_yaml
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Detection, held_out_count, undividable
from hmdc_hub.text import count

Preset = Literal["cpu", "gpu", "paper"]
PRESETS: tuple[Preset, ...] = ("cpu", "gpu", "paper")

SIZES = (32, 64, 128, 224)  # each a multiple of every patch and factor that ships, with room for four training images
LARGEST_SMALL_SIDE = 64  # up to this side networks see images as they are; the others see every image at 224 pixels
ENLARGED = 1.25  # images may become this much larger before the next smaller side is taken
TEST_FRACTION = 0.2
CLASSES_AT_ONCE = 10  # in an image step of the presets for one machine: its time does not grow with their number


class Work(NamedTuple):
    """Models and amount of work; the rest of a preset is in templates/recipe.yaml.jinja."""

    pool: list[str]
    others: list[str]  # models that are evaluated and take no part in condensing
    cost: str
    more: str  # what more time would buy
    resets: int = 0  # of the preset gpu, like the next
    batch: int = 0


def work_of(preset: Preset, size: int) -> Work:
    """Choose models and amount of work for images of a side."""
    small = size <= LARGEST_SMALL_SIDE
    if preset == "paper":
        return Work(
            ["convnet3" if size < LARGEST_SMALL_SIDE else "convnet4", "vit_tiny_imagenet"],
            ["resnet18_imagenet", "resnet50_imagenet"],
            "the paper's 10,000 image steps: some ten hours on an H100 for ten small classes",
            "Less time: --preset gpu",
        )
    if preset == "gpu":
        resets, batch = (20, 128) if small else (5, 64)
        return Work(
            ["convnet3", "vit_micro"] if small else ["resnet18", "vit_tiny"],
            ["resnet18_narrow", "swin_micro"] if small else ["densenet121", "regnet_y_400mf"],
            f"{100 * resets:,} image steps, made for an hour or so on one GPU (estimated)",
            "Better images: more condense.resets, the paper's are 100; its models: --preset paper",
            resets,
            batch,
        )
    return Work(
        ["convnet3_narrow", "vit_micro"] if small else ["resnet18", "vit_tiny"],
        ["resnet_narrow", "mlp"] if small else ["mobilenet_v3_small", "regnet_y_400mf"],
        "40 image steps, some minutes on two CPU cores" if size == SIZES[0] else "40 image steps",
        "Better images: more condense.resets; sharper ones: --size 64, in four times the time",
    )


class Proposal(NamedTuple):
    """What goes into the recipe; `notes` are what the user should know, one sentence each."""

    name: str
    dataset: str  # name of the package
    ipc: int
    source: SourceSpec
    preset: Preset
    work: Work
    notes: tuple[str, ...]


def preset_here() -> Preset:
    """Choose the preset for this machine."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def propose(found: Detection, ipc: int, preset: Preset, size: int | None = None, name: str | None = None) -> Proposal:
    """Choose models and amount of work by the size of images and dataset.

    `size` is the side of the images; without it, the largest of `SIZES` that they need and that the preset is made for.
    `ipc` is lowered to what the largest class has. A class of a single image without a split to score on is a
    SourceError.
    """
    notes: list[str] = []
    counts, source = found.train_counts, found.spec
    if source.test_split is None and source.test_fraction is None:
        if alone := [name for name, each in zip(found.class_names, counts, strict=True) if each < 2]:
            raise undividable(alone)
        counts = tuple(each - held_out_count(each, TEST_FRACTION) for each in counts)
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
            f"the smallest class has {count(min(counts), 'image')} to condense, ipc {ipc} shows {need} of each class: "
            "some will stand there more than once"
        )
    if found.spec.background != "white":
        notes.append(
            "the images are transparent and show nothing on white: they are laid over black (source.background)"
        )
    if found.facts.license is None:
        notes.append("the dataset names no licence: look for one before you publish, and put it in publish.license")
    # The name is the last part of an id or path, of letters, digits, `.`, `_` and `-`.
    called = found.facts.id if name is None else name
    path = Path(called).expanduser()
    called = path.resolve().name if path.exists() else called  # `.` is called as its folder is
    last = re.split(r"[/\\:]", called.rstrip("/\\"))[-1].removesuffix(".parquet")
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")[:40].rstrip("._-").lower() or "mine"
    return Proposal(
        name=f"{base}_ipc{ipc}",
        dataset=f"{base}-hmdc",
        ipc=ipc,
        source=source.model_copy(update={"size": chosen}),
        preset=preset,
        work=work_of(preset, chosen),
        notes=tuple(notes),
    )


def _size(found: Detection, preset: Preset) -> int:
    """Choose the largest side that images of the usual shorter side need and the preset is made for."""
    most = SIZES[0] if preset == "cpu" else SIZES[-1]
    return max((side for side in SIZES if side <= min(most, ENLARGED * found.sides[1])), default=SIZES[0])


def render(found: Detection, proposal: Proposal, file: Path | None) -> str:
    """Write the recipe as YAML with its runbook; `file`, where it will be, is named in the commands of its header."""
    source, ipc, licence = proposal.source, proposal.ipc, found.facts.license
    rows = source.model_dump(mode="json", exclude_defaults=True) | {"channels": source.channels}
    images = "one synthetic image" if ipc == 1 else f"{ipc} synthetic images"
    last = re.split(r"[/\\]", found.facts.id.rstrip("/\\"))[-1]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmdc_hub.pipeline"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("recipe.yaml.jinja").render(
        proposal._asdict() | proposal.work._asdict(),
        id=" ".join(found.facts.id.split()),
        classes=len(found.class_names),
        classes_at_once=CLASSES_AT_ONCE,
        colour=found.spec.channels == 3,  # mirrored images still belong to their class
        images=images,
        path=shlex.quote(str(file) if file is not None else f"{proposal.name}.yaml"),
        source="".join(f"  {line}\n" for line in write_yaml(rows).splitlines()),
        description=_text(f"{last}, {images} per class"),
        license=_text(licence) if licence else None,
    )


def _text(text: str) -> str:
    """Quote text where YAML needs it; it becomes one line."""
    return write_yaml({"x": " ".join(text.split())}).removeprefix("x: ").rstrip("\n")
