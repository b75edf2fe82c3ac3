"""Networks that are trained on the source before condensing begins, and the bank of their early stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from hmdc_hub import augment, rng
from hmdc_hub.condenser import condense, cost, stages
from hmdc_hub.condenser.cost import shared_among_ranks
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.condenser.stages import Bank, file_key, perturbed, stage_ends, training
from hmdc_hub.errors import DivergedError, Interrupted
from hmdc_hub.events import Callback, Event, ImageStep, Note, StopFlag, silent
from hmdc_hub.models import PoolModel, build_for, register_module
from hmdc_hub.schema import Recipe
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.files import read_info
from hmdc_hub.store.rundir import RunDir
from hmdc_hub.text import amount
from tests.builders import RESNET
from tests.condenser.running import CPU, digest, estimate_cost, recipe_of, run
from tests.condenser.test_ranks import PIXELS, Crew, Order
from tests.gpu import GPU, Gpu
from tests.tiny import CONVNET, MLP, VIT, tiny_recipe, tiny_source


def model_and_source(recipe: Recipe, seed: int = 0) -> tuple[PoolModel, RealImages]:
    source = tiny_source()
    return build_for(recipe.pool[0], source), RealImages(source, recipe.condense, seed, CPU)


def test_a_network_is_trained_as_a_plain_loop_over_the_same_minibatches_does() -> None:
    model, real = model_and_source(tiny_recipe())
    deque(training(model, real, epochs=2, seed=3), maxlen=0)
    assert not model.training

    twin = build_for(model.spec, real.source)
    twin.reset(rng.generator(3, "network", 0, 0))
    images = real.source.normalise(real.source.train.images)
    steps = 0
    for epoch in range(2):
        order = torch.randperm(len(images), generator=rng.generator(3, "trained", "order", 0, epoch))
        for i, rows in enumerate(torch.split(order, 16)):
            gen = rng.generator(3, "trained", "augment", 0, epoch, i)
            draw = augment.draw(real.spec.augment, gen, 8, len(rows))
            mix = augment.draw_cutmix(gen, len(rows), 8, 0.5)
            x = augment.apply_cutmix(mix, augment.apply(draw, images[rows]))
            targets = augment.mix_targets(mix, F.one_hot(real.labels[rows], 10).float())
            loss = F.cross_entropy(twin(twin.prepare(x)).logits, targets)
            for p, g in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
                p.data -= model.spec.lr.condense * g
            steps += 1
    assert steps == 2 * -(-len(images) // 16)
    for (name, value), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=name)


def test_a_trained_network_depends_on_its_seed_and_not_on_the_recipes() -> None:
    def weights(recipe: Recipe, seed: int, own: int) -> torch.Tensor:
        model, real = model_and_source(recipe, seed)
        deque(training(model, real, epochs=1, seed=own), maxlen=0)
        assert real.seed == seed
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    alone, pool = recipe_of(CONVNET), recipe_of(CONVNET, MLP)
    assert torch.equal(weights(alone, 0, 1), weights(pool, 5, 1))
    assert not torch.equal(weights(alone, 0, 1), weights(alone, 0, 2))


# weight noise and stages


def test_each_filter_is_moved_by_its_share_of_its_own_length() -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]])
    gen = rng.generator(1, "test")
    moved = perturbed(values, 0.1, gen) - values
    d = torch.randn(3, 2, generator=rng.generator(1, "test"))
    assert torch.equal(moved[1], torch.zeros(2)), "a filter of zeros has no length"
    for row, length in ((0, 5.0), (2, 1.0)):
        assert float(moved[row].norm()) == pytest.approx(0.1 * length, rel=1e-5)
        torch.testing.assert_close(moved[row], 0.1 * length * d[row] / d[row].norm(), rtol=1e-4, atol=1e-7)
    kernel = torch.ones(2, 3, 3, 3)
    assert (perturbed(kernel, 0.5, gen) - kernel).flatten(1).norm(dim=1).tolist() == pytest.approx([0.5 * 27**0.5] * 2)


def test_biases_and_norms_are_left_as_they_are() -> None:
    for values in (torch.ones(5), torch.tensor(2.0)):
        assert perturbed(values, 0.5, rng.generator(0, "test")) is values
    assert perturbed(torch.ones(2, 2), 0, rng.generator(0, "test")).tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("minibatches", "stages", "ends"), [(8, 4, [2, 4, 6, 8]), (10, 4, [3, 5, 8, 10]), (2, 4, [1, 1, 2, 2]), (5, 1, [5])]
)
def test_stages_are_equal_parts_of_the_training(minibatches: int, stages: int, ends: list[int]) -> None:
    assert stage_ends(minibatches, stages) == ends


def bank_of(recipe: Recipe, folder: Path, callback: Callback = silent) -> Bank:
    return Bank(recipe, RealImages(tiny_source(), recipe.condense, 0, CPU), folder, callback, StopFlag(), Ranks())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bank"


SMALL = {"num_models": 2, "pretrain_epochs": 1, "stages": 2, "noise": 0.05}


UNCLUSTERED: dict[str, Any] = {"initialisation": "random", "cluster": {"enabled": False}}


def banked(*models: dict[str, Any], bank: dict[str, Any] = SMALL, **condense: Any) -> Recipe:
    networks = {"reset_every": 3, "batches_per_step": 0, "batch": 256}
    return recipe_of(*(models or (CONVNET, MLP)), networks=networks | {"bank": bank}, **condense)


def test_a_stage_is_what_training_came_to_there(cache: Path, tmp_path: Path) -> None:
    recipe = banked(RESNET | {"batch_norm": "train"})
    bank = bank_of(recipe, tmp_path)
    bank.fill()
    model, real = model_and_source(recipe)
    total = -(-len(real.labels) // 256)
    seed = rng.derived_seed(0, "bank", 1)
    states = {}
    for done in training(model, real, epochs=1, seed=seed):
        states[done] = {name: value.clone() for name, value in model.state_dict().items()}
    kept = load_file(bank._files()[1].path)
    assert len(kept) == 2 * len(states[total])
    for stage, end in enumerate((-(-total // 2), total)):
        for name, value in states[end].items():
            assert torch.equal(kept[f"{stage}.{name}"], value), (stage, name)


def test_a_reset_begins_with_a_drawn_stage_and_its_statistics(cache: Path, tmp_path: Path) -> None:
    bank = bank_of(banked(RESNET), tmp_path)
    bank.fill()
    files = [load_file(file.path) for file in bank._files()]
    model, _ = model_and_source(banked(RESNET))
    seen = set()
    for outer in range(12):
        bank.start(0, model, rng.generator(0, "bank", outer, 0))
        drawn = rng.generator(0, "bank", outer, 0)
        n, stage = (int(torch.randint(2, (), generator=drawn)) for _ in range(2))
        seen.add((n, stage))
        learnt = {name for name, _ in model.named_parameters()}
        for name, value in model.state_dict().items():
            kept = files[n][f"{stage}.{name}"]
            if name not in learnt or kept.dim() < 2:
                assert torch.equal(value, kept), name
            else:
                far = (value - kept).flatten(1).norm(dim=1) / kept.flatten(1).norm(dim=1)
                torch.testing.assert_close(far, torch.full_like(far, 0.05), rtol=1e-4, atol=1e-6)
    assert len(seen) == 4, "every network and stage has its turn"


# whole runs


def notes(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_a_second_recipe_trains_no_networks_and_has_the_same_bytes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    first = run(tmp_path / "a", banked(), events.append)
    assert len(list(cache.iterdir())) == 4
    assert notes(events)[-1].startswith("bank: 4 networks, 4 of them trained in ")
    assert f"; 2 stages each, {amount(sum(p.stat().st_size for p in cache.iterdir()))} in {cache}" in notes(events)[-1]
    monkeypatch.setattr(stages, "training", None)
    second = run(tmp_path / "b", banked(), events.append)
    assert digest(first) == digest(second)
    assert "bank: 4 networks, all there already; " in notes(events)[-1]
    infos = [read_info(directory.info) for directory in (first, second)]
    assert infos[0].bank_seconds == infos[1].bank_seconds and infos[0].bank_seconds is not None
    # Another seed, noise, pool and number of networks: what of it is there serves.
    other = banked(MLP, bank=SMALL | {"num_models": 1, "noise": 0.2}).model_copy(update={"seed": 5})
    run(tmp_path / "c", other)


def test_the_initialisation_is_that_without_a_bank(cache: Path, tmp_path: Path) -> None:
    plain = recipe_of(CONVNET, MLP, networks={"reset_every": 3, "batches_per_step": 0, "batch": 256})
    one, other = run(tmp_path / "a", plain), run(tmp_path / "b", banked())
    assert torch.equal(*(read_condensed(directory.initialisation)[0] for directory in (one, other)))
    assert not torch.equal(*(read_condensed(directory.condensed)[0] for directory in (one, other)))
    assert "bank" not in plain.model_dump()["condense"]["networks"]
    assert read_info(RunDir(tmp_path / "a").info).bank_seconds is None
    assert "bank_seconds" not in RunDir(tmp_path / "a").info.read_text()


def test_stopped_while_the_bank_is_trained(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, calls = StopFlag(), list[int]()
    work = stages.training

    def counted(*args: Any, **keys: Any) -> Iterator[int]:
        calls.append(keys["seed"])
        for done in work(*args, **keys):
            stop.signal_number = 15 if len(calls) == 2 and done == 3 else 0
            yield done

    monkeypatch.setattr(stages, "training", counted)
    with pytest.raises(Interrupted, match="while the bank was trained; 1 of 4 networks are kept") as caught:
        run(tmp_path / "a", banked(), stop=stop)
    assert caught.value.signal_number == 15 and len(list(cache.iterdir())) == 1
    stop.signal_number = 0
    resumed = run(tmp_path / "a", banked(), stop=stop)
    assert len(calls) == 2 + 3
    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "other"))
    assert digest(run(tmp_path / "b", banked())) == digest(resumed)


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_stopped_at_a_step_and_resumed(cache: Path, tmp_path: Path, stop_after: int) -> None:
    stop = StopFlag()

    def callback(event: Event) -> None:
        stop.signal_number = 15 if isinstance(event, ImageStep) and event.done == stop_after else 0

    with pytest.raises(Interrupted):
        run(tmp_path / "a", banked(), callback, stop)
    assert digest(run(tmp_path / "a", banked())) == digest(run(tmp_path / "b", banked()))


@pytest.mark.parametrize("damage", ["flip", "truncate", "rename", "text"])
def test_a_damaged_file_is_said_and_made_again(cache: Path, tmp_path: Path, damage: str) -> None:
    wanted = digest(run(tmp_path / "a", banked()))
    files = sorted(cache.iterdir())
    whole = bytearray(files[0].read_bytes())
    if damage == "flip":
        whole[-5] ^= 1
    elif damage == "truncate":
        del whole[len(whole) // 2 :]
    files[0].write_bytes(b"nothing" if damage == "text" else files[1].read_bytes() if damage == "rename" else whole)
    events: list[Event] = []
    assert digest(run(tmp_path / "b", banked(), events.append)) == wanted
    said = [note for note in notes(events) if "cannot be used" in note]
    assert len(said) == 1 and files[0].name in said[0] and "the network is trained again" in said[0]
    assert "1 of them trained" in notes(events)[-1]


def test_a_file_that_goes_while_it_is_needed_is_made_again(cache: Path, tmp_path: Path) -> None:
    wanted = digest(run(tmp_path / "a", banked()))

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == 3:
            for path in cache.iterdir():
                path.unlink()

    assert digest(run(tmp_path / "b", banked(), callback)) == wanted


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    wanted = digest(run(tmp_path / "a", banked()))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "file"))
    directory = run(tmp_path / "b", banked())
    assert digest(directory) == wanted
    assert len([path for path in directory.checkpoints.iterdir() if len(path.stem) > 60]) == 4


def test_modules_of_a_session_stay_with_their_run(cache: Path, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

        def forward(self, images: torch.Tensor) -> Any:
            return self.head(self.body(images.flatten(1)).relu())

    spec = register_module(Own, "own")
    recipe = banked().model_copy(update={"pool": [spec]})
    directory = run(tmp_path / "a", recipe)
    assert not cache.exists()
    assert len([path for path in directory.checkpoints.iterdir() if len(path.stem) > 60]) == 2


def test_what_is_not_finite_is_not_kept(cache: Path, tmp_path: Path) -> None:
    recipe = banked(MLP | {"lr": {"condense": 1e30}})
    with pytest.raises(DivergedError, match="network 1 of mlp_tiny .* is not finite after 6 minibatches") as caught:
        run(tmp_path / "a", recipe)
    assert "Lower lr.condense of pool entry mlp_tiny" in caught.value.hint
    assert not cache.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        banked(CONVNET, MLP, VIT, pool_strategy="pair"),
        banked(memory="low"),
        banked(CONVNET, classes_per_step=3),
        banked(RESNET | {"batch_norm": "frozen"}, MLP | {"precision": "bfloat16"}, **UNCLUSTERED),
        banked(MLP | {"train": "head"}),
    ],
    ids=["pair", "low", "classes", "frozen and bfloat16", "head"],
)
def test_a_run_on_a_gpu_is_that_on_a_cpu(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    events: list[Event] = []
    with Gpu(monkeypatch) as gpu:
        for name, device in (("cpu", CPU), ("gpu", GPU)):
            (tmp_path / name).mkdir()
            condense(recipe, tiny_source(), RunDir(tmp_path / name), device=device, callback=events.append)
    assert len(list(cache.iterdir())) == 2 * 2 * len(recipe.pool), "a device has networks of its own"
    assert not any("captured" in note for note in notes(events)) and "replay" in gpu.events
    one, other = (read_condensed(RunDir(tmp_path / name).condensed)[0] for name in ("cpu", "gpu"))
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


# several ranks


class Second(Ranks):
    """The second of two, whose peer says the same as it does, and has a cache of its own."""

    def __init__(self) -> None:
        self.index, self.count = 1, 2

    def together(self, rows: torch.Tensor) -> torch.Tensor:
        return 2 * rows


def test_a_rank_trains_its_share_and_then_what_its_cache_lacks(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, order = banked(CONVNET, bank=SMALL | {"num_models": 3}), list[int]()
    real, work = RealImages(tiny_source(), recipe.condense, 0, CPU), stages.training

    def told(*args: Any, **keys: Any) -> Iterator[int]:
        order.append(keys["seed"])
        return work(*args, **keys)

    monkeypatch.setattr(stages, "training", told)
    Bank(recipe, real, tmp_path, silent, StopFlag(), Second()).fill()
    assert order == [rng.derived_seed(0, "bank", n) for n in (1, 0, 2)]
    made = {path.name: path.read_bytes()[-1000:] for path in cache.iterdir()}
    monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "alone"))
    bank_of(recipe, tmp_path).fill()
    assert {path.name: path.read_bytes()[-1000:] for path in (tmp_path / "alone" / "bank").iterdir()} == made


@pytest.mark.slow
def test_ranks_share_a_bank(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew()
    try:
        assert crew.run(Order(3, f"{tmp_path}/store", tmp_path / "3", banked())) == [""] * 3
        assert len(list(cache.iterdir())) == 4
        monkeypatch.setenv("HMDC_HUB_CACHE", str(tmp_path / "alone"))
        monkeypatch.setattr(cost, "PIXELS", PIXELS)
        assert digest(run(tmp_path / "1", banked())) == digest(RunDir(tmp_path / "3"))
    finally:
        for end in crew.ends:
            end.close()
        for process in crew.processes:
            process.join(60)


# the recipe


def test_a_bank_is_part_of_what_decides_the_images() -> None:
    hashes = [
        banked(bank=SMALL | change).condense_hash() for change in ({}, {"num_models": 3}, {"noise": 0.1}, {"seed": 1})
    ]
    assert len({*hashes, recipe_of(CONVNET, MLP).condense_hash()}) == 5


def test_a_file_is_named_after_what_decides_its_network() -> None:
    def key(model: dict[str, Any] = CONVNET, n: int = 0, bank: dict[str, Any] = SMALL, **condense: Any) -> str:
        recipe = banked(model, bank=bank, **condense)
        return file_key(recipe.pool[0], recipe.condense, n, CPU)

    same = [
        key(), key(CONVNET | {"name": "other", "cutmix": False, "lr": {"evaluate": 0.5}}), key(ipc=2),
        key(bank=SMALL | {"num_models": 7, "noise": 0.3}),
    ]  # fmt: skip
    other = [
        key(MLP), key(n=1), key(CONVNET | {"lr": {"condense": 0.5}}), key(bank=SMALL | {"pretrain_epochs": 3}),
        key(bank=SMALL | {"seed": 1}), key(bank=SMALL | {"stages": 3}), key(augment={"flip": True}),
        key(cutmix={"train": False}), key(memory="low"),
    ]  # fmt: skip
    assert len(set(same)) == 1 and len({same[0], *other}) == 1 + len(other)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="pool entry mlp_tiny has reset: body.*set reset: all, or leave the bank out"):
        banked(CONVNET, MLP | {"reset": "body"})
    with pytest.raises(ValueError, match="a bank of no networks; say of how many: condense.networks.bank.num_models"):
        banked(bank={"pretrain_epochs": 3})


# what it costs


@pytest.mark.slow
def test_a_dry_run_counts_what_is_not_there(cache: Path, tmp_path: Path) -> None:
    recipe = banked()
    before = estimate_cost(recipe, tiny_source())
    assert (before.bank_networks, before.bank_missing) == (4, 4) and before.unmeasured == []
    assert before.parts["bank"] > 0 and before.seconds == pytest.approx(sum(before.parts.values()))
    # Twice two networks for an epoch, where the pool trains on all minibatches after six image steps.
    networks = {"reset_every": 3, "batches_per_step": 1000, "batch": 256}
    pool = estimate_cost(recipe_of(CONVNET, MLP, distill=False, networks=networks), tiny_source())
    assert before.flops["bank"] == pytest.approx(2 * pool.flops["networks"] / 6)
    run(tmp_path / "a", recipe)
    files = [load_file(path) for path in cache.iterdir()]
    assert before.bank_bytes == sum(value.nbytes for file in files for value in file.values())
    after = estimate_cost(banked(bank=SMALL | {"num_models": 3}), tiny_source())
    assert (after.bank_networks, after.bank_missing) == (6, 2)
    assert after.flops["bank"] == pytest.approx(before.flops["bank"] / 2)
    whole = estimate_cost(recipe, tiny_source())
    assert whole.bank_missing == 0 and "bank" not in whole.parts and whole.seconds is not None


def test_networks_of_a_bank_are_shared_among_ranks() -> None:
    work, spec = {"bank": torch.tensor([60.0, 0.0])}, banked().condense
    assert [shared_among_ranks(work, spec, 10, 1, ranks, 4)["bank"] for ranks in (1, 2, 3, 9)] == [60, 30, 30, 15]
