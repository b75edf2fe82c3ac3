"""The training sets that are scored: the condensed one and those it must beat, all of them 8-bit and decoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmdc_hub import cluster, pack, rng
from hmdc_hub.errors import FormatError
from hmdc_hub.measures import CONDENSED
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import Baseline, ModelSpec, Recipe
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_condensed, read_parquet, to_uint8

EMBED_BATCH = 512
CALIBRATION = 1024
CALIBRATION_BATCH = 128


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images to train on.

    Attributes:
        name: `condensed` or a baseline.
        draw: Which of several random draws, from 0.
        images: uint8 M x ch x H x W.
        labels: int64 M.
    """

    name: str
    draw: int
    images: Tensor
    labels: Tensor


def training_sets(recipe: Recipe, source: Source, run: RunDir, device: torch.device) -> list[TrainingSet]:
    """Make every training set of a protocol, in the order condensed, then as `against` lists them; all on the CPU.

    Args:
        recipe: Says ipc, factor, baselines, draws and the seed.
        source: Where real images come from, on the CPU.
        run: Holds train.parquet (what is published, and therefore what is trained on) and start.safetensors.
        device: Where real images are embedded and clustered.

    Raises:
        NotFoundError: One of the two files is not there.
        FormatError: One is damaged, or holds images of another shape than the source.
    """
    sets = [TrainingSet(CONDENSED, 0, *read_parquet(run.parquet))]
    for name in recipe.evaluate.against:
        draws = recipe.evaluate.random_draws if name.startswith("random") else 1
        sets += [TrainingSet(name, draw, *_baseline(name, draw, recipe, source, run, device)) for draw in range(draws)]
    for made in sets:
        if made.images.shape[1:] != source.train.images.shape[1:]:
            ours, theirs = (" x ".join(map(str, t.shape[1:])) for t in (made.images, source.train.images))
            raise FormatError(f"The {made.name} images in {run.path} are {ours}, those of the source {theirs}.")
    return sets


def _baseline(
    name: Baseline, draw: int, recipe: Recipe, source: Source, run: RunDir, device: torch.device
) -> tuple[Tensor, Tensor]:
    n, factor = recipe.condense.ipc, recipe.condense.factor
    if name == "start":
        stored, _, _ = read_condensed(run.start)
        return _decoded(stored.reshape(-1, n, *stored.shape[1:]), factor)
    if name == "random":
        return _real(source, [_draw(recipe, source, name, draw, label, n) for label in _classes(source)])
    if name == "k-means":
        model = fresh_model(recipe.pool[0], source, recipe.seed, device)
        return _real(source, [_representatives(recipe, source, model, label, n) for label in _classes(source)])
    wanted = n * factor**2
    rows = [_draw(recipe, source, name, draw, label, wanted) for label in _classes(source)]
    # A class with fewer images than there are places shows each of them more than once, as in the start.
    chosen = [row.repeat(-(-wanted // len(row)))[:wanted] for row in rows]
    pixels = torch.stack([source.train.images[row] for row in chosen]).float() / 255
    stored = to_uint8(pack.encode(pixels, factor, source.train.side))
    return _decoded(stored.float() / 255, factor)


def fresh_model(spec: ModelSpec, source: Source, seed: int, device: torch.device) -> PoolModel:
    """Build a freshly reset model in evaluation mode, its running statistics calibrated on real images."""
    bank = source.train
    model = build_for(spec, source).to(device)
    model.reset(rng.generator(seed, "baseline-model"))
    some = torch.randperm(len(bank.images), generator=rng.generator(seed, "baseline-calibrate"))[:CALIBRATION]
    batches = (bank.images[part].to(device) for part in torch.split(some, CALIBRATION_BATCH) if len(part) > 1)
    model.calibrate(model.prepare(source.normalise(batch)) for batch in batches)
    return model.eval()


def _representatives(recipe: Recipe, source: Source, model: PoolModel, label: int, n: int) -> Tensor:
    """Choose the n distinct real images of a class nearest to the centres of n clusters."""
    rows = _rows(source, label)
    if len(rows) <= n:
        return rows
    device = next(model.parameters()).device
    with torch.no_grad():
        batches = (source.train.images[part].to(device) for part in torch.split(rows, EMBED_BATCH))
        points = torch.cat([model.embed(model.prepare(source.normalise(batch))) for batch in batches]).float()
    gen = rng.generator(recipe.seed, "k-means", label)
    centres = cluster.kmeans(points, n, gen, max_iter=recipe.condense.cluster.max_iter)
    return rows[cluster.nearest(points, centres, distinct=True).cpu()]


def _draw(recipe: Recipe, source: Source, name: str, draw: int, label: int, count: int) -> Tensor:
    rows = _rows(source, label)
    gen = rng.generator(recipe.seed, "baseline", name, draw, label)
    return rows[torch.randperm(len(rows), generator=gen)[:count]]


def _real(source: Source, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    chosen = torch.cat(rows)
    return source.train.images[chosen], source.train.labels[chosen]


def _decoded(stored: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Decode C x n stored images in [0, 1] and round to 8 bits, as the published files are."""
    decoded = pack.decode(stored, factor)
    labels = torch.arange(len(decoded)).repeat_interleave(decoded.shape[1])
    return to_uint8(decoded.flatten(0, 1)), labels


def _classes(source: Source) -> range:
    return range(source.train.num_classes)


def _rows(source: Source, label: int) -> Tensor:
    return torch.arange(source.train.offsets[label], source.train.offsets[label + 1])
