"""Distances between gradients: by hand, against plain formulas, and through everything against plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser.distances import TRANSFORMS, compare
from hmdc_hub.condenser.matching import Objectives, image_gradients, plain_attention
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import Distance
from tests.condenser.test_matching import (
    CLASSES,
    CONVNET,
    MLP,
    RESNET,
    SIDE,
    VIT,
    apart,
    build,
    pairs_of,
    partly,
    plain_objectives,
)
from tests.tiny import tiny_recipe

DOUBLE = torch.float64
BY_DIRECTION: list[Distance] = ["cosine", "orthogonal"]


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    with plain_attention():
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng.generator(seed, "distances"), dtype=DOUBLE)


def of_one(distance: Distance, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the gradients of a single parameter."""
    total, halves = compare(distance, [real], [fake], real.new_zeros(len(real)))
    assert halves[0] is not None and halves[0].shape == real.shape
    return total, halves[0]


def row_by_row(real: Tensor, fake: Tensor) -> Tensor:
    """The distance of Dataset Condensation as its paper writes it, but for rows of dead units."""
    total: Tensor = real.new_zeros(())
    for a, b in zip(real.flatten(1), fake.flatten(1), strict=True) if real.ndim > 1 else ():
        dead = int((a == 0).all()) + int((b == 0).all())
        total = total + (dead % 2 / 2 if dead else 1 - a @ b / (a.norm() * b.norm()))
    return total


def by_decomposition(real: Tensor, fake: Tensor) -> Tensor:
    """The distance of Orthogonal Gradient Matching as its paper writes it."""
    (u, _, vh), (w, _, zh) = (torch.linalg.svd(m.flatten(1), full_matrices=False) for m in (real, fake))
    difference: Tensor = u @ vh - w @ zh
    return difference.square().sum()


def by_iteration(real: Tensor, fake: Tensor) -> Tensor:
    """The same with small singular values left below 1, as Bjorck and Bowie write it: a series of I - X^T X."""
    if real.ndim < 2:
        return real.new_zeros(())
    found = []
    for matrix in (real.flatten(1), fake.flatten(1)):
        x = matrix / matrix.norm()
        x = x if x.shape[0] > x.shape[1] else x.T
        one = torch.eye(x.shape[1], dtype=x.dtype)
        for _ in range(10):
            rest = one - x.T @ x
            x = x @ (one + rest / 2 + 3 * rest @ rest / 8)
        found.append(x)
    difference: Tensor = found[0] - found[1]
    return difference.square().sum()


PLAIN: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {"cosine": row_by_row, "orthogonal": by_iteration}


def test_the_table_has_what_the_recipe_may_say() -> None:
    assert set(TRANSFORMS) == set(get_args(Distance))


def test_two_rows_by_hand() -> None:
    """Cosines 0 and 1/2: |(1, 0) - (0, 2)|, and (0, 3) to (sqrt 3, 1)."""
    real = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    fake = torch.tensor([[[0.0, 2.0], [3**0.5, 1.0]]])
    found = of_one("cosine", real, fake)
    torch.testing.assert_close(found[0], torch.tensor([1.5]))
    # Of 1 - cos, with respect to the row x: (cos x/|x| - r/|r|) / |x|.
    derivative = torch.tensor([[[-1 / 2, 0.0], [3**0.5 / 8, 1 / 8 - 1 / 2]]])
    torch.testing.assert_close(2 * found[1], derivative)


def test_orthogonal_by_hand() -> None:
    """Diagonal, so U V^T has the signs: of one of two entries they differ, by 2."""
    found = of_one(
        "orthogonal", torch.diag(torch.tensor([3.0, 4.0]))[None], torch.diag(torch.tensor([5.0, -2.0]))[None]
    )
    torch.testing.assert_close(found[0], torch.tensor([4.0]))


