"""The levers of S: its schedule, its average, and what its variables are, against explicit variables."""

from __future__ import annotations

import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser import condense, parametrisation
from hmdc_hub.condenser.images import SyntheticImages
from hmdc_hub.condenser.matching import normalise
from hmdc_hub.condenser.parametrisation import Parametrisation, color_root
from hmdc_hub.errors import Interrupted
from hmdc_hub.events import Event, ImageGrid, ImageStep, StopFlag
from hmdc_hub.schema import ImagesSpec, Recipe
from hmdc_hub.sources import ClassSortedImages, Source, SourceFacts, load_source, make_source
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.parquet import to_uint8
from hmdc_hub.store.rundir import RunDir
from tests.condenser.running import CPU, digest, estimate_cost, hmdc_of, recipe_of, run
from tests.condenser.test_execution import on_meta
from tests.gpu import GPU, Gpu
from tests.meta import OnlyMeta
from tests.tiny import CONVNET, MLP, RECIPE, tiny_recipe, tiny_source

PYRAMID = {"parametrisation": "pyramid", "color": "decorrelated"}
ALL: dict[str, Any] = {"schedule": "cosine", "average": 0.9} | PYRAMID


def colored(images: Tensor | None = None) -> Source:
    """Make a source of two classes, 8 pixels, whose channels go together, unlike ones unlike."""
    if images is None:
        gen = rng.generator(0, "test colours")
        grey, own = torch.rand(20, 1, 8, 8, generator=gen), torch.rand(20, 3, 8, 8, generator=gen)
        images = (255 * (0.7 * grey + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1) * own)).byte()
    bank = ClassSortedImages.from_unsorted(images, torch.arange(len(images)) % 2, 2)
    facts = SourceFacts("some/colours", "hub", revision="f" * 40)
    return make_source(bank, images[:2], torch.tensor([0, 1]), facts=facts, class_names="ab")


