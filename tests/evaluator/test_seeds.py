"""Seeds that train side by side, on a stand-in for a GPU, against seeds that train alone on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from hmdc_hub.errors import Interrupted
from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.train import Images, Setting, TrainingResult, train_and_score
from hmdc_hub.evaluator.trainer import Trainer, TrainingJob, training_tensors
from hmdc_hub.events import Event, Note, StopFlag
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec
from tests.evaluator.test_train import build, protocol, setting
from tests.evaluator.toys import CONVNET, MLP, RESNET, source, toys
from tests.gpu import GPU, Gpu
from tests.tiny import VIT

TRAIN = Images(*toys((4, 4, 2), 2))
VIT_8 = VIT | {"cutmix": False}


def alone(
    plain: dict[str, Any], seeds: Sequence[int], spec: EvaluateSpec
) -> tuple[list[PoolModel], list[TrainingResult]]:
    models = [build(plain) for _ in seeds]
    every = [train_and_score([m], TRAIN, [seed], setting(spec))[0] for m, seed in zip(models, seeds, strict=True)]
    return models, every


@pytest.mark.parametrize("batch", [4, 100], ids=["partial", "whole"])
@pytest.mark.parametrize("plain", [MLP, CONVNET, RESNET, VIT_8], ids=lambda plain: str(plain["name"]))
def test_captured_side_by_side_they_have_the_bits_of_each_alone(
    monkeypatch: pytest.MonkeyPatch, plain: dict[str, Any], batch: int
) -> None:
    spec = protocol(epochs=5, batch=batch, schedule="cosine", augment={}, cutmix={"evaluate": True}, best_every=2)
    models, results = alone(plain, (0, 2), spec)
    together, notes = [build(plain), build(plain)], list[Event]()
    with Gpu(monkeypatch) as gpu:
        there = replace(setting(spec), device=GPU, callback=notes.append)
        found = train_and_score(together, TRAIN, [0, 2], there)
    assert not notes
    steps = 5 * -(-10 // batch)
    kinds = 2 if batch == 4 else 1  # sizes of minibatches: each is taken once as it is, then captured, then replayed
    assert [gpu.events.count(name) for name in ("capture", "replay")] == [kinds, steps - kinds]
    for mine, other in zip(together, models, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    assert [(r.accuracy, r.ece, r.best) for r in found] == [(r.accuracy, r.ece, r.best) for r in results]
    assert results[0].ece != results[1].ece, "the seeds are not alike"


def test_what_cannot_be_captured_is_said_and_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, notes = protocol(epochs=4), list[Event]()
    _, results = alone(MLP, [0], spec)
    model = build(MLP)
    logits = model.logits

    def asking(images: torch.Tensor) -> torch.Tensor:
        assert images.sum().item() == images.sum().item()
        return logits(images)

    monkeypatch.setattr(model, "logits", asking)
    with Gpu(monkeypatch):
        found = train_and_score([model], TRAIN, [0], replace(setting(spec), device=GPU, callback=notes.append))
    assert found[0].ece == results[0].ece
    assert [note.text for note in notes if isinstance(note, Note)] == [
        "training mlp cannot be captured, and runs slower: operation not permitted when stream is capturing"
    ]


def test_targets_are_learnt_in_place_of_labels() -> None:
    spec, (model,) = protocol(epochs=20, batch=4, augment={}, cutmix={"evaluate": True}), [build(MLP)]
    turned = torch.nn.functional.one_hot((TRAIN.labels + 1) % 3, 3).float()
    labels, targets = (
        train_and_score([model], images, [0], setting(spec))[0]
        for images in (Images(TRAIN.pixels, (TRAIN.labels + 1) % 3), Images(*toys((4, 4, 2), 2), turned))
    )
    assert labels.accuracy == targets.accuracy < 0.3 and labels.ece == targets.ece


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_batch_norm_keeps_statistics_of_its_own(batch_norm: str) -> None:
    spec = protocol(epochs=3, batch=4, weight_decay=0.05)
    models = [build(RESNET, batch_norm=batch_norm) for _ in range(3)]
    (one,) = train_and_score(models[:1], TRAIN, [1], setting(spec))
    assert train_and_score(models[1:], TRAIN, [0, 1], setting(spec))[1].ece == one.ece


def test_it_can_be_stopped() -> None:
    with pytest.raises(Interrupted, match="stopped within a training"):
        train_and_score([build(MLP), build(MLP)], TRAIN, [0, 1], setting(protocol(), StopFlag(2)))


# as many as there is memory for


def trainer(**keys: Any) -> Trainer:
    tensors = training_tensors(source(), [TrainingSet("condensed", 0, TRAIN.pixels, TRAIN.labels, 10)])
    return Trainer(protocol(epochs=3, **keys), tensors, torch.device("cpu"))


def jobs(*seeds: int, model: int = 1) -> list[TrainingJob]:
    return [TrainingJob(model, 0, seed) for seed in seeds]


@pytest.mark.parametrize("plain", [RESNET, CONVNET], ids=["batch norm", "instance norm"])
def test_the_order_of_memory_that_is_faster_changes_nothing(plain: dict[str, Any]) -> None:
    spec = protocol(models=[plain], epochs=4, batch=4)
    real, training_set = source(), TrainingSet("condensed", 0, TRAIN.pixels, TRAIN.labels, 10)
    train = Trainer(spec, training_tensors(real, [training_set]), torch.device("cpu"))
    first, second = train.run_seeds(jobs(0, 1, model=0))
    weights = [w for w in train.models[0][0].parameters() if w.dim() == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    channels_last = [w.is_contiguous(memory_format=torch.channels_last) for w in weights]
    assert channels_last and all(channels_last) == any(channels_last) == (plain is RESNET)
    own = Setting(spec, train.setting.test, real.mean.view(-1, 1, 1), real.std.view(-1, 1, 1))
    for seed, result in enumerate((first, second)):
        (one,) = train_and_score([build(plain)], TRAIN, [seed], own)
        assert one.ece == pytest.approx(result.ece, abs=2e-3)
        assert (one.predicted == result.predicted).mean() >= 0.95


def test_too_little_memory_for_all_seeds_trains_fewer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def of_two(models: list[PoolModel], train: Images, seeds: list[int], *rest: Any, **keys: Any) -> Any:
        tried.append(list(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train_and_score(models, train, seeds, *rest, **keys)

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.train_and_score", of_two)
    train = trainer()
    results = [*train.run_seeds(jobs(0, 1, 2, 3, 4))]
    assert tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4]]
    assert [r.ece for r in results] == [trainer().run(job).ece for job in jobs(0, 1, 2, 3, 4)]
    del tried[:]
    assert len([*train.run_seeds(jobs(0, 1, 2))]) == 3 and tried == [[0, 1], [2]], "found out once"


def test_too_little_memory_for_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **keys: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.train_and_score", full)
    with pytest.raises(torch.OutOfMemoryError):
        [*trainer().run_seeds(jobs(0, 1, 2))]
