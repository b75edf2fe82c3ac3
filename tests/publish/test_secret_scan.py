"""What must never be published is found wherever it stands, and never repeated in the message."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmdc_hub.errors import UsageError
from hmdc_hub.publish.build import refuse_secrets

TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ2bC4dE6f"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def message(files: dict[str, bytes | Path]) -> str:
    with pytest.raises(UsageError) as caught:
        refuse_secrets(files)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TOKEN, "Hugging Face token"),
        ("ghp_" + "a1B2" * 9, "GitHub token"),
        ("AKIA" + "ABCD1234EFGH5678", "AWS access key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        (f"{Path.home()}/data/cats", "home folder"),
        (f"{Path.cwd()}/runs", "folder"),
    ],
)
def test_what_looks_like_a_secret_is_refused_without_repeating_it(text: str, kind: str) -> None:
    said = message({"good.txt": b"nothing here", "ipc1/recipe.yaml": f"description: x {text} y".encode()})
    assert "ipc1/recipe.yaml" in said and kind in said and text not in said


def test_the_token_in_force_is_found_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token-of-a-private-hub")
    said = message({"README.md": b"... an-odd-token-of-a-private-hub ..."})
    assert "your Hugging Face token" in said and "odd-token" not in said


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_token"])
def test_secrets_of_the_environment_are_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0123456789abcdefXYZ")
    said = message({"info.json": b'{"a": "0123456789abcdefXYZ"}'})
    assert name in said and "XYZ" not in said


def test_files_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x00\xff" + TOKEN.encode() + b"\x01")
    assert "a.safetensors" in message({"a.safetensors": tmp_path / "a"})


@pytest.mark.parametrize("value", ["short", "", str(Path.home())])
def test_short_values_and_paths_are_no_secrets(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOME_TOKEN", value)
    refuse_secrets({"README.md": f"a {value} b, hf_short, /usr/share/x".encode()})
