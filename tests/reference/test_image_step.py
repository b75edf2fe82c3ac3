"""Whole image steps against vectors computed by the method's first program, through the code the condenser runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.balance import Balance, normalise
from hmdc_hub.condense.class_gradient import class_gradient, plain_attention
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.views import View
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.schema import ImagesSpec
from tests.reference.weights import load_reference, reference_spec

FOLDER = Path(os.environ.get("HMDC_REFERENCE_DIR") or Path(__file__).parent / "vectors")
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
FILES = sorted(FOLDER.glob("*.safetensors"))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


class Vector:
    """One reference file, loaded into our own objects."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.facts: dict[str, str] = file.metadata()
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.networks = [self._network(m) for m in (1, 2)]
        self.alignments = [self._alignment()] if self.facts["mutual_distillation"] == "True" else []

    def _network(self, m: int) -> PoolModel:
        spec = reference_spec(self.facts[f"model_{m}"])
        side = self.tensors["synthetic"].shape[-1]
        model = build_model(
            spec, num_classes=int(self.facts["classes"]), source_size=side, channels=3, mean=MEAN, std=STD
        )
        load_reference(model, self.tensors, f"model_{m}.")
        return model.eval()

    def _alignment(self) -> Alignment:
        align = Alignment((0, 1), (self.networks[0].taps, self.networks[1].taps))
        state = {"layer_matching": self.tensors["layer_matching"]}
        for name, value in self.tensors.items():
            if name.startswith("projection_"):
                m, rest = name.removeprefix("projection_").split(".", 1)
                state[f"projections.{int(m) - 1}.{rest}"] = value
        align.load_state_dict(state)
        return align

    @property
    def balanced(self) -> bool:
        return self.facts["gradient_balance"] == "True"


def image_step(vector: Vector, at_once: int | None = None) -> tuple[Tensor, list[Tensor]]:
    objectives = Objectives(vector.networks, vector.alignments, at_once=at_once)
    balance = Balance.fresh(int(vector.facts["classes"]), len(objectives.names()), enabled=vector.balanced)
    synthetic, real = vector.tensors["synthetic"], vector.tensors["real"]
    gradient, losses = torch.empty_like(synthetic), []
    for label in range(len(synthetic)):
        with plain_attention():
            gradient[label], targets, _ = class_gradient(
                objectives,
                balance,
                synthetic[label],
                real[label],
                label,
                View(),
                factor=int(vector.facts["factor"]),
                update=True,
            )
        losses.append(targets)
    return normalise(gradient) if vector.balanced else gradient, losses


def test_there_are_vectors() -> None:
    assert FILES, f"no *.safetensors in {FOLDER}"


@pytest.mark.parametrize("at_once", [None, 1, 3], ids=["whole", "one", "three"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_losses_and_image_gradient(path: Path, at_once: int | None) -> None:
    vector = Vector(path)
    gradient, losses = image_step(vector, at_once)
    for label, got in enumerate(losses):
        wanted = torch.tensor([float(x) for x in vector.facts[f"losses_{label}"].split()])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)
    assert relative_error(gradient, vector.tensors["image_grad"]) <= 1e-5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_image_optimiser(path: Path) -> None:
    vector = Vector(path)
    pixels = vector.tensors["synthetic"].clone()
    far = torch.tensor(1e6)
    images = StoredImages(range(len(pixels)), pixels, torch.zeros_like(pixels), -far, far)
    for label, gradient in enumerate(vector.tensors["image_grad"]):
        images.step(label, gradient, ImagesSpec(lr=5e-3, momentum=0.5))
    torch.testing.assert_close(images.pixels, vector.tensors["synthetic_after_sgd"], rtol=0, atol=1e-6)


def test_a_changed_projection_is_noticed() -> None:
    """The comparison is worth nothing if it passes with a wrong number in it."""
    vector = next(v for v in map(Vector, FILES) if v.alignments and v.balanced)
    with torch.no_grad():
        vector.alignments[0].layer_matching[0, 0] += 0.1
    gradient, _ = image_step(vector)
    assert relative_error(gradient, vector.tensors["image_grad"]) > 1e-5
