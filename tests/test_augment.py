from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmdc_hub import augment, rng
from hmdc_hub.augment import Draw
from hmdc_hub.schema import AugmentSpec
from tests.meta import OnlyMeta

SHAPES = ("crop", "scale", "rotate")
NAMES = Draw._fields
OFF: dict[str, Any] = dict.fromkeys(("flip", *SHAPES, "cutout"), False) | {"color": []}
SEEDS = st.integers(0, 2**31)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(0, "test"), dtype=dtype)


def drawn(seed: int, side: int = 16, count: int | None = None, **spec: Any) -> Draw:
    return augment.draw(AugmentSpec(**spec), rng.generator(seed, "test"), side, count)


def parameters(draw: Draw) -> dict[str, Tensor]:
    return {name: value for name in NAMES if (value := getattr(draw, name)) is not None}


def only(**parameter: Any) -> Draw:
    return Draw(**{name: torch.tensor(value) for name, value in parameter.items()})


def shape_of(draw: Draw, side: int) -> tuple[str, Tensor]:
    """Tell which of the three a warp is, and its shifts, factors or degrees."""
    assert draw.warp is not None
    a, b, c, d, e, f = draw.warp.double().unbind(1)
    if bool((a == 1).all() and (e == 1).all()):
        assert not b.any() and not d.any()
        return "crop", torch.stack([c, f], 1)
    stretch, middle = side / (side - 1), (side - 1) / 2
    for u, v, start in ((a, b, c), (d, e, f)):
        torch.testing.assert_close(u * middle + v * middle + start, torch.full_like(u, middle), rtol=0, atol=1e-5)
    if not (b.any() or d.any()):
        return "scale", torch.stack([e, a], 1) / stretch
    assert torch.equal(a, e) and torch.equal(b, -d)
    torch.testing.assert_close(a.hypot(b), torch.full_like(a, stretch), rtol=1e-6, atol=0)
    return "rotate", torch.atan2(b, a).rad2deg()


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, side=st.integers(4, 70), count=st.none() | st.integers(1, 9))
def test_parameters_stay_in_their_ranges(seed: int, side: int, count: int | None) -> None:
    draw = drawn(seed, side, count)
    found = parameters(draw)
    assert found.keys() == set(NAMES)
    assert {len(value) for value in found.values()} == {count or 1}
    for name in ("flip", "brightness", "saturation", "contrast"):
        assert found[name].ge(0).all() and found[name].lt(1).all()
    square = int(side / 2 + 0.5)
    assert found["cutout"].ge(0).all() and found["cutout"].lt(side + (square % 2 == 0)).all()
    shape, value = shape_of(draw, side)
    if shape == "crop":
        assert value.abs().le(int(side / 8 + 0.5)).all() and not value.frac().any()
    elif shape == "scale":
        assert value.ge(1 / 1.2 - 1e-6).all() and value.le(1.2 + 1e-6).all()
    else:
        assert value.abs().le(15 + 1e-4).all()


def test_parameters_fill_their_ranges() -> None:
    many = 4000
    draws = [drawn(seed, 16, many) for seed in range(12)]
    found = dict(shape_of(draw, 16) for draw in draws)
    crop, scale, rotate = (found[name] for name in SHAPES)
    assert set(crop.flatten().tolist()) == set(range(-2, 3))
    assert set(draws[0].cutout.flatten().tolist()) == set(range(17))  # type: ignore[union-attr]
    assert set(drawn(0, 5, many).cutout.flatten().tolist()) == set(range(5))  # type: ignore[union-attr]
    assert scale.min() < 0.84 and scale.max() > 1.19
    assert (scale[:, 0] - scale[:, 1]).abs().max() > 0.3
    assert rotate.min() < -14.9 and rotate.max() > 14.9


def test_the_same_generator_gives_the_same_draw() -> None:
    first, again, other = (parameters(drawn(seed, count=5)) for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["brightness"], other["brightness"])


