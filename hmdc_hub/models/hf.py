"""Every image classifier of transformers: by the type of its configuration, or by a Hub id that has a config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Network, Shape
from hmdc_hub.models.feature_layers import Hints
from hmdc_hub.models.library import LibraryNetwork, prefixed, wrap
from hmdc_hub.schema.base import Positive, Rate, Strict

DROPOUT = "dropout is always off here, in condensing and in evaluation"

FIXED = {
    "image_size": "it is the pool entry's input_size",
    "num_channels": "it is the source's number of channels",
    "num_labels": "it is the source's number of classes",
    **dict.fromkeys(("id2label", "label2id"), "it comes from the source's classes"),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), DROPOUT),
    "drop_path_rate": "stochastic depth is always off here, in condensing and in evaluation",
    **dict.fromkeys(
        (
            *("_name_or_path", "architectures", "cache_dir", "dtype", "model_type", "name_or_path"),
            *("output_attentions", "output_hidden_states", "quantization_config", "return_dict", "torch_dtype"),
            *("transformers_version", "use_return_dict"),
        ),
        "it is no part of the architecture",
    ),
    **dict.fromkeys(("auto_map", "trust_remote_code"), "models that bring their own code are not run"),
}
"""Fields of configurations that are not for pool entries to set."""

DISTILLED = "deit_distilled"
"""What a DeiT with a second classifier on a distillation token is called: transformers has two classes for one type."""

LEFT_OUT = {
    "timm_wrapper": "it is a network of timm: set source: timm and id: the architecture",
    **dict.fromkeys(
        ("clip", "siglip", "siglip2", "metaclip_2", "shieldgemma2"), "its image tower is one part of a larger model"
    ),
    **dict.fromkeys(("imagegpt", "perceiver"), "it has no maps or patch tokens that could be compared"),
}
"""Types that transformers counts among image classifiers and that cannot join a pool, with the reason."""


def names() -> list[str]:
    """List the types."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    return sorted({*KNOWN, DISTILLED} - set(LEFT_OUT))


def family(id_: str) -> Family | None:
    """Describe a type of configuration; None if transformers has no image classifier of that type."""
    if id_ == "vit":
        return VIT
    if id_ in LEFT_OUT:
        raise ModelError(f"transformers' {id_} cannot join a pool: {LEFT_OUT[id_]}")
    return _open_family(id_) if id_ in names() else None


@cache
def _open_family(id_: str) -> Family:
    """Describe a type by the fields of its configuration, whose values transformers checks itself."""
    from transformers import AutoConfig

    known = tuple(AutoConfig.for_model(_type(id_)).to_dict())
    return Family(partial(make, id_, {}), known=known, fixed=FIXED, load=load)


def family_of_config(id_: str, config: Mapping[str, Any]) -> Family:
    """Describe the network that a config.json stands for.

    Raises:
        ModelError: It brings code of its own, or is no image classifier that transformers knows.
    """
    kind = str(config.get("model_type", ""))
    if kind not in names():
        why = LEFT_OUT.get(kind) or (
            "it needs code from its repository, and remote code is never run here"
            if config.get("auto_map")
            else f"transformers has no image classifier of type {kind!r}"
        )
        raise ModelError(f"{id_} cannot be built: {why}", hint="Name a model of a type in `hmdc-hub pool ls`.")
    if "DeiTForImageClassificationWithTeacher" in str(config.get("architectures")):
        kind = DISTILLED
    fields = {name: value for name, value in config.items() if name not in FIXED}
    known = tuple({*(_open_family(kind).known or ()), *config})
    return Family(partial(make, kind, fields), known=known, fixed=FIXED, load=load)


