from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub import augment, rng
from hmdc_hub.augment import CutmixDraw

DRAW = CutmixDraw(torch.tensor([2, 0, 1]), (1, 4, 0, 2), 1 - 6 / 16)


def mixed(seed: int, count: int = 4, side: int = 16) -> CutmixDraw:
    draw = augment.draw_cutmix(rng.generator(seed, "test"), count, side, 1.0)
    assert draw is not None
    return draw


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), side=st.integers(1, 40))
def test_a_draw_is_a_permutation_and_a_box_inside_the_image(seed: int, count: int, side: int) -> None:
    draw = mixed(seed, count, side)
    assert sorted(draw.partners.tolist()) == list(range(count))
    top, bottom, left, right = draw.box
    assert 0 <= top <= bottom <= side and 0 <= left <= right <= side
    pasted = (bottom - top) * (right - left)
    assert abs(draw.lam - (1 - pasted / side**2)) < 1e-12


def test_lambda_is_uniform_before_clipping() -> None:
    # Boxes that touch no border were not clipped: their side is sqrt(1 - lambda) of the image's, all of them squares.
    draws = [mixed(seed, 2, 64) for seed in range(800)]
    free = [box for box in (d.box for d in draws) if min(box[0], box[2]) > 0 and max(box[1], box[3]) < 64]
    assert len(free) > 80
    assert all(bottom - top == right - left for top, bottom, left, right in free)
    # E[area after clipping] = E[(s - s^2/4)^2] with s^2 uniform: 1/2 - 1/2 * 2/5 + 1/48 = 0.3208.
    kept = sum(d.lam for d in draws) / len(draws)
    assert abs(kept - (1 - 0.3208)) < 0.04


def test_centres_lie_anywhere() -> None:
    draws = [mixed(seed, 2, 8).box for seed in range(600)]
    sums = {box[0] + box[1] for box in draws if box[0] > 0 and box[1] < 8 and box[1] > box[0]}
    assert sums >= set(range(4, 13, 2))
    assert any(box[0] == 0 < box[1] for box in draws) and any(box[0] < 8 == box[1] for box in draws)


def test_probability() -> None:
    def share(probability: float) -> float:
        draws = [augment.draw_cutmix(rng.generator(seed, "p"), 2, 8, probability) for seed in range(500)]
        return sum(draw is not None for draw in draws) / 500

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert abs(share(0.5) - 0.5) < 0.07


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
        wanted[i, :, 1:4, 0:2] = partner
    assert torch.equal(got, wanted)
    assert torch.equal(x[:, 0, 3, 0], torch.arange(3.0))  # what went in is untouched


def test_targets_follow_the_area() -> None:
    got = augment.mix_targets(DRAW, F.one_hot(torch.tensor([0, 1, 2]), 4).float())
    own, other = 10 / 16, 6 / 16
    assert got.tolist() == [[own, 0, other, 0], [other, own, 0, 0], [0, other, own, 0]]


def test_mixing_differentiates_twice() -> None:
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=rng.generator(0, "x")).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.apply_cutmix(DRAW, x).tanh(), x)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply_cutmix(DRAW, x).tanh(), x, fast_mode=True)


def test_an_empty_box_mixes_nothing() -> None:
    draw = CutmixDraw(torch.tensor([1, 0]), (3, 3, 2, 2), 1.0)
    x, targets = torch.rand(2, 1, 4, 4), torch.eye(2)
    assert torch.equal(augment.apply_cutmix(draw, x), x)
    assert torch.equal(augment.mix_targets(draw, targets), targets)
