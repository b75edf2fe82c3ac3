"""Each family's network: sizes and meaning of its taps, and agreement with what it claims to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmdc_hub.models import PoolModel
from tests.models.builders import TINY_VIT, build, images, spec_of, tiny

SETTINGS = settings(deadline=None, max_examples=12)


def check_taps(model: PoolModel, count: int = 2) -> None:
    """Every tap has the sizes that its description says, and the logits theirs."""
    features = model(images(model, count))
    assert features.logits.shape == (count, model.num_classes)
    assert len(features.taps) == len(model.taps)
    for info, tap in zip(model.taps, features.taps, strict=True):
        assert tap.semantic.shape == (count, info.channels)
        assert tap.spatial.shape == (count, info.channels, info.side, info.side)
        if info.kind == "map":
            torch.testing.assert_close(tap.semantic, tap.spatial.mean((2, 3)))


@SETTINGS
@given(
    depth=st.integers(1, 4),
    width=st.integers(1, 9),
    side=st.integers(16, 37),
    channels=st.sampled_from([1, 3]),
    norm=st.sampled_from(["instance", "batch", "layer", "none"]),
    pooling=st.sampled_from(["avg", "max"]),
)
def test_convnet_taps(depth: int, width: int, side: int, channels: int, norm: str, pooling: str) -> None:
    args = {"depth": depth, "width": width, "norm": norm, "pooling": pooling}
    model = build(spec_of("convnet", args=args), source_size=side, channels=channels)
    check_taps(model)
    assert [tap.side for tap in model.taps] == [side // 2**i for i in range(1, depth + 1)]


@SETTINGS
@given(depth=st.integers(1, 4), width=st.integers(1, 9), side=st.integers(1, 12), channels=st.sampled_from([1, 3]))
def test_mlp_taps(depth: int, width: int, side: int, channels: int) -> None:
    model = build(spec_of("mlp", args={"depth": depth, "width": width}), source_size=side, channels=channels)
    check_taps(model)
    assert [(tap.channels, tap.side) for tap in model.taps] == [(width, 1)] * depth


@SETTINGS
@given(
    width=st.integers(1, 5),
    blocks=st.lists(st.integers(1, 2), min_size=1, max_size=4),
    side=st.integers(9, 20),
    norm=st.sampled_from(["batch", "instance", "layer", "none"]),
)
def test_resnet_taps(width: int, blocks: list[int], side: int, norm: str) -> None:
    model = build(spec_of("resnet", args={"width": width, "blocks": blocks, "norm": norm}), source_size=side)
    check_taps(model)
    assert [tap.name for tap in model.taps] == ["stem", *(f"stage{i + 1}" for i in range(len(blocks)))]
    assert [tap.channels for tap in model.taps] == [width, *(width * 2**i for i in range(len(blocks)))]


@settings(deadline=None, max_examples=6)
@given(patch=st.integers(1, 5), patches=st.integers(1, 4), heads=st.integers(1, 3), channels=st.sampled_from([1, 3]))
def test_vit_taps(patch: int, patches: int, heads: int, channels: int) -> None:
    args = {**TINY_VIT, "patch_size": patch, "hidden_size": 4 * heads, "num_attention_heads": heads}
    model = build(spec_of("vit", args=args), source_size=patch * patches, channels=channels)
    check_taps(model)
    assert [tap.side for tap in model.taps] == [patches, patches]


@pytest.mark.slow
def test_resnet18_taps_are_the_stem_after_pooling_and_the_four_stages() -> None:
    for side, sides in ((17, [5, 5, 3, 2, 1]), (32, [8, 8, 4, 2, 1]), (64, [16, 16, 8, 4, 2])):
        model = build(spec_of("resnet18", input_size=side))
        check_taps(model)
        assert [tap.side for tap in model.taps] == sides
        assert [tap.channels for tap in model.taps] == [64, 64, 128, 256, 512]


def test_convnet_computes_the_convnet_of_the_field() -> None:
    model = tiny("convnet", args={"depth": 2, "width": 5})
    p = {name.removeprefix("net."): value for name, value in model.named_parameters()}
    x = images(model)
    features = model(x)
    for i in range(2):
        x = F.conv2d(x, p[f"blocks.{i}.conv.weight"], p[f"blocks.{i}.conv.bias"], padding=1)
        x = F.instance_norm(x, weight=p[f"blocks.{i}.norm.weight"], bias=p[f"blocks.{i}.norm.bias"])
        x = F.avg_pool2d(F.relu(x), 2)
        torch.testing.assert_close(features.taps[i].spatial, x)
    torch.testing.assert_close(features.logits, F.linear(x.flatten(1), p["classifier.weight"], p["classifier.bias"]))


def test_convnet_defaults_are_three_blocks_of_128() -> None:
    model = build(spec_of("convnet", args={}), source_size=32)
    assert [(tap.channels, tap.side) for tap in model.taps] == [(128, 16), (128, 8), (128, 4)]
    assert isinstance(model.net.get_submodule("blocks.0.pool"), torch.nn.AvgPool2d)
    assert isinstance(model.net.get_submodule("blocks.0.norm"), torch.nn.GroupNorm)


def test_resnet18_computes_what_torchvision_computes() -> None:
    model = tiny("resnet18")
    x = images(model)
    torch.testing.assert_close(model.logits(x), model.net.get_submodule("model")(x))


def test_no_relu_of_torchvision_works_in_place() -> None:
    relus = [m for m in tiny("resnet18").modules() if isinstance(m, torch.nn.ReLU)]
    assert relus
    assert not any(m.inplace for m in relus)


def test_vit_computes_what_transformers_computes() -> None:
    model = tiny("vit")
    x = images(model)
    features = model(x)
    expected = model.net.get_submodule("model")(x, output_hidden_states=True)
    torch.testing.assert_close(features.logits, expected.logits)
    first = expected.hidden_states[1]  # 0 is the embedding
    torch.testing.assert_close(features.taps[0].semantic, first[:, 0])
    torch.testing.assert_close(features.taps[0].spatial[:, :, 1, 0], first[:, 1 + 2])


def test_the_last_vit_tap_is_before_the_final_norm() -> None:
    model = tiny("vit")
    norm = model.net.get_submodule("model.vit.layernorm")
    with torch.no_grad():
        norm.weight.mul_(3)  # type: ignore[operator]
    x = images(model)
    last = model(x).taps[-1].semantic
    torch.testing.assert_close(norm(last), model.embed(x))
    assert not torch.allclose(last, model.embed(x), atol=0.1)


def test_embeddings() -> None:
    def last_tap(family: str) -> tuple[Tensor, Tensor]:
        model = tiny(family)
        x = images(model)
        classifier = model.net.get_submodule(model.net.heads[0])
        torch.testing.assert_close(classifier(model.embed(x)), model.logits(x))
        return model.embed(x), model(x).taps[-1].spatial

    embedding, spatial = last_tap("convnet")
    assert torch.equal(embedding, spatial.flatten(1))
    embedding, spatial = last_tap("mlp")
    assert torch.equal(embedding, spatial.flatten(1))
    for family in ("resnet", "resnet18"):
        embedding, spatial = last_tap(family)
        torch.testing.assert_close(embedding, spatial.mean((2, 3)))
    embedding, _ = last_tap("vit")
    assert embedding.shape == (4, 12)