def make(kind: str, base: Mapping[str, Any], args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
    """Build a network from a configuration.

    Args:
        kind: Type of the configuration, or `deit_distilled`.
        base: Fields that a config.json gives.
        args: Fields that the pool entry gives, over them.
        shape: What it is built for.

    Raises:
        ModelError: A field has a value that does not work, or the network cannot have this side.
    """
    fields = {**base, **args}
    key = ("transformers", kind, tuple(sorted((name, str(value)) for name, value in fields.items())))
    return wrap(partial(_construct, kind, fields, shape), partial(_hints, shape), shape, key)


def make_vit(args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
    """Build a ViT from a ViTConfig; raises ModelError if heads or patches do not divide their size."""
    hidden, heads, patch = args["hidden_size"], args["num_attention_heads"], args["patch_size"]
    if hidden % heads:
        raise ModelError(
            f"args.hidden_size = {hidden} cannot be shared among num_attention_heads = {heads}",
            hint=f"Set hidden_size: {hidden - hidden % heads + heads}, or a number of heads that divides {hidden}.",
        )
    if shape.side % patch:
        down = shape.side - shape.side % patch
        sizes = f"{down} or {down + patch}" if down else f"{patch}"
        patches = ", ".join(str(p) for p in range(2, shape.side + 1) if shape.side % p == 0)
        raise ModelError(
            f"args.patch_size = {patch} does not divide the side of {shape.side} pixels",
            hint=f"Set input_size: {sizes}, or a patch_size of {patches or 1}.",
        )
    return make("vit", {}, args, shape)


def _type(kind: str) -> str:
    return "deit" if kind == DISTILLED else kind


def _construct(kind: str, fields: Mapping[str, Any], shape: Shape, side: int) -> nn.Module:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

    with quiet():
        config = AutoConfig.for_model(_type(kind), **fields, num_labels=shape.classes)
        config.num_channels = shape.channels
        if hasattr(config, "image_size"):
            config.image_size = [side, side] if isinstance(config.image_size, list | tuple) else side
        found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        if isinstance(found, tuple):  # which `AutoModel.from_config` cannot choose from
            found = found[-1] if kind == DISTILLED else found[0]
        model: nn.Module = found(config)
    return model


def _hints(shape: Shape, model: Any) -> Hints:
    config, base = model.config, f"{model.base_model_prefix}."
    heads = [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == shape.classes and not name.startswith(base)
    ]
    patch = getattr(config, "patch_size", None)
    pair = (patch, patch) if isinstance(patch, int) else tuple(patch or ())
    isotropic = len(pair) == 2 and not hasattr(config, "depths")
    modules = shape.modules or _customary(base, config)
    return Hints(heads=tuple(heads), modules=modules, patch=pair if isotropic else None)


def _customary(base: str, config: Any) -> tuple[str, ...] | None:
    """Name the taps of families in which running the network does not show them."""
    if config.model_type == "resnet":
        return (f"{base}embedder", *(f"{base}encoder.stages.{i}" for i in range(len(config.depths))))
    # A stage of these ends by halving.
    if config.model_type in ("swin", "swinv2", "donut-swin"):
        return tuple(f"{base}encoder.layers.{i}.blocks.{depth - 1}" for i, depth in enumerate(config.depths))
    if config.model_type == "focalnet":
        return tuple(f"{base}encoder.stages.{i}.layers.{depth - 1}" for i, depth in enumerate(config.depths))
    return None


def load(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let transformers read a checkpoint into a model of the same configuration: it knows names of old versions."""
    model: Any = net.get_submodule("model")
    with quiet(), rng.global_seed(rng.generator(0, "weights")):
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(state),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    absent = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    values = {name: value for name, value in loaded.state_dict().items() if name not in absent}
    for name, shape, _ in info["mismatched_keys"]:
        # Position embeddings are given as they are, to be resized; of the rest only the shape matters, for the message.
        last = name.rpartition(".")[2]
        same = [value for key, value in state.items() if key.endswith(last) and value.shape == shape]
        exact = state.get(name)
        if exact is None or exact.shape != shape:
            exact = same[0] if len(same) == 1 else torch.empty(shape, device="meta")
        values[name] = exact
    return prefixed(values)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and tables of missing keys off the terminal: what matters of them we say ourselves."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class ViTArgs(Strict):
    """The defaults are those of ViTConfig, spelt out so that no version of the library changes a recipe."""

    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    patch_size: Positive = 16
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh"] = "gelu"
    layer_norm_eps: Rate = 1e-12
    initializer_range: Rate = 0.02
    qkv_bias: bool = True


NO_POOLER = dict.fromkeys(("pooler_output_size", "pooler_act"), "the model is built without a pooler")
VIT = Family(make_vit, ViTArgs, fixed={**FIXED, **NO_POOLER}, load=load)
