"""Every classifier of timm, by the name of its architecture; timm comes with `pip install hmdc-hub[timm]`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Network, Shape, Value
from hmdc_hub.models.library import LibraryNetwork, named, prefixed, wrap
from hmdc_hub.models.places import Hints
from hmdc_hub.models.vision import RESNET_TAPS

FIXED = {
    "num_classes": "it is the source's number of classes",
    "in_chans": "the network takes three channels, grey images are repeated",
    "img_size": "it is the pool entry's input_size",
    "pretrained": "it is the pool entry's weights",
    "pretrained_cfg": "it is the pool entry's weights",
    "checkpoint_path": "it is the pool entry's weights",
    **dict.fromkeys(
        (
            "cache_dir",
            "checkpoint",
            "exportable",
            "features_only",
            "hf_hub_id",
            "no_jit",
            "out_indices",
            "pretrained_cfg_overlay",
            "pretrained_filter_fn",
            "pretrained_strict",
            "pretrained_tag",
            "scriptable",
        ),
        "it is no part of the architecture",
    ),
    "drop_rate": "dropout is always off here, in condensing and in evaluation",
    "drop_path_rate": "stochastic depth is always off here, in condensing and in evaluation",
}


def require() -> Any:
    """Import timm.

    Raises:
        ModelError: It is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ModelError(
            "models of timm need timm, which is not installed", hint="pip install 'hmdc-hub[timm]'"
        ) from error


def names() -> list[str]:
    """List the architectures."""
    return list(require().list_models())


@cache
def family(id_: str) -> Family | None:
    """Describe an architecture; None if timm has none of that name."""
    if not require().is_model(id_):
        return None
    return TimmFamily(args={}, make=partial(make, id_, {}), fixed=FIXED, load=load)


def family_of_config(id_: str, config: Mapping[str, Any]) -> Family:
    """Describe the network that the config.json of a timm repository stands for.

    Raises:
        ModelError: timm has no such architecture.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not require().is_model(architecture):
        raise ModelError(f"{id_} cannot be built: timm has no architecture {architecture!r}")
    given = config.get("model_args")
    # A stranger's file: nothing but plain settings of the architecture is taken from it.
    base = {k: v for k, v in given.items() if k not in FIXED} if isinstance(given, dict) else {}
    return TimmFamily(args={}, make=partial(make, architecture, base), fixed=FIXED, load=load)


@dataclass(frozen=True)
class TimmFamily(Family):
    """A family whose arguments are those of timm's model class, which says itself what it does not take."""

    def problems(self, given: Mapping[str, object]) -> list[str]:
        """Say which arguments are not to be set."""
        return [f"args.{name} cannot be set: {self.fixed[name]}" for name in given if name in self.fixed]

    def complete(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Leave the rest to the architecture's own defaults."""
        return dict(given)


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
    sized = timm.get_pretrained_cfg(id_).fixed_input_size
    try:
        model: nn.Module = timm.create_model(
            id_, pretrained=False, num_classes=classes, **fields, **({"img_size": side} if sized else {})
        )
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
    kind = type(model).__name__
    if modules is None and kind in _ROWS:
        modules = tuple(f"blocks.{number}" for number in range(len(model.blocks)))
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    isotropic = isinstance(patch, tuple | list) and bool(getattr(model, "blocks", None))
    return Hints(
        heads=tuple(named(model, head) for head in heads),
        modules=modules or (RESNET_TAPS if kind == "ResNet" else None),
        nhwc=getattr(model, "output_fmt", "NCHW") == "NHWC" or kind == "VisionTransformerSAM",
        patch=(int(patch[0]), int(patch[1])) if isotropic and patch else None,
        class_token=getattr(model, "cls_token", None) is not None,
    )


_ROWS = {"Xcit", "VisionTransformerSAM"}
"""Classes whose blocks work at one resolution, behind a stem or before a neck of others."""


def load(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the architecture's own filter rename a checkpoint, as timm does for weights of other projects."""
    assert isinstance(net, LibraryNetwork)
    module = importlib.import_module(type(net.model).__module__)
    change = getattr(module, "checkpoint_filter_fn", None)
    return prefixed(change(dict(state), net.model) if change is not None else state)
