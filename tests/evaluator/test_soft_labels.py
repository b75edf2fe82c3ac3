"""Training on soft labels: formulas against numbers worked out by hand, teachers, students, going on, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from hmdc_hub import augment
from hmdc_hub.errors import Interrupted
from hmdc_hub.evaluator import evaluate, of_run, planned, soft_labels
from hmdc_hub.evaluator.soft_labels import without_augmentation
from hmdc_hub.evaluator.train import Images, train_and_score
from hmdc_hub.events import Event, Note, StopFlag, Training
from hmdc_hub.metrics import ranking_score, summarise_soft_labels
from hmdc_hub.processes import Work
from hmdc_hub.schema import Cell, Recipe, Scores
from hmdc_hub.store.files import read_scores
from hmdc_hub.store.rundir import RunDir
from tests.evaluator.test_train import build, protocol, setting
from tests.evaluator.toys import CONVNET, MLP, PLAIN, recipe, run, source, toys

CPU = torch.device("cpu")
SAME = {"teacher": "same"}


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        (0.0, 0.0, 0.268941),  # (1 - 0.367879) / (2.718282 - 0.367879) = 0.632121 / 2.350402
        (0.1, -0.3, 0.228454),  # exp(-0.10) = 0.904837; 0.536958 / 2.350402
        (0.1, 0.2, 0.337795),  # exp(0.15) = 1.161834; 0.793955 / 2.350402
        (1.0, 1.0, 1.0),
        (-1.0, -1.0, 0.0),
    ],
)
def test_a_score_worked_out_by_hand(one: float, other: float, score: float) -> None:
    assert ranking_score(one, other) == pytest.approx(score, abs=1e-6)


def cells(**accuracies: Sequence[float]) -> list[Cell]:
    return [
        Cell(model="mlp", training_set=name, draw=draw, seed=seed, accuracy=accuracy, ece=0.0)
        for name, of_seeds in accuracies.items()
        for draw in ((0, 1) if name == "random" else (0,))
        for seed, accuracy in enumerate(of_seeds)
    ]


def test_label_and_augmentation_robust_scores_worked_out_by_hand() -> None:
    hard = cells(condensed=[0.5, 0.6], random=[0.1, 0.2], full=[0.8, 0.8])
    augmented = cells(condensed=[0.6, 0.7], random=[0.5, 0.4])
    plain = cells(condensed=[0.5, 0.5], random=[0.3, 0.5])
    found = summarise_soft_labels(hard, augmented, plain, ["mlp"])["ranking"]
    assert set(found) == {"mlp", "mean"} and found["mlp"] == found["mean"]
    # IOR with soft labels 0.1 and 0.3; HLR with hard ones 0.3 and 0.2; IOR without augmentation 0.2 and 0.0.
    assert found["mlp"].improvement.mean == pytest.approx(0.2) and found["mlp"].improvement.n == 2
    # LRS: a = -0.10 and 0.05, exp(0.05) = 1.051271: 0.536958 / 2.350402 and 0.683392 / 2.350402.
    robust = found["mlp"].label_robust
    assert robust.mean == pytest.approx((0.228454 + 0.290755) / 2, abs=1e-6)
    assert robust.sd == pytest.approx((0.290755 - 0.228454) / 2**0.5, abs=2e-6) and robust.n == 2
    # ARS: b = 0.15 for both, 0.793955 / 2.350402.
    assert found["mlp"].augmentation_robust.mean == pytest.approx(0.337795, abs=1e-6)
    assert found["mlp"].augmentation_robust.sd == pytest.approx(0, abs=1e-12)


def test_what_scores_need_that_was_not_trained() -> None:
    hard, soft = cells(condensed=[0.5]), cells(condensed=[0.6], random=[0.5])
    assert summarise_soft_labels(hard, soft, soft, ["mlp"])["ranking"]["mlp"].label_robust is None
    alone = cells(condensed=[0.6])
    found = summarise_soft_labels(hard, alone, alone, ["mlp"])
    assert found["ranking"] == {} and found["table"]["condensed"]["mlp"].mean == 0.6


def test_temperature_worked_out_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0]]).log()
    torch.testing.assert_close(soft_labels.soft_labels(logits, 1.0), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(soft_labels.soft_labels(logits, 2.0), torch.tensor([[0.3660254, 0.6339746]]))


def learnt(monkeypatch: pytest.MonkeyPatch, images: Images, **keys: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Train, and watch the targets that CutMix takes and those that the loss gets."""
    given, lost = list[Tensor](), list[Tensor]()
    cross_entropy, mix_targets = F.cross_entropy, augment.mix_targets

    def watched_loss(logits: Tensor, target: Tensor) -> Tensor:
        lost.append(target)
        return cross_entropy(logits, target)

    def watched_mix(mix: augment.CutmixDraw, targets: Tensor) -> Tensor:
        given.append(targets)
        return mix_targets(mix, targets)

    monkeypatch.setattr(F, "cross_entropy", watched_loss)
    monkeypatch.setattr(augment, "mix_targets", watched_mix)
    spec = protocol(epochs=3, **keys)
    train_and_score([build(MLP)], images, [0], setting(spec))
    return given, lost


