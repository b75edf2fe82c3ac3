from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub import augment, rng
from hmdc_hub.augment import CutmixDraw
from tests.meta import OnlyMeta

DRAW = CutmixDraw(torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 3]), torch.tensor(1 - 6 / 16))
NOT_MIXED = CutmixDraw(torch.tensor([1, 0, 2]), torch.tensor([3, 3, 2, 2]), torch.tensor(1.0))


def mixed(seed: int, count: int = 4, side: int = 16) -> CutmixDraw:
    return augment.draw_cutmix(rng.generator(seed, "test"), count, side, 1.0)


def stacked(*draws: CutmixDraw) -> CutmixDraw:
    return CutmixDraw(*(torch.stack(column) for column in map(list, zip(*draws, strict=True))))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), side=st.integers(1, 40))
def test_a_draw_is_a_permutation_and_a_box_inside_the_image(seed: int, count: int, side: int) -> None:
    draw = mixed(seed, count, side)
    assert sorted(draw.partners.tolist()) == list(range(count))
    top, bottom, left, right = draw.box.tolist()
    assert 0 <= top <= bottom <= side and 0 <= left <= right <= side
    pasted = (bottom - top) * (right - left)
    assert abs(draw.lam - (1 - pasted / side**2)) < 1e-6


def test_lambda_is_uniform_before_clipping() -> None:
    # Boxes that touch no border were not clipped: their side is sqrt(1 - lambda) of the image's, all of them squares.
    draws = [mixed(seed, 2, 64) for seed in range(800)]
    free = [box for box in (d.box.tolist() for d in draws) if min(box[0], box[2]) > 0 and max(box[1], box[3]) < 64]
    assert len(free) > 80
    assert all(bottom - top == right - left for top, bottom, left, right in free)
    # E[area after clipping] = E[(s - s^2/4)^2] with s^2 uniform: 1/2 - 1/2 * 2/5 + 1/48 = 0.3208.
    kept = sum(float(d.lam) for d in draws) / len(draws)
    assert abs(kept - (1 - 0.3208)) < 0.04


def test_centres_lie_anywhere() -> None:
    draws = [mixed(seed, 2, 8).box.tolist() for seed in range(600)]
    sums = {box[0] + box[1] for box in draws if box[0] > 0 and box[1] < 8 and box[1] > box[0]}
    assert sums >= set(range(4, 13, 2))
    assert any(box[0] == 0 < box[1] for box in draws) and any(box[0] < 8 == box[1] for box in draws)


def test_probability() -> None:
    def share(probability: float) -> float:
        draws = [augment.draw_cutmix(rng.generator(seed, "p"), 2, 256, probability) for seed in range(500)]
        return sum(float(draw.lam) < 1 for draw in draws) / 500

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert abs(share(0.5) - 0.5) < 0.07


def test_what_is_not_mixed_has_an_empty_box() -> None:
    draw = augment.draw_cutmix(rng.generator(0, "test"), 5, 16, 0.0)
    assert sorted(draw.partners.tolist()) == list(range(5))
    top, bottom, left, right = draw.box.tolist()
    assert top == bottom and left == right and draw.lam == 1


def test_the_generator_moves_on_alike_whether_mixed_or_not() -> None:
    after = []
    for probability in (0.0, 1.0):
        gen = rng.generator(0, "test")
        augment.draw_cutmix(gen, 5, 16, probability)
        after.append(torch.rand(1, generator=gen).item())
    assert after[0] == after[1]


def test_images_receive_their_partners_box() -> None:
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 4, 4)
    got = augment.apply_cutmix(DRAW, x)
    wanted = x.clone()
    for i, partner in enumerate([2.0, 0.0, 1.0]):
        wanted[i, :, 1:3, 0:3] = partner
    assert torch.equal(got, wanted)
    assert torch.equal(x[:, 0, 3, 0], torch.arange(3.0))  # what went in is untouched


def test_targets_follow_the_area() -> None:
    got = augment.mix_targets(DRAW, F.one_hot(torch.tensor([0, 1, 2]), 4).float())
    own, other = 10 / 16, 6 / 16
    assert got.tolist() == [[own, 0, other, 0], [other, own, 0, 0], [0, other, own, 0]]


@pytest.mark.parametrize("draw", [DRAW, stacked(DRAW, NOT_MIXED)], ids=["batch", "batches"])
def test_mixing_differentiates_twice(draw: CutmixDraw) -> None:
    lead = draw.lam.shape
    x = torch.randn(*lead, 3, 1, 4, 4, dtype=torch.float64, generator=rng.generator(0, "x")).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.apply_cutmix(draw, x).tanh(), x)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply_cutmix(draw, x).tanh(), x, fast_mode=True)


def test_an_empty_box_mixes_nothing() -> None:
    x, targets = torch.rand(3, 1, 4, 4), torch.eye(3)
    assert torch.equal(augment.apply_cutmix(NOT_MIXED, x), x)
    assert torch.equal(augment.mix_targets(NOT_MIXED, targets), targets)


def test_batches_are_mixed_side_by_side() -> None:
    draws = [mixed(seed, 5, 8) for seed in range(4)]
    x, targets = torch.rand(4, 5, 2, 8, 8), torch.rand(4, 5, 3)
    images = torch.stack([augment.apply_cutmix(*one) for one in zip(draws, x, strict=True)])
    soft = torch.stack([augment.mix_targets(*one) for one in zip(draws, targets, strict=True)])
    assert torch.equal(augment.apply_cutmix(stacked(*draws), x), images)
    assert torch.equal(augment.mix_targets(stacked(*draws), targets), soft)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_nothing_is_read_back(lead: tuple[int, ...]) -> None:
    draw = (stacked(DRAW, NOT_MIXED) if lead else DRAW).to(torch.device("meta"))
    x = torch.empty(*lead, 3, 1, 4, 4, device="meta", requires_grad=True)
    with OnlyMeta():  # type: ignore[no-untyped-call]
        y = augment.apply_cutmix(draw, x)
        (gradient,) = torch.autograd.grad(y, x, torch.empty_like(y))
        targets = augment.mix_targets(draw, torch.empty(*lead, 3, 10, device="meta"))
    assert y.shape == gradient.shape == x.shape and targets.shape == (*lead, 3, 10)


@pytest.mark.gpu
def test_gradients_on_a_gpu_have_equal_bits_each_time() -> None:
    draw, x = mixed(0, 128, 32).to(torch.device("cuda")), torch.rand(128, 3, 32, 32, device="cuda", requires_grad=True)
    y = augment.apply_cutmix(draw, x)
    first, second = (torch.autograd.grad(y, x, y.detach(), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
