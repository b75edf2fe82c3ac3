"""How functions of a step run: uploads, captured graphs (as far as a CPU can show), compiled records."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmdc_hub.condenser import condense, data, hmdc
from hmdc_hub.condenser.cost import AtOnce
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.images import SyntheticImages
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.errors import RunError
from hmdc_hub.events import Event, Note
from hmdc_hub.execution import Compiled, Execution, Packed, bytes_of, laid_out, tensors_of
from hmdc_hub.models import build_for
from hmdc_hub.schema import Recipe
from hmdc_hub.store.condensed import read_condensed
from hmdc_hub.store.rundir import RunDir
from tests.builders import RESNET
from tests.condenser.running import hmdc_of, recipe_of, run
from tests.gpu import CPU, GPU, Gpu
from tests.meta import OnlyMeta
from tests.tiny import CONVNET, MLP, VIT, tiny_recipe, tiny_source

META = torch.device("meta")
VISION = {"name": "vision", "source": "torchvision", "id": "resnet18", "input_size": 32}
COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


# no function asks for a value


def on_meta(recipe: Recipe, classes: int = 10) -> HMDC:
    """Make a run whose tensors have shapes alone: reading one back, or making one elsewhere in passing, raises."""
    source, spec = tiny_source(), recipe.condense
    real = RealImages(source, spec, 0, CPU)
    networks = ModelPool([build_for(model, source) for model in recipe.pool], real)
    networks.activate(0)
    real.device, real.images = META, torch.empty_like(real.images, device="meta")
    for module in (*networks.models, *(pair.distillation for pair in networks.objectives.pairs)):
        module.to("meta")
        for tensors in (module.parameters(), module.buffers()):
            assert all(t.is_meta for t in tensors)
    networks = ModelPool(networks.models, real)
    pixels = [torch.empty(classes, ipc, 1, 8, 8, device="meta") for ipc in spec.sizes]
    images = [SyntheticImages(range(classes), each, source, spec.images) for each in pixels]
    return HMDC(networks, images, AtOnce(classes, None, 0), Execution(META))


POOLS: dict[str, list[dict[str, Any]]] = {
    "convnet and mlp": [CONVNET, MLP],
    "vit and batch norm": [VIT, RESNET],
    "torchvision": [VISION],
    "bfloat16": [CONVNET | {"precision": "bfloat16"}, VIT | {"precision": "bfloat16"}],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "images", "keys"),
    [
        *((pool, None, {}) for pool in POOLS),
        ("convnet and mlp", 3, {}),
        ("convnet and mlp", None, {"views": 3, "distance": "cosine"}),
        ("vit and batch norm", 3, {"views": 2, "distance": "orthogonal"}),
    ],
)
def test_no_function_of_a_step_asks_a_tensor_for_its_value(
    pool: str, images: int | None, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adam counts its steps on the CPU but where it may be captured, which it does not allow on `meta`.
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, capturable: torch.optim.SGD(parameters, lr))
    recipe = recipe_of(*POOLS[pool], ipc=[2, 1], batch=6, augment={}, cutmix={"match": True, "train": True}, **keys)
    hmdc = on_meta(recipe)
    hmdc.at_once = AtOnce(10, images, 0)
    chosen = torch.arange(6)
    classes = hmdc.real.draw_classes(list(range(10)), list(range(10)), [chosen] * 10, (0, 0), recipe.condense.sizes)
    batch = next(hmdc.real.draw_minibatches("test", (0, 0), 1))
    drawn = next(hmdc.execution.upload([classes])).tensors
    batch = next(hmdc.execution.upload([batch])).tensors
    functions: list[Callable[[], None]] = [
        partial(hmdc.image_step, drawn, update=True),
        partial(hmdc.image_step, drawn, update=False),
        partial(hmdc.networks.train, batch),
    ]
    if hmdc.networks.objectives.pairs:
        functions.append(partial(hmdc.networks.train_projections, batch))
    for work in functions:
        work()  # what is made at a first call and kept is not captured
        with OnlyMeta():  # type: ignore[no-untyped-call]
            work()


def test_that_a_value_is_asked_for_would_be_seen() -> None:
    hmdc = on_meta(recipe_of(CONVNET))
    (packed,) = hmdc.execution.upload([next(hmdc.real.draw_minibatches("test", (0, 0), 1))])
    hmdc.networks.train(packed.tensors)
    net = hmdc.networks.models[0].net
    work = net.run

    def asks(images: Tensor) -> Any:
        return work(images) if float(images.sum()) else []

    def elsewhere(images: Tensor) -> Any:
        return work(images * torch.ones(1))

    for broken in (asks, elsewhere):
        net.run = broken  # type: ignore[method-assign,assignment]
        with pytest.raises((RuntimeError, AssertionError)), OnlyMeta():  # type: ignore[no-untyped-call]
            hmdc.networks.train(packed.tensors)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are run as they are: what a compiler makes of them is its own affair, and takes long."""
    monkeypatch.setattr(torch, "compile", lambda record, **_: record)