def test_targets_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = toys((4, 4, 4), 2)
    targets = torch.rand((12, 3), generator=torch.Generator().manual_seed(0)).softmax(1)
    _, lost = learnt(monkeypatch, Images(pixels, labels, targets))
    for minibatch in lost:
        torch.testing.assert_close(minibatch.sort(0).values, targets.sort(0).values)


def test_cutmix_mixes_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = toys((4, 4, 4), 2)
    targets = torch.rand((12, 3), generator=torch.Generator().manual_seed(0)).softmax(1)
    mixed = {"evaluate": True, "probability": 1.0}
    given, lost = learnt(monkeypatch, Images(pixels, labels, targets), cutmix=mixed)
    assert len(given) == len(lost) == 3
    for before, after in zip(given, lost, strict=True):
        torch.testing.assert_close(before.sort(0).values, targets.sort(0).values)
        torch.testing.assert_close(after.sum(1), torch.ones(12))
    assert not torch.equal(torch.cat(given), torch.cat(lost))


def test_one_hot_targets_are_labels_and_others_are_learnt_in_their_place() -> None:
    pixels, labels = toys((4, 4, 4), 2)
    spec = protocol(epochs=60)

    def trained(targets: Tensor | None) -> float:
        return train_and_score([build(MLP)], Images(pixels, labels, targets), [0], setting(spec))[0].accuracy

    assert trained(None) == trained(F.one_hot(labels, 3).float()) > 0.8
    assert trained(F.one_hot((labels + 1) % 3, 3).float()) < 0.2


def test_without_augmentation_nothing_else_changes() -> None:
    spec = recipe(soft_labels=SAME).evaluate
    off = without_augmentation(spec)
    assert off.augment.model_dump() == PLAIN and not off.cutmix.evaluate
    assert off.model_copy(update={"augment": spec.augment, "cutmix": spec.cutmix}) == spec


def toy_recipe(**keys: Any) -> Recipe:
    plain: dict[str, Any] = {
        "models": [MLP, CONVNET],
        "seeds": 2,
        "random_draws": 1,
        "epochs": 2,
        "full_epochs": 8,
        "batch": 16,
    }
    return recipe(**plain | {"baselines": ["random", "full"], "soft_labels": SAME, "lr": 0.1} | keys)


def scored(where: RunDir, of: Recipe, **keys: Any) -> Scores:
    scores = evaluate(of_run(of, where), of.evaluate, source(), where, Work(CPU, workers=1, **keys))
    assert scores is not None
    return scores


