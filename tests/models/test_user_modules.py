"""Networks of one's own, registered in Python: feature layers, resets, condensing, and what is refused."""

from __future__ import annotations

import copy
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub import rng
from hmdc_hub.condenser import condense
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.matching import Objectives, image_gradients, takes_classes_together
from hmdc_hub.errors import ModelError
from hmdc_hub.models import PoolModel, register_module
from hmdc_hub.schema import ModelSpec, Recipe
from hmdc_hub.store.rundir import RunDir
from tests.condenser.running import CPU, digest, estimate_cost
from tests.models.builders import build, images, spec_of
from tests.tiny import CONVNET, RECIPE, tiny_recipe, tiny_source


class Net(nn.Module):
    """The ConvNet of two blocks and width 6, as somebody would write it."""

    def __init__(self, channels: int = 3, classes: int = 3, side: int = 16) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(self.block(channels if i == 0 else 6) for i in range(2)))
        self.classifier = nn.Linear(6 * (side // 4) ** 2, classes)

    def block(self, channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.GroupNorm(6, 6), nn.ReLU(True), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.blocks(x).flatten(1))
        return out


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Transformer(nn.Module):
    """Patches, a class token, two encoder layers; logits inside an object."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 17, 12))
        layer = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Output:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return Output(self.head(self.layers(tokens)[:, 0]))


def state(model: PoolModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("module", [Net, Net(), lambda: Net()])
def test_feature_layers_are_found_and_a_reset_depends_on_its_generator_alone(module: Any) -> None:
    before, python = torch.get_rng_state(), random.getstate()
    model = build(register_module(module), seed=1)
    assert [(t.name, t.kind, t.channels, t.side) for t in model.taps] == [
        ("blocks.0", "map", 6, 8),
        ("blocks.1", "map", 6, 4),
    ]
    first = state(model)
    model.reset(rng.generator(2, "test"))
    changed = {name for name, value in state(model).items() if not torch.equal(value, first[name])}
    assert changed == {n for n in first if n.split(".")[-2] in ("0", "classifier")}, "norms begin as constants"
    for again in (model, build(register_module(module)), copy.deepcopy(model)):
        again.reset(rng.generator(1, "test"))
        assert all(torch.equal(value, first[name]) for name, value in state(again).items())
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python


def test_a_transformer_of_one_s_own() -> None:
    model = build(register_module(Transformer), seed=1)
    assert [(t.name, t.kind, t.channels, t.side) for t in model.taps] == [
        (f"layers.layers.{i}", "tokens", 12, 4) for i in range(2)
    ]
    assert model(images(model, 2)).logits.shape == (2, 3) and model.embed(images(model, 2)).shape == (2, 12)
    assert not any(part.training for part in model.modules()), "dropout is off"
    with pytest.raises(ModelError, match="gives layers.layers.0.self_attn.in_proj_weight fresh values") as caught:
        named = copy.deepcopy(Transformer())
        named.token, named.positions = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0))
        register_module(named)
    assert "Pass a function" in (caught.value.hint or "")


def test_a_perceptron_has_its_hidden_layers() -> None:
    layers = (nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 3))
    model = build(register_module(nn.Sequential(*layers)), seed=1)
    assert [(t.name, t.kind, t.channels, t.side) for t in model.taps] == [("1", "map", 5, 1), ("3.0", "map", 4, 1)]
    tap = model(images(model, 2)).taps[1]
    assert tap.spatial.shape == (2, 4, 1, 1) and torch.equal(tap.spatial.flatten(1), tap.semantic)
    with pytest.raises(ModelError, match="nothing in it gives maps or tokens"):
        build(register_module(nn.Sequential(nn.Flatten(), nn.Linear(768, 3))))


def test_the_entry_is_plain_data() -> None:
    spec = register_module(Net, "mine", taps=[1], lr={"condense": 0.5}, batch_norm="frozen", input_size=16)
    assert spec.source == "python" and spec.id.startswith("Net@") and len(spec.id) == len("Net@") + 8
    assert ModelSpec.model_validate(spec.model_dump()) == spec and spec.lr.condense == 0.5
    assert [tap.name for tap in build(spec).taps] == ["blocks.1"]
    assert register_module(Net, "mine").id == register_module(Net(), "other").id
    assert register_module(Net).id != register_module(lambda: Net(classes=4)).id


def test_what_an_instance_has_learnt_counts_for_nothing() -> None:
    net = Net()
    model = build(register_module(net), seed=1)
    before = state(model)
    with torch.no_grad():
        net.classifier.weight.fill_(7)
    model.reset(rng.generator(1, "test"))
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert bool((net.classifier.weight == 7).all()), "the caller's own is left alone"


def test_image_gradients_are_those_of_the_same_network_built_in() -> None:
    ours, theirs = build(spec_of("convnet"), seed=1), build(register_module(Net), seed=2)
    with torch.no_grad():
        for mine, value in zip(theirs.net.parameters(), ours.net.parameters(), strict=True):
            mine.copy_(value)
    partner = build(spec_of("mlp"), seed=3)
    gen = rng.generator(0, "images")
    real, synthetic = (torch.randn(2, n, 3, 16, 16, generator=gen) for n in (5, 4))
    found = []
    for model in (ours, theirs):
        distillation = MutualDistillation((model.taps, partner.taps))
        distillation.reset(rng.generator(0, "p"))
        objectives = Objectives([model, partner], [Pair(0, 1, distillation)])
        assert takes_classes_together(model)
        found.append(image_gradients(objectives, real, torch.full((2, 5), 0.2), synthetic, torch.tensor([0, 2]), None))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


class Branching(Net):
    """Asks a tensor for its value, which no `vmap` can: a pool with it goes class by class."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.detach().sum()) > -1e9 else super().forward(-x)


def own_recipe(*pool: Any) -> Recipe:
    return Recipe.model_validate(tiny_recipe(resets=1).model_dump() | {"pool": [CONVNET, *pool]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Net, Branching])
def test_condensing_with_a_network_built_in_and_one_of_one_s_own(kind: type[Net], tmp_path: Path) -> None:
    spec = register_module(lambda: kind(1, 10, 8), "mine")
    assert takes_classes_together(build(spec, num_classes=10, source_size=8, channels=1)) == (kind is Net)
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(RunDir(tmp_path / name))
        (info,) = condense(own_recipe(spec), tiny_source(), runs[-1], device=CPU)
    assert estimate_cost(own_recipe(spec), tiny_source(), CPU).memory["graphs"] > 1000
    assert digest(runs[0]) == digest(runs[1]), "the same bytes again"
    assert [model.id for model in info.models] == [RECIPE["pool"][0]["id"], spec.id]


def test_the_page_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "your-data-and-model.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "register_module" in block]
    found: dict[str, Any] = {}
    exec(compile(text, "your-data-and-model.md", "exec"), found)
    assert capsys.readouterr().out.strip() == text.strip().splitlines()[-1].removeprefix("# ")
    assert re.fullmatch("TinyNet@[0-9a-f]{8}", found["entry"].id) and "`TinyNet@`" in page


def test_grey_images_reach_a_network_for_colour() -> None:
    model = build(register_module(Net), channels=1, seed=1)
    assert model.prepare(torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)


class Wrong(Net):
    def __init__(self, output: str) -> None:
        super().__init__()
        self.output, self.scale = output, nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x) * self.scale
        return {"tuple": (logits, logits), "map": logits[:, :, None], "functional": F.linear(logits, torch.eye(3))}[
            self.output
        ]


class NoLeaf(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = self.classifier.weight * 2


MADE = Net()


class NoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 256, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Wrong("tuple"), "reset_parameters of its modules gives scale fresh values. Pass a function"),
        (lambda: Wrong("tuple"), "returns a tuple, not logits"),
        (lambda: Wrong("map"), "returns 2 x 3 x 1 numbers for 2 images, not 2 x 3"),
        (lambda: Net(classes=7), "returns 2 x 7 numbers for 2 images, not 2 x 3. Make its last layer give 3"),
        (lambda: Net(channels=1), "takes images of 1 channel, and the source has 3. Make its first layer take 3"),
        (lambda: Net(channels=4), "cannot work on images of 3 x 16 x 16: "),
        (lambda: Net(side=32), "Set another input_size"),
        (NoLayers, "no classifier can be found in it. Let its last layer be an nn.Linear with 3 outputs"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "1.weight is lazy. Give the layer its sizes"),
        (lambda: MADE, "returns the same module again"),
        (Wrong, "Wrong() fails: "),
        (lambda: 3, "int is no torch.nn.Module"),
        (NoLeaf(), "NoLeaf cannot be copied: "),
        (nn.Linear(768, 3, device="meta"), "Linear cannot be copied: Cannot copy out of meta tensor"),
    ],
)  # fmt: skip
def test_what_cannot_join_a_pool_is_refused_with_what_to_do(module: Any, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(register_module(module, "mine"))
    assert words in f"{caught.value.message.rstrip('.')}. {caught.value.hint}", caught.value


def test_fields_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="train"):
        register_module(Net, train="some")
    with pytest.raises(ModelError, match="weights is not for a module of your own"):
        register_module(Net, weights="someone/model")


