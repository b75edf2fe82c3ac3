"""Whether a model can join a pool: built, run, and its image gradient compared with the plain double backward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser.cost import peak_bytes
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.condenser.matching import Objectives, image_gradients, plain_attention, takes_classes_together
from hmdc_hub.execution import timed
from hmdc_hub.models import PoolModel, TapInfo, build_model, parameter_count
from hmdc_hub.schema import ModelSpec

BATCH, SIDE, CLASSES = 8, 32, 10  # images per batch, and a source such as CIFAR-10
COMPARED = 2  # images of each kind for which gradients are compared
FLOAT32_ERROR = 1e-4  # relative, of the image gradient; above it both sides are taken in float64
COSINE = 0.99  # of image gradients, from which on bfloat16 is as good as float32
# The other model of the pair whose mutual distillation is differentiated.
PARTNER = ModelSpec(name="partner", source="builtin", id="convnet", args={"depth": 2, "width": 8}, input_size=16)


@dataclass(frozen=True)
class Check:
    """What was found about one model; image gradients are those of matching and mutual distillation together."""

    name: str  # of the pool entry
    input_size: int  # side of its input in pixels
    parameters: int
    trained: int  # parameters that are matched
    taps: tuple[TapInfo, ...]  # the selected ones
    forward_ms: float  # one forward pass of 8 images; the fastest of three, or of as many as five seconds allow
    gradient_ms: float  # its matching for 8 real and 8 synthetic images with the derivative, likewise
    memory_bytes: int  # what tensors took meanwhile at most, beside the network
    error: float  # norm of the difference of image gradients for 2 real and 2 synthetic images, over the norm
    dtype: str  # in which the two were compared
    together: bool  # whether it takes several classes at a time; otherwise a pool that it is in goes class by class
    cosine: float | None  # of the image gradient in bfloat16 to the one in float32, 8 + 8 images; None: there is none

    @property
    def turned_by_bfloat16(self) -> bool:
        """Say whether bfloat16 turns the image gradient by more than `COSINE` allows."""
        return self.cosine is not None and self.cosine < COSINE


def check_model(spec: ModelSpec, device: torch.device) -> Check:
    """Check a pool entry from fresh weights; nothing is downloaded but a config.json that its id may name.

    A ModelError says that it cannot be built.
    """
    # A local revision is about weights, too, which are left out.
    spec = spec.model_copy(update={"weights": "none", "revision": None if spec.local_names() else spec.revision})
    exact, reduced = (_built(spec.model_copy(update={"precision": word}), device) for word in ("float32", "bfloat16"))
    model, partner = exact if spec.precision == "float32" else reduced, _built(PARTNER, device)
    real, synthetic = (_images(seed, device) for seed in (1, 2))
    with torch.no_grad():
        forward = timed(lambda: model.run_with({}, model.prepare(real)), device)
    alone = Objectives([model], [])
    taken = timed(lambda: _gradient(alone, real, synthetic), device)
    memory = peak_bytes(lambda: _gradient(alone, real, synthetic))
    together, turned = takes_classes_together(model), cosine(exact, reduced, partner, real, synthetic)
    few = real[:COMPARED], synthetic[:COMPARED]
    error, dtype = _error(exact, partner, *few), "float32"
    if not error <= FLOAT32_ERROR and device.type != "mps":  # which has no float64
        exact, partner = exact.double(), partner.double()
        error, dtype = _error(exact, partner, *(part.double() for part in few)), "float64"
    return Check(
        name=spec.name,
        input_size=model.input_size,
        parameters=parameter_count(model),
        trained=sum(p.numel() for p in model.trained().values()),
        taps=model.taps,
        forward_ms=1000 * forward,
        gradient_ms=1000 * taken,
        memory_bytes=memory,
        error=error,
        dtype=dtype,
        together=together,
        cosine=turned,
    )


def _built(spec: ModelSpec, device: torch.device) -> PoolModel:
    """Build a model as after a reset: fresh, its batch norm calibrated."""
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    model = build_model(spec, num_classes=CLASSES, source_size=SIDE, channels=3, mean=mean, std=std)
    model.reset(rng.generator(0, "check"))
    model = model.to(device)
    model.calibrate([model.prepare(_images(0, device))])
    return model.eval()


def _images(seed: int, device: torch.device) -> Tensor:
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=rng.generator(seed, "check", "images")).to(device)


def _error(model: PoolModel, partner: PoolModel, real: Tensor, synthetic: Tensor) -> float:
    """Compare the gradient taken image by image with the plain one; both of all objectives summed."""
    objectives = _objectives(model, partner, synthetic)
    plain = _plain_gradient(objectives, real, synthetic)
    return float((_gradient(objectives, real, synthetic, at_once=1) - plain).norm() / plain.norm())


def _objectives(model: PoolModel, partner: PoolModel, like: Tensor) -> Objectives:
    distillation = MutualDistillation((model.taps, partner.taps))
    distillation.reset(rng.generator(0, "check", "projections"))
    return Objectives([model, partner], [Pair(0, 1, distillation.to(like.device, like.dtype))])


def _gradient(objectives: Objectives, real: Tensor, synthetic: Tensor, at_once: int | None = None) -> Tensor:
    """Differentiate the sum of all objectives as the condenser does, for class 1."""
    shares = real.new_full((1, len(real)), 1 / len(real))
    label = torch.ones(1, dtype=torch.int64, device=real.device)
    weights = real.new_ones(1, len(objectives.names()))
    return image_gradients(objectives, real[None], shares, synthetic[None], label, weights, at_once)[1][0, 0]


def cosine(exact: PoolModel, reduced: PoolModel, partner: PoolModel, real: Tensor, synthetic: Tensor) -> float | None:
    """Compare the image gradient of a network in bfloat16 with the one in float32; None where there is none of it."""
    wanted = _gradient(_objectives(exact, partner, synthetic), real, synthetic).flatten()
    try:
        other = _gradient(_objectives(reduced, partner, synthetic), real, synthetic).flatten()
        found = float(F.cosine_similarity(wanted, other, dim=0))
    except RuntimeError:  # an operation of the network that there is in float32 alone
        return None
    return found if math.isfinite(found) else None


def _plain_gradient(objectives: Objectives, real: Tensor, synthetic: Tensor) -> Tensor:
    """Differentiate the sum of all objectives as the paper writes it, through one graph of everything."""
    x, (pair,) = synthetic.detach().requires_grad_(), objectives.pairs

    def gradients(images: Tensor, create_graph: bool) -> list[Tensor | None]:
        features = [net(net.prepare(images)) for net in objectives.networks]
        labels = torch.ones(len(images), dtype=torch.int64, device=images.device)
        found: list[Tensor | None] = []
        everything = [p for net in objectives.networks for p in net.trained().values()]
        losses = [F.cross_entropy(f.logits, labels) for f in features]
        for loss in (*losses, pair.distillation(*features).mean()):
            found += torch.autograd.grad(
                loss, everything, create_graph=create_graph, retain_graph=True, allow_unused=True
            )
        return found

    with plain_attention():
        wanted, given = gradients(real, False), gradients(x, True)
        terms = [(a - b).square().sum() for a, b in zip(wanted, given, strict=True) if a is not None and b is not None]
        return torch.autograd.grad(torch.stack(terms).sum(), x)[0]
