"""Pretrained weights: tiny checkpoints written by each library itself, read by path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file

from hmdc_hub import rng
from hmdc_hub.errors import ModelError, NetworkError
from hmdc_hub.models import settle
from hmdc_hub.schema import ModelSpec
from tests.models.builders import TINY_VIT, build
from tests.models.checkpoints import (
    assert_pretrained,
    body,
    failure,
    mobilenet,
    timm_vit,
    vit,
    written_mobilenet,
    written_timm,
    written_vit,
)

# by path


def test_transformers_folder(tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "mine")
    assert_pretrained(build(vit(folder)), folder / "model.safetensors")
    assert_pretrained(build(vit(folder / "model.safetensors")), folder / "model.safetensors")


def test_timm_file(tmp_path: Path) -> None:
    file = written_timm(tmp_path / "mine.safetensors")
    model = build(timm_vit(file))
    names = {name.removeprefix("model.") for name in body(model)}
    expected = load_file(file)
    model.reset(rng.generator(1, "test"))
    assert names < set(expected) and all(torch.equal(body(model)[f"model.{n}"], expected[n]) for n in names)


def test_torchvision_file(tmp_path: Path) -> None:
    file = written_mobilenet(tmp_path / "mine.safetensors")
    assert_pretrained(build(mobilenet(file)), file)


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_pretrained_running_statistics_are_not_calibrated(tmp_path: Path, batch_norm: str) -> None:
    file = written_mobilenet(tmp_path / "mine.safetensors")
    model = build(mobilenet(file, batch_norm=batch_norm), seed=1)
    model.calibrate([torch.randn(4, 3, 32, 32)])
    assert torch.equal(body(model)["model.features.0.1.running_mean"], load_file(file)["features.0.1.running_mean"])


def test_our_own_file(tmp_path: Path) -> None:
    spec = ModelSpec(name="c", source="builtin", id="convnet", args={"depth": 1, "width": 4})
    state = build(spec, num_classes=7, seed=5).net.state_dict()
    save_file(state, tmp_path / "c.safetensors")
    model = build(spec.model_copy(update={"weights": str(tmp_path / "c.safetensors")}), seed=1)
    assert torch.equal(model.net.state_dict()["blocks.0.conv.weight"], state["blocks.0.conv.weight"])


def test_a_folder_with_its_own_configuration(tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "mine", hidden_size=18)
    spec = ModelSpec(name="v", source="transformers", id=str(folder), weights=str(folder))
    model = build(spec)
    assert model.taps[0].channels == 18
    assert_pretrained(model, folder / "model.safetensors")


def test_reset_body_keeps_the_classifier_and_train_head_trains_it_alone(tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "mine")
    model = build(vit(folder, reset="body", train="head"), seed=1)
    head: Any = model.net.get_submodule("model.classifier")
    before = head.weight.clone()
    model.reset(rng.generator(2, "test"))
    assert torch.equal(head.weight, before)
    assert list(model.trained()) == ["net.model.classifier.bias", "net.model.classifier.weight"]


def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "mine")
    before = torch.get_rng_state()
    build(vit(folder), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_of_the_library_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = written_vit(tmp_path / "mine")
    capfd.readouterr()
    build(vit(folder))
    assert capfd.readouterr() == ("", "")


# shapes


def test_position_embeddings_are_interpolated(tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "mine")
    there = load_file(folder / "model.safetensors")["vit.embeddings.position_embeddings"]
    here = body(build(vit(folder, input_size=24), seed=1))["model.vit.embeddings.position_embeddings"]
    assert there.shape == (1, 5, 12) and here.shape == (1, 10, 12)
    assert torch.equal(here[:, 0], there[:, 0]), "the class token keeps its own"
    grid = there[0, 1:].T.reshape(1, 12, 2, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(3, 3), mode="bicubic").flatten(2)[0].T
    torch.testing.assert_close(here[0, 1:], wanted)


def test_timm_interpolates_too(tmp_path: Path) -> None:
    file = written_timm(tmp_path / "mine.safetensors")
    model = build(timm_vit(file, input_size=24), seed=1)
    assert body(model)["model.pos_embed"].shape == (1, 10, 12)


def test_grey_images_reach_colour_weights(tmp_path: Path) -> None:
    model = build(vit(written_vit(tmp_path / "mine")), channels=1, seed=1)
    assert model.net.channels == 3
    assert model(model.prepare(torch.randn(2, 1, 16, 16))).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 24}, "weights {} are of another shape: vit.embeddings.cls_token is 1 x 1 x 12 there and 1 x"),
        ({"num_hidden_layers": 3}, "weights {} lack vit.layers.2.attention"),
        ({"patch_size": 4}, "are of another shape: vit.embeddings.patch_embeddings.projection.weight is 12 x 3 x 8"),
    ],
)
def test_wrong_shapes(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = written_vit(tmp_path / "mine")
    text = failure(vit(folder, args={**TINY_VIT, **change}))
    assert words.format(folder) in text and "Make " in text


def test_fewer_layers_take_the_first_ones(tmp_path: Path) -> None:
    build(vit(written_vit(tmp_path / "mine"), args={**TINY_VIT, "num_hidden_layers": 1}))


# what is not there, or is no such thing


def test_files_that_are_not_there_or_not_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no file ./nothing.safetensors" in failure(vit("./nothing.safetensors"))
    Path("empty").mkdir()
    assert "./empty holds no model.safetensors" in failure(vit("./empty"))
    torch.save({}, "model.bin")
    assert "./model.bin is no .safetensors file, and others may run code" in failure(vit("./model.bin"))
    Path("bad.safetensors").write_bytes(b"\x01" * 50)
    assert "bad.safetensors is damaged" in failure(vit("./bad.safetensors"))
    save_file({}, "none.safetensors")
    assert "./none.safetensors lack vit" in failure(vit("./none.safetensors"))
    assert "neither none, a Hub id (owner/name) nor a path" in failure(vit("vit_tiny"))
    assert "./mine has no config.json" in failure(ModelSpec(name="v", source="transformers", id="./mine"))
    assert "stands for a file of whoever published" in failure(vit("local:mine.safetensors"))
    assert "stands for a file of whoever published" in failure(vit("none", id="local:mine"))


def test_a_folder_whose_index_names_other_places(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for parts in ({"a": "../secret.safetensors"}, {"a": 3}, {}, None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
        assert "index.json of" in failure(vit(folder)) and "is damaged" in failure(vit(folder))


def test_weights_that_torchvision_does_not_name() -> None:
    text = failure(mobilenet("IMAGENET1K_V9"))
    assert "no weights 'IMAGENET1K_V9' for mobilenet_v3_small" in text and "IMAGENET1K_V1" in text
    assert "DEFAULT" not in text


def test_named_weights_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    text = failure(mobilenet("IMAGENET1K_V1"), NetworkError)
    assert "HF_HUB_OFFLINE is set" in text and "mobilenet_v3_small-" in text


def test_named_weights_are_compared_with_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own loader, fed from a file: a download with another hash than its name says is refused."""
    weights = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    model = torchvision.models.mobilenet_v3_small()
    torch.save(model.state_dict(), tmp_path / "served")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "cache"))

    def download(url: str, target: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        assert url == weights.url and hash_prefix and url.endswith(f"-{hash_prefix}.pth")
        Path(target).write_bytes((tmp_path / "served").read_bytes())

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    built = build(mobilenet("IMAGENET1K_V1"), seed=1)
    assert torch.equal(body(built)["model.features.0.0.weight"], model.state_dict()["features.0.0.weight"])


def test_a_local_file_that_changed_is_refused(tmp_path: Path) -> None:
    file = written_timm(tmp_path / "mine.safetensors")
    spec = settle(timm_vit(file))
    assert spec.revision is not None and len(spec.revision) == 16
    build(spec)
    written_timm(file, qkv_bias=False)
    assert f"no longer what revision {spec.revision} says" in failure(spec)
    assert settle(spec) == spec


@pytest.mark.parametrize(
    ("id_", "config", "base"),
    [
        ("dinov2_with_registers", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
        ("vit", "ViTConfig", "ViTModel"),
        ("swin", "SwinConfig", "SwinModel"),
        ("convnextv2", "ConvNextV2Config", "ConvNextV2Model"),
        ("beit", "BeitConfig", "BeitModel"),
    ],
)
def test_checkpoints_of_a_body_alone(tmp_path: Path, id_: str, config: str, base: str) -> None:
    """Self-supervised models are published without a classifier, under names without their family's prefix."""
    known: dict[str, dict[str, Any]] = {
        "vit": TINY_VIT,
        "beit": {**TINY_VIT, "use_relative_position_bias": True},
        "dinov2_with_registers": {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8},
        "swin": {"patch_size": 2, "embed_dim": 6, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "convnextv2": {"patch_size": 2, "num_stages": 2, "hidden_sizes": [6, 12], "depths": [1, 1]},
    }
    args = known[id_]
    torch.manual_seed(4)
    body_alone = getattr(transformers, base)(getattr(transformers, config)(**args, image_size=16))
    body_alone.save_pretrained(tmp_path / "body")
    spec = ModelSpec(name="b", source="transformers", id=id_, args=args, weights=str(tmp_path / "body"))
    model = build(spec, seed=1)
    prefix = f"model.{id_}."
    theirs = {f"{prefix}{name}": value for name, value in body_alone.state_dict().items() if "pooler" not in name}
    ours = body(model)
    assert len(theirs) > 20 and set(ours) - set(theirs) <= {f"{prefix}pooler.layernorm.{p}" for p in ("weight", "bias")}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<html>", "is not the file that its name says"), (b"", "is not the file that its name says")],
)
def test_a_damaged_file_in_torch_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    weights = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / weights.url.rpartition("/")[2]).write_bytes(content)
    assert words in failure(mobilenet("IMAGENET1K_V1"))


def test_names_of_served_densenets(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torchvision.models.densenet121(num_classes=7).state_dict()
    served = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in served
    save_file(served, tmp_path / "d.safetensors")
    spec = ModelSpec(name="d", source="torchvision", id="densenet121", weights=str(tmp_path / "d.safetensors"))
    model = build(spec, source_size=32, seed=1)
    assert torch.equal(
        body(model)["model.features.denseblock4.denselayer16.conv2.weight"],
        state["features.denseblock4.denselayer16.conv2.weight"],
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
def test_names_that_training_loops_wrote(tmp_path: Path, prefix: str) -> None:
    state = load_file(written_timm(tmp_path / "plain.safetensors"))
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "wrapped.safetensors")
    model = build(timm_vit(tmp_path / "wrapped.safetensors"), seed=1)
    assert torch.equal(body(model)["model.pos_embed"], state["pos_embed"])


def test_half_precision_is_read_and_other_numbers_are_not(tmp_path: Path) -> None:
    state = load_file(written_timm(tmp_path / "w.safetensors"))
    for dtype in (torch.float16, torch.bfloat16):
        save_file({name: value.to(dtype) for name, value in state.items()}, tmp_path / "half.safetensors")
        assert body(build(timm_vit(tmp_path / "half.safetensors"), seed=1))["model.pos_embed"].dtype == torch.float32
    save_file({name: value.to(torch.int8) for name, value in state.items()}, tmp_path / "int.safetensors")
    assert "are no trained network: " in failure(timm_vit(tmp_path / "int.safetensors"))
    state["pos_embed"][0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    assert "pos_embed holds numbers that are not finite" in failure(timm_vit(tmp_path / "nan.safetensors"))


def test_two_position_embeddings_in_one_file(tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "mine")
    state = load_file(folder / "model.safetensors")
    state["ema.position_embeddings"] = torch.zeros(1, 5, 12)
    save_file(state, tmp_path / "two.safetensors")
    here = body(build(vit(tmp_path / "two.safetensors", input_size=24), seed=1))
    assert torch.equal(
        here["model.vit.embeddings.position_embeddings"][:, 0], state["vit.embeddings.position_embeddings"][:, 0]
    )


@pytest.mark.parametrize("name", ["~nobodyxyz/x.safetensors", "./" + "a" * 3000, "./\0"])
def test_paths_that_cannot_be(name: str) -> None:
    assert "path" in failure(vit(name)) or "there is no file" in failure(vit(name))
    with pytest.raises(ModelError, match="Pool entry vit"):
        settle(vit(name))


def test_an_index_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    assert "index.json of" in failure(vit(tmp_path))


def test_a_settled_local_entry_can_be_checked(tmp_path: Path) -> None:
    from hmdc_hub.condenser.check import check_model

    folder = written_vit(tmp_path / "mine")
    spec = settle(ModelSpec(name="v", source="transformers", id=str(folder), weights=str(folder), input_size=16))
    assert check_model(spec, torch.device("cpu")).error < 1e-4