def test_networks_of_one_structure_are_told_apart() -> None:
    class Net(globals()["Net"]):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)  # type: ignore[no-any-return]

    one, other = register_module(globals()["Net"], "one"), register_module(Net, "other")
    assert one.id != other.id
    models = [build(spec, seed=1) for spec in (one, other, other.model_copy(update={"name": "renamed"}))]
    x = images(models[0])
    assert torch.equal(models[0].logits(x), -models[1].logits(x))
    assert torch.equal(models[1].logits(x), models[2].logits(x))


@pytest.mark.parametrize("change", [{"stride": 2}, {"p": 0.5}, {"activation": nn.GELU}])
def test_what_has_no_parameters_is_part_of_the_id(change: dict[str, Any]) -> None:
    def net(stride: int = 1, p: float = 0.1, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
        parts = nn.Conv2d(3, 4, 3, stride=stride), activation(), nn.Dropout(p), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*parts, nn.Linear(4, 3))

    assert register_module(net()).id == register_module(net).id != register_module(net(**change)).id


@pytest.mark.parametrize("forward", ["self.f(x.flatten(1)) * 2", "self.f(x.flatten(1) + 1)", "-self.f(x.flatten(1))"])
def test_code_that_no_file_holds_is_part_of_the_id(forward: str) -> None:
    def made(forward: str) -> str:
        found: dict[str, Any] = {"nn": nn}
        exec(
            "class Cell(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.f = nn.Linear(48, 3)\n"
            f"    def forward(self, x):\n        return {forward}\n",
            found,
        )
        return register_module(found["Cell"]).id

    assert made(forward) == made(forward) != made("self.f(x.flatten(1))")


def test_a_network_of_another_process_is_refused_with_what_to_do() -> None:
    spec = ModelSpec(name="gone", source="python", id="Gone@12345678")
    with pytest.raises(ModelError, match="Pool entry gone: Gone@12345678 is a network of a Python session") as caught:
        build(spec)
    assert "register" in (caught.value.hint or "")
    known = register_module(NoLayers)
    with pytest.raises(ModelError, match=f"this process has NoLayers with other parameters or parts .{known.id}"):
        build(spec.model_copy(update={"id": "NoLayers@00000000"}))


WITHOUT_A_FILE = """
from torch import nn
import hmdc_hub.models
class Net(nn.Sequential):
    def forward(self, images):
        assert type(images).__name__ in {"Tensor", "Parameter", "FakeTensor", "BatchedTensor"}
        return super().forward(images)
def make():
    return Net(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
print(hmdc_hub.models.register_module(make, "net").id)
"""


@pytest.mark.slow
def test_a_session_without_files_gives_the_same_id_the_next_time() -> None:
    ids = [
        subprocess.run(
            [sys.executable, "-c", WITHOUT_A_FILE],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert ids[0] == ids[1] and ids[0].startswith("Net@")
