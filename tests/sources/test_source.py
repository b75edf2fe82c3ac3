from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmdc_hub.sources import ClassSortedImages, Source, SourceFacts, make_source
from hmdc_hub.sources.source import STD_FLOOR, channel_statistics


def images(count: int, channels: int = 3, side: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (count, channels, side, side)).astype(np.uint8))


def source(channels: int = 3) -> Source:
    bank = ClassSortedImages.from_unsorted(images(6, channels), torch.tensor([2, 0, 2, 1, 0, 2]), 3)
    test = images(3, channels, seed=1)
    return make_source(
        bank,
        test,
        torch.tensor([0, 1, 2]),
        facts=SourceFacts("some/where", "hub", revision="f" * 40),
        class_names="abc",
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_a_bank_sorts_by_class_and_keeps_the_order_within(labels: list[int]) -> None:
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    bank = ClassSortedImages.from_unsorted(pixels, torch.tensor(labels), 5)
    assert bank.num_classes == 5
    assert sum(bank.counts) == len(labels)
    assert bank.labels.tolist() == sorted(labels)
    for c in range(5):
        expected = [k for k, label in enumerate(labels) if label == c]
        assert bank.of_class(c)[:, 0, 0, 0].tolist() == expected
        assert bank.counts[c] == len(expected)


def test_a_class_is_a_view() -> None:
    bank = source().train
    assert bank.of_class(2).data_ptr() == bank.images[bank.offsets[2]].data_ptr()
    assert (bank.side, bank.channels) == (4, 3)


def test_statistics_are_those_of_numpy_in_float64() -> None:
    pixels = images(50)
    mean, std = channel_statistics(pixels)
    unit = pixels.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, unit.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, unit.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_gets_the_least_standard_deviation() -> None:
    mean, std = channel_statistics(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == [0.2]
    assert std == [STD_FLOOR]


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_gives_zero_mean_and_unit_deviation_and_is_undone(channels: int) -> None:
    it = source(channels)
    x = it.normalise(it.train.images)
    assert x.dtype == torch.float32
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    torch.testing.assert_close(x, it.normalise(it.train.images.float() / 255))
    torch.testing.assert_close(it.denormalise(x), it.train.images.float() / 255, atol=1e-6, rtol=0)


def test_bounds_are_black_and_white_and_denormalise_clamps_to_them() -> None:
    it = source()
    low, high = it.bounds()
    assert low.shape == high.shape == (3, 1, 1)
    torch.testing.assert_close(low.expand(3, 4, 4), it.normalise(torch.zeros(3, 4, 4, dtype=torch.uint8)))
    torch.testing.assert_close(high.expand(3, 4, 4), it.normalise(torch.full((3, 4, 4), 255, dtype=torch.uint8)))
    assert it.denormalise(low - 1).max() == 0
    assert it.denormalise(high + 1).min() == 1


def test_info_is_complete() -> None:
    info = source().info
    assert (info.id, info.kind, info.revision) == ("some/where", "hub", "f" * 40)
    assert info.class_names == ["a", "b", "c"]
    assert info.train_counts == [2, 1, 3]
    assert (info.test_count, info.size, info.channels) == (3, 4, 3)


def test_fingerprint_is_sha256_of_classes_pixels_and_labels() -> None:
    it = source()
    head = b'{"classes":["a","b","c"],"test":[3,3,4,4],"train":[6,3,4,4]}'
    arrays = (it.train.images, it.train.labels, it.test_images, it.test_labels)
    expected = hashlib.sha256(head + b"".join(tensor.numpy().tobytes() for tensor in arrays)).hexdigest()
    assert it.info.fingerprint == expected


@pytest.mark.parametrize("change", ["train pixel", "test pixel", "test label", "class name", "class size"])
def test_fingerprint_changes_with(change: str) -> None:
    it = source()
    bank, test, labels, names = it.train, it.test_images.clone(), it.test_labels.clone(), list("abc")
    if change == "train pixel":
        bank = dataclasses.replace(bank, images=bank.images.clone())
        bank.images[0, 0, 0, 0] ^= 1
    elif change == "test pixel":
        test[0, 0, 0, 0] ^= 1
    elif change == "test label":
        labels[0] = 1
    elif change == "class name":
        names[0] = "z"
    else:
        bank = dataclasses.replace(bank, offsets=(0, 1, 3, 6))
    other = make_source(bank, test, labels, facts=SourceFacts("some/where", "hub"), class_names=names)
    assert other.info.fingerprint != it.info.fingerprint


def test_the_source_stays_itself_on_its_device() -> None:
    it = source()
    assert it.to("cpu").train is it.train
    assert it.to("meta").train.images.device.type == "meta"
    assert it.to("meta").test_labels.device.type == "meta"