@pytest.mark.parametrize("count", [None, 3])
def test_numbers_are_drawn_in_a_fixed_order(count: int | None) -> None:
    rows, met = count or 1, set()
    for seed in range(9):
        draw, gen = parameters(drawn(seed, 16, count)), rng.generator(seed, "test")
        for name in ("flip", "brightness", "saturation", "contrast"):
            assert torch.equal(draw[name], torch.rand(rows, generator=gen))
        shape = SHAPES[int(torch.randint(3, (), generator=gen))]
        if shape == "crop":
            wanted = augment.crop(torch.randint(-2, 3, (rows, 2), generator=gen))
        elif shape == "scale":
            wanted = augment.scale(1 / 1.2 + (1.2 - 1 / 1.2) * torch.rand(rows, 2, generator=gen), 16)
        else:
            wanted = augment.rotate(15 * (2 * torch.rand(rows, generator=gen) - 1), 16)
        assert torch.equal(draw["warp"], wanted)
        assert torch.equal(draw["cutout"], torch.randint(0, 17, (rows, 2), generator=gen))
        met.add(shape)
    assert met == set(SHAPES)


@pytest.mark.parametrize("on", [SHAPES, ("crop", "rotate"), ("scale",)])
def test_operations_that_are_on_share_the_one_of_three(on: tuple[str, ...]) -> None:
    spec = {name: name in on for name in SHAPES}
    counts = Counter(shape_of(drawn(seed, **spec), 16)[0] for seed in range(600))
    assert counts.keys() == set(on)
    assert all(abs(count / 600 - 1 / len(on)) < 0.07 for count in counts.values())


def test_operations_that_are_off_are_not_drawn() -> None:
    assert parameters(drawn(0, **OFF)) == {}
    for name, field in {"flip": "flip", "cutout": "cutout", **dict.fromkeys(SHAPES, "warp")}.items():
        assert parameters(drawn(0, **(OFF | {name: True}))).keys() == {field}
    assert parameters(drawn(0, **(OFF | {"color": ["contrast", "brightness"]}))).keys() == {"brightness", "contrast"}


def test_without_operations_images_pass_untouched() -> None:
    x = noise(2, 3, 8, 8)
    assert augment.apply(Draw(), x) is x


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, count=st.integers(2, 5), channels=st.sampled_from([1, 3]), side=st.integers(4, 17))
def test_images_are_augmented_one_by_one(seed: int, count: int, channels: int, side: int) -> None:
    x = noise(count, channels, side, side)
    draw = drawn(seed, side, count)
    got = augment.apply(draw, x)
    for i in range(count):
        own = Draw(**{name: value[i : i + 1] for name, value in parameters(draw).items()})
        torch.testing.assert_close(got[i : i + 1], augment.apply(own, x[i : i + 1]), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, channels=st.sampled_from([1, 3]))
def test_a_siamese_draw_treats_all_images_alike(seed: int, channels: int) -> None:
    x, draw = noise(4, channels, 12, 12), drawn(seed, 12)
    together = augment.apply(draw, x)
    apart = torch.cat([augment.apply(draw, part) for part in x.split(1)])  # type: ignore[no-untyped-call]
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("siamese", [False, True])
def test_a_row_holds_for_all_images_of_its_class(siamese: bool) -> None:
    x = noise(3, 4, 3, 12, 12)
    for seed in range(9):
        draw = drawn(seed, 12, None if siamese else 3)
        rows = [
            draw if siamese else Draw(**{name: value[i : i + 1] for name, value in parameters(draw).items()})
            for i in range(3)
        ]
        wanted = torch.stack([augment.apply(row, images) for row, images in zip(rows, x, strict=True)])
        torch.testing.assert_close(augment.apply(draw, x), wanted, rtol=0, atol=1e-5)


def test_operations_are_applied_in_order() -> None:
    x = noise(3, 3, 8, 8)
    draw = only(flip=[0.1], brightness=[0.9], saturation=[0.2], contrast=[0.8], cutout=[[2, 6]])
    for warp in (
        augment.crop(torch.tensor([[1, -1]])),
        augment.scale(torch.tensor([[0.9, 1.1]]), 8),
        augment.rotate(torch.tensor([7.0]), 8),
    ):
        whole, wanted = draw._replace(warp=warp), x
        for name in ("flip", "brightness", "saturation", "contrast", "warp", "cutout"):
            wanted = getattr(augment, name)(wanted, getattr(whole, name))
        assert torch.equal(augment.apply(whole, x), wanted)


