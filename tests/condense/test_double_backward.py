"""The condenser's image gradient against a plain double-backward form, where no reference vector exists."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import pack, rng
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.class_gradient import class_gradient, plain_attention
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.views import View, draw_view
from hmdc_hub.models import Features, PoolModel, build_model
from hmdc_hub.schema import AugmentSpec, CondenseCutmix, CondenseSpec, ModelSpec

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
NO_AUGMENT = AugmentSpec(flip=False, color=[], crop=False, scale=False, rotate=False, cutout=False)
NO_CUTMIX = CondenseCutmix(match=False, train=False)


def build(specs: Sequence[ModelSpec]) -> list[PoolModel]:
    models = []
    for i, spec in enumerate(specs):
        model = build_model(spec, num_classes=CLASSES, source_size=SIDE, channels=3, mean=MEAN, std=STD)
        model.reset(rng.generator(0, "test", i))
        model.calibrate([model.prepare(torch.randn(16, 3, SIDE, SIDE, generator=rng.generator(1, "test")))])
        models.append(model.eval())
    return models


def align(models: Sequence[PoolModel]) -> list[Alignment]:
    alignments = []
    for a in range(len(models)):
        for b in range(a + 1, len(models)):
            alignment = Alignment((a, b), (models[a].taps, models[b].taps))
            alignment.reset(rng.generator(2, "test", a, b))
            with torch.no_grad():
                alignment.layer_matching.normal_(generator=rng.generator(3, "test", a, b))
            alignments.append(alignment)
    return alignments


def plain_distillation(alignment: Alignment, features: Sequence[Features]) -> Tensor:
    """Mutual distillation as the paper writes it, one tap and one image position at a time."""
    sides = []
    for place, m in enumerate(alignment.pair):
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


def plain_targets(
    models: Sequence[PoolModel], alignments: Sequence[Alignment], real: Tensor, fake: Tensor
) -> list[Tensor]:
    """Every target for class 1 by double backward, each loss from a forward pass of its own."""
    targets = []

    def distance(loss_of: object, parameters: list[Tensor]) -> Tensor:
        assert callable(loss_of)
        wanted = torch.autograd.grad(loss_of(real), parameters, allow_unused=True)
        given = torch.autograd.grad(loss_of(fake), parameters, create_graph=True, allow_unused=True)
        pairs = [(a, b) for a, b in zip(wanted, given, strict=True) if a is not None and b is not None]
        return torch.stack([torch.zeros(()), *(((a - b) ** 2).sum() for a, b in pairs)]).sum()

    for model in models:

        def cross_entropy(x: Tensor, model: PoolModel = model) -> Tensor:
            return F.cross_entropy(model(model.prepare(x)).logits, torch.ones(len(x), dtype=torch.int64))

        targets.append(distance(cross_entropy, list(model.trained().values())))
    for alignment in alignments:
        a, b = alignment.pair

        def distillation(x: Tensor, alignment: Alignment = alignment) -> Tensor:
            return plain_distillation(alignment, [m(m.prepare(x)) for m in models])

        targets.append(distance(distillation, [*models[a].trained().values(), *models[b].trained().values()]))
    return targets


@pytest.fixture(autouse=True)
def _plain_attention() -> object:
    with plain_attention():
        yield


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, SIDE, SIDE, generator=rng.generator(4, "test"))


def partly(spec: ModelSpec, train: str) -> ModelSpec:
    return spec.model_copy(update={"train": train})


MEMORY = pytest.mark.parametrize("at_once", [None, 1, 3], ids=["whole", "one", "three"])


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
    alignments = align(models)
    stored, real = images(2), images(5)
    objectives = Objectives(models, alignments, at_once=at_once)
    assert len(objectives.names()) == len(specs) + len(specs) * (len(specs) - 1) // 2
    balance = Balance.fresh(CLASSES, len(objectives.names()), enabled=False)
    gradient, targets, _ = class_gradient(objectives, balance, stored, real, 1, View(), factor=2, update=False)
    leaf = stored.clone().requires_grad_()
    wanted = plain_targets(models, alignments, real, pack.decode(leaf, 2))
    torch.testing.assert_close(targets, torch.stack(wanted).detach(), rtol=1e-5, atol=1e-9)
    (plain,) = torch.autograd.grad(torch.stack(wanted).sum(), leaf)
    assert float((gradient - plain).norm() / plain.norm()) < 1e-5
    balance = Balance.fresh(CLASSES, len(objectives.names()), enabled=False)
    apart, _, _ = class_gradient(objectives, balance, stored, real, 1, View(), factor=2, update=True)
    assert float((apart - plain).norm() / plain.norm()) < 1e-5


@MEMORY
@pytest.mark.parametrize("match", [True, False])
def test_distillation_alone_and_matching_alone(match: bool, at_once: int | None) -> None:
    models = build([CONVNET, VIT, MLP])
    alignments = [] if match else align(models)
    stored, real = images(2), images(5)
    objectives = Objectives(models, alignments, match=match, at_once=at_once)
    balance = Balance.fresh(CLASSES, 3, enabled=False)
    gradient, targets, _ = class_gradient(objectives, balance, stored, real, 1, View(), factor=2, update=False)
    leaf = stored.clone().requires_grad_()
    wanted = plain_targets(models, align(models), real, pack.decode(leaf, 2))
    wanted = wanted[:3] if match else wanted[3:]
    torch.testing.assert_close(targets, torch.stack(wanted).detach(), rtol=1e-5, atol=1e-9)
    (plain,) = torch.autograd.grad(torch.stack(wanted).sum(), leaf)
    assert float((gradient - plain).norm() / plain.norm()) < 1e-5


@MEMORY
def test_balance_over_three_steps(at_once: int | None) -> None:
    """Weights follow the accumulated largest gradients, are kept between updates, and add up at the second update."""
    models = build([CONVNET, VIT])
    alignments = align(models)
    objectives = Objectives(models, alignments, at_once=at_once)
    balance = Balance.fresh(CLASSES, 3, enabled=True)
    accumulated = torch.full((3,), 1e-6)
    for step, update in enumerate([True, False, True]):
        stored, real = images(2) * (1 + step), images(5) * (1 + step)
        leaf = stored.clone().requires_grad_()
        targets = plain_targets(models, alignments, real, pack.decode(leaf, 2))
        gradients = [torch.autograd.grad(target, leaf, retain_graph=True)[0] for target in targets]
        if update:
            accumulated = accumulated + torch.stack([g.abs().max() for g in gradients])
        weights = accumulated.min() / accumulated
        wanted = sum((w * g for w, g in zip(weights, gradients, strict=True)), torch.zeros(()))
        got, _, shares = class_gradient(objectives, balance, stored, real, 1, View(), factor=2, update=update)
        assert float((got - wanted).norm() / wanted.norm()) < 1e-5
        torch.testing.assert_close(balance.accumulated[1], accumulated, rtol=1e-5, atol=0)
        assert bool((shares > 0).all()) == update
    assert torch.equal(balance.accumulated[0], torch.full((3,), 1e-6)), "other classes are untouched"


def test_more_decoded_images_than_the_batch() -> None:
    """With n f f > B only B decoded images take part, and only they get a gradient."""
    models = build([CONVNET])
    spec = CondenseSpec(ipc=4, factor=2, batch=6, augment=NO_AUGMENT, cutmix=NO_CUTMIX)
    view = draw_view(spec, SIDE, 5, 0, (0, 0, 1))
    assert view.chosen is not None
    assert len(set(view.chosen.tolist())) == 6
    stored, real = images(4), images(5)
    balance = Balance.fresh(CLASSES, 1, enabled=True)
    got, _, _ = class_gradient(Objectives(models, []), balance, stored, real, 1, view, factor=2, update=False)
    leaf = stored.clone().requires_grad_()
    (target,) = plain_targets(models, [], real, pack.decode(leaf, 2)[view.chosen])
    (wanted,) = torch.autograd.grad(target, leaf)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
    tiles = pack.decode(got, 2).abs().sum((1, 2, 3))
    left_out = [i for i in range(16) if i not in view.chosen.tolist()]
    assert bool((tiles[left_out] == 0).all())


def test_augmented_and_mixed_view() -> None:
    """The view of a real step, every part of it on, is differentiated right."""
    models = build([CONVNET, VIT])
    alignments = align(models)
    objectives = Objectives(models, alignments)
    for outer in range(4):  # four draws: mixed and unmixed, crop, scale and rotation among them
        view = draw_view(CondenseSpec(ipc=2, batch=8), SIDE, 5, 0, (outer, 0, 1))
        stored, real = images(2), images(5)
        balance = Balance.fresh(CLASSES, 3, enabled=False)
        got, _, _ = class_gradient(objectives, balance, stored, real, 1, view, factor=2, update=False)
        leaf = stored.clone().requires_grad_()
        targets = plain_targets(models, alignments, view.real(real), view.synthetic(leaf, 2))
        (wanted,) = torch.autograd.grad(torch.stack(targets).sum(), leaf)
        assert float((got - wanted).norm() / wanted.norm()) < 1e-5
