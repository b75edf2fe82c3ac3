"""Scoring on a part of the train split."""

from __future__ import annotations

import pytest
import torch

from hmdc_hub.errors import UsageError
from hmdc_hub.evaluator import hold_out
from tests.evaluator.toys import source


def test_train_and_held_out_images_are_apart_and_all_there() -> None:
    real = source((20, 10, 2))
    made = hold_out(real, 0.25, 3)
    assert made.train.counts == (15, 8, 1) and made.test_labels.tolist() == [0] * 5 + [1] * 2 + [2]
    both = torch.cat([made.train.images, made.test_images])
    assert sorted(image.numpy().tobytes() for image in both) == sorted(
        image.numpy().tobytes() for image in real.train.images
    )
    for label in range(3):
        images = torch.cat([made.train.of_class(label), made.test_images[made.test_labels == label]])
        assert {i.numpy().tobytes() for i in images} == {i.numpy().tobytes() for i in real.train.of_class(label)}
    assert made.info == real.info and torch.equal(made.mean, real.mean)


def test_the_seed_decides_which() -> None:
    real = source()
    first, again, other = (hold_out(real, 0.5, seed).test_images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_class_keeps_an_image() -> None:
    assert hold_out(source((2, 2, 2)), 0.9, 0).train.counts == (1, 1, 1)


def test_a_class_of_one_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs two train images of every class; row2 has 1"):
        hold_out(source((5, 5, 1)), 0.5, 0)