# graphs, as far as they can be seen without a GPU


def packed(*values: float) -> Packed[tuple[Tensor, Tensor]]:
    buffer = torch.empty(32, dtype=torch.uint8)
    inputs = laid_out((torch.zeros(len(values)), torch.zeros(1, dtype=torch.int64)), buffer)
    inputs[0].copy_(torch.tensor(values))
    inputs[1].fill_(7)
    return Packed(inputs, buffer)


def test_a_function_runs_once_is_captured_and_replayed_on_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, seen = Gpu(monkeypatch), list[tuple[Tensor, Tensor]]()
    function = Execution(GPU).function(seen.append, "adding")
    for value in (1.0, 2.0, 3.0):
        function(packed(value, value))
    assert gpu.events == ["beside", "capture", "replay", "replay"]
    assert len(seen) == 2, "nothing runs at a replay but the graph"
    assert seen[1][0].tolist() == [3.0, 3.0] and int(seen[1][1]) == 7, "its inputs are those of the last call"
    function(packed(4.0))
    assert gpu.events[-1] == "beside", "another shape is another graph"


def test_what_cannot_be_captured_runs_as_it_is_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, events, calls = Gpu(monkeypatch), list[Event](), list[str]()

    def work(inputs: tuple[Tensor, Tensor]) -> None:
        calls.append(gpu.events[-1] if gpu.events else "")
        inputs[0].add_(float(inputs[0].sum()))

    function = Execution(GPU, events.append).function(work, "matching")
    for _ in range(4):
        function(packed(1.0))
    assert len(calls) == 5 and "replay" not in gpu.events
    (note,) = events
    assert isinstance(note, Note) and note.text.startswith(
        "matching cannot be captured, and runs slower: operation not"
    )


def test_what_has_no_deterministic_form_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch)
    events, modes = list[Event](), list[bool]()

    def work(inputs: Any) -> None:
        assert torch.are_deterministic_algorithms_enabled()
        modes.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if len(modes) == 1:
            raise RuntimeError("upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but")

    function = Execution(GPU, events.append).function(work, "training")
    for _ in range(3):
        function(packed(1.0))
    assert modes == [False, True, True], "refused, done without, captured without"
    assert not torch.are_deterministic_algorithms_enabled()
    (note,) = events
    assert isinstance(note, Note) and "upsample_bicubic2d_backward_out_cuda has no deterministic form" in note.text


RANDOM = {"initialisation": "random", "cluster": {"enabled": False}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "keys"),
    [
        ([CONVNET, MLP], {"cutmix": {"match": True, "train": True}}),
        ([CONVNET, MLP, VIT], {"balance_every": 2, "pool_strategy": "pair"}),
        ([CONVNET, MLP], {"classes_per_step": 4}),
        ([CONVNET, MLP], {"derivative": "compiled"}),
        ([CONVNET | {"precision": "bfloat16"}, VIT | {"precision": "bfloat16"}], RANDOM),
        ([CONVNET, VIT], {"views": 3, "distance": "cosine"}),
        ([MLP], {"views": 2, "distance": "orthogonal", "derivative": "compiled"}),
    ],
    ids=["cutmix", "pairs", "some classes", "compiled", "bfloat16", "views", "directions compiled"],
)
def test_a_run_on_a_gpu_is_that_on_a_cpu(
    recorded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: list[dict[str, Any]], keys: dict[str, Any]
) -> None:
    """Whatever a step does but for the kernels: uploads, captures and replays; all classes, none or some update."""
    recipe = recipe_of(*pool, **keys)
    events: list[Event] = []
    with Gpu(monkeypatch) as gpu:
        for name, device in (("cpu", CPU), ("gpu", GPU)):
            (tmp_path / name).mkdir()
            condense(recipe, tiny_source(), RunDir(tmp_path / name), device=device, callback=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert all(note.startswith("compiling the") for note in notes)
    assert set(gpu.events) == {"beside", "capture", "replay"}
    one, other = (read_condensed(RunDir(tmp_path / name).condensed)[0] for name in ("cpu", "gpu"))
    # A CPU takes neighbours together and a GPU any classes, which tells in the last bits.
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3 if "classes_per_step" in keys else 0)


