"""Pretrained weights through the local Hub: commits, shards, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hmdc_hub.errors import AccessError, ModelError, NetworkError, NotFoundError
from hmdc_hub.models import settle
from hmdc_hub.schema import ModelSpec
from tests.hub import LocalHub
from tests.models.builders import build
from tests.models.checkpoints import (
    TIMM_VIT,
    assert_pretrained,
    body,
    failure,
    put,
    timm_vit,
    vit,
    written_timm,
    written_vit,
)


@pytest.fixture
def repo(hub: LocalHub, tmp_path: Path) -> str:
    """A model repository as `save_pretrained` and an upload make it."""
    folder = written_vit(tmp_path / "upload")
    return put(hub, "someone/tiny-vit", {path.name: path.read_bytes() for path in folder.iterdir()})


def test_a_hub_id_settles_on_a_commit_and_loads(repo: str, tmp_path: Path, hub: LocalHub) -> None:
    spec = settle(vit(repo))
    assert spec.revision is not None and len(spec.revision) == 40
    assert_pretrained(build(spec), tmp_path / "upload" / "model.safetensors")
    assert settle(spec) == spec
    by_id = settle(ModelSpec(name="v", source="transformers", id=repo, weights=repo))
    assert by_id.revision == spec.revision
    assert_pretrained(build(by_id), tmp_path / "upload" / "model.safetensors")
    # What is pushed later is another commit: the settled entry does not see it.
    hub.commit(repo, {"model.safetensors": b"something else"}, repo_type="model")
    assert_pretrained(build(spec), tmp_path / "upload" / "model.safetensors")


def test_timm_repositories(hub: LocalHub, tmp_path: Path) -> None:
    file = written_timm(tmp_path / "mine.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 7, "model_args": TIMM_VIT}
    repo = put(
        hub, "someone/timm-vit", {"model.safetensors": file.read_bytes(), "config.json": json.dumps(config).encode()}
    )
    named = build(settle(timm_vit(repo)), seed=1)
    by_id = build(settle(ModelSpec(name="t", source="timm", id=repo, weights=repo)), seed=1)
    assert torch.equal(body(named)["model.pos_embed"], load_file(file)["pos_embed"])
    assert all(torch.equal(value, body(by_id)[name]) for name, value in body(named).items())


def test_sharded_weights(hub: LocalHub, tmp_path: Path) -> None:
    whole = written_vit(tmp_path / "whole")
    state = load_file(whole / "model.safetensors")
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    files = {}
    for part, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / part)
        files[part] = (tmp_path / part).read_bytes()
    index = {"weight_map": {key: part for part, keys in parts.items() for key in keys}}
    repo = put(hub, "someone/sharded", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    assert_pretrained(build(settle(vit(repo))), whole / "model.safetensors")
    (first, *_) = files
    broken = put(
        hub, "someone/broken", {first: files[first], "model.safetensors.index.json": json.dumps(index).encode()}
    )
    assert "lacks model-00002-of-00002.safetensors" in failure(settle(vit(broken)))


def test_wrong_revisions_and_repositories(repo: str) -> None:
    with pytest.raises(NotFoundError, match="model someone/tiny-vit has no revision 'v9'"):
        settle(vit(repo, revision="v9"))
    with pytest.raises(NotFoundError, match="no Hub model someone/nothing"):
        settle(vit("someone/nothing"))
    assert "has no revision" in failure(vit(repo, revision="0" * 40), NotFoundError)


def test_pickles_and_remote_code_are_refused(hub: LocalHub) -> None:
    pickles = put(hub, "someone/pickles", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    text = failure(settle(vit(pickles)))
    assert "has no model.safetensors at revision" in text and "may run code" in text
    config = {"model_type": "mine", "auto_map": {"AutoModelForImageClassification": "mine.Model"}}
    code = put(hub, "someone/code", {"config.json": json.dumps(config).encode(), "mine.py": b"raise SystemExit"})
    text = failure(settle(ModelSpec(name="c", source="transformers", id=code)))
    assert "needs code from its repository, and remote code is never run" in text
    bert = put(hub, "someone/bert", {"config.json": b'{"model_type": "bert"}'})
    assert "no image classifier of type 'bert'" in failure(settle(ModelSpec(name="b", source="transformers", id=bert)))
    broken = put(hub, "someone/broken", {"config.json": b"{"})
    assert "config.json of someone/broken is damaged" in failure(
        settle(ModelSpec(name="b", source="transformers", id=broken))
    )


def test_a_repository_with_auto_map_and_a_known_type_is_built_from_our_own_code(hub: LocalHub, tmp_path: Path) -> None:
    folder = written_vit(tmp_path / "upload")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    files = {"config.json": json.dumps(config).encode(), "evil.py": b"raise SystemExit('ran')"}
    repo = put(hub, "someone/auto", files | {"model.safetensors": (folder / "model.safetensors").read_bytes()})
    model = build(settle(ModelSpec(name="a", source="transformers", id=repo, weights=repo)))
    assert type(model.net.get_submodule("model")).__module__.startswith("transformers.models.vit")


def test_two_repositories_in_one_entry(repo: str) -> None:
    text = failure(ModelSpec(name="v", source="transformers", id=repo, weights="someone/else", revision=None))
    assert "two repositories" in text


def test_offline(repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = settle(vit(repo))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = failure(spec, NetworkError)
    assert "HF_HUB_OFFLINE is set, and no cache has" in text and "someone/tiny-vit" in text
    with pytest.raises(ModelError, match="can only be read from the cache at a full commit, not 'main'"):
        settle(vit(repo))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    build(spec)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    build(spec)  # from the cache


def test_gated_and_private_repositories(hub: LocalHub, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create_repo("someone/private", private=True, repo_type="model")
    with pytest.raises(NotFoundError, match="no Hub model someone/private"):
        settle(vit("someone/private"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    with pytest.raises((AccessError, NotFoundError)) as caught:
        settle(vit(repo))
    assert "hf_x" not in str(caught.value)


def test_a_stranger_s_configuration_sets_nothing_but_the_architecture(hub: LocalHub, tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "pickle.bin")
    given = {"checkpoint_path": str(tmp_path / "pickle.bin"), "num_classes": 9, "pretrained": True, "in_chans": 1}
    config = {"architecture": "resnet10t", "model_args": given}
    repo = put(hub, "someone/sly", {"config.json": json.dumps(config).encode()})
    spec = ModelSpec(name="s", source="timm", id=repo, revision=hub._repo(repo, "model").branches["main"])
    model = build(spec, source_size=32, seed=1)
    theirs = torch.load(tmp_path / "pickle.bin", weights_only=True)["conv1.0.weight"]
    assert not torch.equal(body(model)["model.conv1.0.weight"], theirs) and model.net.channels == 3
