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
from hmdc_hub.models import convnet, hf, mlp, resnet, timm_models, vision, weights
from hmdc_hub.models.family import Family, Network, Shape, Value, did_you_mean
from hmdc_hub.models.pool_model import PoolModel
from hmdc_hub.schema import ModelSpec

if TYPE_CHECKING:
    from hmdc_hub.sources import Source

BUILTIN: Mapping[str, Family] = {"convnet": convnet.FAMILY, "mlp": mlp.FAMILY, "resnet": resnet.FAMILY}
"""Networks of our own. A new one is a file beside this one and an entry here."""

LIBRARIES: Mapping[str, Any] = {"torchvision": vision, "transformers": hf, "timm": timm_models}
"""Source -> module with `names`, `family` and, where Hub ids name models, `family_of_config`."""


def known_args(source: str, id_: str) -> dict[str, Value]:
    """List the arguments that we check ourselves, with their defaults, for messages and documentation."""
    family = BUILTIN.get(id_) if source == "builtin" else LIBRARIES[source].family(id_)
    return {name: arg.default for name, arg in family.args.items()} if family else {}


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
            does not exist, the statistics do not fit the channels, or the weights are not there or do not fit.
        NetworkError: The Hub cannot be reached, or the cache does not hold a file while offline.
        AccessError: This account may not read a repository of the Hub.
    """
    input_size = spec.input_size or source_size
    try:
        family = _family(spec)
        problems = family.problems(spec.args)
        if problems:
            raise ModelError("; ".join(problems))
        modules = tuple(tap for tap in spec.taps or () if isinstance(tap, str)) or None
        # The other libraries build for colour images whatever the source has.
        colour = spec.source == "transformers" and spec.weights != "none"
        shape = Shape(num_classes, input_size, 3 if colour else channels, modules)
        make = partial(family.make, family.complete(spec.args), shape)
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
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    image = torch.zeros(1, model.net.channels, model.input_size, model.input_size, device=device, dtype=dtype)
    counter = FlopCounterMode(display=False)
    # Plain attention: torch 2.11 does not count the fused kernel of the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.logits(image)
    return int(counter.get_total_flops())


def _family(spec: ModelSpec) -> Family:
    if spec.source == "builtin":
        if spec.id in BUILTIN:
            return BUILTIN[spec.id]
    else:
        library = LIBRARIES[spec.source]
        if re.search(r"[/:]", spec.id) and hasattr(library, "family_of_config"):
            family: Family = library.family_of_config(spec.id, weights.config_of(spec))
            return family
        found: Family | None = library.family(spec.id)
        if found is not None:
            return found
    known = _known(spec.source)
    here = (
        f"; it has {', '.join(known)}" if len(known) < 10 else f"; it has {len(known)}, such as {', '.join(known[:3])}"
    )
    elsewhere = [source for source in ("builtin", *LIBRARIES) if source != spec.source and spec.id in _known(source)]
    raise ModelError(
        f"{spec.source} has no model with id {spec.id!r}{here}",
        hint=f"Set source: {elsewhere[0]} for {spec.id}." if elsewhere else _closest(spec.id, known),
    )


def _closest(id_: str, known: list[str]) -> str:
    beginning = [name for name in known if id_ and name.startswith(id_)]
    if beginning:
        return f"Names that begin like it: {', '.join(beginning[:5])}."
    return did_you_mean(id_, dict.fromkeys(known)).strip().capitalize()


def _known(source: str) -> list[str]:
    if source == "builtin":
        return list(BUILTIN)
    try:
        names: list[str] = LIBRARIES[source].names()
    except ModelError:  # timm is not installed
        return []
    return names


def _tap_indices(spec: ModelSpec, net: Network) -> tuple[int, ...]:
    if spec.taps is None:
        return tuple(range(len(net.taps)))
    places = {tap.name: place for place, tap in enumerate(net.taps)}
    indices = [places.get(tap, len(net.taps)) if isinstance(tap, str) else tap for tap in spec.taps]
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