@pytest.mark.slow
def test_a_gpu_without_room_for_source_and_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, work = recipe_of(CONVNET, MLP), hmdc.distance_gradients

    def full(objectives: Any, wanted: Any, synthetic: Tensor, *rest: Any, at_once: int | None) -> Any:
        if len(synthetic) * (at_once or 8) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(objectives, wanted, synthetic, *rest, at_once)  # type: ignore[call-arg]

    monkeypatch.setattr(hmdc, "distance_gradients", full)
    notes: list[str] = []
    with Gpu(monkeypatch) as gpu:
        monkeypatch.setattr(data, "RESIDENT", 0)
        (tmp_path / "gpu").mkdir()
        callback = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
        condense(recipe, tiny_source(), RunDir(tmp_path / "gpu"), device=GPU, callback=callback)
    assert notes == [f"out of memory; going on with the graphs of {n} classes at a time" for n in (5, 3)]
    assert gpu.events[0] == "beside" and "replay" in gpu.events
    monkeypatch.setattr(hmdc, "distance_gradients", work)
    one, other = (read_condensed(d.condensed)[0] for d in (run(tmp_path / "cpu", recipe), RunDir(tmp_path / "gpu")))
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_inputs_in_one_buffer_keep_their_values_and_types() -> None:
    inputs = (torch.arange(5), (torch.rand(2, 3), None), torch.tensor(1.5), torch.ones(3, dtype=torch.uint8))
    buffer = torch.empty(bytes_of(inputs), dtype=torch.uint8)
    found = laid_out(inputs, buffer)
    wanted = list(tensors_of(inputs))
    for view, tensor in zip(tensors_of(found), wanted, strict=True):
        assert view.dtype == tensor.dtype and view.shape == tensor.shape
        assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        view.copy_(tensor)
    for view, tensor in zip(tensors_of(found), wanted, strict=True):
        assert torch.equal(view, tensor), "none lies over another"
    assert found[1][1] is None


# compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "distance"),
    [
        *((pool, "squares") for pool in ("convnet and mlp", "vit and batch norm", "bfloat16")),
        *(("convnet and mlp", distance) for distance in ("cosine", "orthogonal")),
    ],
)
def test_a_record_holds_for_other_values(recorded: None, pool: str, distance: str) -> None:
    """Networks are reset in place between outer iterations."""
    pixels = []
    for derivative in ("eager", "compiled"):
        keys = {"derivative": derivative, "distance": distance, "networks": {"reset_every": 2, "batch": 16}}
        hmdc = hmdc_of(recipe_of(*POOLS[pool], **keys))
        for _ in zip(range(3), hmdc.run(), strict=False):
            pass
        assert len(hmdc._compiled) == (2 if derivative == "compiled" else 0), "g(R), and the one size"
        pixels.append(hmdc.sizes[0].images.pixels)
    torch.testing.assert_close(pixels[0], pixels[1], rtol=0, atol=1e-3 if pool != "bfloat16" else 0.2)


@pytest.mark.slow
@COMPILER
def test_the_compiler_itself() -> None:
    steps = []
    for derivative in ("eager", "compiled"):
        hmdc = hmdc_of(recipe_of(CONVNET, MLP, derivative=derivative))
        for _ in zip(range(2), hmdc.run(), strict=False):
            pass
        steps.append(hmdc.sizes[0].images.pixels)
    assert not torch.equal(*steps), "nothing was compiled"
    torch.testing.assert_close(*steps, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiling_is_said_and_is_no_part_of_a_step_s_time(recorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    hmdc = hmdc_of(recipe_of(CONVNET, MLP, derivative="compiled"), events.append)
    steps = hmdc.run()
    next(steps)  # updates the balance, in the eager form
    made = Compiled.__init__

    def slow(self: Compiled, *arguments: Any) -> None:
        clock[0] += 1000.0
        made(self, *arguments)

    clock = [0.0]
    monkeypatch.setattr(Compiled, "__init__", slow)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    next(steps)
    assert hmdc.seconds == 0.0
    next(steps)
    assert [e.text for e in events if isinstance(e, Note)] == [
        "compiling the matching step; the first time this takes minutes"
    ]


@pytest.mark.slow
def test_what_cannot_be_compiled_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(record: Any, **_: Any) -> Any:
        def call(*_: Any) -> Tensor:
            raise ValueError("no compiler found\nlong story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    steps = hmdc_of(recipe_of(CONVNET, MLP, derivative="compiled")).run()
    with pytest.raises(RunError, match="torch.compile failed: ValueError: no compiler found\n") as told:
        next(steps), next(steps)
    assert "-o condense.derivative=eager" in told.value.hint


def test_it_is_how_not_what() -> None:
    assert tiny_recipe(derivative="compiled").condense_hash() == tiny_recipe().condense_hash()
