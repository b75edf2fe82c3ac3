"""Several ranks: the same bytes for any number of them, whichever classes take part, wherever the run is broken."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from hmdc_hub.catalog import dump_recipe, read_recipe_file
from hmdc_hub.condenser import condense, cost
from hmdc_hub.condenser.ranks import Ranks, peers
from hmdc_hub.errors import HmdcError, PeerLostError
from hmdc_hub.events import Event, ImageStep, StopFlag
from hmdc_hub.processes import Launched, begin_worker, launched, worker_context
from hmdc_hub.schema import Recipe
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.rundir import RunDir
from tests.tiny import CONVNET, MLP, RECIPE, VIT, tiny_recipe, tiny_source

CPU = torch.device("cpu")
MOST = 4
PIXELS = 2200
"""What decides how many of the tiny source's classes are computed together: two or four, so that ranks have owners."""


@dataclass(frozen=True)
class Order:
    """A run that so many ranks are to make; `stop_after` image steps the last of them is asked to stop."""

    count: int
    store: str
    folder: Path
    recipe: Recipe
    stop_after: int = 0
    apart: bool = False
    pixels: int = PIXELS


def rank(end: Connection, index: int) -> None:
    """Be a rank: carry out orders, and send what each came to."""
    begin_worker()
    torch.set_num_threads(1)
    while True:
        try:
            order: Order = end.recv()
        except EOFError:
            return
        end.send(_carry_out(order, index))


def _carry_out(order: Order, index: int) -> str:
    cost.PIXELS = order.pixels
    dist.init_process_group("gloo", store=FileStore(order.store, order.count), rank=index, world_size=order.count)
    stop, last = StopFlag(), index == order.count - 1

    def callback(event: Event) -> None:
        if isinstance(event, ImageStep) and event.done == order.stop_after and last:
            stop.signal_number = signal.SIGTERM

    where = order.folder / str(index) if order.apart else order.folder
    where.mkdir(exist_ok=True, parents=True)
    try:
        condense(order.recipe, tiny_source(), RunDir(where), device=CPU, ranks=Ranks(), callback=callback, stop=stop)
    except HmdcError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    return ""


class Crew:
    """Processes that stay for all runs of this module: starting them takes longer than the runs."""

    def __init__(self) -> None:
        context, self.ends, self.processes = worker_context(), list[Connection](), list[BaseProcess]()
        for index in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=rank, args=(theirs, index), daemon=True)  # type: ignore[attr-defined]
            process.start()
            self.processes.append(process)
            theirs.close()
            self.ends.append(ours)

    def run(self, order: Order) -> list[str]:
        for end in self.ends[: order.count]:
            end.send(order)
        return [end.recv() for end in self.ends[: order.count]]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Crew]:
    found = Crew()
    yield found
    for end in found.ends:
        end.close()
    for process in found.processes:
        process.join(60)


def digests(folder: Path) -> list[str]:
    sizes = [RunDir(path) for path in sorted(folder.glob("ipc*"))]
    return [
        sha256_file(path)
        for run in sizes or [RunDir(folder)]
        for path in (run.initialisation, run.condensed, run.parquet)
    ]


RECIPES: dict[str, Recipe] = {
    "two models": tiny_recipe(networks={"reset_every": 3, "batches_per_step": 2, "batch": 70, "parts": 3}),
    "pairs of three": Recipe.model_validate(
        RECIPE | {"pool": [CONVNET, MLP, VIT], "condense": RECIPE["condense"] | {"pool_strategy": "pair"}}
    ),
    "three classes a step": tiny_recipe(classes_per_step=3, networks={"reset_every": 5, "batches_per_step": 1}),
    "projections learn from whole minibatches": tiny_recipe(
        distillation="variance", networks={"reset_every": 3, "batches_per_step": 2, "batch": 70, "parts": 3}
    ),
    "one model": Recipe.model_validate(RECIPE | {"pool": [CONVNET]}),
    "views and directions": tiny_recipe(views=3, distance="orthogonal"),
    "two sizes": tiny_recipe(ipc=[3, 1]),
    "averaged, three classes a step": tiny_recipe(
        classes_per_step=3, images={"schedule": "cosine", "average": 0.9, "parametrisation": "pyramid"}
    ),
}


