from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import augment, rng
from hmdc_hub.errors import Interrupted
from hmdc_hub.evaluator.train import Images, Setting, TrainingResult, steps_of, train_and_score
from hmdc_hub.events import StopFlag
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.schema import EvaluateSpec
from tests.evaluator.toys import CONVNET, MLP, PLAIN, RESNET, model_spec, recipe, source, toys

TEST = Images(*toys((10, 10, 10), 1))


def protocol(**keys: Any) -> EvaluateSpec:
    return recipe(**{"augment": PLAIN, "cutmix": {"evaluate": False}, **keys}).evaluate


def setting(spec: EvaluateSpec, stop: StopFlag | None = None) -> Setting:
    return Setting(spec, TEST, torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.25), stop or StopFlag())


def build(plain: dict[str, Any], **keys: Any) -> PoolModel:
    real = source()
    return build_model(
        model_spec(plain, **keys), num_classes=3, source_size=8, channels=1, mean=real.mean, std=real.std
    )


def train(model: PoolModel, images: Images, spec: EvaluateSpec, stop: StopFlag | None = None) -> float:
    return train_and_score([model], images, [1], setting(spec, stop))[0].accuracy


def plain_training(model: PoolModel, images: Images, spec: EvaluateSpec) -> float:
    """Train as the protocol says, written out: no optimiser, no augmentation."""
    model.reset(rng.generator(0, "evaluate-weights", model.spec.name, 1))
    gen = rng.generator(0, "evaluate-batches", model.spec.name, 1)
    weights = dict(model.named_parameters())
    momentum = {name: torch.zeros_like(w) for name, w in weights.items()}
    model.train()
    for _ in range(spec.epochs):
        order = torch.randperm(len(images.labels), generator=gen)
        for start in range(0, len(order), spec.batch):
            rows = order[start : start + spec.batch]
            augment.draw(spec.augment, gen, 8, len(rows))
            x = (images.pixels[rows] / 255 - 0.2) / 0.25
            log_p = model.logits(model.prepare(x)).log_softmax(1)
            loss = -torch.stack([log_p[i, label] for i, label in enumerate(images.labels[rows])]).mean()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            with torch.no_grad():
                for (name, w), g in zip(weights.items(), gradients, strict=True):
                    momentum[name] = spec.momentum * momentum[name] + g + spec.weight_decay * w
                    w.sub_(model.spec.lr.evaluate * momentum[name])
    model.eval()
    with torch.no_grad():
        answers = [int(model.logits(model.prepare((x[None] / 255 - 0.2) / 0.25)).argmax()) for x in TEST.pixels]
    right = [a == b for a, b in zip(answers, TEST.labels.tolist(), strict=True)]
    return right.count(True) / len(right)


@pytest.mark.parametrize("plain", [MLP, CONVNET, RESNET], ids=lambda plain: str(plain["name"]))
@pytest.mark.parametrize("batch", [4, 100], ids=["partial", "whole"])
def test_equals_a_loop_written_out(plain: dict[str, Any], batch: int) -> None:
    spec = protocol(epochs=4, batch=batch, weight_decay=0.05)
    images = Images(*toys((4, 4, 2), 2))
    ours, theirs = build(plain), build(plain)
    accuracy = train(ours, images, spec)
    assert accuracy == plain_training(theirs, images, spec)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_training_on_the_test_images_learns_them() -> None:
    assert train(build(MLP), TEST, protocol(epochs=60)) == 1.0


def test_wrong_labels_are_learnt_as_well() -> None:
    rotated = Images(TEST.pixels, (TEST.labels + 1) % 3)
    assert train(build(MLP), rotated, protocol(epochs=60)) == 0.0


def test_random_labels_teach_nothing() -> None:
    gen = rng.generator(0, "shuffled labels")
    scores = []
    for _ in range(8):
        shuffled = Images(TEST.pixels, TEST.labels[torch.randperm(30, generator=gen)])
        scores.append(train(build(MLP), shuffled, protocol(epochs=20)))
    assert 0.15 < sum(scores) / len(scores) < 0.55


