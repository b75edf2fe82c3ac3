"""Whole runs of the condenser on tiny things: results, resuming, damage, divergence."""

from __future__ import annotations

import errno
import io
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmdc_hub import multi_formation
from hmdc_hub.condenser import condense
from hmdc_hub.condenser.cost import AtOnce
from hmdc_hub.errors import DivergedError, Interrupted, RunError
from hmdc_hub.events import Event, ImageGrid, ImageStep, Note, StopFlag
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import Encoding, ModelSpec, Recipe
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.parquet import read_parquet, to_uint8
from hmdc_hub.store.rundir import Journal, RunDir
from tests.condenser.running import CPU, digest, hmdc_of, run
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_recipe, tiny_source


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run(tmp_path_factory.mktemp("unbroken"), tiny_recipe())


def test_results(unbroken: RunDir) -> None:
    images, labels, header = read_condensed(unbroken.condensed)
    assert images.shape == (10, 1, 8, 8) and labels.tolist() == list(range(10))
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    start, _, _ = read_condensed(unbroken.initialisation)
    assert not torch.equal(start, images), "condensing moved nothing"
    assert header.condense_hash == tiny_recipe().condense_hash()
    pixels, decoded_labels = read_parquet(unbroken.parquet)
    assert pixels.shape == (40, 1, 8, 8) and decoded_labels.tolist() == [c for c in range(10) for _ in range(4)]
    info = json.loads(unbroken.info.read_text())
    assert info["tensors_sha256"] == sha256_file(unbroken.condensed)
    assert info["parquet_sha256"] == sha256_file(unbroken.parquet)
    assert info["synthetic_images"] == 10 and info["training_images"] == 40 and info["image_steps"] == 6
    assert len(unbroken.log.read_text().splitlines()) == 6


def test_same_recipe_same_bytes(unbroken: RunDir, tmp_path: Path) -> None:
    assert digest(run(tmp_path, tiny_recipe())) == digest(unbroken)


def test_the_way_of_encoding_decides_what_the_same_real_images_become(unbroken: RunDir, tmp_path: Path) -> None:
    """Nearest tiles leave the range of pixels, and are clamped to it."""
    real, labels = tiny_source().train, range(10)
    chosen = dict[Encoding, list[list[int]]]()
    for method in ("antialias", "least-squares"):
        where = run(tmp_path / method, tiny_recipe(encode=method))
        start, _, _ = read_condensed(where.initialisation)
        chosen[method] = []
        for label in labels:
            tiles = start[label, 0].unfold(0, 4, 4).unfold(1, 4, 4).flatten(0, 1).flatten(1)
            images = (real.of_class(label).float() / 255).repeat_interleave(4, 0)
            encoded = multi_formation.encode(images.view(-1, 4, 1, 8, 8), 2, 8, method).clamp(0, 1)
            distances, found = (tiles[:, None] - encoded[:, 0, 0, :4, :4].flatten(1)).norm(dim=2).min(1)
            assert float(distances.max()) < 1e-6  # torch.cdist is off by more: it multiplies matrices
            chosen[method].append(found.tolist())
    assert chosen["antialias"] == chosen["least-squares"]
    assert digest(RunDir(tmp_path / "antialias")) == digest(unbroken)
    assert digest(RunDir(tmp_path / "least-squares"))[0] != digest(unbroken)[0]


def test_pictures_of_the_images_so_far_change_nothing(unbroken: RunDir, tmp_path: Path) -> None:
    events: list[Event] = []
    directory = RunDir(tmp_path)
    condense(tiny_recipe(), tiny_source(), directory, device=CPU, callback=events.append, image_grids=True)
    assert digest(directory) == digest(unbroken)
    grids = [event for event in events if isinstance(event, ImageGrid)]
    assert [grid.caption for grid in grids] == [f"synthetic images after {n} of 6 image steps" for n in (0, 3, 6)]
    picture = Image.open(io.BytesIO(grids[-1].png))
    assert picture.format == "PNG" and picture.size == (8, 10 * (8 + 1) - 1)
    pixels = torch.from_numpy(np.array(picture.convert("L")))
    stored, _, _ = read_condensed(directory.condensed)
    assert torch.equal(pixels[:8, :8], to_uint8(stored)[0, 0])