def alone(name: str, folder: Path) -> list[str]:
    """Digests of the same run without ranks."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "PIXELS", PIXELS)
        condense(RECIPES[name], tiny_source(), RunDir(folder), device=CPU)
    return digests(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_ranks_broken_anywhere_gives_the_same_bytes(name: str, ranks: Crew, tmp_path: Path) -> None:
    wanted = alone(name, tmp_path / "alone")
    for count in (2, 3, MOST):
        assert ranks.run(Order(count, f"{tmp_path}/store{count}", tmp_path / str(count), RECIPES[name])) == [""] * count
        assert digests(tmp_path / str(count)) == wanted, f"{count} ranks"
    for first, then in ((3, 2), (2, 3), (1, 2)):
        folder = tmp_path / f"{first}then{then}"
        broken = Order(first, f"{folder}a", folder, RECIPES[name], stop_after=4)
        said = ranks.run(broken)
        assert len(said) == first and all("Interrupted: stopped after image step 4 of" in text for text in said)
        assert ranks.run(Order(then, f"{folder}b", folder, RECIPES[name])) == [""] * then
        assert digests(folder) == wanted, f"{first} ranks, then {then}"


@pytest.mark.slow
def test_all_ranks_take_the_checkpoint_that_the_first_found_whole(ranks: Crew, tmp_path: Path) -> None:
    wanted = alone("two models", tmp_path / "run")
    newest = sorted(RunDir(tmp_path / "run").checkpoints.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    RunDir(tmp_path / "run").condensed.unlink()
    assert ranks.run(Order(3, f"{tmp_path}/store", tmp_path / "run", RECIPES["two models"])) == [""] * 3
    assert digests(tmp_path / "run") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("others", ["none", "another seed's", "other steps'", "damaged"])
def test_ranks_that_see_other_checkpoints_do_not_begin(ranks: Crew, tmp_path: Path, others: str) -> None:
    alone("two models", tmp_path / "0")
    mine, theirs = tmp_path / "0" / "checkpoints", tmp_path / "1" / "checkpoints"
    shutil.copytree(mine, theirs)
    for path in sorted(theirs.iterdir()):
        if others == "none":
            path.unlink()
        elif others == "damaged":
            path.write_bytes(path.read_bytes()[:50])
        elif others == "other steps'":
            path.rename(path.with_name("1" + path.name[1:]))
    if others == "another seed's":
        shutil.rmtree(tmp_path / "1")
        (tmp_path / "1").mkdir()
        recipe = RECIPES["two models"].model_copy(update={"seed": 5})
        condense(recipe, tiny_source(), RunDir(tmp_path / "1"), device=CPU)
        assert len(list(theirs.iterdir())) == len(list(mine.iterdir()))
    said = ranks.run(Order(2, f"{tmp_path}/store", tmp_path, RECIPES["two models"], apart=True))
    assert all("does not hold the same checkpoints for all 2 ranks" in text for text in said)


GLOO = "[/somewhere/gloo/transport/tcp/"
GONE = {
    "killed": f"{GLOO}pair.cc:561] Connection closed by peer [127.0.0.1]:3252. This is typically",
    "ended": f"{GLOO}pair.cc:545] Read error [127.0.0.1]:21389: Connection reset by peer. This is typically caused by",
    "hangs": f"{GLOO}unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete",
    "never came": "Timed out after 6 seconds waiting for clients. 1/2 clients joined.",
    "no torchrun": "The client socket has timed out after 5000ms while trying to connect to (127.0.0.1, 29612).",
    "torchrun ended": "Failed to recv, got 0 bytes. Connection was likely closed. Did",
    "on a GPU": "NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was a network error",
}
"""What torch raised in one of two processes when the other was gone; the last is NCCL's, from memory."""


@pytest.mark.parametrize("message", GONE.values(), ids=GONE)
def test_a_rank_that_is_gone_is_told(message: str) -> None:
    with pytest.raises(PeerLostError, match="Another rank ended"), peers():
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            f"[enforce fail at {GLOO}pair.cc:464] op.preamble.length <= op.nbytes. 8 vs 4. Received data size"
        ),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error\nCuda failure 2 'out of memory'"),
        RuntimeError(
            "The expanded size of the tensor (3) must match the existing size (4) at non-singleton dimension 0"
        ),
    ],
    ids=["memory", "sizes", "memory of NCCL", "ours"],
)
def test_whatever_else_goes_wrong_in_a_collective_stays_what_it_is(error: RuntimeError) -> None:
    with pytest.raises(RuntimeError) as caught, peers():
        raise error
    assert caught.value is error


def test_a_bug_in_a_real_collective_keeps_its_traceback(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="invalid tensor size") as caught, peers():
            dist.gather(torch.zeros(3), [torch.zeros(4)])
    finally:
        dist.destroy_process_group()
    assert not isinstance(caught.value, HmdcError)


def test_alone_owns_everything() -> None:
    alone = Ranks()
    assert [alone.owner(label, 2) for label in range(5)] == [0] * 5
    assert torch.equal(torch.cat(list(alone.gather(torch.arange(3), [0, 0, 0]))), alone.together(torch.arange(3)))


def test_what_torchrun_tells() -> None:
    told = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert launched({}) is None and launched(told | {"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert launched(told) == Launched(3, 4, 1, None, 0)
    hosted = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "there", "MASTER_PORT": "29500"}
    assert launched(told | hosted | {"TORCHELASTIC_RESTART_COUNT": "2"}) == Launched(3, 4, 1, ("there", 29500), 2)


def torchrun(count: int, folder: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "hmdc_hub"]
    return subprocess.Popen(
        [sys.executable, *launch, "condense", "tiny.yaml", "--run-dir", "run", "--resume", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_the_real_command_under_torchrun(tmp_path: Path) -> None:
    """Two ranks over Gloo; one is killed, the rest ends with one message, three go on; scored and packaged too."""
    networks = {"reset_every": 4, "batches_per_step": 2, "batch": 64}
    (tmp_path / "tiny.yaml").write_text(dump_recipe(tiny_recipe(resets=20, networks=networks)))
    process = torchrun(2, tmp_path, ["--no-evaluate"])
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if re.match(r"condense ([2-9]|\d\d+)/80", line):  # a checkpoint or two later, and long before the end
            ranks = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == process.pid]
            os.kill(max(ranks), signal.SIGKILL)
            break
    said += process.stdout.readlines()
    assert process.wait() == 1
    text = "".join(said)
    assert text.count("Another rank ended") == 1 and "--resume goes on" in text
    assert "Traceback" not in text.partition("torch/distributed")[0]
    done = torchrun(3, tmp_path, [])
    out, _ = done.communicate()
    assert done.returncode == 0, out
    assert "resume: image step" in out and out.count("accuracy   ") == 1
    run = RunDir(tmp_path / "run")
    assert run.state() == "finished"
    alone = tmp_path / "alone"
    alone.mkdir()
    condense(read_recipe_file(run.recipe), tiny_source(), RunDir(alone), device=CPU)
    assert digests(alone) == digests(run.path)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return 0
