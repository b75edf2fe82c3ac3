from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmdc_hub import cluster, multi_formation
from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.evaluator import of_run
from hmdc_hub.evaluator.baselines import TrainingSet, fresh_model, training_sets
from hmdc_hub.schema import Encoding, Recipe
from hmdc_hub.sources import Source
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.parquet import read_parquet, to_uint8
from hmdc_hub.store.rundir import RunDir
from tests.builders import make_run
from tests.evaluator.toys import MLP, RESNET, recipe, run, source

CPU = torch.device("cpu")


def sets_of(of: Recipe, real: Source, where: RunDir) -> dict[tuple[str, int], TrainingSet]:
    made = training_sets(of.evaluate, real, of_run(of, where), CPU)
    return {(one.name, one.draw): one for one in made}


@pytest.fixture
def made(tmp_path: Path) -> dict[tuple[str, int], TrainingSet]:
    return sets_of(recipe(), source(), run(tmp_path / "run", recipe()))


def places(images: Tensor, real: Source) -> list[int]:
    """Find every image among the real ones; the images of the toys are all different."""
    real_images = real.train.images.flatten(1)
    return [int((real_images == image.flatten()).all(1).nonzero().item()) for image in images]


def test_the_sets_and_their_order(made: dict[tuple[str, int], TrainingSet]) -> None:
    random = [(name, draw) for name in ("random", "random-encoded") for draw in (0, 1)]
    assert list(made) == [("condensed", 0), *random, ("initialisation", 0), ("k-means", 0)]
    sizes = {name: len(one.labels) for (name, _), one in made.items()}
    assert sizes == {"condensed": 24, "random": 6, "random-encoded": 24, "initialisation": 24, "k-means": 6}
    for one in made.values():
        assert one.images.dtype == torch.uint8 and one.images.shape == (len(one.labels), 1, 8, 8)
        assert one.labels.tolist() == sorted(one.labels.tolist())


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    of = recipe(baselines=["k-means"])
    assert list(sets_of(of, source(), run(tmp_path / "run", of))) == [("condensed", 0), ("k-means", 0)]


def test_condensed_is_the_published_file(tmp_path: Path) -> None:
    where = run(tmp_path / "run", recipe())
    images, labels = read_parquet(where.parquet)
    condensed = sets_of(recipe(), source(), where)["condensed", 0]
    assert torch.equal(condensed.images, images) and torch.equal(condensed.labels, labels)


def test_initialisation_is_decoded_and_rounded_once(tmp_path: Path) -> None:
    where = run(tmp_path / "run", recipe())
    stored, _, _ = read_condensed(where.initialisation)
    start = sets_of(recipe(), source(), where)["initialisation", 0]
    # Class 1: its two synthetic images, their tiles column by column.
    tiles = [
        multi_formation.resize(stored[2 + j, :, r : r + 4, q : q + 4], 8)
        for q in (0, 4)
        for r in (0, 4)
        for j in range(2)
    ]
    assert torch.equal(start.images[8:16], to_uint8(torch.stack(tiles)))
    assert start.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_random_draws_are_different_real_images(made: dict[tuple[str, int], TrainingSet]) -> None:
    real = source()
    drawn = [places(made["random", draw].images, real) for draw in (0, 1)]
    assert drawn[0] != drawn[1]
    for rows, draw in zip(drawn, (0, 1), strict=True):
        assert len(set(rows)) == 6
        assert real.train.labels[rows].tolist() == made["random", draw].labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("method", ["antialias", "bilinear", "least-squares"])
def test_random_encoded_is_encoded_in_8_bits_and_repeats_a_small_class(method: Encoding, tmp_path: Path) -> None:
    # One image per class: eight places show the same one, so the encoding can be written out.
    real = source((1, 1, 1))
    of = recipe(encode=method)
    encoded = sets_of(of, real, run(tmp_path / "run", of))["random-encoded", 0]
    for label in range(3):
        eight = (real.train.images[label].float() / 255).expand(8, 1, 8, 8)
        stored = to_uint8(multi_formation.encode(eight, 2, 8, method)).float() / 255
        expected = to_uint8(multi_formation.decode(stored, 2))
        assert torch.equal(encoded.images[8 * label : 8 * label + 8], expected)
    assert not torch.equal(encoded.images[0], real.train.images[0])


def test_random_encoded_shows_different_images_where_there_are_enough(made: dict[tuple[str, int], TrainingSet]) -> None:
    first, second = made["random-encoded", 0], made["random-encoded", 1]
    different = [len({image.numpy().tobytes() for image in first.images[first.labels == c]}) for c in range(3)]
    assert different == [8, 8, 5]  # the last class has five
    assert not torch.equal(first.images, second.images)


def test_a_class_that_is_too_small_gives_all_it_has(tmp_path: Path) -> None:
    real = source((20, 20, 1))
    made = sets_of(recipe(), real, run(tmp_path / "run", recipe()))
    for name in ("random", "k-means"):
        assert made[name, 0].labels.tolist() == [0, 0, 1, 1, 2]
        assert places(made[name, 0].images, real)[-1] == 40


