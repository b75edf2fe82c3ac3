"""Where networks of libraries have features: layouts, tokens that are no patches, and what cannot be tapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models import PoolModel
from hmdc_hub.models.feature_layers import Hints, find_feature_layers
from tests.models.builders import TINY_VIT, build, images, spec_of, tiny


def shapes(model: PoolModel) -> list[tuple[str, str, int, int]]:
    return [(tap.name, tap.kind, tap.channels, tap.side) for tap in model.taps]


def make(source: str, id_: str, side: int = 64, **fields: Any) -> PoolModel:
    from hmdc_hub.schema import ModelSpec

    return build(ModelSpec(name="m", source=source, id=id_, **fields), source_size=side)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "id_", "side", "expected"),
    [
        ("torchvision", "resnet18", 64,
            "maxpool 64x16, layer1 64x16, layer2 128x8, layer3 256x4, layer4 512x2",
        ),
        ("torchvision", "densenet121", 64,
            "features.relu0 64x32, features.denseblock1 256x16, features.denseblock2 512x8, "
            "features.denseblock3 1024x4, features.denseblock4 1024x2",
        ),
        ("torchvision", "mobilenet_v3_small", 64,
            "features.0 16x32, features.1 16x16, features.3 24x8, features.8 48x4, features.12 576x2",
        ),
        ("torchvision", "regnet_y_400mf", 64,
            "stem.2 32x32, trunk_output.block1 48x16, trunk_output.block2 104x8, "
            "trunk_output.block3 208x4, trunk_output.block4 440x2",
        ),
        ("torchvision", "swin_t", 64,
            "features.1 96x16, features.3 192x8, features.5 384x4, features.7 768x2",
        ),
        ("torchvision", "convnext_tiny", 64,
            "features.1 96x16, features.3 192x8, features.5 384x4, features.7 768x2",
        ),
        ("timm", "resnet18", 64,
            "maxpool 64x16, layer1 64x16, layer2 128x8, layer3 256x4, layer4 512x2",
        ),
        ("timm", "mobilevit_xxs", 64,
            "stages.0 16x32, stages.1 24x16, stages.2 48x8, stages.3 64x4, final_conv 320x2",
        ),
        ("timm", "efficientvit_b0", 64,
            "stem.res0 8x32, stages.0 16x16, stages.1 32x8, stages.2 64x4, stages.3 128x2",
        ),
        ("transformers", "resnet", 64,
            "resnet.embedder 64x16, resnet.encoder.stages.0 256x16, resnet.encoder.stages.1 512x8, "
            "resnet.encoder.stages.2 1024x4, resnet.encoder.stages.3 2048x2",
        ),
    ],
)  # fmt: skip
def test_networks_whose_resolution_falls(source: str, id_: str, side: int, expected: str) -> None:
    model = make(source, id_, side)
    assert ", ".join(f"{tap.name} {tap.channels}x{tap.side}" for tap in model.taps) == expected
    assert {tap.kind for tap in model.taps} == {"map"}
    for tap, info in zip(model(images(model, 2)).taps, model.taps, strict=True):
        assert tap.semantic.shape == (2, info.channels)
        assert tap.spatial.shape == (2, info.channels, info.side, info.side)


def raw(model: PoolModel, module: str, x: Tensor) -> Tensor:
    """Return what a module of the library's model gives."""
    found: list[Any] = []
    handle = model.net.get_submodule(f"model.{module}").register_forward_hook(lambda m, a, out: found.append(out))
    model.net.get_submodule("model")(x)
    handle.remove()
    output: Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
    return output


@pytest.mark.parametrize(
    ("family", "prefix", "class_token"),
    [
        ("vit", 1, True),
        ("deit-distilled", 2, True),
        ("registers", 5, True),
        ("beit", 1, True),
        ("timm-registers", 4, False),
    ],
)
def test_tokens_that_are_no_patches_stay_out_of_maps(family: str, prefix: int, class_token: bool) -> None:
    model = tiny(family)
    x = images(model)
    tap, info = model(x).taps[1], model.taps[1]
    tokens = raw(model, info.name, x)
    assert tokens.shape[1] == prefix + info.side**2
    assert info.kind == ("tokens" if class_token else "map")
    patches = tokens[:, prefix:]
    torch.testing.assert_close(tap.spatial[:, :, 1, 0], patches[:, info.side])
    torch.testing.assert_close(tap.semantic, tokens[:, 0] if class_token else patches.mean(1))


