"""Several processes that share an evaluation."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from hmdc_hub.errors import Interrupted, UsageError
from hmdc_hub.evaluator import evaluate, of_run
from hmdc_hub.evaluator.run import check_alike
from hmdc_hub.events import Event, Note, StopFlag, Training
from hmdc_hub.processes import Launched, Work, launched, parse_share
from hmdc_hub.schema import Scores
from hmdc_hub.store.rundir import RunDir
from tests.evaluator.toys import recipe, run, source

CPU = torch.device("cpu")
OF = recipe(baselines=["exact", "random"])
TRAININGS = 2 * 2 * (1 + 1 + 2)


def scored(where: RunDir, **keys: Any) -> Scores | None:
    return evaluate(of_run(OF, where), OF.evaluate, source(), where, Work(CPU, **keys))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    where = run(tmp_path_factory.mktemp("alone") / "run", OF)
    scored(where)
    return where.scores.read_bytes()


def help_out(where: RunDir, index: int, count: int) -> list[Event]:
    events: list[Event] = []
    scored(where, workers=1, callback=events.append, share=Launched(index, count, by_hand=True))
    return events


@pytest.mark.slow
def test_worker_processes_train_on_exact_floats_too(tmp_path: Path, alone: bytes) -> None:
    where = run(tmp_path / "run", OF)
    scored(where, workers=2)
    assert where.scores.read_bytes() == alone


def test_shares_that_are_put_together_are_the_whole(tmp_path: Path, alone: bytes) -> None:
    where, trained = run(tmp_path / "run", OF), 0
    for index in range(3):
        trained += sum(isinstance(event, Training) for event in help_out(where, index, 3))
        assert (where.path / f"cells-{index + 1}of3.jsonl").is_file() and not where.cells.is_file()
        assert not where.scores.exists()
    assert trained == TRAININGS
    events: list[Event] = []
    scored(where, callback=events.append)
    assert events == [Note(f"{TRAININGS} of {TRAININGS} trainings were done before")]
    assert where.scores.read_bytes() == alone


def test_the_first_process_waits_for_the_others(tmp_path: Path, alone: bytes) -> None:
    where, waiting = run(tmp_path / "run", OF), threading.Event()

    def listen(event: Event) -> None:
        if event == Note("waiting for the trainings of the other processes"):
            waiting.set()

    keys = {"workers": 1, "callback": listen, "share": Launched(0, 2)}
    work = threading.Thread(target=scored, args=(where,), kwargs=keys, daemon=True)
    work.start()
    assert waiting.wait(60) and not where.scores.exists()
    help_out(where, 1, 2)
    work.join(60)
    assert where.scores.read_bytes() == alone
    assert help_out(where, 1, 2) == []  # nothing is left


def test_waiting_can_be_stopped(tmp_path: Path) -> None:
    where, stop = run(tmp_path / "run", OF), StopFlag()

    def listen(event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith("waiting"):
            stop.signal_number = 2

    with pytest.raises(Interrupted, match="while other processes were training"):
        scored(where, workers=1, callback=listen, stop=stop, share=Launched(0, 2))


def test_a_share_in_words() -> None:
    share = parse_share("2/4")
    assert share == Launched(1, 4, by_hand=True) and str(share) == "2/4"
    assert not share.leads and not parse_share("1/4").leads


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/4 ", "-1/4", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be K/N with K from 1 to N, such as 2/4"):
        parse_share(text)


def gather(places: list[dict[str, str]], stop: StopFlag | None = None) -> None:
    """Let processes of torchrun meet at a real store; the first one last."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for index in reversed(range(len(places))):
        share = Launched(index, 2, store=("127.0.0.1", server.port))
        check_alike(share, places[index], stop or StopFlag())


def test_processes_of_one_kind_go_on() -> None:
    gather([{"device": "A", "program": "1"}] * 2)


def test_the_first_process_refuses_one_of_another_kind() -> None:
    with pytest.raises(UsageError, match="Process 1 of 2 would train with device B, this one with device A: such"):
        gather([{"device": "A", "program": "1"}, {"device": "B", "program": "1"}])


def test_waiting_for_the_others_to_start_can_be_stopped() -> None:
    with pytest.raises(Interrupted, match="while other processes were starting"):
        gather([{"device": "A"}], StopFlag(2))


def test_trainings_of_another_device_are_said_to_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bytes
) -> None:
    where = run(tmp_path / "run", OF)
    with monkeypatch.context() as patch:
        patch.setattr("hmdc_hub.evaluator.run.device_name", lambda device: "NVIDIA B")
        help_out(where, 0, 2)
    help_out(where, 1, 2)
    events: list[Event] = []
    scored(where, callback=events.append, reuse=False)
    assert Note("trainings of device NVIDIA B are not mixed with these, and done again") in events
    assert sum(isinstance(event, Training) for event in events) == TRAININGS // 2
    assert where.scores.read_bytes() == alone


def test_torchrun_is_recognised() -> None:
    ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launched(ranks) == Launched(5, 8, local=1)
    first = launched(ranks | {"RANK": "0", "LOCAL_RANK": "0"})
    assert first == Launched(0, 8) and first.leads
    assert launched(ranks | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}) is None
    assert launched({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) is None
    store = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    assert launched(ranks | store) == Launched(5, 8, local=1, store=("node7", 29500))
    assert launched(ranks | store | {"TORCHELASTIC_USE_AGENT_STORE": "False"}) == Launched(5, 8, local=1)
