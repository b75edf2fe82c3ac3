"""Every classifier of timm, by the name of its architecture; timm comes with `pip install hmdc-hub[timm]`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Network, Shape
from hmdc_hub.models.feature_layers import Hints
from hmdc_hub.models.library import LibraryNetwork, prefixed, wrap
from hmdc_hub.models.vision import RESNET_TAPS

FIXED = {
    "num_classes": "it is the source's number of classes",
    "in_chans": "the network takes three channels, grey images are repeated",
    "img_size": "it is the pool entry's input_size",
    **dict.fromkeys(("pretrained", "pretrained_cfg", "checkpoint_path"), "it is the pool entry's weights"),
    **dict.fromkeys(
        (
            *("cache_dir", "checkpoint", "exportable", "features_only", "hf_hub_id", "no_jit", "out_indices"),
            *("pretrained_cfg_overlay", "pretrained_filter_fn", "pretrained_strict", "pretrained_tag", "scriptable"),
        ),
        "it is no part of the architecture",
    ),
    "drop_rate": "dropout is always off here, in condensing and in evaluation",
    "drop_path_rate": "stochastic depth is always off here, in condensing and in evaluation",
}

ONE_RESOLUTION = {"Xcit", "VisionTransformerSAM"}
"""Classes whose blocks work at one resolution, behind a stem or before a neck of others."""


def require() -> Any:
    """Import timm; raises ModelError if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        hint = "pip install 'hmdc-hub[timm]'"
        raise ModelError("models of timm need timm, which is not installed", hint=hint) from error


def names() -> list[str]:
    """List the architectures."""
    return list(require().list_models())


@cache
def family(id_: str) -> Family | None:
    """Describe an architecture, whose class says itself what it takes; None if timm has none of that name."""
    return _family(id_, {}) if require().is_model(id_) else None


def family_of_config(id_: str, config: Mapping[str, Any]) -> Family:
    """Describe the network that the config.json of a timm repository stands for.

    Raises:
        ModelError: timm has no such architecture.
    """
    architecture, given = config.get("architecture"), config.get("model_args")
    if not isinstance(architecture, str) or not require().is_model(architecture):
        raise ModelError(f"{id_} cannot be built: timm has no architecture {architecture!r}")
    # A stranger's file: nothing but plain settings of the architecture is taken from it.
    return _family(architecture, {k: v for k, v in given.items() if k not in FIXED} if isinstance(given, dict) else {})


def _family(architecture: str, base: Mapping[str, Any]) -> Family:
    return Family(partial(make, architecture, base), known=None, fixed=FIXED, load=load)


def make(id_: str, base: Mapping[str, Any], args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
    """Build a network; it takes three channels, as its weights do: grey images are repeated.

    Raises:
        ModelError: An argument is none of its class, or it cannot have this side.
    """
    fields = {**base, **args}
    colour = Shape(shape.classes, shape.side, 3, shape.modules)
    key = ("timm", id_, tuple(sorted((name, str(value)) for name, value in fields.items())))
    return wrap(partial(_construct, id_, fields, shape.classes), partial(_hints, shape.modules), colour, key)


def _construct(id_: str, fields: Mapping[str, Any], classes: int, side: int) -> nn.Module:
    timm = require()
    sized = {"img_size": side} if timm.get_pretrained_cfg(id_).fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(id_, pretrained=False, num_classes=classes, **fields, **sized)
    except TypeError as error:
        unknown = [name for name in fields if f"'{name}'" in str(error)]
        if not unknown:
            raise
        raise ModelError(f"args.{unknown[0]} is unknown: timm's {id_} does not take it") from error
    return model


def _hints(modules: tuple[str, ...] | None, model: Any) -> Hints:
    classifiers = model.get_classifier()
    heads = [
        part
        for classifier in (classifiers if isinstance(classifiers, tuple) else (classifiers,))
        for part in (classifier if isinstance(classifier, nn.ModuleList) else (classifier,))
    ]
    named, kind = {id(module): name for name, module in model.named_modules()}, type(model).__name__
    if modules is None and kind in ONE_RESOLUTION:
        modules = tuple(f"blocks.{number}" for number in range(len(model.blocks)))
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    isotropic = isinstance(patch, tuple | list) and bool(getattr(model, "blocks", None))
    return Hints(
        heads=tuple(named[id(head)] for head in heads),
        modules=modules or (RESNET_TAPS if kind == "ResNet" else None),
        nhwc=getattr(model, "output_fmt", "NCHW") == "NHWC" or kind == "VisionTransformerSAM",
        patch=(int(patch[0]), int(patch[1])) if isotropic and patch else None,
        class_token=getattr(model, "cls_token", None) is not None,
    )


def load(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the architecture's own filter rename a checkpoint, as timm does for weights of other projects."""
    model = net.get_submodule("model")
    change = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    return prefixed(change(dict(state), model) if change is not None else state)