def test_scores_with_soft_labels_and_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, flag, told = toy_recipe(), StopFlag(), list[Event]()
    whole = scored(run(tmp_path / "whole", of), of, cache=tmp_path / "a")
    soft = whole.soft_labels
    assert soft is not None
    names = [(cell.training_set, cell.model, cell.seed) for cell in soft.cells]
    assert names == [(s, m, n) for s in ("condensed", "random") for m in ("mlp", "conv") for n in (0, 1)]
    assert names == [(cell.training_set, cell.model, cell.seed) for cell in soft.unaugmented]
    assert set(soft.teachers) == {"mlp", "conv"} and min(soft.teachers.values()) > 0.5  # chance is a third
    assert soft.ranking["mean"].label_robust is not None
    # The same seeds on the same images: only targets or augmentation can have made another network.
    hard_ece = [[cell.ece for cell in whole.cells if cell.training_set == name] for name in ("condensed", "random")]
    eces = [sum(hard_ece, []), [cell.ece for cell in soft.cells], [cell.ece for cell in soft.unaugmented]]
    assert all(len({*at}) == 3 for at in zip(*eces, strict=True))
    assert read_scores(RunDir(tmp_path / "whole").scores) == whole
    hard = toy_recipe(soft_labels={})
    assert scored(run(tmp_path / "hard", hard), hard, cache=tmp_path / "a").cells == whole.cells

    def listen(event: Event) -> None:
        told.append(event)
        if isinstance(event, Training) and "soft" in event.training_set and event.done == 5:
            flag.signal_number = 2

    where = run(tmp_path / "stopped", of)
    with pytest.raises(Interrupted, match="soft labels; finished trainings are kept"):
        scored(where, of, cache=tmp_path / "b", callback=listen, stop=flag)
    assert not where.scores.exists()

    def no_teacher(*_: object, **__: object) -> None:
        raise AssertionError("the teachers' weights are there")

    monkeypatch.setattr(soft_labels, "train_and_score", no_teacher)
    again = list[Event]()
    assert scored(where, of, cache=tmp_path / "b", callback=again.append).soft_labels == soft
    assert Note("5 of 16 trainings on soft labels were done before") in again
    assert len([event for event in again if isinstance(event, Training)]) == 11


def test_a_teacher_is_trained_again_if_its_weights_are_damaged(tmp_path: Path) -> None:
    of, told = toy_recipe(models=[MLP], seeds=1, soft_labels={"teacher": "mlp", "temperature": 2.0}), list[int]()
    cache = tmp_path / "cache"
    first = scored(run(tmp_path / "a", of), of, cache=cache).soft_labels
    (file,) = cache.glob("*.safetensors")
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), b"nothing", whole[:50]):
        file.write_bytes(damaged)
        where = run(tmp_path / f"b{len(told)}", of)
        assert scored(where, of, cache=cache).soft_labels == first
        assert file.read_bytes() == whole
        told.append(1)


def test_no_student_begins_as_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, seeds = toy_recipe(models=[MLP]), list[int]()

    def watched(model: Any, images: Any, of_seeds: Sequence[int], *rest: Any, **keys: Any) -> Any:
        seeds.extend(of_seeds)
        return train_and_score(model, images, of_seeds, *rest, **keys)

    monkeypatch.setattr(soft_labels, "train_and_score", watched)
    scored(run(tmp_path / "run", of), of, cache=tmp_path / "cache")
    assert len(seeds) == 1 and seeds[0] not in range(100)


def test_the_plan_counts_them() -> None:
    counted = [next(planned(toy_recipe(soft_labels=asked), source(), CPU)).trainings for asked in ({}, SAME)]
    assert counted == [3 * 4, 3 * 4 + 16]


def test_files_and_hashes_are_as_before_unless_it_is_asked_for() -> None:
    plain, off, on = recipe(), recipe(soft_labels={"teacher": "none"}), recipe(soft_labels=SAME)
    assert plain == off and "soft_labels" not in plain.evaluate.model_dump()
    assert plain.protocol_hash() == off.protocol_hash() != on.protocol_hash()
    warm = recipe(soft_labels={"teacher": "same", "temperature": 4.0})
    assert warm.protocol_hash() != on.protocol_hash()
    assert Recipe.model_validate(warm.model_dump()) == warm


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"teacher": "vit"}, "'vit'; it is none, same or one of evaluate.models: mlp, conv"),
        ({"temperature": 2.0}, "name one: evaluate.soft_labels.teacher"),
        ({"teacher": "same", "temperature": 0.0}, "greater than 0"),
    ],
)
def test_what_cannot_be(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(soft_labels=section)
