from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import load_source, resolve_source

FINGERPRINT = "02718236b1d471f2f457c4a27c2aea2e16d6c0f0013a1e89f503b42625b3fdf4"
"""At 8 x 8 nothing is resized and the split hangs on hashes, so that no library version may change this."""


def spec(**keys: object) -> SourceSpec:
    return SourceSpec.model_validate({"id": "builtin:digits", "size": 8, "channels": 1} | keys)


def test_the_split_is_fixed_and_alike_for_every_class() -> None:
    source = load_source(spec())
    assert source.info.fingerprint == FINGERPRINT
    test_counts = torch.bincount(source.test_labels).tolist()
    for train, test in zip(source.train.counts, test_counts, strict=True):
        assert round(0.2 * (train + test)) == test
    assert (sum(source.train.counts), sum(test_counts)) == (1438, 359)


def test_every_digit_is_there_once_with_values_up_to_255() -> None:
    source = load_source(spec())
    ours = torch.cat([source.train.images, source.test_images]).view(-1, 64).numpy()
    labels = torch.cat([source.train.labels, source.test_labels]).numpy()
    data = load_digits()
    theirs = np.rint(data.data * 255 / 16).astype(np.uint8)
    rows = {(pixels.tobytes(), int(label)) for pixels, label in zip(ours, labels, strict=True)}
    assert rows == {(pixels.tobytes(), int(label)) for pixels, label in zip(theirs, data.target, strict=True)}
    assert (ours.min(), ours.max()) == (0, 255)


def test_info_says_where_they_come_from() -> None:
    info = load_source(spec()).info
    assert (info.id, info.kind, info.revision, info.config) == ("builtin:digits", "builtin", None, None)
    assert (info.license, info.gated) == ("cc-by-4.0", False)
    assert info.class_names == list("0123456789")


@pytest.mark.parametrize(("size", "channels"), [(4, 1), (16, 3), (28, 1)])
def test_any_size_and_colour(size: int, channels: int) -> None:
    source = load_source(spec(size=size, channels=channels))
    assert source.train.images.shape == (1438, channels, size, size)
    assert source.test_images.shape == (359, channels, size, size)
    assert (source.train.images == source.train.images[:, :1]).all()
    small = load_source(spec())
    assert abs(source.info.mean[0] - small.info.mean[0]) < 0.02


def test_slices_divide_it_otherwise() -> None:
    source = load_source(spec(train_split="train[:50%]", test_split="train[50%:]+test"))
    assert sum(source.train.counts) == 719
    assert len(source.test_images) == 719 + 359
    assert source.info.test_split == "train[50%:]+test"


def test_resolving_fills_everything_that_applies_and_is_stable() -> None:
    resolved = resolve_source(spec())
    assert (resolved.train_split, resolved.test_split) == ("train", "test")
    assert (resolved.image_column, resolved.label_column) == ("image", "label")
    assert resolve_source(resolved) == resolved
    assert load_source(resolved).info == load_source(spec()).info


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"id": "builtin:mnist"}, "builtin:mnist is not built in"),
        ({"config": "small"}, "has no configurations"),
        ({"revision": "main"}, "not a dataset of the Hub"),
        ({"image_column": "img"}, "no column 'img'"),
        ({"label_column": "y"}, "no column 'y'"),
        ({"test_split": "validation"}, "no split 'validation'"),
        ({"test_split": "train[80%:]"}, "share 288 rows"),
    ],
)
def test_keys_that_do_not_apply_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        load_source(spec(**keys))
    assert caught.value.hint


@pytest.mark.slow
def test_digits_need_no_library_of_other_sources() -> None:
    code = (
        "import sys; from hmdc_hub.schema import SourceSpec; import hmdc_hub.sources as s\n"
        "early = [m for m in ('sklearn', 'datasets', 'huggingface_hub', 'torchvision') if m in sys.modules]\n"
        "s.load_source(SourceSpec(id='builtin:digits', size=8, channels=1))\n"
        "late = [m for m in ('datasets', 'huggingface_hub', 'torchvision') if m in sys.modules]\n"
        "print(early, late)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
