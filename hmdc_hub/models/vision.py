"""Every classifier of torchvision, by the name of its builder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from hmdc_hub.models.family import Family, Network, Shape
from hmdc_hub.models.feature_layers import Hints
from hmdc_hub.models.library import LibraryNetwork, prefixed, wrap

RESNET_TAPS = ("maxpool", "layer1", "layer2", "layer3", "layer4")
"""The stem after max-pooling and the four stages."""


def names() -> list[str]:
    """List the builders."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


@cache
def family(id_: str) -> Family | None:
    """Describe a builder of torchvision.models; None if there is none of that name."""
    if id_ not in names():
        return None
    fixed = {"num_classes": "it is the source's number of classes"}
    return Family(partial(make, id_), fixed=fixed, load=load)


def make(id_: str, args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
    """Build a network; it takes three channels, as its weights do: grey images are repeated.

    Raises:
        ModelError: It cannot have this side.
    """
    colour = Shape(shape.classes, shape.side, 3, shape.modules)
    return wrap(partial(_construct, id_, shape.classes), partial(_hints, colour), colour, ("torchvision", id_))


def _construct(id_: str, classes: int, side: int) -> nn.Module:
    import torchvision

    fields: dict[str, Any] = {"num_classes": classes}
    if id_.startswith("vit_"):
        fields["image_size"] = side
    if id_ in ("googlenet", "inception_v3"):
        fields |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = torchvision.models.get_model(id_, weights=None, **fields)
    return model


def _hints(shape: Shape, model: nn.Module) -> Hints:
    patch: Any = getattr(model, "patch_size", None)
    kind, parts = type(model).__name__, list(model.named_modules())
    linear = [n for n, part in parts if isinstance(part, nn.Linear) and part.out_features == shape.classes]
    convolutions = [n for n, part in parts if isinstance(part, nn.Conv2d) and part.out_channels == shape.classes]
    return Hints(
        heads=tuple((linear or convolutions)[-1:]),
        modules=shape.modules or (RESNET_TAPS if kind == "ResNet" else None),
        nhwc=kind == "SwinTransformer",
        patch=(patch, patch) if kind == "VisionTransformer" else None,
    )


def named_weights(id_: str) -> dict[str, Any]:
    """List the weights that torchvision names for a builder, `DEFAULT` left out: it means others in each version."""
    import torchvision

    return {member.name: member for member in torchvision.models.get_model_weights(id_)}


def load(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a checkpoint as the network does: files of DenseNets have a dot more in some names."""
    model: Any = net.get_submodule("model")
    if hasattr(model, "transform_input"):  # of GoogLeNet and Inception: their weights expect other statistics
        model.transform_input = True
    return prefixed({re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", k): v for k, v in state.items()})
