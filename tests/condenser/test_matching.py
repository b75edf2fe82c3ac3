"""The condenser's image gradient against a plain double-backward form, where no reference vector exists; and classes
that are computed together against each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser import matching
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.matching import Objectives, image_gradients, plain_attention, takes_classes_together
from hmdc_hub.models import Features, PoolModel, build_model
from hmdc_hub.schema import ModelSpec

SIDE, CLASSES = 16, 3
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])

CONVNET = ModelSpec(name="convnet", source="builtin", id="convnet", args={"depth": 2, "width": 8})
VIT = ModelSpec(
    name="vit", source="transformers", id="vit", input_size=8,
    args={
        "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 24, "patch_size": 4,
    },
)  # fmt: skip
MLP = ModelSpec(
    name="mlp", source="builtin", id="mlp", args={"depth": 2, "width": 10},
    normalize="own", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7],
)  # fmt: skip
RESNET = ModelSpec(name="resnet", source="builtin", id="resnet", args={"width": 4, "blocks": [1, 1]})


def build(specs: Sequence[ModelSpec]) -> list[PoolModel]:
    models = []
    for i, spec in enumerate(specs):
        model = build_model(spec, num_classes=CLASSES, source_size=SIDE, channels=3, mean=MEAN, std=STD)
        model.reset(rng.generator(0, "test", i))
        model.calibrate([model.prepare(torch.randn(16, 3, SIDE, SIDE, generator=rng.generator(1, "test")))])
        models.append(model.eval())
    return models


def pairs_of(models: Sequence[PoolModel]) -> list[Pair]:
    pairs = []
    for a in range(len(models)):
        for b in range(a + 1, len(models)):
            distillation = MutualDistillation((models[a].taps, models[b].taps))
            distillation.reset(rng.generator(2, "test", a, b))
            with torch.no_grad():
                distillation.layer_matching.normal_(generator=rng.generator(3, "test", a, b))
            pairs.append(Pair(a, b, distillation))
    return pairs


def plain_distillation(pair: Pair, features: Sequence[Features]) -> Tensor:
    """Mutual distillation as the paper writes it, one tap and one image position at a time."""
    alignment, sides = pair.distillation, []
    for place, m in enumerate((pair.first, pair.second)):
        taps = []
        for l, tap in enumerate(features[m].taps):  # noqa: E741
            linear = alignment.projections[place][l]  # type: ignore[index]
            small = F.interpolate(tap.spatial, size=(alignment.side,) * 2, mode="bilinear", align_corners=True)
            rows = [linear(tap.semantic)]
            rows += [linear(small[:, :, y, x]) for y in range(alignment.side) for x in range(alignment.side)]
            taps.append(torch.stack(rows, 1))
        sides.append(taps)
    first, second = sides
    q = alignment.layer_matching
    if len(first) >= len(second):
        weights = F.softmax(q, dim=1)
        first = [
            sum((weights[i, j] * first[i] for i in range(len(first))), torch.zeros(())) for j in range(len(second))
        ]
    else:
        weights = F.softmax(q.t(), dim=1)
        second = [
            sum((weights[i, j] * second[i] for i in range(len(second))), torch.zeros(())) for j in range(len(first))
        ]
    return torch.stack([((a - b) ** 2).mean() for a, b in zip(first, second, strict=True)]).mean()


def squares(real: Tensor, fake: Tensor) -> Tensor:
    return ((real - fake) ** 2).sum()


def plain_objectives(
    models: Sequence[PoolModel],
    pairs: Sequence[Pair],
    real: Tensor,
    fake: Tensor,
    between: Callable[[Tensor, Tensor], Tensor] = squares,
) -> list[Tensor]:
    """Every objective for class 1 by double backward, each loss from a forward pass of its own.

    `between` is the distance of the gradients of one parameter.
    """
    objectives = []

    def distance(loss_of: object, parameters: list[Tensor]) -> Tensor:
        assert callable(loss_of)
        wanted = torch.autograd.grad(loss_of(real), parameters, allow_unused=True)
        given = torch.autograd.grad(loss_of(fake), parameters, create_graph=True, allow_unused=True)
        pairs = [(a, b) for a, b in zip(wanted, given, strict=True) if a is not None and b is not None]
        return torch.stack([torch.zeros((), dtype=fake.dtype), *(between(a, b) for a, b in pairs)]).sum()

    for model in models:

        def cross_entropy(x: Tensor, model: PoolModel = model) -> Tensor:
            return F.cross_entropy(model(model.prepare(x)).logits, torch.ones(len(x), dtype=torch.int64))

        objectives.append(distance(cross_entropy, list(model.trained().values())))
    for pair in pairs:

        def distillation(x: Tensor, pair: Pair = pair) -> Tensor:
            return plain_distillation(pair, [m(m.prepare(x)) for m in models])

        both: list[Tensor] = [*models[pair.first].trained().values(), *models[pair.second].trained().values()]
        objectives.append(distance(distillation, both))
    return objectives


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    with plain_attention():
        yield


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, SIDE, SIDE, generator=rng.generator(4, "test"))


def partly(spec: ModelSpec, train: str) -> ModelSpec:
    return spec.model_copy(update={"train": train})


def ours(
    objectives: Objectives,
    real: Tensor,
    fake: Tensor,
    weights: Tensor | None,
    at_once: int | None = None,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the objectives of class 1, K, and their derivatives, J x B x ..."""
    shares = torch.full((1, len(real)), 1 / len(real)) if shares is None else shares
    label = torch.ones(1, dtype=torch.int64)
    losses, found = image_gradients(objectives, real[None], shares, fake[None], label, weights, at_once)
    return losses[0], found[0]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


