"""Small models of every family, for tests."""

from __future__ import annotations

from typing import Any

import torch

from hmdc_hub import rng
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.schema import ModelSpec

TINY_VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "patch_size": 8,
}
TINY: dict[str, dict[str, Any]] = {
    "convnet": {"source": "builtin", "id": "convnet", "args": {"depth": 2, "width": 6}},
    "convnet-batch": {"source": "builtin", "id": "convnet", "args": {"depth": 2, "width": 6, "norm": "batch"}},
    "mlp": {"source": "builtin", "id": "mlp", "args": {"depth": 2, "width": 10}},
    "resnet": {"source": "builtin", "id": "resnet", "args": {"width": 4, "blocks": [1, 1]}},
    "resnet18": {"source": "torchvision", "id": "resnet18", "input_size": 32},
    "mobilenet": {"source": "torchvision", "id": "mobilenet_v3_small", "input_size": 32},
    "vit": {"source": "transformers", "id": "vit", "args": TINY_VIT},
    "deit-distilled": {"source": "transformers", "id": "deit_distilled", "args": TINY_VIT},
    "registers": {
        "source": "transformers",
        "id": "dinov2_with_registers",
        "args": {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8},
    },
    "beit": {"source": "transformers", "id": "beit", "args": TINY_VIT},
    "swin": {
        "source": "transformers",
        "id": "swin",
        "args": {"patch_size": 2, "embed_dim": 6, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    },
    "convnext": {
        "source": "transformers",
        "id": "convnextv2",
        "args": {"patch_size": 2, "hidden_sizes": [6, 12], "depths": [1, 1], "num_stages": 2},
    },
    "timm-registers": {
        "source": "timm",
        "id": "vit_medium_patch16_reg4_gap_256",
        "args": {"embed_dim": 12, "depth": 2, "num_heads": 3, "patch_size": 8},
    },
    "timm-swin": {
        "source": "timm",
        "id": "swin_tiny_patch4_window7_224",
        "args": {"patch_size": 2, "embed_dim": 6, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    },
}
"""The parts of a pool entry that say what is built; 16 pixels are enough for each."""


def spec_of(family: str, **fields: Any) -> ModelSpec:
    return ModelSpec(**{"name": family, **TINY[family], **fields})


def build(
    spec: ModelSpec, *, num_classes: int = 3, source_size: int = 16, channels: int = 3, seed: int | None = None
) -> PoolModel:
    """Build a model for a made-up source, reset if a seed is given."""
    mean = torch.tensor([0.5, 0.4, 0.3])[:channels]
    std = torch.tensor([0.2, 0.25, 0.3])[:channels]
    model = build_model(spec, num_classes=num_classes, source_size=source_size, channels=channels, mean=mean, std=std)
    if seed is not None:
        model.reset(rng.generator(seed, "test"))
    return model


def tiny(family: str, *, seed: int = 1, channels: int = 3, **fields: Any) -> PoolModel:
    return build(spec_of(family, **fields), channels=channels, seed=seed)


def images(model: PoolModel, count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random prepared images for a model."""
    shape = (count, model.net.channels, model.input_size, model.input_size)
    return torch.randn(shape, generator=rng.generator(seed, "images"), dtype=dtype)