@pytest.mark.parametrize(
    ("distance", "plain"), [("cosine", row_by_row), ("orthogonal", by_decomposition), ("orthogonal", by_iteration)]
)
@pytest.mark.parametrize("shape", [(3, 5), (6, 4), (4, 2, 3, 3)])
def test_distance_and_derivative_of_each_class(
    distance: Distance, plain: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    real, fake = drawn(2, *shape), drawn(2, *shape, seed=1)
    found = of_one(distance, real, fake)
    for c in range(2):
        leaf = fake[c].clone().requires_grad_()
        wanted = plain(real[c], leaf)
        (derivative,) = torch.autograd.grad(wanted, leaf)
        torch.testing.assert_close(found[0][c], wanted.detach())
        torch.testing.assert_close(2 * found[1][c], derivative)


@pytest.mark.parametrize("distance", BY_DIRECTION)
def test_size_is_of_no_matter(distance: Distance) -> None:
    real, fake = drawn(1, 4, 6).float(), drawn(1, 4, 6, seed=1).float()
    one, other = of_one(distance, real, fake), of_one(distance, 1e4 * real, 1e-12 * fake)
    torch.testing.assert_close(other[0], one[0])
    torch.testing.assert_close(1e-12 * other[1], one[1])


@pytest.mark.parametrize("distance", BY_DIRECTION)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_gradient_of_zero_has_no_direction(distance: Distance, dtype: torch.dtype) -> None:
    """Of a unit that is dead, or of a loss that has come to nothing."""
    some, nothing = drawn(2, 3, 4).to(dtype), torch.zeros(2, 3, 4, dtype=dtype)
    for real, fake in ((some, nothing), (nothing, some), (nothing, nothing)):
        found = of_one(distance, real, fake)
        assert all(part.isfinite().all() for part in found)
        if fake is nothing:
            assert (found[1] == 0).all()
    one_row = some.clone()
    one_row[:, 1] = 0
    found = of_one(distance, some, one_row)
    assert all(part.isfinite().all() for part in found)
    equal = of_one(distance, one_row, one_row)
    assert (equal[0] == 0).all() and (equal[1] == 0).all()


@pytest.mark.parametrize("distance", BY_DIRECTION)
def test_parameters_of_any_shape_each_by_itself(distance: Distance) -> None:
    """Several of one shape, vectors, which are left out, and what a loss does not reach."""
    shapes = [(3, 4), (5,), (2, 3, 2, 2), (3, 4), (3, 4), (2, 12)]
    real: list[Tensor | None] = [drawn(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    fake: list[Tensor | None] = [drawn(2, *shape, seed=10 + i) for i, shape in enumerate(shapes)]
    real[3] = fake[4] = None
    zero = torch.zeros(2, dtype=DOUBLE)
    total, halves = compare(distance, real, fake, zero)
    assert [half is None for half in halves] == [False, True, False, True, True, False]
    each = [
        of_one(distance, a, b)
        for a, b in zip(real, fake, strict=True)
        if a is not None and b is not None and a.ndim > 2
    ]
    torch.testing.assert_close(total, torch.stack([one for one, _ in each]).sum(0))
    for half, (_, alone) in zip([half for half in halves if half is not None], each, strict=True):
        torch.testing.assert_close(half, alone)
    assert compare(distance, real[1:2], fake[1:2], zero) == (zero, (None,)), "nothing is left"


def in_double(specs: list[object]) -> list[PoolModel]:
    return [model.double() for model in build(specs)]  # type: ignore[arg-type]


@pytest.mark.parametrize("at_once", [None, 1, 3], ids=["whole", "one", "three"])
@pytest.mark.parametrize("distance", BY_DIRECTION)
@pytest.mark.parametrize(
    "specs",
    [
        pytest.param([CONVNET, VIT], marks=pytest.mark.slow),
        pytest.param([RESNET, MLP, VIT], marks=pytest.mark.slow),
        [partly(CONVNET, "head"), MLP],
    ],
    ids=["convnet+vit", "resnet+mlp+vit", "head+mlp"],
)
def test_through_everything(specs: list[object], distance: Distance, at_once: int | None) -> None:
    """Every objective and its image gradient, against plain autograd of the distance and all below it."""
    models = in_double(specs)
    pairs = [pair._replace(distillation=pair.distillation.double()) for pair in pairs_of(models)]
    objectives = Objectives(models, pairs, distance=distance)
    real, fake = (drawn(n, 3, SIDE, SIDE, seed=n) for n in (5, 8))
    leaf = fake.clone().requires_grad_()
    wanted = plain_objectives(models, pairs, real, leaf, PLAIN[distance])
    gradients = [
        torch.autograd.grad(one, leaf, retain_graph=True)[0] if one.requires_grad else torch.zeros_like(leaf)
        for one in wanted
    ]
    shares, label = torch.full((1, 5), 0.2, dtype=DOUBLE), torch.ones(1, dtype=torch.int64)
    losses, each = image_gradients(objectives, real[None], shares, fake[None], label, None, at_once)
    torch.testing.assert_close(losses[0], torch.stack(wanted).detach(), rtol=1e-9, atol=1e-12)
    for got, plain in zip(each[0], gradients, strict=True):
        assert float((got - plain).norm()) <= 1e-6 * float(plain.norm())
    weights = torch.rand(1, len(wanted), generator=rng.generator(5, "distances"), dtype=DOUBLE) + 0.5
    _, summed = image_gradients(objectives, real[None], shares, fake[None], label, weights, at_once)
    plain = torch.stack([w * g for w, g in zip(weights[0], gradients, strict=True)]).sum(0)
    assert apart(summed[0, 0], plain) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("distance", BY_DIRECTION)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_classes_together_are_each_alone(distance: Distance, precision: str) -> None:
    models = build([spec.model_copy(update={"precision": precision}) for spec in (CONVNET, VIT)])
    objectives = Objectives(models, pairs_of(models), distance=distance)
    real, fake = (torch.randn(CLASSES, n, 3, SIDE, SIDE, generator=rng.generator(n, "test")) for n in (5, 4))
    labels, shares, weights = torch.arange(CLASSES), torch.full((CLASSES, 5), 0.2), torch.ones(CLASSES, 3)
    together = image_gradients(objectives, real, shares, fake, labels, weights)
    for c in range(CLASSES):
        one = slice(c, c + 1)
        alone = image_gradients(objectives, real[one], shares[one], fake[one], labels[one], weights[one])
        for got, wanted in zip(together, alone, strict=True):
            assert got.dtype == torch.float32
            if precision == "float32":
                assert apart(got[c], wanted[0]) < 1e-4
            else:
                assert F.cosine_similarity(got[c].flatten(), wanted[0].flatten(), 0) > 0.99


def test_it_is_what_not_how() -> None:
    usual = tiny_recipe().condense_hash()
    assert tiny_recipe(distance="squares").condense_hash() == usual
    assert len({usual, *(tiny_recipe(distance=distance).condense_hash() for distance in BY_DIRECTION)}) == 3
    assert "distance" not in tiny_recipe(distance="squares").condense.model_dump()
