"""Derivatives as gradient matching takes them, against finite differences in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmdc_hub import rng
from hmdc_hub.models import PoolModel
from tests.models.builders import TINY, images, tiny

LABELS = torch.tensor([0, 2])
SIDES = {"resnet18": 32, "mobilenet": 32, "swin": 16}
"""The smallest that these can have."""


def loss(model: PoolModel, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Cross-entropy plus something of every tap, so that all outputs are differentiated."""
    features = torch.func.functional_call(model, parameters, (x,))
    taps = sum((tap.semantic.square().mean() + tap.spatial.square().mean() for tap in features.taps), torch.zeros(()))
    return F.cross_entropy(features.logits, LABELS) + taps


@pytest.mark.slow
@pytest.mark.parametrize("family", list(TINY))
def test_double_backward(family: str) -> None:
    # A smooth place: the small side keeps ReLUs few, and float64 keeps the step far below the distance to a kink.
    model = tiny(family, input_size=SIDES.get(family, 8)).double()
    parameters = {name: p.detach().requires_grad_() for name, p in model.trained().items()}
    gen = rng.generator(3, "directions")
    tangents = [torch.randn(p.shape, generator=gen, dtype=p.dtype) for p in parameters.values()]
    x = images(model, 2, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=gen, dtype=x.dtype)

    def slope(at: Tensor, create_graph: bool = False) -> Tensor:
        # A mask token is for pretraining: nothing reaches it.
        grads = torch.autograd.grad(
            loss(model, parameters, at), list(parameters.values()), create_graph=create_graph, allow_unused=True
        )
        products = [(g * t).sum() for g, t in zip(grads, tangents, strict=True) if g is not None]
        return sum(products, torch.zeros((), dtype=x.dtype))

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with sdpa_kernel(SDPBackend.MATH):
        at = x.clone().requires_grad_()
        (second,) = torch.autograd.grad(slope(at, create_graph=True), at)
        step = 1e-6
        expected = (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)
    torch.testing.assert_close((second * direction).sum(), expected, rtol=2e-5, atol=1e-7)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("family", list(TINY))
def test_functional_call_uses_the_values_it_is_given(family: str) -> None:
    model, other = tiny(family, seed=1), tiny(family, seed=2)
    x = images(model)
    with torch.no_grad():
        values = {**other.trained(), **dict(other.named_buffers())}
        features = torch.func.functional_call(model, values, (x,))
        assert torch.equal(features.logits, other(x).logits)
        assert not torch.equal(features.logits, model(x).logits)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(TINY))
def test_forward_over_reverse_agrees_with_double_backward(family: str) -> None:
    model = tiny(family, input_size=SIDES.get(family, 8)).double()
    parameters = {name: p.detach() for name, p in model.trained().items()}
    x = images(model, 2, dtype=torch.float64)
    gen = rng.generator(3, "directions")
    tangents = {name: torch.randn(p.shape, generator=gen, dtype=p.dtype) for name, p in parameters.items()}

    def input_grad(values: dict[str, Tensor]) -> Tensor:
        grad: Tensor = torch.func.grad(lambda at: loss(model, values, at))(x)
        return grad

    with sdpa_kernel(SDPBackend.MATH):
        forward: Tensor = torch.func.jvp(input_grad, (parameters,), (tangents,))[1]
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        at = x.clone().requires_grad_()
        grads = torch.autograd.grad(
            loss(model, leaves, at), list(leaves.values()), create_graph=True, allow_unused=True
        )
        products = [(g * tangents[n]).sum() for n, g in zip(leaves, grads, strict=True) if g is not None]
        total = sum(products, torch.zeros(()))
        (backward,) = torch.autograd.grad(total, at)
    torch.testing.assert_close(forward, backward, rtol=1e-8, atol=1e-10)
