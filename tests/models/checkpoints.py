"""Tiny checkpoints that each library writes itself, the pool entries that read them, and what must hold of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.errors import HmdcError, ModelError
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import ModelSpec
from tests.hub import LocalHub
from tests.models.builders import TINY_VIT, build

TIMM_VIT: dict[str, Any] = {"embed_dim": 12, "depth": 2, "num_heads": 3, "patch_size": 8}


def written_vit(folder: Path, **fields: Any) -> Path:
    """Write a ViT of seven classes as its library does."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(**{**TINY_VIT, "image_size": 16, "num_labels": 7, **fields})
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.normal_()
    model.save_pretrained(folder)
    return folder


def vit(weights: Path | str, **fields: Any) -> ModelSpec:
    spec = {"name": "vit", "source": "transformers", "id": "vit", "args": TINY_VIT, "weights": str(weights)}
    return ModelSpec(**{**spec, **fields})


def written_timm(path: Path, **fields: Any) -> Path:
    torch.manual_seed(2)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=16, **TIMM_VIT, **fields)
    save_file(model.state_dict(), path)
    return path


def timm_vit(weights: Path | str, **fields: Any) -> ModelSpec:
    spec = {"name": "t", "source": "timm", "id": "vit_tiny_patch16_224", "args": TIMM_VIT, "weights": str(weights)}
    return ModelSpec(**{**spec, **fields})


def written_mobilenet(path: Path) -> Path:
    torch.manual_seed(3)
    model = torchvision.models.mobilenet_v3_small(num_classes=7)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_()  # type: ignore[union-attr]
    save_file(model.state_dict(), path)
    return path


def mobilenet(weights: Path | str, **fields: Any) -> ModelSpec:
    spec = {"name": "m", "source": "torchvision", "id": "mobilenet_v3_small", "input_size": 32}
    return ModelSpec(**{**spec, "weights": str(weights), **fields})


def body(model: PoolModel) -> dict[str, Tensor]:
    heads = tuple(f"{head}." for head in model.net.heads)
    return {name: value for name, value in model.net.state_dict().items() if not name.startswith(heads)}


def assert_pretrained(model: PoolModel, file: Path) -> None:
    """The body is the checkpoint's, also after training and a reset; the classifier is new at every reset."""
    expected = load_file(file)
    if model.spec.source == "transformers":  # it writes names of older versions
        kind: Any = type(model.net.get_submodule("model"))
        expected = kind.from_pretrained(file.parent, dtype=torch.float32).state_dict()
    model.reset(rng.generator(1, "test"))
    names = [name for name in body(model) if not name.endswith("num_batches_tracked")]
    assert len(names) > 20
    head: Any = model.net.get_submodule(model.net.heads[0])
    first = head.weight.clone()
    for seed in (1, 2):
        with torch.no_grad():
            for value in model.net.state_dict().values():
                value.add_(1)
        model.reset(rng.generator(seed, "test"))
        for name in names:
            assert torch.equal(body(model)[name], expected[name.removeprefix("model.")]), name
        assert torch.equal(head.weight, first) == (seed == 1)
    assert model(model.prepare(torch.randn(2, 3, 16, 16))).logits.shape == (2, 3)


def failure(spec: ModelSpec, kind: type[HmdcError] = ModelError, **build_args: Any) -> str:
    with pytest.raises(kind) as caught:
        build(spec, **build_args)
    return f"{caught.value.message} {caught.value.hint or ''}"


def put(hub: LocalHub, repo_id: str, files: dict[str, bytes]) -> str:
    hub.add_user("someone")
    hub.create_repo(repo_id, repo_type="model")
    hub.commit(repo_id, files, repo_type="model")
    return repo_id
