"""The training sets that are scored: the condensed one and those it must beat, all decoded, in 8 bits but `exact`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub import cluster, pack, rng
from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.evaluate.subject import Subject
from hmdc_hub.measures import CONDENSED, FULL
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import Baseline, Budget, EvaluateSpec, ModelSpec
from hmdc_hub.sources import Source
from hmdc_hub.store import to_uint8

EMBED_BATCH = 512
CALIBRATION = 1024
CALIBRATION_BATCH = 128


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images to train on.

    Attributes:
        name: `condensed` or a baseline.
        draw: Which of several random draws, from 0.
        images: uint8 M x ch x H x W; of `exact` float32 in [0, 1].
        labels: int64 M.
        stored: Images as they are kept; one may hold several training images.
    """

    name: str
    draw: int
    images: Tensor
    labels: Tensor
    stored: int

    @property
    def budget(self) -> Budget:
        """What it costs to keep and to train on."""
        pixels = self.stored * self.images[0].numel() * self.images.element_size()
        return Budget(stored=self.stored, images=len(self.labels), bytes=pixels)


def training_sets(protocol: EvaluateSpec, source: Source, subject: Subject, device: torch.device) -> list[TrainingSet]:
    """Make every training set of a protocol, in the order condensed, then as `against` lists them; all on the CPU.

    Real images depend on protocol, source and budget alone: sets condensed with several seeds meet the same ones.

    Args:
        protocol: Says which baselines and how many draws of the random ones.
        source: Where real images come from, on the CPU.
        subject: The condensed set.
        device: Where real images are embedded and clustered.

    Raises:
        FormatError: The set holds images of another shape than the source, or of other classes.
        UsageError: The protocol compares with something that this set does not have.
    """
    _check_fits(source, subject)
    sets = [TrainingSet(CONDENSED, 0, subject.images, subject.labels, sum(subject.stored))]
    for name in protocol.against:
        draws = protocol.random_draws if name.startswith("random") else 1
        sets += [_baseline(name, draw, protocol, source, subject, device) for draw in range(draws)]
    return sets


def _check_fits(source: Source, subject: Subject) -> None:
    wanted = tuple(source.train.images.shape[1:])
    for images in (subject.images, *(t.flatten(0, 1) for t in (subject.start,) if t is not None)):
        if tuple(images.shape[1:]) != wanted:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (images.shape[1:], wanted))
            raise FormatError(f"The images of {subject.name} are {ours}, those of the source {theirs}.")
    if len(subject.stored) != source.train.num_classes:
        raise FormatError(
            f"{subject.name} has {len(subject.stored)} classes, its source {source.train.num_classes}.",
        )


def _baseline(
    name: Baseline, draw: int, protocol: EvaluateSpec, source: Source, subject: Subject, device: torch.device
) -> TrainingSet:
    stored = sum(subject.stored)
    if name == "exact":
        return TrainingSet(name, 0, _wanted(subject.exact, name, subject), subject.labels.clone(), stored)
    if name == "start":
        start = _wanted(subject.start, name, subject)
        return TrainingSet(name, 0, *_decoded(pack.decode(start, subject.factor)), stored)
    if name == FULL:
        return TrainingSet(name, 0, source.train.images, source.train.labels, len(source.train.images))
    if name == "random-encoded":
        return TrainingSet(name, draw, *_encoded(draw, protocol, source, subject), stored)
    if name == "random":
        rows = [_draw(protocol, source, name, draw, label, n) for label, n in enumerate(subject.stored)]
    else:
        model = fresh_model(protocol.models[0], source, protocol.seed, device)
        rows = [
            _representatives(name, protocol, source, model, label, n) for label, n in enumerate(subject.stored) if n
        ]
    chosen = torch.cat(rows)
    return TrainingSet(name, draw, source.train.images[chosen], source.train.labels[chosen], len(chosen))


def _wanted(images: Tensor | None, name: str, subject: Subject) -> Tensor:
    if images is None:
        raise UsageError(
            f"evaluate.against names {name}, which {subject.name} does not have.",
            hint="Leave it out: --against random,k-means",
        )
    return images


def fresh_model(spec: ModelSpec, source: Source, seed: int, device: torch.device) -> PoolModel:
    """Build a freshly reset model in evaluation mode, its running statistics calibrated on real images."""
    bank = source.train
    model = build_for(spec, source).to(device)
    model.reset(rng.generator(seed, "baseline-model"))
    some = torch.randperm(len(bank.images), generator=rng.generator(seed, "baseline-calibrate"))[:CALIBRATION]
    batches = (bank.images[part].to(device) for part in torch.split(some, CALIBRATION_BATCH) if len(part) > 1)
    model.calibrate(model.prepare(source.normalise(batch)) for batch in batches)
    return model.eval()


def _representatives(
    name: Baseline, protocol: EvaluateSpec, source: Source, model: PoolModel, label: int, n: int
) -> Tensor:
    """Choose n distinct real images of a class by what a model makes of them."""
    rows = _rows(source, label)
    if len(rows) <= n:
        return rows
    device = next(model.parameters()).device
    with torch.no_grad():
        batches = (source.train.images[part].to(device) for part in torch.split(rows, EMBED_BATCH))
        points = torch.cat([model.embed(model.prepare(source.normalise(batch))) for batch in batches]).float()
    if name == "herding":
        return rows[cluster.herd(points, n).cpu()]
    centres = cluster.kmeans(points, n, rng.generator(protocol.seed, "k-means", label))
    return rows[cluster.nearest(points, centres, distinct=True).cpu()]


def _encoded(draw: int, protocol: EvaluateSpec, source: Source, subject: Subject) -> tuple[Tensor, Tensor]:
    """Keep as many random real images in the stored ones as the condensed set keeps of its own."""
    factor, made = subject.factor, []
    for label, n in enumerate(subject.stored):
        wanted = n * factor**2
        row = _draw(protocol, source, "random-encoded", draw, label, wanted)
        # A class with fewer images than there are places shows each of them more than once, as in the start.
        row = row.repeat(-(-wanted // max(len(row), 1)))[:wanted]
        stored = to_uint8(pack.encode(source.train.images[row].float() / 255, factor, source.train.side))
        made.append(to_uint8(pack.decode(stored.float() / 255, factor)))
    return torch.cat(made), _labels([len(images) for images in made])


def _draw(protocol: EvaluateSpec, source: Source, name: str, draw: int, label: int, count: int) -> Tensor:
    rows = _rows(source, label)
    gen = rng.generator(protocol.seed, "baseline", name, draw, label)
    return rows[torch.randperm(len(rows), generator=gen)[:count]]


def _decoded(decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Round C x m decoded images in [0, 1] to 8 bits, as the published files are."""
    return to_uint8(decoded.flatten(0, 1)), _labels([decoded.shape[1]] * len(decoded))


def _labels(counts: Sequence[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _rows(source: Source, label: int) -> Tensor:
    return torch.arange(source.train.offsets[label], source.train.offsets[label + 1])