@cache
def colored_digits() -> Source:
    """Make digits of which every channel is another shift, as a source of a run."""
    grey = load_source(tiny_recipe().source)
    train = grey.train.images[:, 0]
    images = torch.stack([train, train.roll(1, 1), (train // 2).roll(1, 2)], 1)
    facts = SourceFacts("some/digits", "hub", revision="f" * 40)
    bank = ClassSortedImages.from_unsorted(images, grey.train.labels, 10)
    return make_source(bank, images[:5], grey.train.labels[:5], facts=facts, class_names=grey.info.class_names)


def in_color(**condense: Any) -> Recipe:
    plain = RECIPE | {"source": RECIPE["source"] | {"channels": 3}, "pool": [CONVNET, MLP]}
    return Recipe.model_validate(plain | {"condense": RECIPE["condense"] | condense})


# hashes and files of recipes that say nothing of it


def test_defaults_are_left_out_of_files_and_hashes() -> None:
    defaults = {"schedule": "constant", "average": 0.0, "parametrisation": "pixels", "color": "rgb"}
    recipe = in_color(images=defaults)
    assert recipe.condense_hash() == in_color().condense_hash()
    assert not defaults.keys() & recipe.condense.images.model_dump().keys()
    hashes = {in_color(images={key: value}).condense_hash() for key, value in ALL.items()}
    assert len(hashes | {recipe.condense_hash()}) == 5


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"decorrelated, but source.channels is 1.*leave the key out"):
        tiny_recipe(images={"color": "decorrelated"})
    with pytest.raises(ValidationError, match=r"condense.factor 8 leaves tiles of one pixel.*smaller factor"):
        tiny_recipe(images={"parametrisation": "pyramid"}, factor=8)
    for key, value in (("average", 1.1), ("average", -0.1), ("schedule", "step")):
        with pytest.raises(ValidationError):
            ImagesSpec.model_validate({key: value})


# the optimiser: schedule and average


def three(spec: ImagesSpec) -> SyntheticImages:
    """Make three classes of one image of 8 x 8 pixels in the middle of the range."""
    low, high = tiny_source().bounds()
    return SyntheticImages(range(3), ((low + high) / 2).expand(3, 1, 1, 8, 8).clone(), tiny_source(), spec)


def gradients(count: int, *shape: int) -> list[Tensor]:
    return [torch.randn(shape, generator=rng.generator(i, "test gradients")) for i in range(count)]


def test_the_rate_falls_as_torch_s_schedule_does() -> None:
    images = three(ImagesSpec(lr=0.1, momentum=0.5, schedule="cosine"))
    wanted = images.pixels.clone().requires_grad_()
    optimizer = torch.optim.SGD([wanted], lr=0.1, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for i, gradient in enumerate(gradients(5, 3, 1, 1, 8, 8)):
        wanted.grad = gradient
        optimizer.step()
        scheduler.step()
        images.schedule(i / 5)
        images.step(torch.arange(3), gradient)
        torch.testing.assert_close(images.pixels, wanted.detach())


def test_a_run_passes_its_progress_on() -> None:
    recipe = tiny_recipe(images={"schedule": "cosine", "lr": 2.0})
    hmdc, seen = hmdc_of(recipe), list[float]()
    for _ in hmdc.run():
        seen.append(float(hmdc.sizes[0].images.rate))
    assert seen == pytest.approx([1 + math.cos(math.pi * i / 6) for i in range(6)])


def test_the_average_is_that_of_the_steps_of_each_class() -> None:
    """Against weights that are written out; class 1 takes part every other time, class 2 never."""
    images = three(ImagesSpec(lr=0.1, average=0.5))
    start, seen = images.pixels.clone(), {0: list[Tensor](), 1: list[Tensor]()}
    assert torch.equal(images.condensed, start), "before the first step there is nothing to average"
    for i, gradient in enumerate(gradients(3, 2, 1, 1, 8, 8)):
        rows = [0, 1] if i % 2 == 0 else [0]
        images.step(torch.tensor(rows), gradient[: len(rows)])
        for row in rows:
            seen[row].append(images.pixels[row].clone())
        if i == 0:
            assert torch.equal(images.condensed, images.pixels), "nothing of the initialisation is in it"
    one, two, three_ = seen[0]
    torch.testing.assert_close(images.condensed[0], (one + 2 * two + 4 * three_) / 7)
    torch.testing.assert_close(images.condensed[1], (seen[1][0] + 2 * seen[1][1]) / 3)
    assert torch.equal(images.condensed[2], start[2])


def test_an_average_of_one_is_the_mean() -> None:
    images, seen = three(ImagesSpec(lr=0.1, average=1.0)), list[Tensor]()
    for gradient in gradients(7, 3, 1, 1, 8, 8):
        images.step(torch.arange(3), gradient)
        seen.append(images.pixels.clone())
    torch.testing.assert_close(images.condensed, torch.stack(seen).mean(0))


def test_averaging_changes_nothing_of_the_way() -> None:
    plain, averaged = three(ImagesSpec(lr=0.1)), three(ImagesSpec(lr=0.1, average=0.9))
    assert plain.condensed is plain.pixels and plain.state().keys() == {"images", "momentum"}
    for gradient in gradients(4, 3, 1, 1, 8, 8):
        for images in (plain, averaged):
            images.step(torch.arange(3), gradient)
    assert torch.equal(plain.pixels, averaged.pixels) and torch.equal(plain.momentum, averaged.momentum)
    assert not torch.equal(averaged.condensed, averaged.pixels)


# what the variables are


def test_a_step_is_one_in_explicit_variables_by_hand() -> None:
    """One image of 2 x 2 pixels, levels of 1 and 2: what goes to the coarse one is the sum."""
    spec = tiny_recipe(factor=4, images={"parametrisation": "pyramid"}).condense
    (coarse,) = Parametrisation(spec, tiny_source(), CPU).levels
    assert torch.equal(coarse, torch.eye(4).repeat_interleave(2, 0)), "tiles of 8 / 4 pixels"
    gradient = torch.zeros(1, 1, 1, 8, 8)
    gradient[..., :2, :2] = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    gradient[..., 2, 2] = 8.0
    found = Parametrisation(spec, tiny_source(), CPU).direction(gradient, normalise)
    wanted = torch.zeros(8, 8)
    # Finest level: divided by 8. Coarse one: 2 and 8, divided by 8. The mean of both.
    wanted[:2, :2] = (torch.tensor([[1.0, 2.0], [3.0, -4.0]]) / 8 + 2 / 8) / 2
    wanted[2:4, 2:4] = 1 / 2
    wanted[2, 2] += 1 / 2
    torch.testing.assert_close(found[0, 0, 0], wanted, rtol=1e-5, atol=0)


class Explicit:
    """S = clamp(sum of enlarged levels), the levels optimised by torch; a clamp is taken up by the finest."""

    def __init__(self, recipe: Recipe, source: Source, pixels: Tensor) -> None:
        spec = recipe.condense
        self.factor, self.divide = spec.factor, spec.normalise
        tile = pixels.shape[-1] // spec.factor
        sides = [tile]
        if spec.images.parametrisation == "pyramid":
            sides += [side for side in (1, 2, 4, 8, 16) if side < tile]
        self.mix = torch.eye(pixels.shape[2], dtype=torch.float64)
        if spec.images.color == "decorrelated":
            root = torch.linalg.svd(covariance(source))
            self.mix = root.U @ root.S.sqrt().diag()
            norm = self.mix.abs().sum(1).max() if spec.normalise else root.S.max().sqrt()
            self.mix = self.mix / norm
        lead = pixels.shape[:3]
        self.levels = [torch.zeros(*lead, spec.factor * s, spec.factor * s, dtype=torch.float64) for s in sides]
        if not spec.normalise:  # enlargements of spectral norm one, from the map itself
            units = [torch.eye(s * s, dtype=torch.float64).view(s * s, 1, s, s) for s in sides]
            maps = [F.interpolate(u, size=(tile, tile), mode="bilinear", align_corners=True).flatten(1) for u in units]
            self.norms = [float(torch.linalg.matrix_norm(one, 2)) for one in maps]
        else:
            self.norms = [1.0] * len(sides)
        self.take_up(pixels.double())
        for level in self.levels:
            level.requires_grad_()
        # The mean over levels: each has its share of the rate.
        rate = spec.images.lr / len(sides)
        self.optimizer = torch.optim.SGD(self.levels, lr=rate, momentum=spec.images.momentum)

    def images(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for level, norm in zip(self.levels, self.norms, strict=True):
            n, ch, side = level.shape[0] * level.shape[1], level.shape[2], level.shape[-1] // self.factor
            tiles = level.view(n, ch, self.factor, side, self.factor, side).permute(0, 2, 4, 1, 3, 5)
            tile = self.levels[0].shape[-1] // self.factor
            big = F.interpolate(tiles.flatten(0, 2), size=(tile, tile), mode="bilinear", align_corners=True) / norm
            big = big.view(n, self.factor, self.factor, ch, tile, tile).permute(0, 3, 1, 4, 2, 5)
            total = total + big.reshape(*level.shape[:3], self.factor * tile, self.factor * tile)
        return torch.einsum("dc,...chw->...dhw", self.mix, total)

    @torch.no_grad()
    def take_up(self, pixels: Tensor) -> None:
        self.levels[0] += torch.einsum("dc,...chw->...dhw", self.mix.inverse(), pixels - self.images())

    def step(self, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        self.images().backward(gradient.double())  # type: ignore[no-untyped-call]
        for level in self.levels:
            assert level.grad is not None
            if self.divide:
                level.grad = level.grad / (level.grad.abs().amax((-2, -1), keepdim=True) + 1e-6)
        self.optimizer.step()
        clamped = self.images().detach().clamp(low, high)
        self.take_up(clamped)
        return clamped


def covariance(source: Source) -> Tensor:
    pixels = source.train.images.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(source.train.channels, -1)
    unit = (pixels / 255 - np.array(source.info.mean)[:, None]) / np.array(source.info.std)[:, None]
    return torch.from_numpy(np.cov(unit, bias=True))


@pytest.mark.parametrize("divide", [True, False], ids=["normalise", "plain"])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("images", [{"parametrisation": "pyramid"}, {"color": "decorrelated"}, PYRAMID, {}])
def test_steps_are_those_in_explicit_variables(images: dict[str, Any], factor: int, divide: bool) -> None:
    """Five steps with momentum, down a bowl whose middle is beyond the bounds, so that many pixels are clamped."""
    source = colored()
    recipe = in_color(images={"lr": 0.8, "momentum": 0.5} | images, factor=factor, normalise=divide)
    pixels = source.normalise(source.train.images[:6].float() / 255).view(2, 3, 3, 8, 8)
    explicit = Explicit(recipe, source, pixels)
    found = SyntheticImages(range(2), pixels.clone(), source, recipe.condense.images)
    mapped = Parametrisation(recipe.condense, source, CPU)
    target = 4 * gradients(1, 2, 3, 3, 8, 8)[0]
    for _ in range(5):
        gradient = found.pixels - target
        found.step(torch.arange(2), mapped.direction(gradient, normalise if divide else None))
        wanted = explicit.step(gradient, found.low.double(), found.high.double())
        torch.testing.assert_close(found.pixels.double(), wanted, rtol=0, atol=2e-5)
    assert 0.05 < float(found.clamped().mean()) < 0.95
    assert (found.pixels - pixels).abs().max() > 0.5


def test_without_levers_the_gradient_is_what_it_was() -> None:
    (gradient,) = gradients(1, 2, 3, 3, 8, 8)
    mapped = Parametrisation(in_color().condense, colored(), CPU)
    assert torch.equal(mapped.direction(gradient, normalise), normalise(gradient))
    assert mapped.direction(gradient, None) is gradient


@pytest.mark.parametrize("images", [{"parametrisation": "pyramid"}, {"color": "decorrelated"}, PYRAMID])
def test_no_step_is_longer_than_without(images: dict[str, Any]) -> None:
    for divide in (True, False):
        spec = in_color(images=images, normalise=divide, factor=2).condense
        mapped = Parametrisation(spec, colored(), CPU)
        if divide:
            signs = gradients(20, 2, 3, 3, 8, 8)
            signs[0] = torch.ones(2, 3, 3, 8, 8)
            found = [mapped.direction(each, normalise).abs().max() for each in signs]
            assert max(found) <= 1.0001
        else:
            basis = torch.eye(3 * 64).view(3 * 64, 1, 3, 8, 8)
            matrix = mapped.direction(basis, None).flatten(1)
            torch.testing.assert_close(matrix, matrix.mT)
            values = torch.linalg.eigvalsh(matrix)
            assert float(values[0]) > 0, "downhill, whatever the gradient"
            assert float(values[-1]) <= 1.0001


def test_levels_do_not_reach_beyond_a_tile() -> None:
    spec = in_color(images={"parametrisation": "pyramid"}, factor=2).condense
    gradient = torch.zeros(1, 1, 3, 8, 8)
    gradient[..., 1, 2] = 1.0
    found = Parametrisation(spec, colored(), CPU).direction(gradient, normalise)
    assert bool((found[..., :4, :4] > 0).all()) and not found[..., 4:, :].any() and not found[..., 4:].any()


@pytest.mark.parametrize(("size", "factor", "sides"), [(8, 1, [1, 2, 4]), (12, 2, [1, 2, 4]), (6, 2, [1, 2])])
def test_sides_of_levels(size: int, factor: int, sides: list[int]) -> None:
    source = colored(torch.randint(0, 256, (4, 3, size, size), generator=rng.generator(0, "t")).byte())
    levels = Parametrisation(
        in_color(images={"parametrisation": "pyramid"}, factor=factor).condense, source, CPU
    ).levels
    assert [tuple(level.shape) for level in levels] == [(size, factor * side) for side in sides]


# colours


def test_colours_are_decorrelated(monkeypatch: pytest.MonkeyPatch) -> None:
    source, wanted = colored(), covariance(colored())
    monkeypatch.setattr(parametrisation, "CHUNK", 3 * 64)  # several chunks, the last smaller
    root = color_root(source)
    torch.testing.assert_close(root @ root.mT, wanted, rtol=0, atol=1e-12)
    assert wanted[0, 1] > 0.5 and float((wanted.diagonal() - 1).abs().max()) < 1e-9
    white = torch.linalg.solve(root, source.normalise(source.train.images).double().movedim(1, 0).flatten(1))
    torch.testing.assert_close(
        torch.from_numpy(np.cov(white.numpy(), bias=True)), torch.eye(3).double(), atol=1e-5, rtol=0
    )


def test_grey_in_three_channels_stays_grey() -> None:
    grey = colored(torch.randint(0, 256, (8, 1, 8, 8), generator=rng.generator(0, "t")).byte().repeat(1, 3, 1, 1))
    mapped = Parametrisation(in_color(images=PYRAMID).condense, grey, CPU)
    (gradient,) = gradients(1, 1, 1, 3, 8, 8)
    found = mapped.direction(gradient, normalise)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, found[:, :, :1].expand_as(found), rtol=0, atol=1e-6)


def test_a_source_of_one_colour_moves_nothing_and_stays_finite() -> None:
    mapped = Parametrisation(in_color(images=PYRAMID).condense, colored(torch.full((4, 3, 8, 8), 7).byte()), CPU)
    assert not mapped.direction(torch.ones(1, 1, 3, 8, 8), normalise).any()


# whole runs


def condensed(folder: Path, recipe: Recipe, device: torch.device = CPU, **more: Any) -> RunDir:
    folder.mkdir(exist_ok=True)
    directory = RunDir(folder)
    condense(recipe, colored_digits(), directory, device=device, **more)
    return directory


def test_an_averaged_run_writes_and_shows_the_average(tmp_path: Path) -> None:
    plain, averaged = (tiny_recipe(images={"average": average}) for average in (0.0, 1.0))
    events: list[Event] = []
    run(tmp_path / "plain", plain)
    (tmp_path / "averaged").mkdir()
    directory = RunDir(tmp_path / "averaged")
    condense(averaged, tiny_source(), directory, device=CPU, callback=events.append, image_grids=True)
    assert torch.equal(*(read_condensed(d.initialisation)[0] for d in (directory, RunDir(tmp_path / "plain"))))
    hmdc, seen = hmdc_of(plain), list[Tensor]()
    for _ in hmdc.run():
        seen.append(tiny_source().denormalise(hmdc.sizes[0].images.pixels))
    wanted = torch.stack(seen).mean(0).flatten(0, 1)
    torch.testing.assert_close(read_condensed(directory.condensed)[0], wanted, rtol=0, atol=1e-5)
    picture = Image.open(io.BytesIO([event.png for event in events if isinstance(event, ImageGrid)][-1]))
    shown = torch.from_numpy(np.array(picture.convert("L")))
    assert torch.equal(shown[:8, :8], to_uint8(read_condensed(directory.condensed)[0])[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", range(1, 6))
def test_stopped_anywhere_and_resumed(tmp_path: Path, stop_after: int) -> None:
    recipe, stop = in_color(images=ALL, classes_per_step=4), StopFlag()

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == stop_after:
            stop.signal_number = 15

    with pytest.raises(Interrupted):
        condensed(tmp_path / "a", recipe, callback=callback, stop=stop)
    assert digest(condensed(tmp_path / "a", recipe)) == digest(condensed(tmp_path / "b", recipe))


@pytest.mark.slow
def test_captured_steps_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = in_color(images=ALL)
    with Gpu(monkeypatch) as gpu:
        for name, device in (("cpu", CPU), ("gpu", GPU)):
            condensed(tmp_path / name, recipe, device)
    assert "replay" in gpu.events
    one, other = (read_condensed(RunDir(tmp_path / name).condensed)[0] for name in ("cpu", "gpu"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("images", [ALL, ALL | {"average": 1.0, "schedule": "constant"}])
def test_no_step_asks_a_tensor_for_its_value(images: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hmdc = on_meta(recipe_of(CONVNET))
    spec = in_color(images=images).condense
    shape = torch.empty(10, 1, 3, 8, 8, device="meta")
    synthetic = SyntheticImages(range(10), shape, colored_digits(), spec.images)
    mapped = Parametrisation(spec, colored_digits(), shape.device)
    assert hmdc.parametrisation.color is None

    def work() -> None:
        for scale in (normalise, None):
            synthetic.step(rows, mapped.direction(torch.empty_like(shape), scale))

    rows = torch.arange(10, device="meta")
    work()
    with OnlyMeta():  # type: ignore[no-untyped-call]
        work()


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"memory": "low"},
        {"normalise": False, "images": {"lr": 1e-3} | ALL},
        {"ipc": 3, "factor": 4, "batch": 8},
        {"balance": False, "distill": False},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_levers_with_other_keys(tmp_path: Path, keys: dict[str, Any]) -> None:
    directory = condensed(tmp_path / "a", in_color(**({"images": ALL} | keys)))
    start, found = (read_condensed(path)[0] for path in (directory.initialisation, directory.condensed))
    assert bool(torch.isfinite(found).all()) and not torch.equal(start, found)


@pytest.mark.slow
def test_what_an_average_takes_is_counted() -> None:
    plain, averaged = (estimate_cost(tiny_recipe(images={"average": each}), tiny_source()) for each in (0.0, 0.9))
    assert averaged.checkpoint_bytes == plain.checkpoint_bytes * 3 // 2
    assert averaged.memory["images"] == plain.memory["images"] * 3 // 2
