"""What `PoolModel` adds to a network: resets, modes, running statistics, input pipeline."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hmdc_hub import multi_formation, rng
from hmdc_hub.models import PoolModel
from tests.models.builders import TINY, build, images, spec_of, tiny

FAMILIES = list(TINY)
WITH_BATCH_NORM = ["convnet-batch", "resnet", "resnet18"]


def state(model: PoolModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if torch.equal(a[name], b[name])]


def disturb(model: PoolModel) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reset_depends_on_its_generator_alone(family: str) -> None:
    model = tiny(family, seed=1)
    first = state(model)
    parameters = dict(model.named_parameters())
    disturb(model)
    model.reset(rng.generator(1, "test"))
    assert same(first, state(model)) == list(first)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    model.reset(rng.generator(2, "test"))
    # Biases, norms and some tokens and classifiers begin as constants.
    weights = [name for name, p in model.named_parameters() if bool((p != p.flatten()[0]).any())]
    assert len(weights) >= 3
    assert not set(same(first, state(model))) & set(weights)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_building_and_resetting_leave_the_global_generators_alone(family: str) -> None:
    before, python = torch.get_rng_state(), random.getstate()
    tiny(family)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_build_gives_the_same_values_each_time(family: str) -> None:
    first = state(build(spec_of(family)))
    with rng.global_seed(rng.generator(4, "elsewhere")):
        second = state(build(spec_of(family)))
    assert same(first, second) == list(first)


@pytest.mark.slow
def test_a_reset_is_the_initialisation_of_the_library() -> None:
    import torchvision

    model = tiny("resnet18", seed=5)
    with rng.global_seed(rng.generator(5, "test")):
        expected = torchvision.models.resnet18(num_classes=3).state_dict()
    assert same(expected, {k.removeprefix("net.model."): v for k, v in state(model).items()}) == list(expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_reset_body_keeps_the_classifier(family: str) -> None:
    whole, body = tiny(family, seed=1), tiny(family, seed=1, reset="body")
    disturb(body)
    kept = state(body)
    body.reset(rng.generator(2, "test"))
    whole.reset(rng.generator(2, "test"))
    fresh, after = state(whole), state(body)
    for name in after:
        expected = kept if name.startswith(tuple(f"net.{head}." for head in body.net.heads)) else fresh
        assert torch.equal(after[name], expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_independent_and_can_be_reset(family: str) -> None:
    model = tiny(family)
    before = state(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.reset(rng.generator(9, "test"))
        twin.train()
        assert same(before, state(model)) == list(before)
        assert not model.training
        twin.reset(rng.generator(1, "test"))
        assert same(before, state(twin)) == list(before)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_only_batch_normalisation_follows_the_mode(family: str, batch_norm: str) -> None:
    model = tiny(family, batch_norm=batch_norm)
    modules = list(model.net.modules())
    assert not any(m.training for m in model.modules())
    assert model.train() is model
    assert model.training
    assert all(m.training == (isinstance(m, _BatchNorm) and batch_norm == "train") for m in modules)
    model.eval()
    assert not any(m.training for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_BATCH_NORM)
def test_running_statistics_move_in_training_unless_frozen(family: str) -> None:
    moving, frozen = tiny(family), tiny(family, batch_norm="frozen")
    for model, expected in ((moving, True), (frozen, False)):
        before = state(model)
        model.train()
        model(images(model))
        changed = set(before) - set(same(before, state(model)))
        assert bool(changed) == expected
        assert all("running" in name or "num_batches" in name for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_mode_changes_nothing(family: str) -> None:
    model = tiny(family)
    before = state(model)
    x = images(model)
    first = model(x)
    model.logits(x), model.embed(x)
    assert same(before, state(model)) == list(before)
    assert torch.equal(model(x).logits, first.logits)
    torch.testing.assert_close(model.logits(x), first.logits)


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_BATCH_NORM)
def test_a_batch_of_one_goes_by_the_running_statistics(family: str) -> None:
    model = tiny(family)
    one = images(model, 1)
    expected = model.logits(one)
    before = state(model)
    model.train()
    assert torch.equal(model.logits(one), expected)
    assert same(before, state(model)) == list(before)
    assert any(m.training for m in model.net.modules())


@pytest.mark.parametrize("training", [True, False])
def test_calibration_averages_the_statistics_of_all_batches_alike(training: bool) -> None:
    model = tiny("convnet-batch").train(training)
    disturb(model)  # what was there before must not count
    modes = [m.training for m in model.modules()]
    batches = [images(model, count, seed) for seed, count in enumerate((2, 5, 3))]

    def reading() -> Iterator[Tensor]:
        assert not torch.is_grad_enabled()
        yield from batches

    model.calibrate(reading())
    norm: Any = model.net.get_submodule("blocks.0.norm")
    maps = [model.net.get_submodule("blocks.0.conv")(batch) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert not norm.running_mean.requires_grad
    assert norm.momentum == nn.BatchNorm2d(1).momentum
    assert [m.training for m in model.modules()] == modes


def test_calibration_undoes_its_switches_when_a_batch_fails() -> None:
    model = tiny("convnet-batch")
    with pytest.raises(RuntimeError):
        model.calibrate([torch.zeros(2, 7, 16, 16)])
    norm: Any = model.net.get_submodule("blocks.0.norm")
    assert norm.momentum == 0.1
    assert not norm.training


def test_calibration_of_a_frozen_model_and_of_one_without_batch_norm() -> None:
    frozen = tiny("convnet-batch", batch_norm="frozen")
    before = state(frozen)
    frozen.calibrate([images(frozen)])
    assert len(same(before, state(frozen))) < len(before)
    plain = tiny("convnet")
    before = state(plain)
    plain.calibrate(_no_batches())
    assert same(before, state(plain)) == list(before)


def _no_batches() -> Any:
    raise AssertionError("a model without batch normalisation reads no batch")
    yield


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_parameters(family: str) -> None:
    everything, head = tiny(family), tiny(family, train="head")
    named = dict(everything.named_parameters())
    assert list(everything.trained()) == sorted(named)
    assert all(p is named[name] for name, p in everything.trained().items())
    expected = [f"net.{name}.{part}" for name in head.net.heads for part in ("bias", "weight")]
    assert list(head.trained()) == sorted(expected)
    head.reset(rng.generator(3, "test"))
    torch.autograd.backward(head.logits(images(head)).sum())
    assert [n for n, p in sorted(head.named_parameters()) if p.grad is not None] == list(head.trained())


def test_taps_are_selected_in_the_order_of_the_spec() -> None:
    model = tiny("resnet", taps=[2, 0, 2])
    x = images(model)
    whole, chosen = tiny("resnet")(x).taps, model(x).taps
    assert [tap.name for tap in model.taps] == ["stage2", "stem", "stage2"]
    for tap, index in zip(chosen, (2, 0, 2), strict=True):
        assert torch.equal(tap.spatial, whole[index].spatial)
        assert torch.equal(tap.semantic, whole[index].semantic)


def test_prepare_leaves_images_that_fit_alone() -> None:
    model = tiny("convnet")
    x = images(model)
    assert model.prepare(x) is x


def test_prepare_resizes_to_the_input_size() -> None:
    model = tiny("convnet", input_size=24)
    x = torch.randn(2, 3, 16, 16, generator=rng.generator(0, "x"))
    assert torch.equal(model.prepare(x), multi_formation.resize(x, 24))
    assert model.prepare(torch.zeros(2, 3, 40, 40)).shape == (2, 3, 24, 24)
    assert model(model.prepare(x)).logits.shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_with_own_statistics(channels: int) -> None:
    own: dict[str, Any] = {"mean": [0.1, 0.2, 0.3][:channels], "std": [0.5, 0.6, 0.7][:channels]}
    model = tiny("convnet", channels=channels, normalize="own", **own)
    pixels = torch.rand(2, channels, 16, 16, generator=rng.generator(0, "x"))

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    x = normalised([0.5, 0.4, 0.3][:channels], [0.2, 0.25, 0.3][:channels]).requires_grad_()
    prepared = model.prepare(x)
    torch.testing.assert_close(prepared, normalised(own["mean"], own["std"]))
    (grad,) = torch.autograd.grad(prepared.sum(), x)
    slopes = [source / mine for source, mine in zip([0.2, 0.25, 0.3], own["std"], strict=False)]
    torch.testing.assert_close(grad, torch.tensor(slopes).view(-1, 1, 1).expand_as(grad))
    assert not {"scale", "shift"} & set(model.state_dict())


def test_grey_images_are_repeated_where_the_family_takes_colour() -> None:
    own: dict[str, Any] = {"normalize": "own", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    model = tiny("resnet18", channels=1, **own)
    x = torch.randn(2, 1, 32, 32, generator=rng.generator(0, "x"))
    prepared = model.prepare(x)
    assert prepared.shape == (2, 3, 32, 32)
    pixels = x * 0.2 + 0.5
    torch.testing.assert_close(prepared[:, 1:2], (pixels - 0.2) / 0.6)
    assert model(prepared).logits.shape == (2, 3)
    assert torch.equal(tiny("resnet18", channels=1).prepare(x), x.repeat(1, 3, 1, 1))
    for family in ("convnet", "mlp", "resnet", "vit"):
        grey = tiny(family, channels=1)
        x = images(grey)
        assert x.shape[1] == 1
        assert grey.prepare(x) is x