WIDTH = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
ROWS_AND_COLUMNS: list[tuple[str, str, dict[str, Any], str, int]] = [
    ("timm", "vit_tiny_patch16_224", {"embed_dim": 12, "depth": 2, "num_heads": 3}, "patch_embed", 1),
    ("timm", "vit_medium_patch16_reg4_gap_256", {"embed_dim": 12, "depth": 2, "num_heads": 3}, "patch_embed", 4),
    ("timm", "deit_tiny_distilled_patch16_224", {"embed_dim": 12, "depth": 2, "num_heads": 3}, "patch_embed", 2),
    ("transformers", "deit", WIDTH, "deit.embeddings.patch_embeddings", 2),
    ("transformers", "beit", WIDTH, "beit.embeddings.patch_embeddings", 1),
    ("transformers", "dinov2_with_registers", WIDTH, "dinov2_with_registers.embeddings.patch_embeddings", 5),
]


@pytest.mark.parametrize(("source", "id_", "args", "embedding", "prefix"), ROWS_AND_COLUMNS)
@pytest.mark.parametrize(("patch", "grid"), [([4, 8], (8, 4)), ([8, 4], (4, 8)), ([16, 2], (2, 16))])
def test_patches_that_are_no_squares(
    source: str, id_: str, args: dict[str, Any], embedding: str, prefix: int, patch: list[int], grid: tuple[int, int]
) -> None:
    """33 tokens were once read as five rows and columns behind eight tokens of another kind."""
    model = make(source, id_, 32, args={**args, "patch_size": patch})
    assert [(tap.grid, tap.side) for tap in model.taps] == [(grid, min(grid))] * 2
    x = images(model, 2)
    tap, tokens = model(x).taps[0], raw(model, model.taps[0].name, x)
    assert tap.spatial.shape[2:] == grid and tokens.shape[1] == prefix + grid[0] * grid[1]
    torch.testing.assert_close(tap.spatial.flatten(2).transpose(1, 2), tokens[:, prefix:])
    # A patch of the image is where its token is in the map.
    y = x.clone()
    row, column = grid[0] - 1, 1
    y[:, :, row * patch[0] : (row + 1) * patch[0], column * patch[1] : (column + 1) * patch[1]] += 1
    changed = (raw(model, embedding, x) != raw(model, embedding, y)).any(-1).any(0)
    assert changed[-grid[0] * grid[1] :].nonzero().flatten().tolist() == [row * grid[1] + column]