def test_learns_through_augmentation_and_cutmix() -> None:
    images = Images(*toys((10, 10, 10), 2))
    spec = protocol(epochs=60, augment={"crop": False}, cutmix={"evaluate": True, "probability": 0.5})
    assert train(build(CONVNET), images, spec) > 0.8


def test_same_key_same_bits_and_another_seed_others() -> None:
    images, spec = Images(*toys((4, 4, 4), 2)), protocol(augment={}, cutmix={"evaluate": True})
    first, second, third = build(CONVNET), build(CONVNET), build(CONVNET)
    train(first, images, spec)
    train(second, TEST, spec)  # what a model was trained on before is forgotten
    train(second, images, spec)
    train_and_score([third], images, [2], setting(spec))
    bits = [torch.cat([w.flatten() for w in m.parameters()]) for m in (first, second, third)]
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])


@pytest.mark.parametrize(
    ("by_protocol", "by_model", "mixed"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_cutmix_needs_protocol_and_model(
    by_protocol: bool, by_model: bool, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = []
    cross_entropy = F.cross_entropy

    def watched(logits: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return cross_entropy(logits, target)

    monkeypatch.setattr(F, "cross_entropy", watched)
    spec = protocol(epochs=10, cutmix={"evaluate": by_protocol, "probability": 1.0})
    train(build(MLP, cutmix=by_model), Images(*toys((4, 4, 4), 2)), spec)
    assert len(targets) == 10
    for target in targets:
        torch.testing.assert_close(target.sum(1), torch.ones(12))
    assert bool((torch.cat(targets) % 1 != 0).any()) == mixed


def test_every_image_is_augmented_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    draw = augment.draw

    def watched(spec: Any, gen: torch.Generator, side: int, count: int | None) -> augment.Draw:
        counts.append((side, count))
        return draw(spec, gen, side, count)

    monkeypatch.setattr(augment, "draw", watched)
    train(build(MLP), Images(*toys((4, 4, 2), 2)), protocol(epochs=2, batch=4, augment={}))
    assert counts == [(8, 4), (8, 4), (8, 2)] * 2


def test_a_diverged_training_has_a_score() -> None:
    model = build(MLP, lr={"evaluate": 1e30})
    assert train(model, Images(*toys((4, 4, 4), 2)), protocol(epochs=5)) == pytest.approx(1 / 3)
    assert not any(bool(w.isfinite().all()) for w in model.parameters())


def test_the_head_alone_is_trained_where_the_entry_says_so() -> None:
    model, fresh = build(CONVNET, train="head"), build(CONVNET)
    train(model, Images(*toys((4, 4, 4), 2)), protocol())
    fresh.reset(rng.generator(0, "evaluate-weights", "conv", 1))
    changed = {name for name, w in fresh.named_parameters() if not torch.equal(w, dict(model.named_parameters())[name])}
    assert changed == {"net.classifier.weight", "net.classifier.bias"}


def test_frozen_batch_norm_is_calibrated_on_the_training_images() -> None:
    # 9 images in batches of 8: the ninth alone has no statistics.
    images, spec = Images(*toys((3, 3, 3), 2)), protocol(batch=8, epochs=2)
    model, same = build(RESNET, batch_norm="frozen"), build(RESNET, batch_norm="frozen")
    train(model, images, spec)
    same.reset(rng.generator(0, "evaluate-weights", "res", 1))
    same.calibrate([same.prepare(setting(spec).normalise(images.pixels[:8]))])
    for (name, a), (_, b) in zip(model.named_buffers(), same.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert any("running_mean" in name and bool(b.abs().sum() > 0) for name, b in model.named_buffers())


def test_a_stop_ends_a_training_after_its_epoch() -> None:
    with pytest.raises(Interrupted) as caught:
        train(build(MLP), TEST, protocol(epochs=10**9), stop=StopFlag(15))
    assert caught.value.signal_number == 15


def outcome(spec: EvaluateSpec, images: Images | None = None, **keys: Any) -> TrainingResult:
    images = images or Images(*toys((4, 4, 2), 2))
    # What a protocol says of every model is written into its models.
    return train_and_score([build(spec.settled().models[0].model_dump())], images, [0], setting(spec), **keys)[0]


@pytest.mark.parametrize(
    ("keys", "images", "full", "steps"),
    [
        ({"epochs": 3, "batch": 4}, 10, False, 9),
        ({"epochs": 3, "batch": 100}, 10, False, 3),
        ({"epochs": 3, "batch": 4, "steps": 7}, 10, False, 7),
        ({"epochs": 3, "batch": 4, "full_epochs": 2}, 10, True, 6),
        ({"epochs": 3, "batch": 4, "full_epochs": 2, "steps": 7}, 10, True, 6),
    ],
)
def test_steps_are_counted_and_done(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], images: int, full: bool, steps: int
) -> None:
    spec, done = protocol(**keys), list[float]()
    assert steps_of(spec, images, full=full) == steps
    kept = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: None = None) -> None:
        done.append(self.param_groups[0]["lr"])
        kept(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    outcome(spec, Images(*toys((4, 4, 2), 2)), full=full)
    assert len(done) == steps


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.1]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_the_rate_follows_its_schedule(monkeypatch: pytest.MonkeyPatch, schedule: str, shares: list[float]) -> None:
    rates = list[float]()
    kept = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: None = None) -> None:
        rates.append(self.param_groups[0]["lr"])
        kept(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    outcome(protocol(epochs=4, schedule=schedule, lr=0.2))
    assert rates == pytest.approx([0.2 * share for share in shares])


def test_adamw_equals_a_step_written_out() -> None:
    spec = protocol(epochs=1, optimizer="adamw", lr=0.01, weight_decay=0.1)
    images, model, other = Images(*toys((4, 4, 2), 2)), build(MLP, lr={"evaluate": 0.01}), build(MLP)
    train_and_score([model], images, [0], setting(spec))
    other.reset(rng.generator(0, "evaluate-weights", "mlp", 0))
    loss = F.cross_entropy(other.logits(other.prepare(setting(spec).normalise(images.pixels))), images.labels)
    weights = dict(other.named_parameters())
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for (name, w), g in zip(weights.items(), gradients, strict=True):
        # The first step of Adam is the sign of the gradient, short of its epsilon.
        expected = w * (1 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(dict(model.named_parameters())[name], expected, rtol=1e-3, atol=1e-5)


def test_the_answers_are_those_that_the_accuracy_counts() -> None:
    found = outcome(protocol(epochs=3))
    assert found.predicted.dtype == "uint16" and found.predicted.shape == (30,)
    assert found.accuracy == float((found.predicted == TEST.labels.numpy()).mean())
    assert 0 <= found.ece <= 1 and found.best is None


def test_looks_before_the_end_change_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outcome(protocol(epochs=6))
    looks = outcome(protocol(epochs=6, best_every=2))
    assert (looks.predicted == plain.predicted).all() and looks.ece == plain.ece
    shorter = [outcome(protocol(epochs=epochs)).accuracy for epochs in (2, 4)]
    assert looks.best == max([*shorter, plain.accuracy])


def test_floats_train_as_their_bytes_do() -> None:
    pixels, labels = toys((4, 4, 2), 2)
    one = outcome(protocol(epochs=3), Images(pixels, labels))
    other = outcome(protocol(epochs=3), Images(pixels.float() / 255, labels))
    assert (one.predicted == other.predicted).all() and one.ece == other.ece


def test_a_network_that_diverges_is_scored() -> None:
    found = outcome(protocol(epochs=6, lr=1e30))
    assert found.accuracy == pytest.approx(1 / 3) and set(found.predicted) == {0}
    assert found.ece == pytest.approx(0, abs=1e-6)  # a third of the confidence, a third of the answers


def test_half_precision_rounds_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(*toys((4, 4, 2), 2))
    spec = {precision: protocol(epochs=60, precision=precision) for precision in ("float32", "bfloat16")}
    found = {precision: outcome(of, images) for precision, of in spec.items()}
    assert found["bfloat16"].ece != found["float32"].ece
    assert found["bfloat16"].accuracy == pytest.approx(found["float32"].accuracy, abs=0.15)