@pytest.mark.parametrize("model", [MLP, RESNET], ids=lambda model: str(model["name"]))
def test_k_means_takes_one_image_of_every_kind(model: dict[str, object], tmp_path: Path) -> None:
    # Each class has two kinds: 12 as they are, then 4 in negative.
    real = source((16, 16, 16))
    for c in range(3):
        negative = real.train.of_class(c)[12:]
        negative.copy_(255 - negative)
    of = recipe(models=[model])
    chosen = places(sets_of(of, real, run(tmp_path / "run", of))["k-means", 0].images, real)
    assert [row // 16 for row in chosen] == [0, 0, 1, 1, 2, 2]
    assert sorted(row % 16 >= 12 for row in chosen) == [False] * 3 + [True] * 3
    assert all((a % 16 >= 12) != (b % 16 >= 12) for a, b in zip(chosen[::2], chosen[1::2], strict=True))


def test_the_seed_decides(tmp_path: Path, made: dict[tuple[str, int], TrainingSet]) -> None:
    again = sets_of(recipe(), source(), run(tmp_path / "again", recipe()))
    other = sets_of(recipe(seed=1), source(), run(tmp_path / "other", recipe(seed=1)))
    for key, one in made.items():
        assert torch.equal(one.images, again[key].images)
    assert not torch.equal(made["random", 0].images, other["random", 0].images)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    wide = {"size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    info = source().info.model_copy(update=wide)
    where = make_run(tmp_path / "run", recipe=recipe(), source=info, scored=False)
    with pytest.raises(FormatError, match=r"images of toys are 3 x 16 x 16, those of the source 1 x 8 x 8"):
        sets_of(recipe(), source(), where)


def test_a_missing_initialisation_is_named(tmp_path: Path) -> None:
    where = run(tmp_path / "run", recipe())
    where.initialisation.unlink()
    with pytest.raises(NotFoundError, match="initialisation.safetensors"):
        sets_of(recipe(), source(), where)


def test_k_means_shows_no_image_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two centres in one place have the same nearest image.
    monkeypatch.setattr(cluster, "kmeans", lambda points, k, gen: points[:1].expand(k, -1))
    chosen = places(sets_of(recipe(), source(), run(tmp_path / "run", recipe()))["k-means", 0].images, source())
    assert len(set(chosen)) == 6


def test_exact_is_what_the_published_bytes_were_rounded_from(tmp_path: Path) -> None:
    of = recipe(baselines=["exact"])
    made = sets_of(of, source(), run(tmp_path / "run", of))
    exact, condensed = made["exact", 0], made["condensed", 0]
    assert exact.images.dtype == torch.float32 and torch.equal(to_uint8(exact.images), condensed.images)
    assert not torch.equal(exact.images, condensed.images.float() / 255)
    assert torch.equal(exact.labels, condensed.labels)
    assert exact.budget.bytes == 4 * condensed.budget.bytes == 4 * 6 * 64


def test_herding_keeps_the_mean(tmp_path: Path) -> None:
    real, of = source((16, 16, 16)), recipe(baselines=["herding"])
    made = sets_of(of, real, run(tmp_path / "run", of))["herding", 0]
    assert len(set(places(made.images, real))) == 6 and made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    model = fresh_model(of.evaluate.models[0], real, 0, CPU)
    for label in range(3):
        points = model.embed(model.prepare(real.normalise(real.train.of_class(label)))).detach()
        chosen = [row - 16 * label for row in places(made.images[made.labels == label], real)]
        centre = points.mean(0)
        first = (points - centre).norm(dim=1).argmin()
        second = min(
            (row for row in range(16) if row != first),
            key=lambda row: float(((points[first] + points[row]) / 2 - centre).norm()),
        )
        assert chosen == [int(first), second]


def test_the_full_set_is_all_of_the_source(tmp_path: Path) -> None:
    real, of = source(), recipe(baselines=["full"])
    full = sets_of(of, real, run(tmp_path / "run", of))["full", 0]
    assert torch.equal(full.images, real.train.images) and torch.equal(full.labels, real.train.labels)
    assert (full.budget.stored, full.budget.images) == (45, 45)


def test_real_images_do_not_depend_on_what_was_condensed(tmp_path: Path) -> None:
    of = recipe(baselines=["random", "random-encoded", "k-means", "herding"])
    one = sets_of(of, source(), run(tmp_path / "one", of))
    other = of.model_copy(update={"seed": 7, "pool": of.pool[:1]})
    two = sets_of(other, source(), run(tmp_path / "two", other))
    for key in one.keys() - {("condensed", 0)}:
        assert torch.equal(one[key].images, two[key].images), key


def test_what_a_set_does_not_have_is_named(tmp_path: Path) -> None:
    of = recipe(baselines=["exact", "initialisation"])
    evaluated = replace(of_run(of, run(tmp_path / "run", of)), exact=None)
    with pytest.raises(UsageError, match=r"evaluate.baselines names exact, which toys does not have"):
        training_sets(of.evaluate, source(), evaluated, CPU)


def test_classes_may_differ_in_size(tmp_path: Path) -> None:
    of = recipe(baselines=["random", "random-encoded", "k-means", "herding"])
    evaluated = replace(of_run(of, run(tmp_path / "run", of)), stored=(3, 0, 1), factor=1)
    made = {one.name: one for one in training_sets(of.evaluate, source(), evaluated, CPU) if not one.draw}
    for name in ("random", "random-encoded", "k-means", "herding"):
        assert made[name].labels.tolist() == [0, 0, 0, 2], name