@pytest.mark.parametrize(
    ("source", "id_", "args"), [("timm", "swin_tiny_patch4_window7_224", {}), ("transformers", "swin", {})]
)
def test_maps_of_stages_that_are_no_squares(source: str, id_: str, args: dict[str, Any]) -> None:
    sizes = {"embed_dim": 6, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
    model = make(source, id_, 32, args={**sizes, "patch_size": [2, 4]})
    assert [tap.grid for tap in model.taps] == [(16, 8), (8, 4)]
    assert [tap.spatial.shape[2:] for tap in model(images(model, 2)).taps] == [(16, 8), (8, 4)]


def test_tokens_are_those_of_the_convolution_that_reads_the_image() -> None:
    """Nine tokens of a grid of 2 x 2 are four behind five, not three rows and columns."""

    class Tokens(nn.Module):
        def __init__(self, patch: int | tuple[int, int], more: int) -> None:
            super().__init__()
            self.patches, self.more = nn.Conv2d(3, 4, patch, patch), more
            self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([tokens.new_zeros(len(x), self.more, 4), tokens], 1)
            out: Tensor = self.head(self.blocks(tokens).mean(1))
            return out

    for patch, more, grid in ((4, 5, (2, 2)), (2, 0, (4, 4)), ((2, 4), 8, (4, 2)), ((4, 1), 16, (2, 8))):
        places = find_feature_layers(Tokens(patch, more), torch.zeros(2, 3, 8, 8), Hints(heads=("head",)))
        assert [(p.module, p.grid, p.prefix) for p in places] == [(f"blocks.{k}", grid, more) for k in range(2)]
    with pytest.raises(
        ModelError, match=r"'blocks.0' gives \(2, 36, 4\), which is .* of 4 x 2 or half of that"
    ) as caught:
        find_feature_layers(Tokens((2, 4), 28), torch.zeros(2, 3, 8, 8), Hints(heads=("head",), modules=("blocks.0",)))
    assert "Leave taps out" in caught.value.hint


def test_maps_that_are_not_of_the_image_are_no_taps() -> None:
    """Where patches are no squares, squares are something else, such as weights of attention."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2)[..., :4].reshape(len(x), -1, 2, 2)

    body = (nn.Conv2d(3, 4, (2, 4), (2, 4)), nn.Conv2d(4, 4, 1), Square(), nn.Flatten(), nn.Linear(16, 2))
    places = find_feature_layers(nn.Sequential(*body), torch.zeros(2, 3, 8, 8), Hints(heads=("4",)))
    assert {place.grid for place in places} == {(4, 2)}


def test_networks_of_unlike_grids_are_aligned() -> None:
    from hmdc_hub.condenser.distillation import MutualDistillation

    args = {"embed_dim": 12, "depth": 2, "num_heads": 3, "patch_size": [4, 8]}
    models = [make("timm", "vit_tiny_patch16_224", 32, args=args), build(spec_of("convnet"), source_size=32)]
    distillation = MutualDistillation((models[0].taps, models[1].taps))
    assert distillation.side == 4
    assert bool(distillation(*(model(images(model, 2)) for model in models)).isfinite().all())


def test_maps_with_channels_last() -> None:
    model = tiny("timm-swin")
    x = images(model)
    out = raw(model, model.taps[0].name, x)
    tap = model(x).taps[0]
    assert out.shape == (4, 8, 8, 6) and tap.spatial.shape == (4, 6, 8, 8)
    torch.testing.assert_close(tap.spatial[:, :, 2, 3], out[:, 2, 3])
    torch.testing.assert_close(tap.semantic, out.mean((1, 2)))


def test_a_stage_that_ends_by_halving_is_tapped_before() -> None:
    assert shapes(tiny("swin")) == [
        ("swin.encoder.layers.0.blocks.0", "map", 6, 8),
        ("swin.encoder.layers.1.blocks.1", "map", 12, 4),
    ]


def test_modules_by_name() -> None:
    model = make("torchvision", "resnet18", taps=["layer4.1.conv1", "layer2"])
    assert shapes(model) == [("layer4.1.conv1", "map", 512, 2), ("layer2", "map", 128, 8)]
    twice = make("torchvision", "resnet18", taps=["layer2", "layer2"])
    assert len(twice.taps) == 2 and len(twice(images(twice)).taps) == 2
    assert [tap.name for tap in build(spec_of("convnet", taps=["block2"])).taps] == ["block2"]


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        (["layer9"], "it has no module 'layer9' to tap"),
        (["4.1"], "no module '4.1'"),
        (["avgpool.1"], "no module"),
        (["fc"], "its module 'fc' gives (2, 3), which is neither a map nor tokens of one"),
    ],
)
def test_names_that_cannot_be_tapped(taps: list[str], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        make("torchvision", "resnet18", taps=taps)
    assert words in str(caught.value)


def test_a_network_without_features() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ModelError, match="gives maps or tokens"):
        find_feature_layers(flat, torch.zeros(2, 3, 8, 8), Hints(heads=("3",)))


def test_modules_that_fold_the_batch_are_no_taps() -> None:
    """MobileViT folds patches into the batch inside its blocks: such outputs are not one row for each image."""
    model = make("transformers", "mobilevit", 64)
    assert all("transformer" not in tap.name for tap in model.taps)
    assert [tap.side for tap in model.taps] == [32, 16, 8, 4, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "id_", "side", "doing"),
    [
        ("torchvision", "vit_b_16", 40, "be built for"),
        ("timm", "vit_tiny_patch16_224", 40, "work on"),
        ("transformers", "dinov2", 30, "work on"),
        ("torchvision", "resnet18", 16, "work on"),
        ("timm", "mobilevit_xxs", 8, "work on"),
    ],
)
def test_sizes_that_do_not_work_are_refused(source: str, id_: str, side: int, doing: str) -> None:
    with pytest.raises(ModelError) as caught:
        make(source, id_, side)
    assert f"it cannot {doing} images of 3 x {side} x {side}: " in caught.value.message
    assert "Set another input_size" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "id_", "args", "words"),
    [
        ("torchvision", "resnet19", {}, "torchvision has no model with id 'resnet19'; it has"),
        ("torchvision", "convnext_", {}, "Names that begin like it: convnext_base, convnext_large"),
        ("timm", "vit_tinny_patch16_224", {}, "Did you mean vit_tiny_patch16_224?"),
        ("transformers", "bert", {}, "transformers has no model with id 'bert'"),
        ("transformers", "convnext", {"dephts": [1]}, "args.dephts is unknown: did you mean depths?"),
        ("transformers", "deit", {"num_labels": 3}, "args.num_labels cannot be set: it is the source's number"),
        ("transformers", "deit", {"trust_remote_code": True}, "models that bring their own code are not run"),
        (
            "timm",
            "vit_tiny_patch16_224",
            {"dpth": 2},
            "args.dpth is unknown: timm's vit_tiny_patch16_224 does not take",
        ),
        ("timm", "vit_tiny_patch16_224", {"pretrained": True}, "args.pretrained cannot be set"),
        ("torchvision", "resnet50", {"width": 2}, "this model takes no args"),
    ],
)
def test_wrong_names(source: str, id_: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        make(source, id_, 64, args=args)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="not installed") as caught:
        make("timm", "vit_tiny_patch16_224")
    assert "pip install timm" in (caught.value.hint or "")


@pytest.mark.parametrize("family", ["swin", "convnext", "timm-swin"])
def test_blank_areas_do_not_blow_up_gradients(family: str) -> None:
    """An area of the mean colour is zero after normalisation; a token of zeros makes layer norms singular."""
    model = tiny(family)
    x = images(model, 2)
    x[:, :, :8] = 0
    torch.autograd.backward(model.logits(x).square().sum())
    norms = [float(p.grad.norm()) for p in model.trained().values() if p.grad is not None]
    assert max(norms) < 1e4


def test_stems_of_other_networks_are_as_their_library_makes_them() -> None:
    model = tiny("vit")
    bias = model.net.get_parameter("model.vit.embeddings.patch_embeddings.projection.bias")
    assert not bias.any()


@pytest.mark.parametrize("count", [1, 2])
def test_train_last(count: int) -> None:
    args = {**TINY_VIT, "num_hidden_layers": 3}
    model = build(spec_of("vit", args=args, train=f"last_{count}"), seed=1)
    trained = {name.removeprefix("net.model.") for name in model.trained()}
    assert {"classifier.weight", "classifier.bias", "vit.layernorm.weight", "vit.layernorm.bias"} <= trained
    layers = {name.split(".")[2] for name in trained if name.startswith("vit.layers.")}
    assert layers == {str(i) for i in range(3 - count, 3)}
    assert not any("embeddings" in name for name in trained)


@pytest.mark.slow
def test_train_last_of_a_network_that_falls_in_resolution() -> None:
    model = make("torchvision", "resnet18", train="last_1")
    assert {name.split(".")[2] for name in model.trained()} == {"layer4", "fc"}
    with pytest.raises(ModelError, match="train: last_5 is not less than it has: 5 taps"):
        make("torchvision", "resnet18", train="last_5")


def test_threads_can_run_one_network_at_a_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = tiny("vit")
    batches = [images(model, 3, seed) for seed in range(16)]
    alone = [model(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model, batches))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert all(torch.equal(a.spatial, b.spatial) for a, b in zip(one.taps, other.taps, strict=True))


def test_nothing_is_kept_after_a_pass() -> None:
    import weakref

    model = tiny("resnet18")
    x = images(model, 2)
    held = weakref.ref(model(x).taps[0].spatial)
    assert held() is None


def test_a_hard_sigmoid_in_parts_is_the_library_s() -> None:
    from hmdc_hub.models.feature_layers import PlainHardsigmoid

    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(PlainHardsigmoid()(x), torch.nn.functional.hardsigmoid(x))
    model = tiny("mobilenet")
    assert not any(isinstance(m, nn.Hardsigmoid) for m in model.modules())
    x = images(model)
    import torchvision

    with rng.global_seed(rng.generator(1, "test")):
        plain = torchvision.models.mobilenet_v3_small(num_classes=3).eval()
    torch.testing.assert_close(model.logits(x), plain(x))


@pytest.mark.parametrize(
    ("source", "id_", "args", "words"),
    [
        ("transformers", "deit", {"hidden_size": "big"}, "hidden_size"),
        ("transformers", "deit", {"hidden_size": 12.5}, "hidden_size"),
        ("transformers", "deit", {"hidden_act": "foo"}, "foo"),
        ("transformers", "resnet", {"layer_type": "foo"}, "layer_type"),
        ("transformers", "deit", {"num_attention_heads": 0}, "cannot be built"),
        ("transformers", "deit", {"return_dict": False}, "it is no part of the architecture"),
        ("transformers", "timm_wrapper", {}, "set source: timm"),
        ("transformers", "clip", {}, "one part of a larger model"),
        ("timm", "resnet18", {"act_layer": "foo"}, "cannot be built"),
        ("timm", "resnet18", {"features_only": True}, "no part of the architecture"),
        ("timm", "resnet18", {"checkpoint_path": "x"}, "args.checkpoint_path cannot be set"),
    ],
)
def test_whatever_a_library_raises_is_one_sentence(source: str, id_: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        make(source, id_, 32, args=args)
    assert words in caught.value.message and "\n" not in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "id_", "args", "module", "count"),
    [
        ("transformers", "poolformer", {}, "poolformer.encoder.block", 4),
        ("transformers", "pvt_v2", {}, "pvt_v2.encoder", 4),
        ("transformers", "focalnet", {"embed_dim": 12, "depths": [1, 1]}, "focalnet.encoder.stages", 2),
        ("timm", "xcit_nano_12_p16_224", {}, "blocks", 12),
        ("torchvision", "shufflenet_v2_x0_5", {}, "", 5),
    ],
)
def test_families_with_customs_of_their_own(
    source: str, id_: str, args: dict[str, Any], module: str, count: int
) -> None:
    model = make(source, id_, 64, args=args)
    assert len(model.taps) == count and all(tap.name.startswith(module) for tap in model.taps)
    sides = [tap.side for tap in model.taps]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.slow
def test_train_last_goes_by_the_network_s_order() -> None:
    names = [
        set(make("torchvision", "resnet18", taps=taps, train="last_1").trained())
        for taps in (["layer2", "layer3"], ["layer3", "layer2"])
    ]
    assert names[0] == names[1] and {name.split(".")[2] for name in names[0]} == {"layer3", "layer4", "fc"}


@pytest.mark.parametrize(
    "bad",
    [
        {"args": {"hidden_act": "/home/alice/act"}},
        {"args": {"layer_types": ["a", "..\\b"]}},
        {"weights": "IMAGENET1K_V1", "revision": "main"},
        {"weights": "o/r", "revision": "/home/bob/x"},
        {"weights": "o/r", "revision": "~/x"},
    ],
)
def test_no_path_hides_in_args_or_revision(bad: dict[str, Any]) -> None:
    from hmdc_hub.schema import ModelSpec

    with pytest.raises(ValueError, match=r"args|revision"):
        ModelSpec(**{"name": "m", "source": "transformers", "id": "deit", **bad})


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("./a/b.safetensors", "local:b.safetensors"),
        ("/home/alice/ckpt/", "local:ckpt"),
        ("~alice", "local:file"),
        ("/", "local:file"),
        ("D:/alice/ckpt", "local:ckpt"),
        ("D:\\alice\\W.SAFETENSORS", "local:W.SAFETENSORS"),
        ("someone/model", "someone/model"),
        ("none", "none"),
    ],
)
def test_paths_become_base_names(path: str, published: str) -> None:
    from hmdc_hub.schema import ModelSpec

    spec = ModelSpec(name="m", source="timm", id="x", weights=path)
    assert spec.without_paths().weights == published
    assert spec.without_paths().without_paths() == spec.without_paths()
