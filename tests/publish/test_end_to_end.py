"""The whole road with the real command and the unpatched clients: condense, push, load as a stranger does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import LocalHub
from tests.publish.pushing import prepare

RECIPE = """\
description: Digits, {ipc} per class
source: {{id: "builtin:digits", size: 8, channels: 1}}
pool:
  - {{name: mlp_a, source: builtin, id: mlp, args: {{depth: 1, width: 8}}}}
  - {{name: conv_a, source: builtin, id: convnet, args: {{depth: 1, width: 4}}}}
condense:
  ipc: {ipc}
  factor: 2
  resets: 1
  batch: 8
  cluster: {{candidates: 24, max_iter: 5}}
  networks: {{reset_every: 2, batches_per_step: 1, batch: 16}}
  projection: {{batches_per_step: 1}}
  augment: {{flip: false}}
evaluate:
  models: [{{name: mlp_b, source: builtin, id: mlp, args: {{depth: 1, width: 8}}}}]
  seeds: 2
  random_draws: 1
  epochs: 2
  augment: {{flip: false}}
publish: {{name: digits-hmdc, config: ipc{ipc}, license: cc-by-4.0}}
"""
PLANTED = {"WANDB_API_KEY": "planted-secret-0123456789abcdef", "AWS_SECRET_ACCESS_KEY": "planted/aws+9876543210zyxwvut"}

READER = """
import hashlib, json, sys
import datasets
datasets.disable_progress_bars()
tag, out = sys.argv[1], {}
def digest(rows):
    h = hashlib.sha256()
    for row in rows:
        h.update(row["image"].tobytes() + bytes([row["label"]]))
    return h.hexdigest()
load = datasets.load_dataset
default = load("ann/digits-hmdc", split="train")
out["default"] = [default.num_rows, digest(default), default.features["label"].names]
out["ipc2"] = [(d := load("ann/digits-hmdc", "ipc2", split="train")).num_rows, digest(d)]
out["scores"] = [load("ann/digits-hmdc", "scores", split="train").num_rows]
stream = load("ann/digits-hmdc", "ipc2", split="train", streaming=True)
out["streamed"] = digest(list(stream))
out["tagged"] = digest(load("ann/digits-hmdc", "ipc1", split="train", revision=tag))
import hmdc_hub
exact = hmdc_hub.load("ann/digits-hmdc", "ipc2")
out["exact"] = hashlib.sha256(exact.synthetic_images.numpy().tobytes()).hexdigest()
print(json.dumps(out))
"""


def command(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "hmdc_hub", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_from_two_recipes_to_a_stranger(hub: LocalHub, tmp_path: Path, child_environment: dict[str, str]) -> None:
    token = prepare(hub)
    work, author = tmp_path / "work", child_environment | PLANTED | {"HF_TOKEN": token}
    work.mkdir()
    said = []
    for ipc in (1, 2):
        (work / f"digits_ipc{ipc}.yaml").write_text(RECIPE.format(ipc=ipc))
        for line in (("condense", f"digits_ipc{ipc}.yaml"), ("push", "--yes")):  # push finds the newest run
            done = command(work, author, *line)
            assert done.returncode == 0, done.stderr
            said += [done.stdout, done.stderr]
    assert len(hub.commits("ann/digits-hmdc")) == 3

    # A secret planted as HF_TOKEN and in the environment is nowhere but in the header it belongs to.
    secrets = [token, *PLANTED.values()]
    for secret in secrets:
        assert not [text for text in said if secret in text]
        assert not [
            request.path for request in hub.requests if secret.encode() in request.body or secret in request.path
        ]
        assert not [name for name, data in hub.files("ann/digits-hmdc").items() if secret.encode() in data]
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert secret.encode() not in path.read_bytes(), path
    assert any(request.token == token for request in hub.requests)

    # A fresh process, an empty cache, no token.
    tag = next(name for name in hub.tags("ann/digits-hmdc") if name.startswith("ipc1-"))
    stranger = child_environment | {"HF_HOME": str(tmp_path / "strangers-home")}
    read = subprocess.run(
        [sys.executable, "-c", READER, tag], env=stranger, capture_output=True, text=True, cwd=tmp_path
    )
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)
    assert found["default"][0] == 40 and found["default"][2] == [str(n) for n in range(10)]
    assert found["ipc2"][0] == 80 and found["ipc2"][1] == found["streamed"]
    assert found["tagged"] == found["default"][1] == pixels(work / "runs" / "digits_ipc1")
    assert found["ipc2"][1] == pixels(work / "runs" / "digits_ipc2")
    cells = [json.loads((work / "runs" / f"digits_ipc{n}" / "scores.json").read_text())["cells"] for n in (1, 2)]
    assert found["scores"] == [sum(map(len, cells))]
    there = hub.files("ann/digits-hmdc")
    for n in (1, 2):
        run = work / "runs" / f"digits_ipc{n}"
        assert there[f"ipc{n}/condensed.safetensors"] == (run / "condensed.safetensors").read_bytes()
    assert found["exact"] == floats(work / "runs" / "digits_ipc2")

    # The other verbs of a reader, as the card names them.
    away = tmp_path / "away"
    away.mkdir()
    lines: list[tuple[str, ...]] = [
        ("verify", "ann/digits-hmdc"),
        ("pull", "ann/digits-hmdc"),
        ("verify", "digits-hmdc"),
        ("evaluate", "ann/digits-hmdc", "--config", "ipc2"),
        ("condense", "digits-hmdc/ipc1/recipe.yaml", "--dry-run"),
    ]
    for arguments in lines:
        done = command(away, stranger, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        if arguments[0] == "evaluate":
            assert "have exactly the published accuracy" in done.stdout, done.stdout


def pixels(run: Path) -> str:
    """Hash what a run's parquet shows, as READER does."""
    import hashlib

    from hmdc_hub.store.parquet import read_parquet

    images, labels = read_parquet(run / "train.parquet")
    digest = hashlib.sha256()
    for image, label in zip(images, labels, strict=True):
        digest.update(image[0].numpy().tobytes() + bytes([int(label)]))
    return digest.hexdigest()


def floats(run: Path) -> str:
    import hashlib

    from hmdc_hub.store.condensed import read_condensed

    return hashlib.sha256(read_condensed(run / "condensed.safetensors")[0].numpy().tobytes()).hexdigest()
