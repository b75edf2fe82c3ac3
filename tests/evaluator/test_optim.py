from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmdc_hub.evaluator.optim import Muon, hidden_weights, make_optimizer, set_rate, share_of_rate
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.rng import generator
from hmdc_hub.schema import EvaluateSpec
from tests.evaluator.toys import CONVNET, MLP, RESNET, model_spec, recipe, source

CPU = torch.device("cpu")


def protocol(**keys: Any) -> EvaluateSpec:
    return recipe(**keys).evaluate


def build(plain: dict[str, Any], **keys: Any) -> PoolModel:
    real = source()
    return build_model(
        model_spec(plain, **keys), num_classes=3, source_size=8, channels=1, mean=real.mean, std=real.std
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "optim"))


# Muon


def quintic(value: float) -> float:
    """Follow one singular value through Newton and Schulz's iteration."""
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


def test_one_step_of_muon_by_hand() -> None:
    # Of a diagonal matrix, the singular values are the entries: 3 and 4, over the norm 5, are 0.6 and 0.8.
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    before = weight.detach().clone()
    Muon([weight], None, lr=0.1, momentum=0.9, weight_decay=0.5).step()
    step = torch.diag(torch.tensor([quintic(0.6), quintic(0.8)]))
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 2**0.5 * step)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 3, 3)])
def test_muon_is_that_of_torch(shape: tuple[int, ...]) -> None:
    ours, theirs = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape).flatten(1))
    one = Muon([ours], None, lr=0.05, momentum=0.9, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.05, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in (1, 2, 3):
        ours.grad = drawn(*shape, seed=seed)
        theirs.grad = ours.grad.flatten(1).clone()
        for optimizer in (one, other):
            optimizer.step()
    # Theirs iterates in bfloat16, which has three digits; three steps move an entry by about 0.03.
    torch.testing.assert_close(ours.detach().flatten(1), theirs.detach(), rtol=0, atol=2e-3)
    assert (ours - drawn(*shape)).abs().max() > 0.02


def test_weights_that_lie_channels_last_are_trained_in_place() -> None:
    plain = nn.Parameter(drawn(4, 3, 2, 2))
    other = nn.Parameter(drawn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    place = other.data_ptr()
    for weight in (plain, other):
        weight.grad = drawn(4, 3, 2, 2, seed=1).to(memory_format=torch.channels_last)
        Muon([weight], None, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(plain.detach(), other.detach())
    assert other.data_ptr() == place and other.is_contiguous(memory_format=torch.channels_last)


# Which parameters, and how they are trained


def test_what_is_hidden() -> None:
    assert hidden_weights(build(MLP)) == frozenset()  # one layer, which is the first, and the classifier
    assert hidden_weights(build(MLP | {"args": {"depth": 2, "width": 8}})) == {"net.layers.1.weight"}
    assert hidden_weights(build(CONVNET)) == {"net.blocks.1.conv.weight"}
    found = hidden_weights(build(RESNET))
    assert "net.conv.weight" not in found and "net.classifier.weight" not in found and len(found) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "args"), [("vit", {"hidden_size": 8, "num_hidden_layers": 1}), ("convnextv2", {})])
def test_what_is_hidden_of_transformers(kind: str, args: dict[str, Any]) -> None:
    if kind == "vit":
        args |= {"num_attention_heads": 1, "intermediate_size": 16, "patch_size": 4}
    else:
        args |= {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 1, "num_stages": 4}
    model = build({"name": kind, "source": "transformers", "id": kind, "args": args})
    hidden, trained = hidden_weights(model), model.trained()
    assert hidden and hidden < set(trained) and all(trained[name].dim() in (2, 4) for name in hidden)
    for part in ("embed", "cls_token", "dwconv", "classifier", "bias", "norm"):
        assert not [name for name in hidden if part in name], part


def test_muon_leaves_the_rest_to_adamw() -> None:
    spec, model = protocol(optimizer="muon", momentum=0.95, weight_decay=0.1), build(CONVNET, lr={"evaluate": 0.01})
    optimizer = make_optimizer(model, spec, CPU)
    assert isinstance(optimizer, Muon)
    other = build(CONVNET)
    other.load_state_dict(model.state_dict())
    for name, weight in model.trained().items():
        weight.grad = drawn(*weight.shape, seed=len(name))
        other.trained()[name].grad = weight.grad.clone()
    adamw = torch.optim.AdamW(other.trained().values(), lr=0.005, weight_decay=0.1, fused=True)
    set_rate(optimizer, 0.01, torch.tensor(0.5, dtype=torch.float64))
    for one in (optimizer, adamw):
        one.step()
    alike = {name for name, weight in model.trained().items() if torch.equal(weight, other.trained()[name])}
    assert alike == set(model.trained()) - hidden_weights(model)
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in model.trained().values())


@pytest.mark.parametrize(("kind", "optimizer"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_other_optimisers_are_torchs(kind: str, optimizer: type[torch.optim.Optimizer]) -> None:
    model = build(MLP, lr={"evaluate": 0.3})
    made = make_optimizer(model, protocol(optimizer=kind, momentum=0.7, weight_decay=0.2), CPU)
    assert type(made) is optimizer and len(made.param_groups) == 1
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.7)) == (0.3, 0.2, 0.7)


def test_a_network_without_hidden_weights_is_trained_by_adamw() -> None:
    model = build(MLP)
    assert type(make_optimizer(model, protocol(optimizer="muon"), CPU)) is torch.optim.AdamW


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_a_rate_that_is_a_tensor_is_filled_in_place_and_gives_the_same(kind: str) -> None:
    """On a GPU the rate is one, so that a captured step sees the next one."""
    models = [build(CONVNET, lr={"evaluate": 0.1}) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, protocol(optimizer=kind), CPU) for model in models]
    rate = torch.tensor(0.1)
    for group in optimizers[1].param_groups:
        group["lr"] = rate
    for step, value in enumerate((0.1, 0.02)):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_rate(optimizer, value, torch.tensor(1.0, dtype=torch.float64))
            for weight in model.trained().values():
                weight.grad = drawn(*weight.shape, seed=step)
            optimizer.step()
    assert all(group["lr"] is rate for group in optimizers[1].param_groups) and rate.item() == pytest.approx(0.02)
    for one, other in zip(*(model.trained().values() for model in models), strict=True):
        torch.testing.assert_close(one.detach(), other.detach())


# Schedules


@pytest.mark.parametrize(
    ("keys", "shares"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ({"schedule": "step"}, [1, 1, 0.1, 0.1, 0.1]),
        ({"schedule": "step", "milestones": [0.25, 0.75], "gamma": 0.2}, [1, 0.2, 0.2, 0.04, 0.04]),
    ],
)
def test_schedules(keys: dict[str, Any], shares: list[float]) -> None:
    assert [share_of_rate(protocol(**keys), quarter / 4) for quarter in range(5)] == pytest.approx(shares)


def test_milestones_are_those_of_torch() -> None:
    spec, epochs = protocol(schedule="step", milestones=[0.666, 0.833], gamma=0.2), 1000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    for epoch in range(epochs):
        assert share_of_rate(spec, epoch / epochs) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
