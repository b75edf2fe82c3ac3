"""From a pool entry to a `PoolModel`; the table of families."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models import hf, timm_models, user_modules, vision, weights
from hmdc_hub.models.builtin import BUILTIN
from hmdc_hub.models.family import Family, Network, Shape, did_you_mean
from hmdc_hub.models.pool_model import PoolModel
from hmdc_hub.schema import ModelSpec

if TYPE_CHECKING:
    from hmdc_hub.sources import Source

LIBRARIES: Mapping[str, Any] = {"torchvision": vision, "transformers": hf, "timm": timm_models}
"""Source -> module with `names`, `family` and, where Hub ids name models, `family_of_config`."""


def build_for(spec: ModelSpec, source: Source) -> PoolModel:
    """Build a model of the pool for a loaded source; everything else as `build_model`."""
    train = source.train
    return build_model(
        spec,
        num_classes=train.num_classes,
        source_size=train.side,
        channels=train.channels,
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
            does not exist, the statistics do not fit the channels, or the weights are not there or do not fit.
        NetworkError: The Hub cannot be reached, or the cache does not hold a file while offline.
        AccessError: This account may not read a repository of the Hub.
    """
    input_size = spec.input_size or source_size
    try:
        family = _family(spec)
        args = family.complete(spec.args)
        modules = tuple(tap for tap in spec.taps or () if isinstance(tap, str)) or None
        # The other libraries build for colour images whatever the source has.
        colour = spec.source == "transformers" and spec.weights != "none"
        shape = Shape(num_classes, input_size, 3 if colour else channels, modules)
        make = partial(family.make, args, shape)
        with rng.global_seed(rng.generator(0, "build")), torch.device("cpu"):
            net = make()
            pretrained = weights.pretrained(spec, family, net)
        return PoolModel(
            spec,
            make,
            net,
            taps=_tap_indices(spec, net),
            num_classes=num_classes,
            input_size=input_size,
            affine=_affine(spec, net.channels, mean, std),
            pretrained=pretrained,
        )
    except ModelError as error:
        raise ModelError(f"Pool entry {spec.name}: {error.message.rstrip('.')}.", hint=error.hint) from error.__cause__


def parameter_count(model: nn.Module) -> int:
    """Count the numbers in all parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())


def forward_flops(model: PoolModel) -> int:
    """Count the floating-point operations of one image's forward pass; a multiplication with addition counts two.

    Counted are convolutions, matrix products and attention, as `torch.utils.flop_counter` does.
    """
    image = next(model.parameters()).new_zeros(1, model.net.channels, model.input_size, model.input_size)
    counter = FlopCounterMode(display=False)
    # Plain attention: torch 2.11 does not count the fused kernel of the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.logits(image)
    return int(counter.get_total_flops())


def _family(spec: ModelSpec) -> Family:
    found: Family | None
    if spec.source == "python":
        return user_modules.family(spec)
    if spec.source == "builtin":
        found = BUILTIN.get(spec.id)
    elif spec.source in ("transformers", "timm") and re.search(r"[/:]", spec.id):
        found = LIBRARIES[spec.source].family_of_config(spec.id, weights.config_of(spec))
    else:
        found = LIBRARIES[spec.source].family(spec.id)
    if found is not None:
        return found
    known = _known(spec.source)
    here = ", ".join(known) if len(known) < 10 else f"{len(known)}, such as {', '.join(known[:3])}"
    elsewhere = [source for source in ("builtin", *LIBRARIES) if source != spec.source and spec.id in _known(source)]
    alike = [name for name in known if name.startswith(spec.id)]
    hint = did_you_mean(spec.id, known).strip().capitalize()
    if elsewhere:
        hint = f"Set source: {elsewhere[0]} for {spec.id}."
    elif alike:
        hint = f"Names that begin like it: {', '.join(alike[:5])}."
    raise ModelError(f"{spec.source} has no model with id {spec.id!r}; it has {here}", hint=hint)


def _known(source: str) -> list[str]:
    try:
        return list(BUILTIN if source == "builtin" else LIBRARIES[source].names())
    except ModelError:  # timm is not installed
        return []


def _tap_indices(spec: ModelSpec, net: Network) -> tuple[int, ...]:
    if spec.taps is None:
        return tuple(range(len(net.taps)))
    known = {tap.name: index for index, tap in enumerate(net.taps)}
    indices = [known.get(tap, len(net.taps)) if isinstance(tap, str) else tap for tap in spec.taps]
    if not indices or max(indices) >= len(net.taps):
        raise ModelError(
            f"taps = {spec.taps} must be at least one index from 0 to {len(net.taps) - 1}",
            hint=f"Its taps are {', '.join(f'{i} ({tap.name})' for i, tap in enumerate(net.taps))}.",
        )
    return tuple(indices)


def _affine(spec: ModelSpec, channels: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fold `x * std + mean` and `(. - own mean) / own std` into one scale and shift, each 1 x channels x 1 x 1."""
    if spec.mean is None or spec.std is None:
        return None
    if len(spec.mean) != channels:
        raise ModelError(
            f"mean and std hold {len(spec.mean)}, the network's channels number {channels}.",
            hint=f"Give {channels} of each, or set normalize: source.",
        )
    source_mean, source_std = (t.detach().to("cpu", torch.float64).expand(channels) for t in (mean, std))
    own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    scale, shift = source_std / own_std, (source_mean - own_mean) / own_std
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)
