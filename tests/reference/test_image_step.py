"""Whole image steps against vectors computed by the method's first program, through the code the condenser runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hmdc_hub import multi_formation
from hmdc_hub.condenser import matching
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.images import SyntheticImages
from hmdc_hub.condenser.matching import Objectives, image_gradients
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.schema import ImagesSpec
from tests.reference.weights import load_reference, reference_spec
from tests.tiny import tiny_source

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
        self.pairs = [Pair(0, 1, self._distillation())] if self.facts["mutual_distillation"] == "True" else []

    def _network(self, m: int) -> PoolModel:
        spec = reference_spec(self.facts[f"model_{m}"])
        side = self.tensors["synthetic"].shape[-1]
        model = build_model(
            spec, num_classes=int(self.facts["classes"]), source_size=side, channels=3, mean=MEAN, std=STD
        )
        load_reference(model, self.tensors, f"model_{m}.")
        return model.eval()

    def _distillation(self) -> MutualDistillation:
        found = MutualDistillation((self.networks[0].taps, self.networks[1].taps))
        state = {"layer_matching": self.tensors["layer_matching"]}
        for name, value in self.tensors.items():
            if name.startswith("projection_"):
                m, rest = name.removeprefix("projection_").split(".", 1)
                state[f"projections.{int(m) - 1}.{rest}"] = value
        found.load_state_dict(state)
        return found

    @property
    def balanced(self) -> bool:
        return self.facts["gradient_balance"] == "True"


def image_step(vector: Vector, together: bool, at_once: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the image gradient of an update step, and the objectives, k x K."""
    objectives = Objectives(vector.networks, vector.pairs)
    stored = vector.tensors["synthetic"].clone().requires_grad_()
    synthetic = multi_formation.decode(stored, int(vector.facts["factor"]))
    labels = torch.arange(len(stored))
    chunks = [labels] if together else [labels[c : c + 1] for c in range(len(labels))]
    real = vector.tensors["real"]
    shares = torch.full(real.shape[:2], 1 / real.shape[1])
    done = [
        image_gradients(objectives, real[c], shares[c], synthetic[c].detach(), labels[c], None, at_once) for c in chunks
    ]
    losses, found = (torch.cat(parts) for parts in zip(*done, strict=True))
    rows = [torch.autograd.grad(synthetic, stored, each, retain_graph=True)[0] for each in found.unbind(1)]
    gradients = torch.stack(rows, 1)
    accumulated = torch.full_like(losses, matching.EPSILON)
    if not vector.balanced:
        return matching.combine(gradients, torch.ones_like(losses))[0], losses
    weights = matching.balance_weights(matching.accumulate(accumulated, gradients))
    return matching.normalise(matching.combine(gradients, weights)[0]), losses


def test_there_are_vectors() -> None:
    assert FILES, f"no *.safetensors in {FOLDER}"


QUICK, SLOW = {"matching", "matching_md_gbm"}, [pytest.mark.slow]
FORMS = {"together": (True, None), "class by class": (False, None), "one image": (False, 1), "three": (True, 3)}


CASES = [
    pytest.param(path, form, id=f"{path.stem}-{form}", marks=[] if path.stem in QUICK and form == "together" else SLOW)
    for path in FILES
    for form in FORMS
]


@pytest.mark.parametrize(("path", "form"), CASES)
def test_losses_and_image_gradient(path: Path, form: str) -> None:
    vector = Vector(path)
    gradient, losses = image_step(vector, *FORMS[form])
    for label, got in enumerate(losses):
        wanted = torch.tensor([float(x) for x in vector.facts[f"losses_{label}"].split()])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)
    assert relative_error(gradient, vector.tensors["image_grad"]) <= 1e-5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_image_optimiser(path: Path) -> None:
    vector = Vector(path)
    pixels = vector.tensors["synthetic"].clone()
    images = SyntheticImages(range(len(pixels)), pixels, tiny_source(), ImagesSpec(lr=5e-3, momentum=0.5))
    images.low, images.high = torch.tensor(-1e6), torch.tensor(1e6)
    images.step(torch.arange(len(pixels)), vector.tensors["image_grad"])
    torch.testing.assert_close(images.pixels, vector.tensors["synthetic_after_sgd"], rtol=0, atol=1e-6)


def test_a_changed_projection_is_noticed() -> None:
    """The comparison is worth nothing if it passes with a wrong number in it."""
    vector = next(v for v in map(Vector, FILES) if v.pairs and v.balanced)
    with torch.no_grad():
        vector.pairs[0].distillation.layer_matching[0, 0] += 0.1
    gradient, _ = image_step(vector, True)
    assert relative_error(gradient, vector.tensors["image_grad"]) > 1e-5
