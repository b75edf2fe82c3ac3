"""Seeds trained as one against seeds trained one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmdc_hub.errors import Interrupted
from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.train import Images, Setting, TrainingResult, train_and_score
from hmdc_hub.evaluator.trainer import Trainer, TrainingJob, training_tensors
from hmdc_hub.events import StopFlag
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec
from tests.evaluator.test_train import TEST, build, protocol, setting
from tests.evaluator.toys import CONVNET, MLP, RESNET, source, toys

VIT: dict[str, Any] = {
    "name": "vit",
    "source": "transformers",
    "id": "vit",
    "args": {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4},
}
TRAIN = Images(*toys((4, 4, 2), 2))


def trained(spec: EvaluateSpec, plain: dict[str, Any], seeds: list[int], **keys: Any) -> list[TrainingResult]:
    return train_and_score(build(plain, **keys), TRAIN, seeds, setting(spec))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [4, 100], ids=["partial", "whole"])
@pytest.mark.parametrize("plain", [MLP, CONVNET, RESNET, VIT], ids=lambda plain: str(plain["name"]))
def test_equals_the_seeds_one_by_one(plain: dict[str, Any], batch: int) -> None:
    spec = protocol(epochs=4, batch=batch, schedule="cosine", augment={}, cutmix={"evaluate": True})
    model = build(plain)
    together = train_and_score(model, TRAIN, [0, 2], setting(spec))
    alone = [train_and_score(model, TRAIN, [seed], setting(spec))[0] for seed in (0, 2)]
    assert abs(alone[0].ece - alone[1].ece) > 5e-3  # the seeds are not alike
    for one, other in zip(together, alone, strict=True):
        assert one.ece == pytest.approx(other.ece, abs=2e-3)
        assert (one.predicted == other.predicted).mean() >= 0.95


@pytest.mark.parametrize("plain", [RESNET, CONVNET], ids=["batch norm", "instance norm"])
def test_the_order_of_memory_that_is_faster_changes_nothing(plain: dict[str, Any]) -> None:
    spec = protocol(models=[plain], epochs=4, batch=4)
    real, training_set = source(), TrainingSet("condensed", 0, TRAIN.pixels, TRAIN.labels, 10)
    train = Trainer(spec, training_tensors(real, [training_set]), torch.device("cpu"))
    train.stacked[0, 0] = True
    first, second = train.run_seeds([TrainingJob(0, 0, 0), TrainingJob(0, 0, 1)])
    weights = [w for w in train.models[0].parameters() if w.dim() == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    channels_last = [w.is_contiguous(memory_format=torch.channels_last) for w in weights]
    assert channels_last and all(channels_last) == any(channels_last) == (plain is RESNET)
    assert train.run(TrainingJob(0, 0, 0)).ece == pytest.approx(first.ece, abs=2e-3)
    own = Setting(spec, TEST, real.mean.view(-1, 1, 1), real.std.view(-1, 1, 1))
    (alone,) = train_and_score(build(plain), TRAIN, [1], own)
    assert alone.ece == pytest.approx(second.ece, abs=2e-3)
    assert (alone.predicted == second.predicted).mean() >= 0.95


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_batch_norm_keeps_statistics_of_its_own(batch_norm: str, optimizer: str) -> None:
    spec = protocol(epochs=3, batch=4, optimizer=optimizer, weight_decay=0.05)
    (alone,) = trained(spec, RESNET, [1], batch_norm=batch_norm)
    assert trained(spec, RESNET, [0, 1], batch_norm=batch_norm)[1].ece == pytest.approx(alone.ece, abs=2e-3)


def test_only_what_is_trained_is() -> None:
    spec = protocol(epochs=3)
    (alone,) = trained(spec, CONVNET, [0], train="head")
    assert trained(spec, CONVNET, [0, 1], train="head")[0].ece == pytest.approx(alone.ece, abs=1e-4)


def test_it_can_be_stopped() -> None:
    with pytest.raises(Interrupted, match="stopped within a training"):
        train_and_score(build(MLP), TRAIN, [0, 1], setting(protocol(), StopFlag(2)))


def test_looks_before_the_end_are_made_of_every_seed() -> None:
    spec = protocol(epochs=6, best_every=2)
    alone = [trained(spec, MLP, [seed])[0].best for seed in (0, 1)]
    assert [result.best for result in trained(spec, MLP, [0, 1])] == pytest.approx(alone, abs=0.05)


class Clock:
    """A clock on which every piece of work takes the time that is next in a list, and then none."""

    def __init__(self, *seconds: float) -> None:
        self.readings = [reading for duration in seconds for reading in (0.0, duration)]

    def __call__(self) -> float:
        return self.readings.pop(0) if self.readings else 0.0


def trainer(clock: Clock | None = None, stop: StopFlag | None = None, **keys: Any) -> Trainer:
    pixels, labels = toys((4, 4, 2), 2)
    tensors = training_tensors(source(), [TrainingSet("condensed", 0, pixels, labels, 10)])
    return Trainer(protocol(epochs=3, **keys), tensors, torch.device("cpu"), stop, clock or Clock())


def jobs(*seeds: int) -> list[TrainingJob]:
    return [TrainingJob(1, 0, seed) for seed in seeds]


@pytest.mark.parametrize(("alone", "together", "stacked"), [(2.0, 5.0, True), (2.0, 7.0, False)])
def test_seeds_are_stacked_where_that_is_measured_faster(alone: float, together: float, stacked: bool) -> None:
    # Of each way a warm-up and two lengths; then the work, and seconds that would say the opposite if it were measured.
    work, opposite = [3.0] if stacked else [1.0] * 3, [9.0, 1.0, 1.0 + together, 9.0, 1.0, 1.0 + alone]
    clock = Clock(9.0, 1.0, 1.0 + alone, 9.0, 1.0, 1.0 + together, *work, *opposite)
    train = trainer(clock)
    results = list(train.run_seeds(jobs(0, 1, 2)))
    assert train.stacked == {(1, 0): stacked} and [result.seconds for result in results] == [1.0] * 3
    for job, result in zip(jobs(0, 1, 2), results, strict=True):
        assert result.ece == pytest.approx(trainer().run(job).ece, abs=1e-3)
    assert len(list(train.run_seeds(jobs(3, 4)))) == 2 and train.stacked == {(1, 0): stacked}  # found out once
    assert len(clock.readings) == 2 * (len(opposite) - (1 if stacked else 2))


def test_seeds_one_by_one_are_given_as_they_are_done() -> None:
    stop = StopFlag()
    train = trainer(stop=stop)
    train.stacked[1, 0] = False
    results = train.run_seeds(jobs(0, 1))
    assert next(results).accuracy == trainer().run(jobs(0)[0]).accuracy
    stop.signal_number = 2
    with pytest.raises(Interrupted):
        next(results)


@pytest.mark.parametrize("measured", [False, True])
def test_too_little_memory_for_all_seeds_trains_them_one_by_one(
    monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    def full(model: PoolModel, train: Images, seeds: list[int], *others: Any, **keys: Any) -> list[TrainingResult]:
        if len(seeds) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train_and_score(model, train, seeds, *others, **keys)

    monkeypatch.setattr("hmdc_hub.evaluator.trainer.train_and_score", full)
    train = trainer()
    if measured:  # a few steps were possible
        train.stacked[1, 0] = True
    results = train.run_seeds(jobs(0, 1))
    assert [r.accuracy for r in results] == [train.run(job).accuracy for job in jobs(0, 1)]
    assert train.stacked == {(1, 0): False}
