"""Sets of other programs as safetensors, and what is never read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Value
from safetensors.torch import save_file
from torch import Tensor

from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.evaluator import evaluated_set, of_run
from hmdc_hub.schema.base import NAME
from hmdc_hub.store.files import sha256_file
from tests.evaluator import toys
from tests.evaluator.foreign_sets import LABELS, colour, folder, named, noise, parquet, tensors, work_in


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(tmp_path, monkeypatch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("keys", [("images", "labels"), ("data", "targets")])
def test_tensors_of_8_bits(tmp_path: Path, channels: int, last: bool, keys: tuple[str, str]) -> None:
    images = noise(channels=channels)
    stored = images.permute(0, 2, 3, 1).contiguous() if last else images
    others = {"mean": torch.zeros(3), "ids": torch.arange(9)}
    path = tensors("their set.v2.safetensors", **{keys[0]: stored, keys[1]: torch.tensor(LABELS)}, **others)
    found = evaluated_set(path, toys.source() if channels == 1 else colour())
    assert torch.equal(found.images, images) and found.labels.tolist() == LABELS
    assert found.images.is_contiguous() and found.exact is None
    assert (found.name, found.stored, found.factor) == ("their-set.v2", (2, 1, 2), 1)
    assert found.sha256 == sha256_file(tmp_path / path) and found.notes == ()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_whole_type(kind: torch.dtype) -> None:
    found = evaluated_set(tensors(images=noise(), labels=torch.tensor(LABELS, dtype=kind)), toys.source())
    assert found.labels.tolist() == LABELS and found.labels.dtype == torch.int64


def test_the_named_tensors_win_over_others() -> None:
    decoys = {"a": noise() // 2, "b": torch.tensor(LABELS) * 0, "soft": torch.rand(5, 3)}
    found = evaluated_set(tensors(images=noise(), labels=torch.tensor(LABELS), **decoys), toys.source())
    assert torch.equal(found.images, noise()) and found.labels.tolist() == LABELS


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
def test_floats_are_kept_and_rounded(kind: torch.dtype) -> None:
    images = (noise() / 255).to(kind)
    images[0, 0, 0, :4] = torch.tensor([0.4 / 255, 0.6 / 255, 1 + 9e-5, -9e-5])
    found = evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), toys.source())
    assert found.exact is not None and found.exact.dtype == torch.float32
    assert torch.equal(found.exact, images.float().clamp(0, 1))
    assert found.images[0, 0, 0, :4].tolist() == [0, 1, 255, 0]
    assert torch.equal(found.images[1:], noise()[1:])


@pytest.mark.parametrize("value", [1 + 2e-4, -2e-4, 255.0])
def test_floats_outside_0_to_1_are_no_pixels(value: float) -> None:
    images = noise() / 255
    images[3, 0, 1, 1] = value
    with pytest.raises(UsageError, match=re.escape(f"{value:.4g}")) as caught:
        evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), toys.source())
    assert "images reach from" in caught.value.message and "--normalised" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalised", [False, True])
def test_values_that_are_no_numbers(value: float, normalised: bool) -> None:
    images = noise() / 255
    images[3, 0, 1, 1] = value
    path = tensors(images=images, labels=torch.tensor(LABELS))
    with pytest.raises(UsageError, match="1 of 320 values of the images are NaN or infinite"):
        evaluated_set(path, toys.source(), normalised=normalised)


def test_normalised_pixels_are_mapped_back() -> None:
    real = colour()
    images = noise(channels=3)
    path = tensors(images=real.normalise(images), labels=torch.tensor(LABELS))
    found = evaluated_set(path, real, normalised=True)
    assert torch.equal(found.images, images) and found.exact is not None
    assert torch.allclose(found.exact, images / 255, atol=1e-5)
    assert found.notes == ("mapped back to pixels from 0.000 to 1.000, 0.0% of them clamped",)


@pytest.mark.parametrize(
    ("pixels", "beyond", "refused"),
    [(16, 0.5, False), (17, 0.5, True), (320, 0.019, False), (320, 0.021, True), (320, 5e-5, False)],
)
@pytest.mark.parametrize("above", [False, True])
def test_how_much_may_be_clamped(pixels: int, beyond: float, refused: bool, above: bool) -> None:
    real = toys.source()
    wanted = torch.full((5, 1, 8, 8), 0.5).flatten()
    wanted[:pixels] = 1 + beyond if above else -beyond
    wanted = wanted.reshape(5, 1, 8, 8)
    path = tensors(images=(wanted - real.mean) / real.std, labels=torch.tensor(LABELS))
    if refused:
        with pytest.raises(UsageError, match=r"[\d.]+% of the pixels lie more than 0.02 outside") as caught:
            evaluated_set(path, real, normalised=True)
        assert f"mean {real.info.mean[0]:.4g}" in caught.value.message
        return
    found = evaluated_set(path, real, normalised=True)
    assert found.exact is not None and torch.allclose(found.exact, wanted.clamp(0, 1), atol=1e-6)
    assert f", {pixels / 320 if beyond > 1e-4 else 0:.1%} of them clamped" in found.notes[0]


def test_normalised_applies_to_floats_that_are_no_pixels(tmp_path: Path) -> None:
    labels = torch.tensor(LABELS)
    toys.run(tmp_path / "run", toys.recipe())
    for path, words in (
        (tensors("a.safetensors", images=noise(), labels=labels), "holds uint8 images, which are pixels"),
        (tensors("b.safetensors", images=noise() / 255, labels=labels), "images from 0 to 1, as pixels are"),
        ("run/condensed.safetensors", "is a file of hmdc-hub"),
        (parquet("c.parquet", LABELS, Value("int64")), "only floats can be normalised"),
    ):
        with pytest.raises(UsageError, match="--normalised does not apply.*" + words):
            evaluated_set(path, toys.source(), normalised=True)


FIVE = torch.tensor(LABELS)


@pytest.mark.parametrize(
    ("named", "words", "hint"),
    [
        ({"labels": FIVE}, r"no tensor images and none of four dimensions; it holds labels \(5\)", "the name images"),
        ({"a": noise(), "b": noise(), "labels": FIVE}, "no tensor images and 2 of four.*a .5 x 1 x 8 x 8.", "images"),
        ({"images": noise()[:, 0], "labels": FIVE}, "images are 5 x 8 x 8, not N x channels", r"images\[:, None\]"),
        ({"images": noise()[None], "labels": FIVE}, "images are 1 x 5 x 1 x 8 x 8, not N", r"flatten\(0, 1\)"),
        ({"images": noise()[:0], "labels": FIVE[:0]}, "has no images: images is 0 x 1 x 8 x 8", ""),
        ({"images": noise(channels=4), "labels": FIVE}, "5 x 4 x 8 x 8; neither the second nor the last", "channels x"),
        ({"images": noise().int(), "labels": FIVE}, "images are int32; pixels are uint8", "uint8"),
        ({"images": noise() > 9, "labels": FIVE}, "images are bool; pixels are uint8", "uint8"),
        ({"images": noise()[:, :, :4], "labels": FIVE}, "4 x 8 pixels; those of a source are squares", "PNG"),
        ({"images": noise(side=16), "labels": FIVE}, "1 x 16 x 16, those of the source 1 x 8 x 8.*never resampled",
         "recipes cp.*source.size: 16"),
        ({"images": noise(side=16) / 255, "labels": FIVE}, "never resampled", "source.size: 16"),
        ({"images": noise(5, 3, 16), "labels": FIVE}, "3 x 16 x 16", "source.size: 16  and  source.channels: 3"),
        ({"images": noise(channels=3), "labels": FIVE}, "3 x 8 x 8, those of the source 1 x 8", "source.channels: 3"),
        ({"images": noise()}, r"no tensor labels, and none of 5 whole numbers; it holds images", "name labels"),
        ({"images": noise(), "a": FIVE, "b": FIVE}, "no tensor labels, and 2 of 5 whole numbers", "name labels"),
        ({"images": noise(), "labels": torch.rand(5, 3)}, "labels holds 5 x 3 floats, soft", r"labels.argmax\(1\)"),
        ({"images": noise(), "q": torch.rand(5, 3), "x": FIVE[:4]}, "q holds 5 x 3 floats, soft", r"q.argmax\(1\)"),
        ({"images": noise(), "labels": torch.eye(5).long()}, "labels holds 5 x 5 whole numbers instead of 5", "int64"),
        ({"images": noise(), "labels": FIVE[:4]}, "labels holds 4 whole numbers instead of 5 class", "int64"),
        ({"images": noise(), "labels": FIVE.float()}, "labels holds 5 values that are no whole", "int64"),
        ({"images": noise(), "labels": FIVE - 1}, "reach from -1 to 1, but the source has 3", "from 0: 'row0'"),
        ({"images": noise(), "labels": FIVE + 1}, "reach from 1 to 3, but the source has 3", "from 0: 'row0'"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_set(named: dict[str, Tensor], words: str, hint: str) -> None:
    path = tensors(**{key: value.clone() for key, value in named.items()})
    with pytest.raises(UsageError, match=words) as caught:
        evaluated_set(path, toys.source())
    assert re.search(hint, caught.value.hint)
    assert "theirs.safetensors" in caught.value.message


@pytest.mark.parametrize("ipc", [1, 3])
def test_a_file_of_ours_is_decoded(tmp_path: Path, ipc: int) -> None:
    recipe = toys.recipe(ipc=ipc, baselines=["exact"])
    run = toys.run(tmp_path / "run", recipe)
    ours, found = of_run(recipe, run), evaluated_set(str(run.condensed), toys.source())
    assert found.exact is not None and ours.exact is not None
    assert torch.equal(found.exact, ours.exact) and torch.equal(found.images, ours.images)
    assert torch.equal(found.labels, ours.labels)
    assert (found.factor, found.stored) == (2, (ipc,) * 3) == (ours.factor, ours.stored)
    assert (found.condense_hash, found.sha256) == (recipe.condense_hash(), sha256_file(run.condensed))
    other = evaluated_set(str(run.condensed), named("row2", "row0", "row1", "row3"))
    assert other.stored == (ipc, ipc, ipc, 0) and torch.equal(other.images, found.images)
    assert torch.equal(other.labels, torch.tensor([1, 2, 0])[found.labels])


def test_a_file_of_ours_that_does_not_fit(tmp_path: Path) -> None:
    run = toys.run(tmp_path / "run", toys.recipe())
    with pytest.raises(UsageError, match="1 x 8 x 8, those of the source 3 x 8 x 8"):
        evaluated_set(str(run.condensed), colour())
    with pytest.raises(UsageError, match="none of the source's"):
        evaluated_set(str(run.condensed), named("a", "b", "c"))
    save_file({"images": noise() / 255}, run.condensed, metadata={"hmdc": "{}"})
    with pytest.raises(FormatError, match="damaged"):
        evaluated_set(str(run.condensed), toys.source())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".npy", ".npz", ".pkl", ".pickle", ".PT", "-idx3-ubyte.gz"])
def test_files_of_arrays_are_never_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"it's{suffix}"
    path.write_bytes(b"x")
    for target in (path, tmp_path):
        with pytest.raises(UsageError, match="is not read: files of arrays can hold a pickle") as caught:
            evaluated_set(str(target), toys.source())
        assert "docs/your-data-and-model.md" in caught.value.hint


def test_arrays_are_seen_beside_other_files_but_not_beside_images() -> None:
    Path("theirs").mkdir()
    for name in ("images.npy", "labels.npy", "README.md"):
        Path("theirs", name).write_bytes(b"x")
    with pytest.raises(UsageError, match="theirs is not read: files of arrays can hold a pickle"):
        evaluated_set("theirs", toys.source())
    folder("theirs", ["row0", "row1"])
    Path("theirs/row1/0.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"row1/0\.png"):
        evaluated_set("theirs", toys.source())


def test_the_lines_of_the_hint_convert_arrays(tmp_path: Path) -> None:
    np.save("images.npy", noise().numpy())
    np.save("labels.npy", FIVE.numpy())
    with pytest.raises(UsageError, match="can hold a pickle") as caught:
        evaluated_set("images.npy", toys.source())
    exec("\n".join(line.strip() for line in caught.value.hint.splitlines()[1:]), {})
    found = evaluated_set("set.safetensors", toys.source())
    assert torch.equal(found.images, noise()) and found.labels.tolist() == LABELS


def test_files_that_are_not_there_or_of_another_kind() -> None:
    with pytest.raises(NotFoundError, match="There is no file gone.safetensors"):
        evaluated_set("gone.safetensors", toys.source())
    Path("set.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="set.zip is a .zip; of files, .parquet and .safetensors can be read"):
        evaluated_set("set.zip", toys.source())
    Path("bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(UsageError, match="bad.safetensors cannot be read as safetensors"):
        evaluated_set("bad.safetensors", toys.source())
    Path("only").mkdir()
    tensors("only/theirs.safetensors", images=noise(), labels=FIVE)
    with pytest.raises(UsageError, match="only is a folder that holds no images") as caught:
        evaluated_set("only", toys.source())
    assert "only/theirs.safetensors" in caught.value.hint


def test_options_that_do_not_apply() -> None:
    path, table_path = tensors(images=noise(), labels=FIVE), parquet("theirs.parquet", LABELS, Value("int64"))
    given: list[dict[str, Any]] = [{"config": "ipc10"}, {"revision": "main"}]
    for options in given:
        option = "--" + next(iter(options))
        with pytest.raises(UsageError, match=f"{option} does not apply to a file"):
            evaluated_set(path, toys.source(), **options)
        with pytest.raises(UsageError) as caught:
            evaluated_set(table_path, toys.source(), **options)
        assert caught.value.hint == f"Leave {option} out."


@pytest.mark.parametrize(
    ("stem", "name"),
    [("DC_cifar10.v1", "DC_cifar10.v1"), ("my set (2)", "my-set-2-"), ("_x", "x"), ("äöü", "set"), ("-.-", "set")],
)
def test_names_fit_where_names_are_used(stem: str, name: str) -> None:
    found = evaluated_set(tensors(f"{stem}.safetensors", images=noise(), labels=FIVE), toys.source()).name
    assert found == name and re.fullmatch(NAME, found)