def test_colour_formulas() -> None:
    x = noise(2, 3, 4, 4)
    u = torch.tensor([0.75])
    torch.testing.assert_close(augment.brightness(x, u), x + 0.25)
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(augment.saturation(x, u), grey + 1.5 * (x - grey))
    level = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(augment.contrast(x, u), level + 1.25 * (x - level))


def test_saturation_leaves_grey_images() -> None:
    x = noise(2, 1, 4, 4)
    torch.testing.assert_close(augment.saturation(x, torch.tensor([0.0, 0.9])), x)


def test_flip_follows_each_images_coin() -> None:
    x = noise(2, 1, 4, 4)
    got = augment.flip(x, torch.tensor([0.49, 0.5]))
    assert torch.equal(got, torch.stack([x[0].flip(-1), x[1]]))


def test_crop_shows_row_i_plus_shift_and_zeros_outside() -> None:
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    got = augment.warp(x, augment.crop(torch.tensor([[1, -2]])))[0, 0]
    assert got.tolist() == [[0, 0, 5, 6], [0, 0, 9, 10], [0, 0, 13, 14], [0, 0, 0, 0]]


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, side=st.integers(1, 40))
def test_crop_copies_pixels_bit_for_bit(seed: int, side: int) -> None:
    x = torch.randn(3, 2, side, side, generator=rng.generator(seed, "test"))
    most = int(side / 8 + 0.5)
    shift = torch.randint(-most, most + 1, (3, 2), generator=rng.generator(seed, "shift"))
    for there, by in ((x, shift), (augment.warp(x, augment.crop(shift)), -shift)):
        wanted = [F.pad(image, (-c, c, -r, r)) for image, (r, c) in zip(there, by.tolist(), strict=True)]
        assert torch.equal(augment.warp(there, augment.crop(by)), torch.stack(wanted))


