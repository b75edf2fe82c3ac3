"""Floats that something else than the source's statistics normalised, and honest ones that look unusual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmdc_hub.errors import UsageError
from hmdc_hub.evaluator import evaluated_set
from hmdc_hub.evaluator.pixels import USUAL, Statistics
from hmdc_hub.rng import generator
from hmdc_hub.sources import Source
from hmdc_hub.store.parquet import to_uint8
from tests.evaluator import toys
from tests.evaluator.foreign_sets import LABELS, colour, noise, tensors, work_in


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(tmp_path, monkeypatch)


def normalised_by(statistics: Statistics, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (statistics.mean, statistics.std))
    return (pixels - mean) / std


def source(channels: int) -> Source:
    return toys.source() if channels == 1 else colour()


def with_statistics(real: Source, mean: list[float], std: list[float]) -> Source:
    return replace(real, info=real.info.model_copy(update={"mean": mean, "std": std}))


def optimised(channels: int, spread: float, middle: float = 0.5) -> Tensor:
    """Make smooth images of any value, as an optimiser leaves them."""
    coarse = torch.randn(5, channels, 4, 4, generator=generator(3, "optimised"))
    return middle + spread * torch.nn.functional.interpolate(coarse, size=8, mode="bicubic")


def refused(images: Tensor, real: Source) -> UsageError:
    with pytest.raises(UsageError) as caught:
        evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), real, normalised=True)
    assert "theirs.safetensors: " in caught.value.message
    return caught.value


@pytest.mark.parametrize("statistics", USUAL, ids=lambda s: f"{s.name}-{len(s.mean)}")
@pytest.mark.parametrize("kind", ["real", "held in [0, 1]"])
def test_other_statistics_in_use_are_told_and_the_hint_undoes_them(statistics: Statistics, kind: str) -> None:
    channels = len(statistics.mean)
    real = source(channels)
    pixels = noise(channels=channels) / 255 if kind == "real" else optimised(channels, 0.5).clamp(0, 1)
    if kind == "real":
        pixels = pixels * 180 / 255 + 20 / 255  # neither black nor white anywhere
        pixels = (pixels * 255).round() / 255
    error = refused(normalised_by(statistics, pixels), real)
    assert "cannot have been normalised by the source's (mean" in error.message
    assert f"They fit {statistics.name} (mean {statistics.mean[0]:.4g}" in error.hint
    names: dict[str, Any] = {"torch": torch, "images": normalised_by(statistics, pixels)}
    exec(error.hint.splitlines()[1].strip(), names)
    found = evaluated_set(tensors(images=names["images"], labels=torch.tensor(LABELS)), real)
    assert torch.equal(found.images, to_uint8(pixels))


@pytest.mark.parametrize("channels", [1, 3])
def test_without_the_option_the_statistics_are_told_too(channels: int) -> None:
    images = normalised_by(next(s for s in USUAL if len(s.mean) == channels), noise(channels=channels) / 255)
    with pytest.raises(UsageError, match="images reach from -1 to 1; pixels are") as caught:
        evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), source(channels))
    assert "They fit those of most GANs" in caught.value.hint


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("option", [True, False])
def test_pixels_up_to_255_are_no_normalised_ones(channels: int, option: bool) -> None:
    images = noise(channels=channels).float()
    with pytest.raises(UsageError) as caught:
        evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), source(channels), normalised=option)
    assert "from 0 to 255: save images.round().to(torch.uint8)" in caught.value.hint


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [(1, 2, 3), (2, 3)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_images_standardised_one_by_one(channels: int, dims: tuple[int, ...], unbiased: bool) -> None:
    images = optimised(channels, 0.2)
    std = images.std(dims, keepdim=True, correction=int(unbiased))
    error = refused((images - images.mean(dims, keepdim=True)) / std, source(channels))
    assert "mean 0 and standard deviation 1 by itself" in error.hint


def test_what_is_far_outside_comes_with_the_statistics_that_would_fit() -> None:
    """Optimised images that were not held in [0, 1] prove nothing, but they rule the source's statistics out."""
    dark = with_statistics(toys.source(), [0.13], [0.31])
    error = refused(normalised_by(Statistics("", (0.5,), (0.5,)), optimised(1, 0.2)), dark)
    assert "of the pixels lie more than 0.02 outside" in error.message
    assert "these would fit: those of most GANs and many tutorials (mean 0.5, std 0.5)" in error.hint


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("spread", "middle"), [(0.02, 0.5), (0.1, 0.3), (0.25, 0.5)])
@pytest.mark.parametrize("held", [True, False])
def test_honest_sets_of_any_contrast_are_read(channels: int, spread: float, middle: float, held: bool) -> None:
    real, pixels = source(channels), optimised(channels, spread, middle)
    pixels = pixels.clamp(0, 1) if held else pixels.clamp(-0.3, 1.3)
    images = (pixels - real.mean.view(-1, 1, 1)) / real.std.view(-1, 1, 1)
    found = evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), real, normalised=True)
    assert found.exact is not None and torch.allclose(found.exact, pixels.clamp(0, 1), atol=1e-5)


def test_published_statistics_of_the_source_itself_are_its_own() -> None:
    """Rounded to four digits they are not quite those that are computed here."""
    real = colour()
    rounded = Statistics("", *(tuple(round(v, 4) for v in values) for values in (real.info.mean, real.info.std)))
    for pixels in (noise(channels=3) / 255, optimised(3, 0.4).clamp(0, 1)):
        path = tensors(images=normalised_by(rounded, pixels), labels=torch.tensor(LABELS))
        found = evaluated_set(path, real, normalised=True)
        assert int((found.images.int() - to_uint8(pixels).int()).abs().max()) <= 1


def test_a_source_may_have_the_statistics_that_are_in_use() -> None:
    real = with_statistics(colour(), [0.49139968, 0.48215841, 0.44653091], [0.24703223, 0.24348513, 0.26158784])
    cifar = next(s for s in USUAL if s.name == "those of CIFAR-10")
    pixels = noise(channels=3)
    path = tensors(images=normalised_by(cifar, pixels / 255), labels=torch.tensor(LABELS))
    assert torch.equal(evaluated_set(path, real, normalised=True).images, pixels)


def test_a_few_values_on_the_grid_by_chance_are_no_proof() -> None:
    """Seven greys, all of them whole numbers of 255 under mean and deviation 0.5 too."""
    real = with_statistics(toys.source(), [0.3], [0.25])
    greys = (torch.tensor([-0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7]) * 127.5).round() / 127.5 + 1 / 255
    images = greys[torch.arange(320) % 7].view(5, 1, 8, 8)
    found = evaluated_set(tensors(images=images, labels=torch.tensor(LABELS)), real, normalised=True)
    assert found.exact is not None and torch.allclose(found.exact, (images * 0.25 + 0.3).clamp(0, 1), atol=1e-6)
