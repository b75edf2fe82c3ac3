from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hmdc_hub.newton_schulz import CONVERGENT, MUON, Coefficients, orthogonalise
from hmdc_hub.rng import generator


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "newton-schulz"), dtype=torch.float64)


def followed(values: Tensor, rounds: Sequence[Coefficients]) -> Tensor:
    """Follow singular values through the iteration, each by itself."""
    for a, b, c in rounds:
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("rounds", [MUON, CONVERGENT], ids=["muon", "convergent"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 5, 5)])
def test_singular_vectors_stay_and_values_follow_the_polynomial(
    shape: tuple[int, ...], rounds: Sequence[Coefficients]
) -> None:
    u, s, vh = torch.linalg.svd(drawn(*shape), full_matrices=False)
    values = followed(s / s.norm(dim=-1, keepdim=True), rounds)
    torch.testing.assert_close(orthogonalise(drawn(*shape), rounds), u * values[..., None, :] @ vh)


def test_muon_s_coefficients_bring_singular_values_near_one() -> None:
    values = followed(torch.linspace(0.01, 1, 100, dtype=torch.float64), MUON)
    assert float(values.min()) > 0.68 and float(values.max()) < 1.21


def test_the_convergent_ones_rise_to_one() -> None:
    values = followed(torch.linspace(0, 1, 100_000, dtype=torch.float64), CONVERGENT)
    assert (values.diff() >= -1e-12).all(), "none falls"
    assert float(followed(torch.tensor(1 / 256), CONVERGENT)) > 0.99
    assert float(followed(torch.tensor(1e-9, dtype=torch.float64), CONVERGENT)) == pytest.approx(1e-9 * 1.875**10)


def test_of_well_conditioned_matrices_nothing_else_is_left() -> None:
    """Also where two singular values meet, of which a decomposition has no derivative."""
    q, _ = torch.linalg.qr(drawn(5, 5))
    matrix = q @ torch.diag(torch.tensor([3.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(orthogonalise(matrix, CONVERGENT), q)
    assert torch.autograd.gradcheck(lambda m: orthogonalise(m, CONVERGENT), matrix.clone().requires_grad_())


@pytest.mark.parametrize("rounds", [MUON, CONVERGENT], ids=["muon", "convergent"])
def test_size_is_of_no_matter_and_zeros_stay(rounds: Sequence[Coefficients]) -> None:
    one = drawn(4, 3)
    torch.testing.assert_close(orthogonalise(1e-5 * one, rounds), orthogonalise(one, rounds))
    assert (orthogonalise(torch.zeros(3, 2), rounds) == 0).all()