MEMORY = pytest.mark.parametrize("at_once", [None, 1, 3], ids=["whole", "one", "three"])


@pytest.mark.slow
@MEMORY
@pytest.mark.parametrize(
    "specs",
    [
        [CONVNET], [VIT], [MLP], [RESNET], [CONVNET, VIT], [VIT, CONVNET], [CONVNET, VIT, MLP], [RESNET, VIT, MLP],
        [CONVNET, VIT, MLP, RESNET], [partly(CONVNET, "last_1"), partly(VIT, "last_2")],
        [partly(CONVNET, "head"), VIT], [partly(CONVNET, "head"), partly(VIT, "head")],
    ],
    ids=lambda specs: "+".join(f"{spec.name}-{spec.train}" for spec in specs),
)  # fmt: skip
def test_any_number_of_models(specs: list[ModelSpec], at_once: int | None) -> None:
    models = build(specs)
    objectives = Objectives(models, pairs_of(models))
    fake, real = images(8), images(5)
    names = len(objectives.names())
    assert names == len(specs) + len(specs) * (len(specs) - 1) // 2
    leaf = fake.clone().requires_grad_()
    wanted = plain_objectives(models, objectives.pairs, real, leaf)
    gradients = [
        torch.autograd.grad(objective, leaf, retain_graph=True)[0]
        if objective.requires_grad
        else torch.zeros_like(leaf)
        for objective in wanted
    ]
    losses, each = ours(objectives, real, fake, None, at_once)
    torch.testing.assert_close(losses, torch.stack(wanted).detach(), rtol=1e-5, atol=1e-9)
    assert each.shape == (names, *fake.shape)
    for got, plain in zip(each, gradients, strict=True):
        assert float((got - plain).norm()) <= 1e-5 * float(plain.norm())
    weights = torch.rand(1, names, generator=rng.generator(5, "test")) + 0.5
    losses, summed = ours(objectives, real, fake, weights, at_once)
    torch.testing.assert_close(losses, torch.stack(wanted).detach(), rtol=1e-5, atol=1e-9)
    plain = sum((w * g for w, g in zip(weights[0], gradients, strict=True)), torch.zeros(()))
    assert summed.shape == (1, *fake.shape) and apart(summed[0], plain) < 1e-5


