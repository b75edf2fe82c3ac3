"""The two networks of the reference vectors, as pool entries and with the vectors' weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hmdc_hub.models import PoolModel
from hmdc_hub.schema import ModelSpec


def reference_spec(text: str) -> ModelSpec:
    """Turn a model of the vectors' metadata, `convnet3-w16` or `vit-d48-l3-h3-p8-i32`, into a pool entry."""
    if match := re.fullmatch(r"convnet(\d+)-w(\d+)", text):
        depth, width = map(int, match.groups())
        # The vectors read the last pooled map twice.
        taps = [*range(depth), depth - 1]
        args: dict[str, Any] = {"depth": depth, "width": width}
        return ModelSpec(name=text, source="builtin", id="convnet", args=args, input_size=32, taps=taps)
    if match := re.fullmatch(r"vit-d(\d+)-l(\d+)-h(\d+)-p(\d+)-i(\d+)", text):
        hidden, layers, heads, patch, side = map(int, match.groups())
        args = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            "patch_size": patch,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        }
        return ModelSpec(name=text, source="transformers", id="vit", args=args, input_size=side)
    raise ValueError(f"no reference model is called {text}")


def load_reference(model: PoolModel, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the weights under a prefix such as `model_1.` into a model built from `reference_spec`, in place.

    Every parameter must get a value and every tensor under the prefix must be used.
    """
    prefix = f"{prefix.rstrip('.')}."
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    rename = _convnet_names if model.spec.id == "convnet" else _vit_names
    values = {f"net.{ours}": tensor for name, value in given.items() for ours, tensor in rename(name, value).items()}
    parameters = dict(model.named_parameters())
    if values.keys() != parameters.keys():
        raise KeyError(f"weights of {prefix} do not fit: {sorted(values.keys() ^ parameters.keys())}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.shape == values[name].shape, name
            parameter.copy_(values[name])


def _convnet_names(name: str, value: Tensor) -> dict[str, Tensor]:
    if match := re.fullmatch(r"(conv|norm)(\d+)\.(weight|bias)", name):
        layer, number, kind = match.groups()
        return {f"blocks.{int(number) - 1}.{layer}.{kind}": value}
    return {name: value}


def _vit_names(name: str, value: Tensor) -> dict[str, Tensor]:
    fixed = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
        "head.weight": "classifier.weight",
        "head.bias": "classifier.bias",
    }
    if name in fixed:
        return {f"model.{fixed[name]}": value}
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return {name: value}
    number, part, kind = match.groups()
    layer = f"model.vit.layers.{number}"
    if part == "attn.qkv":
        names = ("q_proj", "k_proj", "v_proj")
        return {f"{layer}.attention.{n}.{kind}": v for n, v in zip(names, value.chunk(3), strict=True)}
    ours = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    return {f"{layer}.{ours[part]}.{kind}": value}
