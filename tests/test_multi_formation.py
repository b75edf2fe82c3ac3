from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmdc_hub import multi_formation, rng
from hmdc_hub.errors import UsageError
from hmdc_hub.schema import Encoding

SIDES = st.integers(1, 40)
LEAD = st.lists(st.integers(1, 3), max_size=2).map(tuple)
COUNTS = st.integers(1, 4)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(0, "test"), dtype=dtype)


def interpolate(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


@settings(deadline=None)
@given(height=SIDES, width=SIDES, side=SIDES)
def test_resize_equals_bilinear_interpolation(height: int, width: int, side: int) -> None:
    x = noise(2, 3, height, width)
    torch.testing.assert_close(multi_formation.resize(x, side), interpolate(x, side, side), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 5, 7), (2, 4, 3, 5, 7)])
def test_resize_keeps_leading_dimensions(shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    wanted = interpolate(x.reshape(1, -1, 5, 7), 9, 9).reshape(*shape[:-2], 9, 9)
    torch.testing.assert_close(multi_formation.resize(x, 9), wanted)


def test_resize_to_the_same_size_is_the_image_itself() -> None:
    x = noise(2, 3, 8, 8)
    assert multi_formation.resize(x, 8) is x


def test_resize_differentiates_twice_in_reverse_and_forward_mode() -> None:
    x = noise(2, 1, 3, 5, dtype=torch.float64).requires_grad_()

    def curved(x: Tensor) -> Tensor:
        return multi_formation.resize(x, 4).tanh()

    assert torch.autograd.gradcheck(curved, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(curved, x)


def test_resize_differentiates_as_interpolation_does() -> None:
    x, weight = noise(2, 3, 8, 8).requires_grad_(), noise(2, 3, 13, 13)
    (got,) = torch.autograd.grad((multi_formation.resize(x, 13) * weight).sum(), x)
    (wanted,) = torch.autograd.grad((interpolate(x, 13, 13) * weight).sum(), x)
    torch.testing.assert_close(got, wanted)


def test_resize_first_met_without_gradients_differentiates_later() -> None:
    x = noise(1, 1, 6, 6)
    with torch.inference_mode():
        multi_formation.resize(x, 37)
    torch.func.vmap(torch.func.grad(lambda y: multi_formation.resize(y, 38).sum()))(x)
    for side in (37, 38):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(multi_formation.resize(leaf, side).square().sum(), leaf)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_resize_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    x = noise(2, 3, 7, 7).to(dtype)
    got = multi_formation.resize(x, 16)
    assert got.dtype == dtype
    assert torch.equal(got, multi_formation.resize(x.float(), 16).to(dtype))


def test_autocast_does_not_round_pixels() -> None:
    x = noise(2, 3, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = multi_formation.resize(x, 16)
    assert torch.equal(got, multi_formation.resize(x, 16))


@settings(deadline=None)
@given(lead=LEAD, n=COUNTS, channels=st.sampled_from([1, 3]), factor=st.integers(1, 4), height=COUNTS, width=COUNTS)
def test_decode_places_every_tile(
    lead: tuple[int, ...], n: int, channels: int, factor: int, height: int, width: int
) -> None:
    stored = noise(*lead, n, channels, factor * height, factor * width)
    decoded = multi_formation.decode(stored, factor)
    assert decoded.shape == (*lead, n * factor**2, channels, factor * height, factor * width)
    for column in range(factor):
        for row in range(factor):
            for j in range(n):
                tile = stored[
                    ..., j, :, row * height : (row + 1) * height, column * width : (column + 1) * width
                ].reshape(-1, channels, height, width)  # fmt: skip
                got = decoded[..., (column * factor + row) * n + j, :, :, :].reshape(
                    -1, channels, factor * height, factor * width
                )
                wanted = interpolate(tile, factor * height, factor * width)
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_decode_order_is_tile_column_then_tile_row_then_image() -> None:
    corners = torch.tensor([[0.0, 2.0], [1.0, 3.0]])  # value = column * 2 + row
    stored = torch.stack([corners * 10, corners * 10 + 1])[:, None]
    assert multi_formation.decode(stored, 2).mean((1, 2, 3)).tolist() == [0, 1, 10, 11, 20, 21, 30, 31]


@settings(deadline=None)
@given(lead=LEAD, n=COUNTS, channels=st.sampled_from([1, 3]), factor=st.integers(1, 4), small=COUNTS)
def test_encode_then_decode_keeps_every_image_in_its_place(
    lead: tuple[int, ...], n: int, channels: int, factor: int, small: int
) -> None:
    flat = noise(*lead, n * factor**2, channels, 1, 1)
    side = factor * small
    images = flat.expand(*flat.shape[:-2], side, side)
    stored = multi_formation.encode(images, factor, side)
    assert stored.shape == (*lead, n, channels, side, side)
    torch.testing.assert_close(multi_formation.decode(stored, factor), images, rtol=0, atol=1e-5)


def test_encode_shrinks_with_antialiasing_into_exact_tiles() -> None:
    images = noise(8, 3, 16, 16)
    stored = multi_formation.encode(images, 2, 16)
    small = F.interpolate(images, size=(8, 8), mode="bilinear", antialias=True)
    for index in range(8):
        tile, j = divmod(index, 2)
        column, row = divmod(tile, 2)
        got = stored[j, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        torch.testing.assert_close(got, small[index])


def test_the_nearest_tile_by_hand() -> None:
    """Two values are enlarged to four as (1, 0), (2/3, 1/3), (1/3, 2/3), (0, 1): their pseudo-inverse is this."""
    inverse = torch.tensor([[0.7, 0.4, 0.1, -0.2], [-0.2, 0.1, 0.4, 0.7]])
    images = noise(4, 3, 4, 4)
    stored = multi_formation.encode(images, 2, 4, "least-squares")
    torch.testing.assert_close(stored[0, :, 2:, :2], inverse @ images[1] @ inverse.mT)


@settings(deadline=None)
@given(factor=st.integers(2, 4), small=st.integers(1, 6))
def test_the_nearest_tile_is_what_a_solver_finds_for_all_of_its_pixels_at_once(factor: int, small: int) -> None:
    side = factor * small
    images = noise(factor**2, 2, side, side, dtype=torch.float64)
    stored = multi_formation.encode(images, factor, side, "least-squares")
    unit = torch.eye(small**2, dtype=torch.float64).view(-1, 1, small, small)
    enlarge = interpolate(unit, side, side).flatten(1).mT  # every pixel of a tile, seen by every pixel of an image
    wanted = torch.linalg.lstsq(enlarge, images.flatten(2).flatten(0, 1).mT).solution.mT
    columns = torch.split(stored[0], small, -1)
    got = torch.stack([part for column in columns for part in torch.split(column, small, -2)])
    torch.testing.assert_close(got.flatten(2).flatten(0, 1), wanted)


@pytest.mark.parametrize("method", ["antialias", "bilinear"])
@pytest.mark.parametrize("factor", [2, 3])
def test_no_other_tile_is_nearer(method: Encoding, factor: int) -> None:
    images = noise(factor**2, 3, 12, 12, dtype=torch.float64)

    def error(method: Encoding) -> Tensor:
        stored = multi_formation.encode(images, factor, 12, method)
        return (multi_formation.decode(stored, factor) - images).square().sum((1, 2, 3))

    assert (error("least-squares") < error(method)).all()


def test_bilinear_shrinks_with_aligned_corners() -> None:
    images = noise(4, 3, 12, 12)
    stored = multi_formation.encode(images, 2, 12, "bilinear")
    torch.testing.assert_close(stored[0, :, 6:, :6], interpolate(images, 6, 6)[1])


@pytest.mark.parametrize("size", [(8, 8), (6, 11), (30, 20)])
def test_the_nearest_tile_of_an_image_that_one_enlarges_to_is_that_tile(size: tuple[int, int]) -> None:
    tiles = noise(4, 3, 5, 5)
    stored = multi_formation.encode(interpolate(tiles, *size), 2, 10, "least-squares")
    torch.testing.assert_close(stored[0, :, 5:, :5], tiles[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["bilinear", "least-squares"])
def test_images_smaller_than_a_tile_are_enlarged_as_decode_does(method: Encoding) -> None:
    images = noise(4, 3, 3, 7)
    stored = multi_formation.encode(images, 2, 20, method)
    assert stored.shape == (1, 3, 20, 20)
    torch.testing.assert_close(stored[0, :, 10:, :10], interpolate(images, 10, 10)[1])


def test_the_nearest_tiles_are_the_same_in_other_units_and_leave_the_range_of_pixels() -> None:
    """So that S may be encoded after normalisation and the baseline before it."""
    images = (noise(4, 3, 16, 16) > 0).float()
    stored = multi_formation.encode(images, 2, 16, "least-squares")
    torch.testing.assert_close(multi_formation.encode(images * 4 - 1, 2, 16, "least-squares"), stored * 4 - 1)
    assert stored.min() < 0 and stored.max() > 1


def test_decode_is_nearly_the_inverse_for_smooth_images() -> None:
    at = torch.linspace(-1, 1, 32)
    centre = torch.linspace(-0.5, 0.5, 8)
    images = torch.exp(-((at[:, None] - centre[:, None, None]) ** 2) - (at + centre[:, None, None]) ** 2)[:, None]
    error = (multi_formation.decode(multi_formation.encode(images, 2, 32), 2)[:, None] - images).abs().mean((2, 3, 4))
    assert error.diag().max() < 0.02
    assert torch.equal(error.argmin(dim=1), torch.arange(8))


@pytest.mark.parametrize("method", ["antialias", "bilinear", "least-squares"])
def test_encode_keeps_tiles_that_have_the_size_already(method: Encoding) -> None:
    tiles = noise(4, 3, 5, 5)
    stored = multi_formation.encode(tiles, 2, 10, method)
    assert torch.equal(stored[0, :, 5:, :5], tiles[1])
    assert torch.equal(stored[0, :, :5, 5:], tiles[2])


def test_factor_one_changes_nothing() -> None:
    x = noise(2, 3, 4, 4)
    assert torch.equal(multi_formation.decode(x, 1), x)
    for method in ("antialias", "bilinear", "least-squares"):
        assert torch.equal(multi_formation.encode(x, 1, 4, method), x)


def test_a_side_that_factor_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="32 pixels cannot be cut into 3"):
        multi_formation.decode(noise(1, 3, 32, 32), 3)
    with pytest.raises(UsageError, match="32 pixels cannot be cut into 3"):
        multi_formation.encode(noise(9, 3, 32, 32), 3, 32)


def test_a_number_of_images_that_does_not_fill_the_tiles_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        multi_formation.encode(noise(6, 3, 8, 8), 2, 8)


@pytest.mark.gpu
def test_decode_backward_is_deterministic_on_a_gpu() -> None:
    stored = noise(10, 3, 32, 32).cuda().requires_grad_()
    weight = noise(40, 3, 32, 32).cuda()
    first, second = (
        torch.autograd.grad((multi_formation.decode(stored, 2) * weight).sum(), stored)[0] for _ in range(2)
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(
        multi_formation.decode(stored, 2).cpu(), multi_formation.decode(stored.cpu(), 2), rtol=0, atol=1e-5
    )