def test_another_seed_another_set(unbroken: RunDir, tmp_path: Path) -> None:
    other = tiny_recipe().model_copy(update={"seed": 1})
    assert digest(run(tmp_path, other))[1] != digest(unbroken)[1]


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", range(1, 6))
def test_stopped_anywhere_and_resumed(unbroken: RunDir, tmp_path: Path, stop_after: int) -> None:
    stop = StopFlag()

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == stop_after:
            stop.signal_number = 15

    with pytest.raises(Interrupted, match=f"after image step {stop_after} of 6") as caught:
        run(tmp_path, tiny_recipe(), callback, stop)
    assert caught.value.signal_number == 15
    assert not RunDir(tmp_path).info.exists()
    seen: list[int] = []
    directory = run(tmp_path, tiny_recipe(), lambda e: seen.append(e.done) if isinstance(e, ImageStep) else None)
    assert seen == list(range(stop_after + 1, 7)), "resumed at exactly the next step"
    assert digest(directory) == digest(unbroken)
    assert [json.loads(line)["done"] for line in directory.log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_stopped_with_fewer_images_in_a_class_than_in_a_batch(tmp_path: Path) -> None:
    recipe, stop = tiny_recipe(batch=1000), StopFlag()

    def callback(event: Event) -> None:
        stop.signal_number = 15 if isinstance(event, ImageStep) else 0

    with pytest.raises(Interrupted):
        run(tmp_path / "a", recipe, callback, stop)
    assert digest(run(tmp_path / "a", recipe)) == digest(run(tmp_path / "b", recipe))


class Killed(BaseException):
    """Like kill -9: nothing gets to clean up."""


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(unbroken: RunDir, tmp_path: Path) -> None:
    chance = random.Random(0)  # noqa: S311
    for _ in range(5):
        left = chance.randint(1, 4)

        def callback(event: Event) -> None:
            nonlocal left
            left -= isinstance(event, ImageStep)
            if left == 0:
                raise Killed

        with pytest.raises(Killed):
            run(tmp_path, tiny_recipe(), callback)
            raise Killed
    assert digest(run(tmp_path, tiny_recipe())) == digest(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(unbroken: RunDir, tmp_path: Path, damage: str) -> None:
    directory = run(tmp_path, tiny_recipe())
    checkpoints = sorted(directory.checkpoints.iterdir())
    assert [path.name for path in checkpoints] == ["000001-000000.safetensors", "000002-000000.safetensors"]
    data = bytearray(checkpoints[1].read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    else:
        data[-1] ^= 1
    checkpoints[1].write_bytes(data)
    directory.info.unlink()
    directory.condensed.unlink()
    notes: list[str] = []
    steps: list[int] = []

    def callback(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        elif isinstance(event, ImageStep):
            steps.append(event.done)

    run(tmp_path, tiny_recipe(), callback)
    assert "000002-000000.safetensors cannot be used" in notes[0]
    assert steps == [4, 5, 6]
    assert digest(directory) == digest(unbroken)


HALF = b'{"outer": 0, "inner": 1, "do'
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no UTF-8": lambda log: log + b"\xff\xfe\x00\x80\n",
    "no objects": lambda log: b"[1]\n7\nnull\n" + log,
    "no number": lambda log: log.replace(b'"done": 2', b'"done": "two"'),
    "true": lambda log: log.replace(b'"done": 1', b'"done": true'),
    "no step": lambda log: log.replace(b'"done": 1', b'"done": -1'),
    "deep": lambda log: log + b"[" * 100_000 + b"\n",
    "huge number": lambda log: log + b'{"done": ' + b"9" * 10_000 + b"}\n",
    "half a line": lambda log: log + HALF,
    "nothing": lambda log: b"",
    "zeros": lambda log: bytes(len(log)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*DAMAGE, "a folder", "a link to nothing", "a pipe"])
def test_no_log_keeps_a_run_from_going_on(unbroken: RunDir, tmp_path: Path, kind: str) -> None:
    stop, notes = StopFlag(), list[str]()

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == 3:
            stop.signal_number = 15
        if isinstance(event, Note):
            notes.append(event.text)

    with pytest.raises(Interrupted):
        run(tmp_path, tiny_recipe(), callback, stop)
    log = RunDir(tmp_path).log
    before = log.read_bytes()
    if kind in DAMAGE:
        log.write_bytes(DAMAGE[kind](before))
    else:
        log.unlink()
        if kind == "a folder":
            log.mkdir()
            (log / "mine").touch()
        elif kind == "a pipe":
            os.mkfifo(log)
        else:
            log.symlink_to(tmp_path / "elsewhere" / "log")
    stop.signal_number = 0
    run(tmp_path, tiny_recipe(), lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    assert digest(RunDir(tmp_path)) == digest(unbroken)
    steps = [json.loads(line)["done"] for line in log.read_bytes().splitlines()]
    missing = {"no number": {2}, "true": {1}, "no step": {1}, "nothing": {1, 2, 3}, "zeros": {1, 2, 3}}
    lost = missing.get(kind, set() if kind in DAMAGE else {1, 2, 3})
    assert steps == [step for step in range(1, 7) if step not in lost]
    told = [text for text in notes if "log.jsonl" in text]
    assert len(told) == (kind != "nothing"), told
    if kind not in DAMAGE:
        assert "cannot be read" in told[0] and len(list(tmp_path.glob("log.jsonl.damaged-*"))) == 1


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"done": 1}\n{"done": 2}\n')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space is left"):
        Journal(log, lambda event: None).truncate(1)
    assert log.read_bytes() == b'{"done": 1}\n{"done": 2}\n'


def test_divergence_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    wild = MLP | {"lr": {"condense": 1e30, "evaluate": 0.01}}
    recipe = Recipe.model_validate(RECIPE | {"pool": [CONVNET, wild]})
    with pytest.raises(DivergedError, match="not finite") as caught:
        run(tmp_path, recipe)
    assert "lr.condense" in caught.value.hint
    assert not RunDir(tmp_path).info.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"match": False},
        {"distill": False},
        {"balance": False},
        {"normalise": False, "images": {"lr": 1e-4}},
        {"initialisation": "random"},
        {"cluster": {"enabled": False}},
        {"cutmix": {"match": False, "train": False}},
        {"factor": 1},
        {"ipc": 3, "factor": 4, "batch": 8},
        {"networks": {"reset_every": 2, "batches_per_step": 0}, "projection": {"batches_per_step": 0}},
        {"resets": 1, "networks": {"reset_every": 1, "batches_per_step": 1, "batch": 5000}},
        {"distance": "cosine"},
        {"distance": "orthogonal"},
        {"views": 2},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_switch_changes_the_result(unbroken: RunDir, tmp_path: Path, change: dict[str, object]) -> None:
    directory = run(tmp_path, tiny_recipe(**change))
    assert sha256_file(directory.condensed) != sha256_file(unbroken.condensed)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [[CONVNET], [CONVNET, MLP, VIT]], ids=["one", "three"])
def test_pools_of_other_sizes(tmp_path: Path, pool: list[dict[str, object]]) -> None:
    recipe = Recipe.model_validate(RECIPE | {"pool": pool})
    losses: list[set[str]] = []
    run(tmp_path, recipe, lambda e: losses.append(set(e.losses)) if isinstance(e, ImageStep) else None)
    names = [ModelSpec.model_validate(model).name for model in pool]
    wanted = {f"match/{n}" for n in names} | {f"distill/{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :]}
    assert losses[0] == wanted


@pytest.mark.slow
def test_classes_take_turns() -> None:
    """Three of ten classes a step: each once before any again, and each counts its own steps."""
    recipe = tiny_recipe(classes_per_step=3, networks={"reset_every": 10, "batches_per_step": 1, "batch": 16})
    chosen: list[tuple[int, int]] = []
    hmdc = hmdc_of(recipe)
    real, steps = hmdc.real, hmdc.run()
    choose = real.real_batches

    def spy(model: PoolModel, labels: Sequence[int], key: tuple[int, int]) -> list[torch.Tensor]:
        chosen.extend((key[1], label) for label in labels)
        return choose(model, labels, key)

    real.real_batches = spy  # type: ignore[method-assign]
    drawn = [hmdc.classes_of_step(0, inner) for inner in range(10)]
    assert all(len(set(labels)) == 3 for labels in drawn)
    assert sorted(label for labels in drawn for label in labels) == sorted([*range(10)] * 3)
    before = hmdc.sizes[0].images.pixels.clone()
    next(steps)
    moved = [label for label in range(10) if not torch.equal(before[label], hmdc.sizes[0].images.pixels[label])]
    assert moved == drawn[0], "the others rest"
    for _ in range(9):
        next(steps)
    # cluster.every is 2: a class chooses its real batch at its own first and third step.
    turns = {label: [inner for inner, labels in enumerate(drawn) if label in labels] for label in range(10)}
    assert sorted(chosen) == sorted((inner, label) for label in range(10) for inner in turns[label][::2])
    assert hmdc.outer == 1, "and there is a reset"
    assert [hmdc.classes_of_step(1, inner) for inner in range(10)] != drawn


@pytest.mark.parametrize(
    ("device", "rest"),
    [("cpu", [[0, 1], [2, 3], [4, 5], [6], [8, 9]]), ("cuda", [[0], [1, 2], [3, 4], [5, 6], [8, 9]])],
    ids=["cpu", "gpu"],
)
def test_which_classes_are_computed_together(device: str, rest: list[list[int]]) -> None:
    """On a CPU neighbours, on a GPU any; all of them update the balance, none, or one."""
    hmdc, pairs = hmdc_of(tiny_recipe()), [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    hmdc.at_once, hmdc.block, hmdc.real.device = AtOnce(2, None, 0), 2, torch.device(device)
    assert hmdc.chunks(range(10)) == [(True, pair) for pair in pairs]
    hmdc.visits = [1] * 10
    assert hmdc.chunks(range(10)) == [(False, pair) for pair in pairs]
    hmdc.visits[7] = 0
    assert hmdc.chunks(range(10)) == [(True, [7]), *((False, few) for few in rest)]
    assert hmdc.chunks([]) == []


@pytest.mark.slow
def test_a_source_that_is_not_on_the_device_gives_the_same_bits() -> None:
    """Its images travel in place of their indices, one chunk or minibatch at a time."""
    there, away = (hmdc_of(tiny_recipe()) for _ in range(2))
    away.real.resident = False
    for _, (one, other) in zip(range(4), zip(there.run(), away.run(), strict=True), strict=False):
        assert one == other
    assert torch.equal(there.sizes[0].images.pixels, away.sizes[0].images.pixels)
    away.real.images = torch.zeros_like(away.real.images)
    batch = next(away.real.draw_minibatches("test", (0, 0), 1))
    assert batch.images.dtype == torch.uint8 and not batch.images.any(), "and are taken from where they are"
