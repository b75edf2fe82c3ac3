"""CIFAR-10 as parquet files with JPEG bytes, where `HMDC_CIFAR10_DIR` says that it is."""

from __future__ import annotations

import os

import pytest
import torch

from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import describe, load_source

FOLDER = os.environ.get("HMDC_CIFAR10_DIR")
pytestmark = pytest.mark.skipif(not FOLDER, reason="HMDC_CIFAR10_DIR is not set")


@pytest.mark.slow
def test_cifar10() -> None:
    found = describe(str(FOLDER)).spec
    assert (found.image_column, found.label_column, found.size, found.channels) == ("img", "label", 32, 3)
    source = load_source(SourceSpec(id=str(FOLDER), size=32))
    assert source.info.class_names[:3] == ["airplane", "automobile", "bird"]
    assert len(set(source.train.counts)) == 1
    assert torch.bincount(source.test_labels).tolist() == [len(source.test_images) // 10] * 10
    # The means everybody uses, of the original pixels; JPEG copies and subsets come close.
    assert source.info.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)
    assert source.info.std == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.005)
