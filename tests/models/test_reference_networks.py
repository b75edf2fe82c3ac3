"""The networks of the reference vectors, from their own weights, against a plain reading of their description."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from hmdc_hub.models import PoolModel
from tests.models.builders import build, images
from tests.reference.weights import load_reference, reference_spec

VECTORS = sorted((Path(__file__).parents[1] / "reference" / "vectors").glob("*.safetensors"))


def read(path: Path, which: str) -> tuple[PoolModel, dict[str, Tensor]]:
    """Build one of the models of a file of vectors; also give its weights as they are called there."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys() if name.startswith(which)}  # noqa: SIM118
    model = build(reference_spec(metadata[which]), num_classes=int(metadata["classes"]), source_size=32)
    load_reference(model, weights, which)
    return model, {name.removeprefix(f"{which}."): value for name, value in weights.items()}


def plain_convnet(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    maps = []
    for i in (1, 2, 3):
        x = F.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"], padding=1)
        x = F.relu(F.group_norm(x, x.shape[1], w[f"norm{i}.weight"], w[f"norm{i}.bias"]))
        x = F.avg_pool2d(x, 2)
        maps.append(x)
    return F.linear(x.flatten(1), w["classifier.weight"], w["classifier.bias"]), [*maps, maps[-1]]


def plain_vit(w: dict[str, Tensor], x: Tensor, depth: int, heads: int, patch: int) -> tuple[Tensor, list[Tensor]]:
    def linear(name: str, t: Tensor) -> Tensor:
        return F.linear(t, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, t: Tensor) -> Tensor:
        return F.layer_norm(t, t.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    t = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch).flatten(2).transpose(1, 2)
    t = torch.cat([w["cls_token"].expand(len(t), -1, -1), t], 1) + w["pos_embed"]
    tokens = []
    for i in range(depth):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", t))
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # type: ignore[no-untyped-call]
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        t = t + linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        t = t + linear(f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", t))))
        tokens.append(t)
    return linear("head", norm("norm", t)[:, 0]), tokens


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_convnet(path: Path) -> None:
    model, weights = read(path, "model_1")
    x = images(model)
    logits, maps = plain_convnet(weights, x)
    features = model(x)
    torch.testing.assert_close(features.logits, logits, rtol=1e-5, atol=1e-5)
    assert len(features.taps) == 4
    for tap, expected in zip(features.taps, maps, strict=True):
        torch.testing.assert_close(tap.spatial, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tap.semantic, expected.mean((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vit(path: Path) -> None:
    model, weights = read(path, "model_2")
    depth, patch = len(model.taps), 8
    x = images(model)
    logits, tokens = plain_vit(weights, x, depth, heads=3, patch=patch)
    features = model(x)
    torch.testing.assert_close(features.logits, logits, rtol=1e-5, atol=1e-5)
    side = model.input_size // patch
    for tap, expected in zip(features.taps, tokens, strict=True):
        torch.testing.assert_close(tap.semantic, expected[:, 0], rtol=1e-5, atol=1e-5)
        for row in range(side):
            for column in range(side):
                patch_token = expected[:, 1 + row * side + column]
                torch.testing.assert_close(tap.spatial[:, :, row, column], patch_token, rtol=1e-5, atol=1e-5)


def test_weights_that_do_not_fit_are_refused() -> None:
    model, weights = read(VECTORS[0], "model_1")
    with pytest.raises(KeyError, match=r"blocks\.0\.conv\.bias"):
        load_reference(model, {f"m.{k}": v for k, v in weights.items() if k != "conv1.bias"}, "m")
    with pytest.raises(ValueError, match="resnet9"):
        reference_spec("resnet9")


def test_there_are_vectors() -> None:
    assert len(VECTORS) >= 5
