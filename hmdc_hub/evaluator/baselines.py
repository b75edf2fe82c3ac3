"""What is scored, and the training sets of a protocol: the condensed one and those it must beat.

All are decoded, in 8 bits but `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hmdc_hub import cluster, multi_formation, rng
from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.metrics import CONDENSED, FULL
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import Budget, EvaluateSpec, ModelSpec, Recipe
from hmdc_hub.sources import ClassSortedImages, Source
from hmdc_hub.store.condensed import read_condensed, training_shape
from hmdc_hub.store.files import read_info, sha256_file
from hmdc_hub.store.parquet import read_parquet, to_uint8
from hmdc_hub.store.rundir import RunDir

EMBED_BATCH = 512
CALIBRATION = 1024
CALIBRATION_BATCH = 128


@dataclass(frozen=True, eq=False)
class EvaluatedSet:
    """A condensed set, of ours or of any other program, as the evaluator sees it."""

    name: str  # what reports call it
    images: Tensor  # uint8 M x ch x H x W, what is trained on
    labels: Tensor  # int64 M
    stored: tuple[int, ...]  # synthetic images of each class
    sha256: str  # of the file that holds the images, or of the images
    factor: int = 1  # side of the grid of training images that one synthetic image holds
    exact: Tensor | None = None  # the images before they were rounded to 8 bits, float32 in [0, 1]
    # The synthetic images before the first image step, float32 in [0, 1] C x n x ch x H x W; None: unknown.
    initialisation: Tensor | None = None
    condensed_by: tuple[str, ...] = ()  # names of the models, as pool entries are called
    condense_hash: str | None = None  # of its recipe; None like the two next for a set of another program
    family_hash: str | None = None  # of its recipe without the seed, as published
    seed: int | None = None
    notes: tuple[str, ...] = ()  # what reading it changed or found that a person should know; a clause each

    def lacks(self, baseline: str) -> bool:
        """Tell whether a baseline needs something of the set that is not there, or says nothing about it."""
        return (
            (baseline == "exact" and self.exact is None)
            or (baseline == "initialisation" and self.initialisation is None)
            or (baseline == "random-encoded" and self.factor == 1)
        )


def of_run(recipe: Recipe, run: RunDir) -> EvaluatedSet:
    """Read what a run condensed, and of exact and initial images what its (resolved) recipe's protocol compares with.

    A file that is needed and not there is a NotFoundError; damage, or files that do not belong together, a FormatError.
    """
    info, n, factor = read_info(run.info), recipe.condense.size, recipe.condense.factor
    if (n, factor) != (info.ipc, info.factor):
        raise FormatError(
            f"{run.path}: info.json says ipc {info.ipc}, factor {info.factor}; recipe.yaml ipc {n}, factor {factor}."
        )
    images, labels = read_parquet(run.parquet, shape=training_shape(info, run.condensed))
    exact = initialisation = None
    if "exact" in recipe.evaluate.baselines:
        stored = torch.unflatten(read_condensed(run.condensed)[0], 0, (-1, n))
        exact = multi_formation.decode(stored, factor).flatten(0, 1)
    if "initialisation" in recipe.evaluate.baselines:
        initialisation = torch.unflatten(read_condensed(run.initialisation)[0], 0, (-1, n))
    return EvaluatedSet(
        name=recipe.name,
        images=images,
        labels=labels,
        stored=(n,) * len(torch.unique(labels)),
        sha256=sha256_file(run.parquet),
        factor=factor,
        exact=exact,
        initialisation=initialisation,
        condensed_by=tuple(spec.name for spec in recipe.pool),
        condense_hash=recipe.condense_hash(),
        family_hash=recipe.without_paths(info.source).family_hash(),
        seed=recipe.seed,
    )


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images to train on."""

    name: str  # `condensed` or a baseline
    draw: int  # which of several random draws, from 0
    images: Tensor  # uint8 M x ch x H x W; of `exact` float32 in [0, 1]
    labels: Tensor  # int64 M
    stored: int  # images as they are kept; a synthetic one may hold several training images

    @property
    def budget(self) -> Budget:
        """What it costs to keep and to train on."""
        pixels = self.stored * self.images[0].numel() * self.images.element_size()
        return Budget(stored=self.stored, images=len(self.labels), bytes=pixels)