@pytest.mark.slow
@MEMORY
@pytest.mark.parametrize("match", [True, False])
def test_distillation_alone_and_matching_alone(match: bool, at_once: int | None) -> None:
    models = build([CONVNET, VIT, MLP])
    pairs = pairs_of(models)
    fake, real = images(8), images(5)
    objectives = Objectives(models, [] if match else pairs, match)
    losses, gradient = ours(objectives, real, fake, torch.ones(1, 3), at_once)
    leaf = fake.clone().requires_grad_()
    wanted = plain_objectives(models, pairs, real, leaf)
    wanted = wanted[:3] if match else wanted[3:]
    torch.testing.assert_close(losses, torch.stack(wanted).detach(), rtol=1e-5, atol=1e-9)
    (plain,) = torch.autograd.grad(torch.stack(wanted).sum(), leaf)
    assert apart(gradient[0], plain) < 1e-5


@MEMORY
def test_a_class_with_fewer_real_images_than_a_batch(at_once: int | None) -> None:
    """What fills up its batch has no weight, whatever it is."""
    models = build([CONVNET, VIT])
    objectives = Objectives(models, pairs_of(models))
    fake, real = images(4), images(5)
    wanted = ours(objectives, real, fake, None)
    filled = torch.cat([real, images(2) * 10])
    shares = torch.tensor([[0.2] * 5 + [0.0] * 2])
    for got, plain in zip(ours(objectives, filled, fake, None, at_once, shares), wanted, strict=True):
        assert apart(got, plain) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("specs", [[CONVNET, VIT], [RESNET, MLP]], ids=["plain", "batch norm"])
@pytest.mark.parametrize("update", [True, False])
def test_classes_together_are_each_alone(specs: list[ModelSpec], update: bool, precision: str) -> None:
    models = build([spec.model_copy(update={"precision": precision}) for spec in specs])
    assert all(takes_classes_together(model) for model in models)
    objectives = Objectives(models, pairs_of(models))
    real, fake = (torch.randn(CLASSES, n, 3, SIDE, SIDE, generator=rng.generator(n, "test")) for n in (5, 4))
    labels, shares = torch.arange(CLASSES), torch.full((CLASSES, 5), 0.2)
    weights = None if update else torch.rand(CLASSES, 3, generator=rng.generator(6, "test"))
    together = image_gradients(objectives, real, shares, fake, labels, weights)
    for c in range(CLASSES):
        one = slice(c, c + 1)
        few = None if weights is None else weights[one]
        alone = image_gradients(objectives, real[one], shares[one], fake[one], labels[one], few)
        for got, wanted in zip(together, alone, strict=True):
            if precision == "float32":
                assert apart(got[c], wanted[0]) < 1e-5
            else:
                assert F.cosine_similarity(got[c].flatten(), wanted[0].flatten(), 0) > 0.99


def test_a_network_that_refuses_vmap_is_found() -> None:
    (model,) = build([CONVNET])
    work = model.net.run

    def asks(x: Tensor) -> object:
        if float(x.sum()) > 1e9:
            raise AssertionError
        return work(x)

    model.net.run = asks  # type: ignore[method-assign,assignment]
    assert not takes_classes_together(model)
    ours(Objectives([model], []), images(5), images(4), None)


def test_balance_over_three_steps() -> None:
    """Weights follow the accumulated largest gradients, and add up at the second update; classes are on their own."""
    accumulated = torch.full((2, 3), matching.EPSILON)
    wanted = accumulated.clone()
    for step in range(2):
        gradients = torch.randn(2, 3, 4, 1, 2, 2, generator=rng.generator(step, "test")) * torch.tensor(
            [1, 10, 0.1]
        ).view(1, 3, 1, 1, 1, 1)
        accumulated = matching.accumulate(accumulated, gradients)
        for c in range(2):
            for k in range(3):
                wanted[c, k] += gradients[c, k].abs().max()
        torch.testing.assert_close(accumulated, wanted)
        weights = matching.balance_weights(accumulated)
        torch.testing.assert_close(weights, wanted.min(1, keepdim=True).values / wanted)
        summed, shares = matching.combine(gradients, weights)
        for c in range(2):
            parts = [w * g for w, g in zip(weights[c], gradients[c], strict=True)]
            torch.testing.assert_close(summed[c], sum(parts[1:], start=parts[0]))
            torch.testing.assert_close(shares[c], torch.stack([part.abs().mean() for part in parts]))
