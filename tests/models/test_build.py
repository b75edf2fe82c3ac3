"""Pool entries that can be built, those that cannot, and what is said about them."""

from __future__ import annotations

from typing import Any

import pytest

from hmdc_hub.errors import ModelError
from hmdc_hub.models import forward_flops, parameter_count
from hmdc_hub.models.builtin import BUILTIN
from hmdc_hub.models.libraries import VIT
from tests.models.builders import TINY_VIT, build, spec_of, tiny


def failure(family: str, *, source_size: int = 16, channels: int = 3, **fields: Any) -> str:
    with pytest.raises(ModelError) as caught:
        build(spec_of(family, **fields), source_size=source_size, channels=channels)
    assert f"Pool entry {family}" in caught.value.message
    return str(caught.value)


def test_unknown_ids_name_the_known_ones() -> None:
    text = failure("convnet", id="convnt")
    assert "builtin has no model with id 'convnt'" in text
    assert "convnet, mlp, resnet" in text
    assert "Did you mean convnet?" in text
    assert "Set source: transformers" in failure("convnet", id="vit")


def test_all_wrong_args_are_told_at_once() -> None:
    text = failure("convnet", args={"widht": 3, "depth": 0, "norm": "group", "pooling": "avg"})
    assert "args.widht is unknown: did you mean width? allowed are depth, width, norm, pooling" in text
    assert "args.depth = 0: Input should be greater than or equal to 1" in text
    assert "args.norm = 'group': Input should be 'instance', 'batch', 'layer' or 'none'" in text
    assert "pooling =" not in text


@pytest.mark.parametrize(
    ("family", "args", "rule"),
    [
        ("convnet", {"width": True}, "args.width = True: Input should be a valid integer"),
        ("convnet", {"width": 2.0}, "args.width = 2.0: Input should be a valid integer"),
        ("mlp", {"depth": "2"}, "args.depth = '2': Input should be a valid integer"),
        ("resnet", {"blocks": [1, 0]}, "args.blocks.1 = 0: Input should be greater than or equal to 1"),
        ("resnet", {"blocks": []}, "args.blocks = []: List should have at least 1 item"),
        ("resnet", {"blocks": 2}, "args.blocks = 2: Input should be a valid list"),
        ("vit", {"layer_norm_eps": 0.0}, "args.layer_norm_eps = 0.0: Input should be greater than 0"),
        ("vit", {"layer_norm_eps": True}, "Input should be a valid number"),
        ("vit", {"qkv_bias": 1}, "args.qkv_bias = 1: Input should be a valid boolean"),
        ("vit", {"hidden_act": "gleu"}, "args.hidden_act = 'gleu': Input should be 'gelu', "),
        ("vit", {"image_size": 32}, "args.image_size cannot be set: it is the pool entry's input_size"),
        ("vit", {"hidden_dropout_prob": 0.1}, "dropout is always off"),
        ("resnet18", {"width": 3}, "args.width is unknown: this model takes no args"),
    ],
)
def test_wrong_args(family: str, args: dict[str, Any], rule: str) -> None:
    assert rule in failure(family, args=args)


def test_whole_numbers_will_do_where_any_number_will() -> None:
    assert build(spec_of("vit", args={**TINY_VIT, "initializer_range": 1})).num_classes == 3


@pytest.mark.parametrize(("depth", "side"), [(4, 15), (5, 16), (1, 1)])
def test_convnet_too_deep(depth: int, side: int) -> None:
    text = failure("convnet", args={"depth": depth}, source_size=side)
    assert f"depth {depth}" in text
    assert f"input_size: {2**depth} or more" in text
    build(spec_of("convnet", args={"depth": depth, "width": 1}, input_size=2**depth), source_size=side)


@pytest.mark.parametrize(
    ("blocks", "norm", "smallest"), [([1], "batch", 2), ([1] * 4, "batch", 5), ([1] * 4, "instance", 9)]
)
def test_resnet_too_small(blocks: list[int], norm: str, smallest: int) -> None:
    args = {"width": 1, "blocks": blocks, "norm": norm}
    text = failure("resnet", args=args, source_size=smallest - 1)
    assert f"at least {smallest} pixels" in text
    build(spec_of("resnet", args=args), source_size=smallest)


def test_resnet18_too_small() -> None:
    text = failure("resnet18", input_size=16)
    assert "cannot work on images of 3 x 16 x 16" in text and "Set another input_size" in text


def test_vit_patches_must_divide_the_side() -> None:
    text = failure("vit", source_size=20)
    assert "cannot work on images of 3 x 20 x 20: patch_size = 8 does not divide the side of 20 pixels" in text
    assert "Set another input_size, or look at args" in text
    assert "patch_size = 8 does not divide the side of 7 pixels" in failure("vit", source_size=7)


def test_vit_heads_must_divide_the_hidden_size() -> None:
    text = failure("vit", args={**TINY_VIT, "hidden_size": 50})
    assert "hidden_size = 50 cannot be shared among num_attention_heads = 3" in text
    assert "hidden_size: 51" in text


@pytest.mark.parametrize("taps", [[2], [0, 7], []])
def test_taps_must_exist(taps: list[int]) -> None:
    text = failure("convnet", taps=taps)
    assert f"taps = {taps} must be at least one index from 0 to 1" in text
    assert "0 (block1), 1 (block2)" in text


def test_own_statistics_must_fit_the_channels() -> None:
    own: dict[str, Any] = {"normalize": "own", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert "Give 1 of each" in failure("convnet", channels=1, **own)
    build(spec_of("resnet18", **own), channels=1)


def test_known_models_are_those_of_the_table() -> None:
    assert set(BUILTIN) == {"convnet", "mlp", "resnet"}
    assert BUILTIN["convnet"].complete({}) == {"depth": 3, "width": 128, "norm": "instance", "pooling": "avg"}


def test_defaults_of_the_vit_are_those_of_the_library() -> None:
    from transformers import ViTConfig

    config = ViTConfig()
    for name, default in VIT.complete({}).items():
        assert getattr(config, name) == default, name


def test_counts() -> None:
    model = tiny("mlp", args={"depth": 1, "width": 10})
    assert parameter_count(model) == 10 * 3 * 256 + 10 + 10 * 3 + 3
    assert forward_flops(model) == 2 * (10 * 3 * 256 + 10 * 3)
    convnet = tiny("convnet", args={"depth": 1, "width": 4})
    assert forward_flops(convnet) == 2 * (256 * 4 * 27 + 64 * 4 * 3)


def test_attention_is_counted() -> None:
    flops = forward_flops(tiny("vit", args={**TINY_VIT, "num_hidden_layers": 1}))
    tokens, hidden, mlp = 5, 12, 24
    linear = 4 * 3 * 64 * hidden + tokens * (4 * hidden**2 + 2 * hidden * mlp) + hidden * 3
    assert flops == 2 * (linear + 2 * tokens * tokens * hidden)
