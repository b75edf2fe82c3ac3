"""Working side by side, in threads or in processes, changes the time, never the bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hmdc_hub.condense import condense, worker
from hmdc_hub.condense import run as running
from hmdc_hub.condense.crew import AbandonedError, Crew
from hmdc_hub.condense.hand import in_parts
from hmdc_hub.condense.pool import MOST_PARTS, PART, parts_of
from hmdc_hub.condense.team import Team, Threads, Values
from hmdc_hub.errors import Interrupted, RunError
from hmdc_hub.events import Event, ImageStep, Note, StopFlag
from hmdc_hub.schema import NetworksSpec, Recipe
from hmdc_hub.store import RunDir
from tests.condense.running import condenser_of, digest, run
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_recipe, tiny_source

CPU = torch.device("cpu")
RESNET = {
    "name": "resnet_tiny",
    "source": "builtin",
    "id": "resnet",
    "args": {"width": 4, "blocks": [1]},
}
POOLS: list[list[Any]] = [[CONVNET, MLP], [CONVNET, VIT, RESNET], [CONVNET, VIT | {"precision": "bfloat16"}]]


def recipe_of(pool: list[Any], **networks: Any) -> Recipe:
    spec = RECIPE["condense"]
    return Recipe.model_validate(
        RECIPE | {"pool": pool, "condense": spec | {"networks": spec["networks"] | networks, "pool_strategy": "pair"}}
    )


def state_after(steps: int, recipe: Recipe, team: Team) -> dict[str, torch.Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    condenser = condenser_of(recipe, team)
    for _ in range(steps):
        condenser.step()
    torch.set_num_threads(before)
    return {name: torch.cat([part.flatten() for part in each.parts]) for name, each in condenser.state().items()}


@contextmanager
def crew(count: int, recipe: Recipe) -> Iterator[Crew]:
    found = Crew(count, recipe, tiny_source())
    try:
        found._starting.join()
        assert found.ready, found.failed
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("pool", POOLS, ids=["two", "three", "bfloat16"])
def test_any_number_of_threads_or_processes_gives_the_same_bits(pool: list[Any]) -> None:
    """Four steps cross a clustering refresh and a reset, after which another pair may be at work."""
    recipe = recipe_of(pool, batch=64, parts=3)
    one = Threads(CPU, 1)
    wanted = state_after(4, recipe, one)
    three = Threads(CPU, 3)
    with crew(2, recipe) as processes:
        for team in (three, processes):
            found = state_after(4, recipe, team)
            assert wanted.keys() == found.keys()
            assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    one.close()
    three.close()


def test_a_crew_does_the_parts_that_nobody_else_has_begun() -> None:
    recipe = recipe_of(POOLS[0])
    with crew(1, recipe) as processes:
        condenser = condenser_of(recipe, processes)
        hand, members = condenser.pool.hand, condenser.pool.members
        images, targets = torch.randn(8, 1, 8, 8), torch.full((8, 10), 0.1)
        values = Values(0, members.values)
        items = [(images[s], targets[s], 0.25) for s in in_parts(images, 4)]
        wanted = [hand.training_part(*item) for item in items]
        for (gradients, hits), (others, other_hits) in zip(
            wanted, processes.parts(hand.training_part, items, values), strict=True
        ):
            assert torch.equal(hits, other_hits)
            assert all(
                torch.equal(a, b) for a, b in zip(gradients, others, strict=True) if a is not None and b is not None
            )


def test_what_goes_wrong_in_a_worker_is_told_where_it_is_waited_for() -> None:
    recipe = recipe_of(POOLS[0])
    with crew(1, recipe) as processes:
        condenser = condenser_of(recipe, processes)
        work = condenser.pool.hand.real_batches
        with pytest.raises(RuntimeError, match="IndexError"):
            list(processes.map(work, [(7, [0], (0, 0))], condenser.values()))
        assert len(next(processes.map(work, [(0, [0], (0, 0))], condenser.values()))[0]) == 8, "and it works on"


class Wire:
    """The end of a worker that is asked once; what it sends is what is received on the other side."""

    def __init__(self) -> None:
        self.questions: list[Any] = [("real_batches", (0, [0], (0, 0)), False)]
        self.sent: list[Any] = []

    def recv(self) -> Any:
        if not self.questions:
            raise EOFError
        return self.questions.pop()

    def send(self, what: Any) -> None:
        self.sent.append(what)


def test_an_error_of_ours_in_a_worker_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: Any) -> Any:
        raise RunError("torch.compile failed", hint="Without it: ...")

    for name, stand_in in (("_answer", answer), ("_hand", lambda *_: None), ("begin_worker", lambda: None)):
        monkeypatch.setattr(worker, name, stand_in)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(worker, "one_thread", lambda: None)
    wire: Any = Wire()
    recipe = recipe_of(POOLS[0])
    info = tiny_source().info.model_dump_json()
    worker.serve(wire, recipe.model_dump_json(), info, (0, 1), "")
    ready, said = wire.sent
    assert ready == "ready" and isinstance(said, worker.Said)
    wire.recv = lambda: said
    with crew(1, recipe) as processes, pytest.raises(RunError, match="torch.compile failed") as told:
        processes._ask(wire, ("peak",))
    assert told.value.hint == "Without it: ..."


def test_a_worker_never_works_with_other_values_than_it_was_to_have() -> None:
    recipe = recipe_of(POOLS[0])
    with crew(1, recipe) as processes:
        condenser = condenser_of(recipe, processes)
        good, work = condenser.values(), condenser.pool.hand.real_batches
        bad = Values(0, lambda: {name: value[:0] for name, value in good.tensors.items()})
        for _ in range(2):
            with pytest.raises(RuntimeError, match="size mismatch"):
                list(processes.map(work, [(0, [0], (0, 0))], bad))
        assert len(next(processes.map(work, [(0, [0], (0, 0))], good))[0]) == 8


def test_a_worker_that_dies_is_an_error_of_ours() -> None:
    recipe = recipe_of(POOLS[0])
    with crew(2, recipe) as processes:
        condenser = condenser_of(recipe, processes)
        for worker in processes._workers:
            worker.kill()
        with pytest.raises(RunError, match="worker process of the condenser died") as caught:
            condenser.step()
        assert "--resume" in caught.value.hint


def test_a_crew_that_is_sent_home_lets_nobody_wait() -> None:
    recipe = recipe_of(POOLS[0])
    with crew(1, recipe) as processes:
        condenser = condenser_of(recipe, processes)
        later = processes.aside(lambda: condenser.pool.train(condenser.real, (0, 0)))
        later.result()
    with pytest.raises(AbandonedError):
        processes.parts(condenser.pool.hand.training_part, [(), ()], condenser.values())


def test_a_crew_that_is_sent_home_at_once_lets_training_end() -> None:
    recipe = recipe_of(POOLS[0], batch=64, parts=4, batches_per_step=500)
    with crew(1, recipe) as processes:
        condenser = condenser_of(recipe, processes)
        later = processes.aside(lambda: condenser.pool.train(condenser.real, (0, 0)))
        processes.close(at_once=True)
        assert processes._beside is not None and not processes._beside.is_alive()
        with pytest.raises((AbandonedError, CancelledError)):
            later.result()
    assert not any(worker.is_alive() for worker in processes._workers)


def test_parts_cover_a_minibatch_once() -> None:
    for size in (1, 3, 4, 5, 64, 127):
        parts = in_parts(torch.zeros(size), 4)
        assert [i for part in parts for i in range(size)[part]] == list(range(size))
        assert len(parts) == min(4, size)


def test_the_number_of_parts_is_a_matter_of_recipe_and_device() -> None:
    assert [parts_of(NetworksSpec(batch=n), CPU) for n in (1, PART, 2 * PART, 1000)] == [1, 1, 2, MOST_PARTS]
    assert parts_of(NetworksSpec(batch=8, parts=6), CPU) == 6
    assert parts_of(NetworksSpec(batch=1000), torch.device("cuda")) == 1


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    threads = Threads(CPU, 2)
    with threads.one_each():
        assert torch.get_num_threads() == 1
        values = Values(0, dict)
        assert list(threads.map(lambda x: torch.get_num_threads() * x, [(1,), (2,)], values)) == [1, 2]
    assert torch.get_num_threads() == before
    threads.close()


class AtOnce(Crew):
    """A crew that is there before anything begins."""

    made = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._starting.join()
        AtOnce.made += 1


def test_a_run_with_a_crew_stopped_and_resumed_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(networks={"reset_every": 3, "batches_per_step": 2, "batch": 70})
    wanted = digest(run(tmp_path / "threads", recipe))
    monkeypatch.setattr(running, "WORTH_A_CREW_AT_ONCE", 0)
    monkeypatch.setattr(running, "Crew", AtOnce)
    (tmp_path / "crew").mkdir()
    stop, where = StopFlag(), RunDir(tmp_path / "crew")

    def listener(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == 4:
            stop.signal_number = 15

    with pytest.raises(Interrupted, match="after image step 4 of 6"):
        condense(recipe, tiny_source(), where, device=CPU, workers=2, listener=listener, stop=stop)
    condense(recipe, tiny_source(), where, device=CPU, workers=2)
    assert AtOnce.made == 2 and digest(where) == wanted
    assert json.loads(where.info.read_text())["peak_memory_bytes"] > 3 * 2**26, "the workers' memory counts"


def test_a_run_goes_on_with_threads_where_no_process_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, notes = tiny_recipe(), list[str]()
    wanted = digest(run(tmp_path / "threads", recipe))

    def refuse(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(running, "WORTH_A_CREW_AT_ONCE", 0)
    monkeypatch.setattr(running, "Crew", AtOnce)
    monkeypatch.setattr("hmdc_hub.condense.crew.worker_context", refuse)
    (tmp_path / "crew").mkdir()
    where = RunDir(tmp_path / "crew")
    condense(
        recipe,
        tiny_source(),
        where,
        device=CPU,
        workers=2,
        listener=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
    )
    assert notes == ["worker processes could not be started, threads do it (OSError: no space left)"]
    assert digest(where) == wanted


@pytest.mark.parametrize("workers", [1, 2])
def test_a_short_run_starts_no_process(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Crew", AtOnce)
    monkeypatch.setattr(running, "WORTH_A_CREW", 3600)  # however slow this machine is: the run is short
    before = AtOnce.made
    tmp_path.joinpath("run").mkdir()
    condense(tiny_recipe(), tiny_source(), RunDir(tmp_path / "run"), device=CPU, workers=workers)
    assert AtOnce.made == before