def training_sets(
    protocol: EvaluateSpec, source: Source, evaluated: EvaluatedSet, device: torch.device
) -> list[TrainingSet]:
    """Make every training set of a protocol, in the order condensed, then as `baselines` lists them; all on the CPU.

    Real images depend on protocol, source and budget alone: sets condensed with several seeds meet the same ones. They
    are embedded and clustered on `device`. FormatError: the set holds images of another shape than the source, or of
    other classes; UsageError: the protocol compares with something that it does not have.
    """
    wanted = tuple(source.train.images.shape[1:])
    initialisation = [] if evaluated.initialisation is None else [evaluated.initialisation.flatten(0, 1)]
    for images in (evaluated.images, *initialisation):
        if tuple(images.shape[1:]) != wanted:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (images.shape[1:], wanted))
            raise FormatError(f"The images of {evaluated.name} are {ours}, those of the source {theirs}.")
    if len(evaluated.stored) != source.train.num_classes:
        raise FormatError(
            f"{evaluated.name} has {len(evaluated.stored)} classes, its source {source.train.num_classes}."
        )
    maker = _Maker(protocol, source, evaluated, device)
    return [maker.make(name, draw) for name, draw in protocol.training_sets()]


def full_set(source: Source) -> TrainingSet:
    """Give every image of the train split as a training set."""
    return TrainingSet(FULL, 0, source.train.images, source.train.labels, len(source.train.images))


