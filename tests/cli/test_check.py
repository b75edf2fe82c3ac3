"""`hmdc-hub pool check`: models in processes of their own, and what it says about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmdc_hub.catalog import MODELS, list_entries, load_model
from hmdc_hub.cli import pool as command
from hmdc_hub.cli.pool import check_one
from hmdc_hub.condenser import check, matching
from hmdc_hub.condenser.check import Check, check_model
from hmdc_hub.models import TapInfo, register_module
from hmdc_hub.schema import ModelSpec
from tests.cli.conftest import Call
from tests.models.builders import TINY, spec_of

CPU = torch.device("cpu")

MINE = """name: mine
description: Mine
source: transformers
id: vit
args: {hidden_size: 12, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 24, patch_size: 8}
"""


@pytest.mark.slow
def test_the_command(call: Call, folder: Path) -> None:
    Path("mine.yaml").write_text(MINE)
    Path("bad.yaml").write_text(MINE.replace("mine", "bad").replace("patch_size: 8", "patch_size: 5"))
    done = call("pool", "check", "./mine.yaml", "./bad.yaml", "--json")
    assert done.status == 1, done.err
    mine, bad = json.loads(done.out)
    assert mine["problem"] is None and mine["error"] < 1e-4 and mine["memory_bytes"] > 0 and mine["input_size"] == 32
    assert [tap["name"] for tap in mine["taps"]] == ["vit.layers.0", "vit.layers.1"]
    assert bad["name"] == "bad" and "patch_size = 5 does not divide" in bad["problem"] and "\n" not in bad["problem"]
    assert "mine (1 of 2)" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name models to check, or give --all"),
        (["mlp", "--all"], "Name models to check, or give --all"),
        (["mlp", "--json", "--markdown"], "two forms of the same output"),
        (["nothing"], "there is no pool entry 'nothing'"),
        (["mlp", "--device", "tpu"], "device 'tpu' is not here"),
    ],
)
def test_what_is_asked_wrong(call: Call, arguments: list[str], words: str) -> None:
    done = call("pool", "check", *arguments)
    assert done.status == 2 and words in done.err and "Traceback" not in done.err


FOUND = Check("vit", 32, 1234567, 1234567, (TapInfo("a", "tokens", 12, 4), TapInfo("b", "tokens", 12, 4)), 1.4, 12.6, 3 << 20, 2e-7, "float32", True, 0.99876)  # fmt: skip  # noqa: E501


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Check | str]:
    """What the check of each model by name says, without processes."""
    results: dict[str, Check | str] = {}
    monkeypatch.setattr(command, "checked", lambda specs, device: [(s, results.get(s.name, FOUND)) for s in specs])
    return results


def test_one_model_comes_with_its_taps(call: Call, found: dict[str, Check | str]) -> None:
    done = call("pool", "check", "vit_micro")
    assert done.status == 0
    assert done.out.splitlines() == [
        "NAME       INPUT  PARAMETERS  TAPS           FORWARD  GRADIENT  MEMORY   ERROR          COSINE",
        "vit_micro  32     1,234,567   2 tokens 12x4  1 ms     13 ms     3.0 MiB  2e-07 float32  0.9988",
        "",
        "taps",
        "  0  a  tokens, 12 channels, 4 x 4",
        "  1  b  tokens, 12 channels, 4 x 4",
    ]


@pytest.mark.parametrize(("cosine", "turned"), [(0.98999, True), (0.99, False), (None, False), (-1.0, True)])
def test_who_must_not_compute_in_bfloat16(
    call: Call, found: dict[str, Check | str], cosine: float | None, turned: bool
) -> None:
    found["mlp"] = replace(FOUND, cosine=cosine)
    done = call("pool", "check", "vit_micro", "mlp")
    note = "mlp: bfloat16 turns its image gradient too far (COSINE); keep precision: float32"
    assert done.status == 0 and (note in done.err) == turned and "vit_micro: bfloat16" not in done.err


def test_problems_stand_below_the_table(call: Call, found: dict[str, Check | str]) -> None:
    found["mlp"] = "it does not work"
    done = call("pool", "check", "vit_micro", "mlp")
    assert done.status == 1 and done.out.splitlines()[-1] == "mlp: it does not work"


def test_markdown_of_all(call: Call, found: dict[str, Check | str]) -> None:
    done = call("pool", "check", "--all", "--markdown")
    assert done.status == 0
    lines = done.out.splitlines()
    assert len(lines) == 2 + len(list_entries(MODELS)) and all(line.count("|") == 10 for line in lines)
    assert lines[0].startswith("| name | input |") and "| vit_micro | 32 |" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("family", list(TINY))
def test_every_family_agrees_with_the_plain_double_backward(family: str) -> None:
    side = {"input_size": 16} if TINY[family].get("input_size") is None else {}
    result = check_model(spec_of(family, **side), CPU)
    assert result.error <= 1e-4 and result.parameters >= result.trained > 0
    assert result.forward_ms > 0 and result.gradient_ms > 0


def test_a_wrong_derivative_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A derivative without mutual distillation is found out."""
    right = matching._differences

    def without_mutual_distillation(*args: Any) -> Any:
        losses, found = right(*args)
        return losses, [*found[:2], *(tuple(None for _ in each) for each in found[2:])]

    monkeypatch.setattr(matching, "_differences", without_mutual_distillation)
    result = check_model(spec_of("convnet", input_size=16), CPU)
    assert result.error > 5e-4 and result.dtype == "float64"


def test_float32_noise_is_looked_at_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "FLOAT32_ERROR", 0.0)
    result = check_model(spec_of("convnet", input_size=16), CPU)
    assert result.dtype == "float64" and result.error < 1e-10


class NoSecondDerivative(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.MaxPool2d(2))
        self.head = torch.nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.nn.functional.hardsigmoid(self.features(x)).mean((2, 3)))
        return found


def test_what_a_library_raises_becomes_one_line() -> None:
    text = check_one(register_module(NoSecondDerivative, input_size=16), "cpu")
    assert isinstance(text, str) and "\n" not in text
    assert text.startswith(
        "it can be built, but not differentiated as condensing does it: RuntimeError: derivative for aten"
    )


@pytest.mark.slow
def test_weights_are_left_out() -> None:
    spec = load_model("resnet18_imagenet").model_copy(update={"input_size": 32})
    assert isinstance(check_one(spec, "cpu"), Check)


@pytest.mark.parametrize("name", [entry.name for entry in list_entries(MODELS)])
def test_every_shipped_entry_says_what_people_need(name: str) -> None:
    spec = load_model(name)
    assert spec.description and spec.name == name
    assert spec.license or spec.source == "builtin"
    if "/" in spec.weights:
        assert spec.revision is not None and len(spec.revision) == 40
    assert "/" not in spec.id, "an id of the Hub would need a download to be checked"


def test_at_least_24_entries_of_every_library_ship() -> None:
    specs: list[ModelSpec] = [load_model(entry.name) for entry in list_entries(MODELS)]
    assert len(specs) >= 24
    assert {spec.source for spec in specs} == {"builtin", "torchvision", "transformers", "timm"}
    assert sum(spec.weights != "none" for spec in specs) >= 6


def test_a_model_that_goes_class_by_class_is_said(call: Call, found: dict[str, Check | str]) -> None:
    done = call("pool", "check", "vit_micro")
    assert "class by class" not in done.err
    found["vit_micro"] = replace(FOUND, together=False)
    done = call("pool", "check", "vit_micro")
    assert done.status == 0 and "vit_micro: cannot take several classes at a time" in done.err
