"""Every augmentation against vectors computed by the method's first program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hmdc_hub import augment

FOLDER = Path(os.environ.get("HMDC_REFERENCE_DIR") or Path(__file__).parent / "vectors")
VECTORS: dict[str, Tensor] = load_file(FOLDER / "augment" / "augmentations.safetensors")
CASES = sorted(name.removesuffix(".output") for name in VECTORS if name.endswith(".output"))
WHOLE_NUMBERS = {"crop", "cutout"}
PAIRS = WHOLE_NUMBERS | {"scale"}


def parameter(case: str, operation: str) -> Tensor:
    """Return the parameter as `draw` makes it: one row for all images, whole numbers where they are meant."""
    value = VECTORS[f"{case}.parameter"]
    value = value.to(torch.int64) if operation in WHOLE_NUMBERS else value
    return value[None] if operation in PAIRS else value


@pytest.mark.parametrize("rows", ["siamese", "per image"])
@pytest.mark.parametrize("case", CASES)
def test_operation_equals_the_reference(case: str, rows: str) -> None:
    operation = case.split("_")[0]
    images = VECTORS["input"]
    value = parameter(case, operation)
    if rows == "per image":
        value = value.expand(len(images), *value.shape[1:])
    if operation == "crop":
        got = augment.warp(images, augment.crop(value))
    elif operation in {"scale", "rotate"}:
        got = augment.warp(images, getattr(augment, operation)(value, images.shape[-1]))
    else:
        got = getattr(augment, operation)(images, value)
    torch.testing.assert_close(got, VECTORS[f"{case}.output"], rtol=0, atol=1e-5)


def test_all_operations_are_in_the_file() -> None:
    assert {case.split("_")[0] for case in CASES} == {
        "flip", "brightness", "saturation", "contrast", "crop", "scale", "rotate", "cutout"
    }  # fmt: skip
