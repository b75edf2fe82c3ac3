"""`env`: facts for a bug report, none of them secret."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from tests.cli.conftest import Call


def test_text_and_json_say_the_same(call: Call) -> None:
    shown = json.loads(call("env", "--json").out)
    assert shown["hmdc-hub"] == "0.1.0" and shown["torch"] == torch.__version__.split("+")[0]
    assert shown["devices"][-1] == "cpu" and shown["torch threads"] == torch.get_num_threads()
    assert shown["python"] == sys.version.split()[0]
    lines = call("env").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(shown)


@pytest.mark.parametrize(("token", "said"), [("hf_secretsecret", True), (None, False)])
def test_login_without_the_token(call: Call, monkeypatch: pytest.MonkeyPatch, token: str | None, said: bool) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:hf_secretsecret@mirror.example/x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path.home() / ".cache" / "hub"))
    text = call("env", "--json").out
    shown = json.loads(text)
    assert shown["hub login"] is said and "secret" not in text + call("env").out
    assert shown["hub endpoint"] == "https://mirror.example/x" and shown["hub cache"] == "~/.cache/hub"


def test_a_broken_install_is_reported(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "hmdc_hub.pipeline.device", raising=False)
    done = call("env")
    assert done.status == 0 and "Error: " in done.out and "transformers" in done.out
