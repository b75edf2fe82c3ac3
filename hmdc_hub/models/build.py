"""From a pool entry to a `PoolModel`; the table of families."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models import convnet, hf, mlp, resnet, vision
from hmdc_hub.models.family import Family, Network, Shape, Value, did_you_mean
from hmdc_hub.models.pool_model import PoolModel
from hmdc_hub.schema import ModelSpec

if TYPE_CHECKING:
    from hmdc_hub.sources import Source

FAMILIES: Mapping[str, Mapping[str, Family]] = {
    "builtin": {"convnet": convnet.FAMILY, "mlp": mlp.FAMILY, "resnet": resnet.FAMILY},
    "torchvision": {"resnet18": vision.RESNET18},
    "transformers": {"vit": hf.VIT},
}
"""Source -> id -> family. A new family is a file beside this one and a line here."""


def known_models() -> dict[str, dict[str, dict[str, Value]]]:
    """List source -> id -> argument -> default, for messages and documentation."""
    return {
        source: {id_: {name: arg.default for name, arg in family.args.items()} for id_, family in families.items()}
        for source, families in FAMILIES.items()
    }


def build_for(spec: ModelSpec, source: Source) -> PoolModel:
    """Build a model of the pool for a loaded source; everything else as `build_model`."""
    bank = source.train
    return build_model(
        spec,
        num_classes=bank.num_classes,
        source_size=bank.side,
        channels=bank.channels,
        mean=source.mean,
        std=source.std,
    )


def build_model(
    spec: ModelSpec, *, num_classes: int, source_size: int, channels: int, mean: Tensor, std: Tensor
) -> PoolModel:
    """Build a model of the pool, on the CPU and in evaluation mode.

    Its values come from a fixed generator, whatever the recipe's seed: call `reset` before using them. Torch's global
    generator is left alone.

    Args:
        spec: The pool entry.
        num_classes: Number of classes of the source.
        source_size: Side of the source's images in pixels, and of the network's input unless the spec says otherwise.
        channels: Colour channels of the source, 1 or 3.
        mean: Channel means that source-normalised images were shifted by, `channels` numbers.
        std: Channel standard deviations that they were divided by.

    Raises:
        ModelError: The id is unknown, an argument is unknown or wrong, the network cannot have that input size, a tap
            does not exist, or the statistics do not fit the channels.
    """
    family = _family(spec)
    problems = family.problems(spec.args)
    if problems:
        raise ModelError(f"Pool entry {spec.name}: {'; '.join(problems)}.")
    input_size = spec.input_size or source_size
    make = partial(family.make, family.complete(spec.args), Shape(num_classes, input_size, channels))
    try:
        with rng.global_seed(rng.generator(0, "build")), torch.device("cpu"):
            net = make()
    except ModelError as error:
        raise ModelError(f"Pool entry {spec.name}: {error.message}.", hint=error.hint) from None
    return PoolModel(
        spec,
        make,
        net,
        taps=_tap_indices(spec, net),
        num_classes=num_classes,
        input_size=input_size,
        affine=_affine(spec, net.channels, mean, std),
    )


def parameter_count(model: nn.Module) -> int:
    """Count the numbers in all parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())


def forward_flops(model: PoolModel) -> int:
    """Count the floating-point operations of one image's forward pass; a multiplication with addition counts two.

    Counted are convolutions, matrix products and attention, as `torch.utils.flop_counter` does.
    """
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    image = torch.zeros(1, model.net.channels, model.input_size, model.input_size, device=device, dtype=dtype)
    counter = FlopCounterMode(display=False)
    # Plain attention: torch 2.11 does not count the fused kernel of the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.logits(image)
    return int(counter.get_total_flops())


def _family(spec: ModelSpec) -> Family:
    families = FAMILIES[spec.source]
    if spec.id in families:
        return families[spec.id]
    elsewhere = [f"Set source: {source} for {spec.id}." for source, others in FAMILIES.items() if spec.id in others]
    raise ModelError(
        f"Pool entry {spec.name}: {spec.source} has no model with id {spec.id!r}; it has {', '.join(families)}.",
        hint=elsewhere[0] if elsewhere else did_you_mean(spec.id, families).strip().capitalize(),
    )


def _tap_indices(spec: ModelSpec, net: Network) -> tuple[int, ...]:
    if spec.taps is None:
        return tuple(range(len(net.taps)))
    wrong = [i for i in spec.taps if i >= len(net.taps)]
    if wrong or not spec.taps:
        raise ModelError(
            f"Pool entry {spec.name}: taps = {spec.taps} must be at least one index from 0 to {len(net.taps) - 1}.",
            hint=f"Its taps are {', '.join(f'{i} ({tap.name})' for i, tap in enumerate(net.taps))}.",
        )
    return tuple(spec.taps)


def _affine(spec: ModelSpec, channels: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fold `x * std + mean` and `(. - own mean) / own std` into one scale and shift, each 1 x channels x 1 x 1."""
    if spec.mean is None or spec.std is None:
        return None
    if len(spec.mean) != channels:
        raise ModelError(
            f"Pool entry {spec.name}: mean and std hold {len(spec.mean)}, the network's channels number {channels}.",
            hint=f"Give {channels} of each, or set normalize: source.",
        )
    source_mean, source_std = (t.detach().to("cpu", torch.float64).expand(channels) for t in (mean, std))
    own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    scale, shift = source_std / own_std, (source_mean - own_mean) / own_std
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)
