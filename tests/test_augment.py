from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmdc_hub import augment, rng
from hmdc_hub.augment import Draw
from hmdc_hub.schema import AugmentSpec

SHAPES = ("crop", "scale", "rotate")
NAMES = tuple(field.name for field in fields(Draw))
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


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, side=st.integers(4, 70), count=st.none() | st.integers(1, 9))
def test_parameters_stay_in_their_ranges(seed: int, side: int, count: int | None) -> None:
    found = parameters(drawn(seed, side, count))
    assert {len(value) for value in found.values()} == {count or 1}
    for name in ("flip", "brightness", "saturation", "contrast"):
        assert found[name].ge(0).all() and found[name].lt(1).all()
    square = int(side / 2 + 0.5)
    assert found["cutout"].ge(0).all() and found["cutout"].lt(side + (square % 2 == 0)).all()
    (shape,) = [name for name in SHAPES if name in found]
    value = found[shape]
    if shape == "crop":
        assert value.abs().le(int(side / 8 + 0.5)).all()
    elif shape == "scale":
        assert value.ge(1 / 1.2).all() and value.le(1.2).all()
    else:
        assert value.abs().le(15).all()


def test_parameters_fill_their_ranges() -> None:
    many = 4000
    found = [parameters(drawn(seed, 16, many)) for seed in range(12)]
    crop, scale, rotate = (next(f[name] for f in found if name in f) for name in SHAPES)
    assert set(crop.flatten().tolist()) == set(range(-2, 3))
    assert set(found[0]["cutout"].flatten().tolist()) == set(range(17))
    assert set(drawn(0, 5, many).cutout.flatten().tolist()) == set(range(5))  # type: ignore[union-attr]
    assert scale.min() < 0.84 and scale.max() > 1.19
    assert (scale[:, 0] - scale[:, 1]).abs().max() > 0.3
    assert rotate.min() < -14.9 and rotate.max() > 14.9


def test_the_same_generator_gives_the_same_draw() -> None:
    first, again, other = (parameters(drawn(seed, count=5)) for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["brightness"], other["brightness"])


@pytest.mark.parametrize("on", [SHAPES, ("crop", "rotate"), ("scale",)])
def test_operations_that_are_on_share_the_one_of_three(on: tuple[str, ...]) -> None:
    spec = {name: name in on for name in SHAPES}
    counts = Counter(name for seed in range(600) for name in parameters(drawn(seed, **spec)) if name in SHAPES)
    assert counts.total() == 600
    assert counts.keys() == set(on)
    assert all(abs(count / 600 - 1 / len(on)) < 0.07 for count in counts.values())


def test_operations_that_are_off_are_not_drawn() -> None:
    assert parameters(drawn(0, **OFF)) == {}
    for name in ("flip", "crop", "scale", "rotate", "cutout"):
        assert parameters(drawn(0, **(OFF | {name: True}))).keys() == {name}
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


def test_operations_are_applied_in_order() -> None:
    x = noise(3, 3, 8, 8)
    draw = only(flip=[0.1], brightness=[0.9], saturation=[0.2], contrast=[0.8], crop=[[1, -1]], cutout=[[2, 6]])
    wanted = x
    for name in ("flip", "brightness", "saturation", "contrast", "crop", "cutout"):
        wanted = getattr(augment, name)(wanted, getattr(draw, name))
    assert torch.equal(augment.apply(draw, x), wanted)
    for shape in ({"scale": torch.tensor([[0.9, 1.1]])}, {"rotate": torch.tensor([7.0])}):
        before = augment.apply(replace(draw, crop=None, cutout=None), x)
        (name, value), *_ = shape.items()
        wanted = augment.cutout(getattr(augment, name)(before, value), torch.tensor([[2, 6]]))
        assert torch.equal(augment.apply(replace(draw, crop=None, **shape), x), wanted)


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
    got = augment.crop(x, torch.tensor([[1, -2]]))[0, 0]
    assert got.tolist() == [[0, 0, 5, 6], [0, 0, 9, 10], [0, 0, 13, 14], [0, 0, 0, 0]]


def test_crop_without_any_shift() -> None:
    x = noise(3, 1, 4, 4)
    assert torch.equal(augment.crop(x, torch.zeros(1, 2, dtype=torch.int64)), x)
    assert torch.equal(augment.crop(x, torch.zeros(3, 2, dtype=torch.int64)), x)


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
    shrunk = augment.scale(x, torch.tensor([[1.2, 1 / 1.2]]))[0, 0]
    assert shrunk[:, 0].eq(0).all() and shrunk[:, 8].isclose(torch.tensor(1.0)).all()
    turned = augment.rotate(x, torch.tensor([15.0]))[0, 0]
    assert turned[0, 0] == 0 and turned[8, 8].isclose(torch.tensor(1.0))


def _grid_sample_differentiates_twice() -> bool:
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(augment.rotate(x, torch.tensor([5.0])).square().sum(), x, create_graph=True)
    try:
        torch.autograd.grad(first.sum(), x)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_differentiates(shape: str, count: int | None) -> None:
    spec = {name: name == shape for name in SHAPES}
    draw = drawn(1, 4, count, **spec)
    x = noise(2, 3, 4, 4, dtype=torch.float64).requires_grad_()

    def curved(x: Tensor) -> Tensor:
        return augment.apply(draw, x).tanh()

    assert torch.autograd.gradcheck(curved, x, fast_mode=True)
    # The condenser needs one derivative of an augmentation; older torch has no second one of grid_sample.
    if shape not in ("scale", "rotate") or _grid_sample_differentiates_twice():
        assert torch.autograd.gradgradcheck(curved, x, fast_mode=True)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [None, 6])
def test_a_gpu_gives_what_the_cpu_gives(count: int | None) -> None:
    x = noise(6, 3, 32, 32)
    for seed in range(6):
        draw = drawn(seed, 32, count)
        torch.testing.assert_close(augment.apply(draw, x.cuda()).cpu(), augment.apply(draw, x), rtol=0, atol=1e-4)
