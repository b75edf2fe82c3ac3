"""Several sizes from one run: each has the bytes that it has alone, whichever others are beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hmdc_hub.catalog import read_recipe_file, stored_recipe_text
from hmdc_hub.condenser import check_size, condense, cost, hmdc
from hmdc_hub.condenser.cost import choose
from hmdc_hub.errors import DivergedError, Interrupted, UsageError
from hmdc_hub.events import Event, ImageGrid, ImageStep, StopFlag
from hmdc_hub.pipeline.progress import result
from hmdc_hub.schema import Recipe
from hmdc_hub.store.files import read_info
from hmdc_hub.store.rundir import RunDir
from tests.builders import RESNET
from tests.condenser.running import CPU, digest, estimate_cost, hmdc_of, networks_of, recipe_of, run
from tests.gpu import GPU, Gpu
from tests.tiny import CONVNET, MLP, VIT, tiny_source

MIX = {"cutmix": {"match": True, "train": True, "probability": 1.0}}
LEVERS: dict[str, Any] = {
    "views": 2, "distance": "cosine", "distillation": "standardised", "initialisation": "mosaic", "observer_epochs": 1,
    "difficulty": {"keep": 0.8}, "images": {"schedule": "cosine", "average": 0.9, "parametrisation": "pyramid"},
}  # fmt: skip


def digests(directory: RunDir, recipe: Recipe) -> dict[int, tuple[str, str, str]]:
    return {ipc: digest(directory.of_size(ipc)) for ipc in recipe.condense.sizes}


def alone(folder: Path, recipe: Recipe) -> dict[int, tuple[str, str, str]]:
    """Run each size by itself."""
    return {one.condense.size: digest(run(folder / f"alone{one.condense.size}", one)) for one in recipe.of_sizes()}


@pytest.mark.parametrize(
    ("pool", "sizes", "keys"),
    [
        # Of 3 images all that they hold take part, of 1 and 2 fewer than there are real ones, of 3 the batch is chosen.
        ([CONVNET, MLP], [1, 3], MIX | {"resets": 1}),
        pytest.param([CONVNET, MLP], [3, 1, 2], MIX, marks=pytest.mark.slow),
        pytest.param([CONVNET, VIT, RESNET], [2, 1], {"pool_strategy": "pair"}, marks=pytest.mark.slow),
        pytest.param([CONVNET, MLP], [1, 3], {"memory": "low", "classes_per_step": 4}, marks=pytest.mark.slow),
        pytest.param([MLP], [5], {"balance_every": 2, "initialisation": "random"}, marks=pytest.mark.slow),
        pytest.param([CONVNET, MLP], [1, 3], LEVERS, marks=pytest.mark.slow),
    ],
    ids=["two", "three", "pairs", "low, some classes", "a list of one", "levers"],
)
def test_a_size_has_the_bytes_that_it_has_alone(
    tmp_path: Path, pool: list[dict[str, Any]], sizes: list[int], keys: dict[str, Any]
) -> None:
    recipe = recipe_of(*pool, ipc=sizes, **keys)
    whole = run(tmp_path / "together", recipe)
    assert digests(whole, recipe) == alone(tmp_path, recipe)
    assert len({condensed for _, condensed, _ in digests(whole, recipe).values()}) == len(sizes)
    for one in recipe.of_sizes():
        found = whole.of_size(one.condense.size)
        assert read_recipe_file(found.recipe) == one
        assert found.recipe.read_text() == stored_recipe_text(one)
        assert found.finished and not found.log.exists() and not found.checkpoints.exists()
        info = read_info(found.info)
        assert (info.ipc, info.condense_hash) == (one.condense.size, one.condense_hash())
    assert not any(path.exists() for path in (whole.condensed, whole.parquet, whole.info, whole.initialisation))


@pytest.mark.slow
@pytest.mark.parametrize(("stop_after", "keys"), [(1, MIX), (3, MIX), (5, MIX), (4, LEVERS)])
def test_sizes_go_on_where_they_stopped(tmp_path: Path, stop_after: int, keys: dict[str, Any]) -> None:
    recipe, stop = recipe_of(CONVNET, MLP, ipc=[3, 1], **keys), StopFlag()
    unbroken = run(tmp_path / "unbroken", recipe)

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == stop_after:
            stop.signal_number = 15

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", recipe, callback, stop)
    assert not RunDir(tmp_path / "broken").of_size(1).info.exists()
    broken = run(tmp_path / "broken", recipe)
    assert digests(broken, recipe) == digests(unbroken, recipe)
    lines = [[json.loads(line)["losses"] for line in each.log.open()] for each in (unbroken, broken)]
    assert lines[0] == lines[1] and len(lines[0]) == 6
    assert len(list(broken.checkpoints.iterdir())) == 2


@pytest.mark.slow
def test_what_a_gpu_captures_is_of_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(CONVNET, MLP, ipc=[3, 1], balance_every=2, **MIX)
    with Gpu(monkeypatch) as gpu:
        (tmp_path / "gpu").mkdir()
        condense(recipe, tiny_source(), RunDir(tmp_path / "gpu"), device=GPU)
        several = gpu.events.count("capture")
        (tmp_path / "gpu, one").mkdir()
        condense(recipe.of_sizes()[0], tiny_source(), RunDir(tmp_path / "gpu, one"), device=GPU)
        assert several == gpu.events.count("capture") - several, "one function for all sizes"
    assert digests(RunDir(tmp_path / "gpu"), recipe) == digests(run(tmp_path / "cpu", recipe), recipe)


def test_what_is_drawn_for_a_size_depends_on_no_other() -> None:
    real = networks_of(recipe_of(CONVNET, ipc=[1, 9, 3], **MIX)).real
    arguments = [4, 7], [0, 1], [torch.arange(8), torch.arange(6)], (1, 2)
    together = real.draw_classes(*arguments, (1, 9, 3))
    for place, ipc in enumerate((1, 9, 3)):
        one = real.draw_classes(*arguments, (ipc,))
        assert torch.equal(one.real, together.real)
        (chosen,), (mix,), mixed = one.chosen, one.mix_synthetic, together.mix_synthetic[place]
        assert mix is not None and mixed is not None and mix.partners.shape == (2, min(8, 4 * ipc))
        assert torch.equal(mix.partners, mixed.partners) and torch.equal(mix.box, mixed.box)
        other = together.chosen[place]
        if ipc == 1:
            assert chosen is None and other is None
        else:
            assert chosen is not None and other is not None and torch.equal(chosen, other)


@pytest.mark.parametrize("keys", [{}, {"memory": "low"}])
def test_on_a_cpu_what_is_held_does_not_depend_on_the_size(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (2**18, 5000, 2000):
        monkeypatch.setattr(cost, "PIXELS", limit)
        found = [choose(networks_of(recipe_of(CONVNET, MLP, ipc=ipc, **keys))) for ipc in (1, 50, [1, 50])]
        assert len({(each.classes, each.images) for each in found}) == 1
        assert found[0].bytes < found[1].bytes == found[2].bytes


def test_every_size_has_its_losses(tmp_path: Path) -> None:
    events: list[Event] = []
    for ipc in ([1, 2], 2, 1):
        recipe = recipe_of(CONVNET, MLP, ipc=ipc, resets=1, images={"lr": 0.5})
        run(tmp_path / str(ipc), recipe, events.append)
    steps = [event for event in events if isinstance(event, ImageStep)]
    names = ["match/convnet_tiny", "match/mlp_tiny", "distill/convnet_tiny+mlp_tiny"]
    for both, single, small in zip(steps[:3], steps[3:6], steps[6:], strict=True):
        assert 0 < both.clamped == pytest.approx((single.clamped + small.clamped) / 2)
        assert list(both.losses) == [f"ipc{ipc}/{name}" for ipc in (1, 2) for name in names]
        assert {name: both.losses[f"ipc2/{name}"] for name in names} == pytest.approx(single.losses)
        assert single.images - 10 * 4 * 2 == both.images - 10 * 4 * 3, "as many real images, and those of both sizes"
        assert both.accuracies == single.accuracies
    for ipc in (1, 2):
        assert sum(steps[0].shares[f"ipc{ipc}/{name}"] for name in names) == pytest.approx(1)
    mean = sum(loss for name, loss in steps[0].losses.items() if "match/" in name) / 4
    assert result(steps[0]) == f"loss {mean:.3g}"


def test_what_diverges_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, work = hmdc_of(recipe_of(CONVNET, MLP, ipc=[1, 2])), hmdc.combine

    def broken(gradients: torch.Tensor, weights: torch.Tensor) -> Any:
        gradient, shares = work(gradients, weights)
        return gradient * (float("nan") if gradient.shape[1] == 2 else 1), shares

    monkeypatch.setattr(hmdc, "combine", broken)
    with pytest.raises(DivergedError, match=r"class 0: .*\(losses ipc2/match/convnet_tiny \d"):
        next(found.run())


def test_memory_that_runs_out_at_the_second_size_leaves_nothing_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, work = recipe_of(CONVNET, MLP, ipc=[1, 2]), hmdc.normalise
    wanted, found = hmdc_of(recipe), hmdc_of(recipe)
    next(wanted.run())

    def full(gradient: torch.Tensor) -> torch.Tensor:
        if len(gradient) > 5 and gradient.shape[1] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(gradient)

    monkeypatch.setattr(hmdc, "normalise", full)
    next(found.run())
    assert found.at_once.classes == 5
    for one, other in zip(found.sizes, wanted.sizes, strict=True):
        torch.testing.assert_close(one.accumulated, other.accumulated, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.images.pixels, other.images.pixels, rtol=1e-3, atol=1e-4)


def test_the_largest_size_is_checked_and_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"condense.ipc = 9 is more than the largest class") as found:
        check_size(recipe_of(MLP, ipc=[1, 9, 8]), [3, 8])
    assert "list" in found.value.hint
    check_size(recipe_of(MLP, ipc=[1, 8]), [3, 8])
    pictures: list[bytes] = []
    for name, ipc in (("several", [1, 2]), ("largest", 2)):
        (tmp_path / name).mkdir()

        def callback(event: Event) -> None:
            if isinstance(event, ImageGrid):
                pictures.append(event.png)

        recipe = recipe_of(MLP, ipc=ipc, resets=1)
        condense(recipe, tiny_source(), RunDir(tmp_path / name), device=CPU, callback=callback, image_grids=True)
    assert len(pictures) == 4 and pictures[:2] == pictures[2:]


@pytest.mark.slow
def test_the_plan_of_several_sizes_shares_what_is_shared() -> None:
    one, three, both = (estimate_cost(recipe_of(CONVNET, MLP, ipc=n), tiny_source()) for n in (1, 2, [1, 2]))
    for name in ("clustering", "networks", "projections"):
        assert both.flops[name] == one.flops[name] == three.flops[name]
    real = 2 * one.flops["matching"] - three.flops["matching"]  # as the work is linear in the images: 8 + 4, 8 + 8
    assert both.flops["matching"] == pytest.approx(one.flops["matching"] + three.flops["matching"] - real, rel=0.01)
    assert both.synthetic_images == 30 and both.training_images == 120
    assert both.checkpoint_bytes == one.checkpoint_bytes + three.checkpoint_bytes
    assert both.memory["graphs"] == three.memory["graphs"] > one.memory["graphs"]
    assert both.memory["images"] == one.memory["images"] + three.memory["images"]
