"""Whether a model can join a pool: built, run, and its image gradient compared with the plain double backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condense import match
from hmdc_hub.condense.align import Alignment
from hmdc_hub.condense.class_gradient import plain_attention
from hmdc_hub.condense.match import Objectives
from hmdc_hub.condense.meter import growth, milliseconds
from hmdc_hub.models import PoolModel, TapInfo, build_model, parameter_count
from hmdc_hub.schema import ModelSpec

BATCH, SIDE, CLASSES = 8, 32, 10
"""A source such as CIFAR-10, and images per batch."""

COMPARED = 2
"""Images of each kind for which gradients are compared."""

FLOAT32_ERROR = 1e-4
"""Relative error of the image gradient up to which float32 is believed; above it both sides are taken in float64."""

COSINE = 0.99
"""Of image gradients, from which on bfloat16 is as good as float32."""

PARTNER = ModelSpec(name="partner", source="builtin", id="convnet", args={"depth": 2, "width": 8}, input_size=16)
"""The other model of the pair whose mutual distillation is differentiated."""


@dataclass(frozen=True)
class Check:
    """What was found about one model.

    Attributes:
        name: Of the pool entry.
        input_size: Side of its input in pixels.
        parameters: All of them; `trained` those that are matched.
        taps: The selected ones.
        forward_ms: One forward pass of 8 images; median of three, or of as many as ten seconds allow.
        gradient_ms: Its matching for 8 real and 8 synthetic images with the derivative, likewise.
        memory_bytes: What that took beside the network: growth of the process on a CPU, of what is allocated on a GPU.
        error: Norm of the difference of image gradients for 2 real and 2 synthetic images, matching and mutual
            distillation together, over the norm.
        dtype: In which the two were compared.
        cosine: Of the image gradient in bfloat16 to the one in float32 for 8 real and 8 synthetic images, matching and
            mutual distillation together, whatever the entry's precision; None where there is no such gradient.
    """

    name: str
    input_size: int
    parameters: int
    trained: int
    taps: tuple[TapInfo, ...]
    forward_ms: float
    gradient_ms: float
    memory_bytes: int
    error: float
    dtype: str
    cosine: float | None

    @property
    def turned_by_bfloat16(self) -> bool:
        """Say whether bfloat16 turns the image gradient by more than `COSINE` allows."""
        return self.cosine is not None and self.cosine < COSINE


def check_model(spec: ModelSpec, device: torch.device) -> Check:
    """Check a pool entry from fresh weights; nothing is downloaded but a config.json that its id may name.

    Peak memory is told from the growth of the process: call this in a process of its own.

    Args:
        spec: The pool entry; its weights are left out.
        device: Where to.

    Raises:
        ModelError: It cannot be built.
    """
    # A local revision is about weights, too, which are left out.
    spec = spec.model_copy(update={"weights": "none", "revision": None if spec.local_names() else spec.revision})
    exact, reduced = (_built(spec.model_copy(update={"precision": word}), device) for word in ("float32", "bfloat16"))
    model, partner = exact if spec.precision == "float32" else reduced, _built(PARTNER, device)
    real, synthetic = (_images(seed, device) for seed in (1, 2))
    with plain_attention():
        with torch.no_grad():
            forward = milliseconds(lambda: model(model.prepare(real)), device)
        alone = Objectives([model], [])
        memory = growth(lambda: match.image_derivatives(alone, real, synthetic, 1, [1.0]), device)
        taken = milliseconds(lambda: match.image_derivatives(alone, real, synthetic, 1, [1.0]), device)
        cosine = _cosine(exact, reduced, partner, real, synthetic)
        few = real[:COMPARED], synthetic[:COMPARED]
        error, dtype = _error(exact, partner, *few), "float32"
        if not error <= FLOAT32_ERROR and device.type != "mps":  # which has no float64
            exact, partner = exact.double(), partner.double()
            error, dtype = _error(exact, partner, *(part.double() for part in few)), "float64"
    trained = sum(p.numel() for p in model.trained().values())
    return Check(
        name=spec.name,
        input_size=model.input_size,
        parameters=parameter_count(model),
        trained=trained,
        taps=model.taps,
        forward_ms=forward,
        gradient_ms=taken,
        memory_bytes=memory,
        error=error,
        dtype=dtype,
        cosine=cosine,
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
    """Compare the gradient taken image by image with the plain one; both of all targets summed."""
    ours = _gradient(model, partner, real, synthetic, at_once=1)
    plain = _plain_gradient([model, partner], _aligned(model, partner, synthetic), real, synthetic)
    return float((ours - plain).norm() / plain.norm())


def _gradient(
    model: PoolModel, partner: PoolModel, real: Tensor, synthetic: Tensor, at_once: int | None = None
) -> Tensor:
    """Differentiate the sum of all targets as the condenser does."""
    objectives = Objectives([model, partner], [_aligned(model, partner, synthetic)], at_once=at_once)
    return match.image_derivatives(objectives, real, synthetic, 1, [1.0] * 3).gradients[0]


def _aligned(model: PoolModel, partner: PoolModel, like: Tensor) -> Alignment:
    align = Alignment((0, 1), (model.taps, partner.taps))
    align.reset(rng.generator(0, "check", "projections"))
    return align.to(like.device, like.dtype)


def _cosine(exact: PoolModel, reduced: PoolModel, partner: PoolModel, real: Tensor, synthetic: Tensor) -> float | None:
    wanted = _gradient(exact, partner, real, synthetic).flatten()
    try:
        found = float(F.cosine_similarity(wanted, _gradient(reduced, partner, real, synthetic).flatten(), dim=0))
    except RuntimeError:  # an operation of the network that there is in float32 alone
        return None
    return found if math.isfinite(found) else None


def _plain_gradient(models: Sequence[PoolModel], align: Alignment, real: Tensor, synthetic: Tensor) -> Tensor:
    """Differentiate the sum of all targets as the paper writes it, through one graph of everything."""
    x = synthetic.detach().requires_grad_()

    def gradients(images: Tensor, create_graph: bool) -> list[Tensor | None]:
        features = {m: net(net.prepare(images)) for m, net in enumerate(models)}
        labels = torch.ones(len(images), dtype=torch.int64, device=images.device)
        found: list[Tensor | None] = []
        everything = [p for net in models for p in net.trained().values()]
        for loss in (*(F.cross_entropy(f.logits, labels) for f in features.values()), align(features)):
            found += torch.autograd.grad(
                loss, everything, create_graph=create_graph, retain_graph=True, allow_unused=True
            )
        return found

    wanted, given = gradients(real, False), gradients(x, True)
    terms = [(a - b).square().sum() for a, b in zip(wanted, given, strict=True) if a is not None and b is not None]
    return torch.autograd.grad(torch.stack(terms).sum(), x)[0]