@settings(deadline=None)
@given(side=st.integers(1, 20), data=st.data())
def test_cutout_blanks_a_clipped_square(side: int, data: st.DataObject) -> None:
    size = int(side / 2 + 0.5)
    row, column = data.draw(st.tuples(*[st.integers(0, side - size % 2)] * 2))
    blank = augment.cutout(torch.ones(1, 1, side, side), torch.tensor([[row, column]]))[0, 0] == 0
    rows, columns = (set(range(max(at - size // 2, 0), min(at - size // 2 + size, side))) for at in (row, column))
    assert {tuple(at) for at in blank.nonzero().tolist()} == {(r, c) for r in rows for c in columns}


def test_scale_and_rotate_fill_with_zeros() -> None:
    x = torch.ones(1, 1, 16, 16)
    shrunk = augment.warp(x, augment.scale(torch.tensor([[1.2, 1 / 1.2]]), 16))[0, 0]
    assert shrunk[:, 0].eq(0).all() and shrunk[:, 8].isclose(torch.tensor(1.0)).all()
    turned = augment.warp(x, augment.rotate(torch.tensor([15.0]), 16))[0, 0]
    assert turned[0, 0] == 0 and turned[8, 8].isclose(torch.tensor(1.0))


def extremes(side: int) -> Tensor:
    """Return warps at the ends of all ranges, and some between."""
    gen, ends = rng.generator(side, "warps"), torch.tensor([1 / 1.2, 1.2])
    most = int(side / 8 + 0.5)
    return torch.cat(
        [
            augment.crop(torch.cartesian_prod(*[torch.tensor([-most, 0, most])] * 2)),
            augment.scale(torch.cartesian_prod(ends, ends), side),
            augment.scale(1 / 1.2 + (1.2 - 1 / 1.2) * torch.rand(12, 2, generator=gen), side),
            augment.rotate(torch.tensor([-15.0, 0.0, 15.0]), side),
            augment.rotate(30 * torch.rand(12, generator=gen) - 15, side),
        ]
    )


@pytest.mark.parametrize("side", [1, 2, 3, 8, 16, 17, 32, 64])
def test_warps_and_their_gradients_are_those_of_grid_sample(side: int) -> None:
    warps = extremes(side)
    x = noise(len(warps), 2, side, side, dtype=torch.float64).requires_grad_()
    pixel = torch.arange(float(side), dtype=torch.float64)
    there = torch.stack([*torch.meshgrid(pixel, pixel, indexing="ij"), torch.ones(side, side)], -1)
    rows_and_columns = torch.einsum("nkl,ijl->nijk", warps.double().view(-1, 2, 3), there)
    grid = (2 * rows_and_columns.flip(-1) + 1) / side - 1
    wanted = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    got = augment.warp(x, warps)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    out = noise(*x.shape, dtype=torch.float64).flip(0)
    gradients = [torch.autograd.grad(images, x, out)[0] for images in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(side=st.integers(2, 40), factors=st.tuples(*[st.floats(1 / 1.2, 1.2)] * 2), degrees=st.floats(-15, 15))
def test_scale_and_rotate_are_dsas_grids(side: int, factors: tuple[float, float], degrees: float) -> None:
    x, angle = noise(1, 2, side, side), math.radians(degrees)
    horizontal, vertical = factors
    for warp, theta in (
        (augment.scale(torch.tensor([factors]), side), [[horizontal, 0, 0], [0, vertical, 0]]),
        (
            augment.rotate(torch.tensor([degrees]), side),
            [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]],
        ),
    ):
        grid = F.affine_grid(torch.tensor([theta], dtype=torch.float64), [1, 2, side, side], align_corners=True)
        wanted = F.grid_sample(x.double(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        torch.testing.assert_close(augment.warp(x, warp).double(), wanted, rtol=0, atol=side * 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_differentiates(shape: str, count: int | None) -> None:
    draw = drawn(1, 4, count, **{name: name == shape for name in SHAPES})
    x = noise(2, 3, 4, 4, dtype=torch.float64).requires_grad_()

    def curved(x: Tensor) -> Tensor:
        return augment.apply(draw, x).tanh()

    assert torch.autograd.gradcheck(curved, x)
    assert torch.autograd.gradgradcheck(curved, x, fast_mode=True)


@pytest.mark.parametrize("shape", [(5, 3, 12, 12), (5, 2, 1, 13, 13)])
def test_nothing_is_read_back(shape: tuple[int, ...]) -> None:
    draw = drawn(0, shape[-1], 5).to(torch.device("meta"))
    x = torch.empty(shape, device="meta", requires_grad=True)
    with OnlyMeta():  # type: ignore[no-untyped-call]
        y = augment.apply(draw, x)
        (gradient,) = torch.autograd.grad(y, x, torch.empty_like(y))
    assert y.shape == gradient.shape == x.shape


@pytest.mark.parametrize("count", [None, 6])
def test_shapes_follow_from_the_recipe(count: int | None) -> None:
    described = {
        tuple((name, value.shape, value.dtype) for name, value in parameters(drawn(seed, 16, count)).items())
        for seed in range(20)
    }
    assert len(described) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("count", [None, 6])
def test_a_gpu_gives_what_the_cpu_gives(count: int | None) -> None:
    x, device = noise(6, 3, 32, 32), torch.device("cuda")
    for seed in range(6):
        draw = drawn(seed, 32, count)
        there = augment.apply(draw.to(device), x.to(device)).cpu()
        torch.testing.assert_close(there, augment.apply(draw, x), rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_gradients_on_a_gpu_have_equal_bits_each_time_and_crops_are_exact() -> None:
    warps, device = extremes(32), torch.device("cuda")
    x = noise(len(warps), 64, 32, 32).to(device).requires_grad_()
    y = augment.warp(x, warps.to(device))
    first, second = (torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(y[:9].cpu(), augment.warp(x.detach().cpu(), warps)[:9])
