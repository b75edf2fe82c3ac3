"""Protocols that ship, rates of single models, and hashes of protocols that are older than a key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmdc_hub.catalog import dump_recipe, load_recipe, protocol_overrides
from hmdc_hub.catalog.entries import PROTOCOLS, shipped
from hmdc_hub.schema import EvaluateSpec

FORMER = "evaluate.encode=antialias"
"""What protocols meant before there was the key."""


def protocol(name: str, *overrides: str, recipe: str = "digits_ipc1") -> EvaluateSpec:
    return load_recipe(recipe, [*overrides, *protocol_overrides(name)]).evaluate


def rates(spec: EvaluateSpec) -> dict[str, float]:
    return {model.name: model.lr.evaluate for model in spec.settled().models}


@pytest.mark.parametrize(
    ("recipe", "name", "digest"),
    [
        ("digits_ipc1", "paper", "44cac653597511f7"),
        ("digits_ipc1", "quick", "ff90cfc6e5a6ccd3"),
        ("cifar10_ipc10_paper", "paper", "3fb43b73636241f7"),
        ("cifar10_ipc1", "quick", "ea9dd68396c76a1f"),
    ],
)
def test_protocols_keep_their_hashes(recipe: str, name: str, digest: str) -> None:
    spec = protocol(name, FORMER, recipe=recipe).model_copy(
        update={"baselines": EvaluateSpec.model_fields["baselines"].default}
    )
    assert spec.protocol_hash().startswith(digest)


def test_step_keeps_its_meaning_and_its_hash() -> None:
    former = [
        FORMER,
        "evaluate.epochs=150",
        "evaluate.full_epochs=100",
        "evaluate.baselines=[exact, random, random-encoded, initialisation, k-means, herding]",
    ]
    spec = load_recipe("digits_ipc1", ["evaluate.schedule=step", *former]).evaluate
    assert spec.protocol_hash().startswith("83a7118330b6d3e9")
    assert (spec.milestones, spec.gamma) == ([0.5], 0.1)


def test_milestones_count_where_they_act() -> None:
    step, other = ["evaluate.schedule=step"], ["evaluate.milestones=[0.25]", "evaluate.gamma=0.5"]
    plain, changed = (
        [load_recipe("digits_ipc1", [*schedule, *more]).evaluate.protocol_hash() for schedule in ([], step)]
        for more in ([], other)
    )
    assert plain[0] == changed[0] and plain[1] != changed[1]


def test_rates_of_single_models_go_before_the_rate_of_all() -> None:
    spec = load_recipe("digits_ipc1", ["evaluate.model_lr={vit: 0.001, mlp: 0.2}", "evaluate.lr=0.5"]).evaluate
    assert rates(spec) == {"convnet3_narrow": 0.5, "vit_micro": 0.001, "resnet_narrow": 0.5, "mlp": 0.2}
    own = load_recipe("digits_ipc1", ["evaluate.model_lr={convnet: 0.7, convnet3_narrow: 0.1}"]).evaluate
    assert rates(own) == {"convnet3_narrow": 0.1, "vit_micro": 0.05, "resnet_narrow": 0.03, "mlp": 0.03}


def test_the_hash_is_of_the_rates_however_they_are_written() -> None:
    ways = (
        ["evaluate.lr=0.2"],
        ["evaluate.model_lr={convnet: 0.2, vit: 0.2, resnet: 0.2, mlp: 0.2}"],
        ["evaluate.lr=0.1", "evaluate.model_lr={convnet: 0.2, vit: 0.2, resnet: 0.2, mlp_: 1, mlp: 0.2}"],
    )
    assert len({load_recipe("digits_ipc1", way).evaluate.protocol_hash() for way in ways}) == 1


def test_a_protocol_replaces_the_rates_of_a_recipe(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model_lr: {vit: 0.004}\n")
    assert rates(protocol(str(mine), "evaluate.model_lr.mlp=0.9"))["mlp"] == 0.03
    for name in shipped(PROTOCOLS):  # whole: nothing of what the recipe says of a training is left, but augmentation
        found = [
            protocol(name, *written).protocol_hash()
            for written in ([], ["evaluate.model_lr.mlp=0.9", "evaluate.optimizer=adamw", "evaluate.schedule=step",
                                 "evaluate.milestones=[0.1]", "evaluate.lr=0.7", "evaluate.gamma=0.3"])
        ]  # fmt: skip
        assert found[0] == found[1], name


def test_idc_is_that_of_its_authors() -> None:
    spec = protocol("idc", recipe="cifar10_ipc10")
    assert (spec.epochs, spec.batch, spec.optimizer, spec.momentum, spec.weight_decay) == (1000, 64, "sgd", 0.9, 5e-4)
    assert set(rates(spec).values()) == {0.01}
    assert ([int(1000 * share) for share in spec.milestones], spec.gamma) == ([666, 833], 0.2)
    assert spec.augment.flip and not spec.augment.cutout and spec.cutmix.probability == 0.5
    assert not protocol("idc").augment.flip  # digits stay as they are


def test_a_protocol_takes_the_place_of_keys_that_files_leave_out(tmp_path: Path) -> None:
    """A recipe, or scores, at the defaults of such keys say them all the same."""
    mine = ["evaluate.milestones=[0.1]", "evaluate.gamma=0.3", "evaluate.full=never", "evaluate.model_lr.mlp=0.9"]
    plain = load_recipe("digits_ipc1", ["evaluate.schedule=step"])
    (tmp_path / "plain.yaml").write_text(dump_recipe(plain))
    (tmp_path / "scores.json").write_text(json.dumps({"protocol": plain.evaluate.model_dump(mode="json")}))
    (tmp_path / "keys.yaml").write_text("milestones: [0.5]\ngamma: 0.1\nfull: auto\nmodel_lr: {}\nschedule: step\n")
    for name in ("plain.yaml", "scores.json", "keys.yaml"):
        assert protocol(str(tmp_path / name), *mine) == plain.evaluate, name