class _Maker(NamedTuple):
    """Makes the training sets of one evaluation."""

    protocol: EvaluateSpec
    source: Source
    evaluated: EvaluatedSet
    device: torch.device

    def make(self, name: str, draw: int) -> TrainingSet:
        evaluated, real, stored = self.evaluated, self.source.train, sum(self.evaluated.stored)
        if name == CONDENSED:
            return TrainingSet(name, 0, evaluated.images, evaluated.labels, stored)
        if evaluated.lacks(name) and name != "random-encoded":
            raise UsageError(
                f"evaluate.baselines names {name}, which {evaluated.name} does not have.",
                hint="Leave it out: --baselines random,k-means",
            )
        if name == FULL:
            return full_set(self.source)
        if evaluated.exact is not None and name == "exact":
            return TrainingSet(name, 0, evaluated.exact, evaluated.labels.clone(), stored)
        if evaluated.initialisation is not None and name == "initialisation":
            decoded = to_uint8(multi_formation.decode(evaluated.initialisation, evaluated.factor))
            return TrainingSet(name, 0, *_with_labels([*decoded]), stored)
        if name == "random-encoded":
            return TrainingSet(name, draw, *_with_labels(self.encoded(draw)), stored)
        counts = [(label, count) for label, count in enumerate(evaluated.stored) if count]
        if name == "random":
            rows = [self.drawn(name, draw, label, count) for label, count in counts]
        else:
            model = fresh_model(self.protocol.models[0], self.source, self.protocol.seed, self.device)
            rows = [self.representatives(name, model, label, count) for label, count in counts]
        chosen = torch.cat(rows)
        return TrainingSet(name, draw, real.images[chosen], real.labels[chosen], len(chosen))

    def encoded(self, draw: int) -> list[Tensor]:
        """Keep of each class as many random real images, in as many synthetic ones, as the condensed set of its own."""
        factor, made = self.evaluated.factor, []
        for label, count in enumerate(self.evaluated.stored):
            wanted = count * factor**2
            rows = self.drawn("random-encoded", draw, label, wanted)
            # A class with fewer images than are wanted shows each of them more than once, as in the initialisation.
            rows = rows.repeat(-(-wanted // max(len(rows), 1)))[:wanted]
            unit, side = self.source.train.images[rows].float() / 255, self.source.train.side
            stored = to_uint8(multi_formation.encode(unit, factor, side, self.protocol.encode))
            made.append(to_uint8(multi_formation.decode(stored.float() / 255, factor)))
        return made

    def drawn(self, name: str, draw: int, label: int, count: int) -> Tensor:
        """Draw rows of a class."""
        rows = self.rows(label)
        gen = rng.generator(self.protocol.seed, "baseline", name, draw, label)
        return rows[torch.randperm(len(rows), generator=gen)[:count]]

    def representatives(self, name: str, model: PoolModel, label: int, count: int) -> Tensor:
        """Choose distinct rows of a class by the embeddings of their images."""
        rows = self.rows(label)
        if len(rows) <= count:
            return rows
        with torch.no_grad():
            batches = (self.source.train.images[part].to(self.device) for part in torch.split(rows, EMBED_BATCH))
            points = torch.cat([model.embed(model.prepare(self.source.normalise(batch))) for batch in batches]).float()
        if name == "herding":
            return rows[cluster.herd(points, count).cpu()]
        centres = cluster.kmeans(points, count, rng.generator(self.protocol.seed, "k-means", label))
        return rows[cluster.nearest(points, centres, distinct=True).cpu()]

    def rows(self, label: int) -> Tensor:
        return torch.arange(self.source.train.offsets[label], self.source.train.offsets[label + 1])


def _with_labels(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Put images of class 0, 1, ... behind each other, with their labels."""
    counts = torch.tensor([len(of_class) for of_class in images])
    return torch.cat([*images]), torch.arange(len(images)).repeat_interleave(counts)


def fresh_model(spec: ModelSpec, source: Source, seed: int, device: torch.device) -> PoolModel:
    """Build a freshly reset model in evaluation mode, its running statistics calibrated on real images."""
    real, model = source.train, build_for(spec, source).to(device)
    model.reset(rng.generator(seed, "baseline-model"))
    some = torch.randperm(len(real.images), generator=rng.generator(seed, "baseline-calibrate"))[:CALIBRATION]
    batches = (real.images[part].to(device) for part in torch.split(some, CALIBRATION_BATCH) if len(part) > 1)
    model.calibrate(model.prepare(source.normalise(batch)) for batch in batches)
    return model.eval()


def hold_out(source: Source, share: float, seed: int) -> Source:
    """Put a random share of each class of the train split in the place of the test split, to choose settings on.

    The images that are left are those that baselines are drawn from. A set that was condensed before has seen all of
    them: settings of condensing itself are chosen with slices of the split (`train[:80%]`) in the recipe's source.
    `share`, in (0, 1), is rounded, to at least one image; UsageError: a class has too few to give one and keep one.
    """
    train, taken = source.train, []
    check_counts(train.counts, source.info.class_names)
    for label, count in enumerate(train.counts):
        size = min(max(round(share * count), 1), count - 1)
        order = torch.randperm(count, generator=rng.generator(seed, "holdout", label))
        taken.append(train.offsets[label] + order[:size].sort().values)
    held = torch.cat(taken)
    left = torch.ones(len(train.images), dtype=torch.bool)
    left[held] = False
    rest = ClassSortedImages.from_unsorted(train.images[left], train.labels[left], train.num_classes)
    return replace(source, train=rest, test_images=train.images[held], test_labels=train.labels[held])


def check_counts(counts: Sequence[int], class_names: Sequence[str]) -> None:
    """Refuse classes, given by their train images and names, that cannot give an image and keep one: a UsageError."""
    for name, count in zip(class_names, counts, strict=True):
        if count < 2:
            raise UsageError(f"evaluate.holdout needs two train images of every class; {name} has {count}.")
