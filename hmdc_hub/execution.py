"""How the functions of an image step run: as they are, captured as CUDA graphs, or compiled.

The algorithm is written as functions that read tensors and change tensors in place, and never ask a tensor for its
value. On a CPU they are called. On a GPU a step is some hundred thousand kernels, each shorter than its launch, so the
second call of a function records them as a graph and the calls after it replay the graph.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from hmdc_hub.errors import RunError
from hmdc_hub.events import Callback, Note, silent
from hmdc_hub.text import first_line

_Inputs = TypeVar("_Inputs")

ALIGNMENT = 16  # bytes to which tensors in one buffer are aligned


class Packed(NamedTuple, Generic[_Inputs]):
    """Inputs on the device: a tuple of tensors, and the bytes that they all lie in (None on a CPU)."""

    tensors: _Inputs
    buffer: Tensor | None


class Execution:
    """Brings inputs to a device and runs functions of them."""

    def __init__(self, device: torch.device, callback: Callback = silent) -> None:
        self.device, self.callback = device, callback  # which is told where a function cannot run as was meant
        self._memory: Any = None
        self._stream: Any = None
        self._beside: list[Any] = []

    def upload(self, inputs: Iterable[_Inputs], *, together: bool = True) -> Iterator[Packed[_Inputs]]:
        """Copy tuples of tensors to the device: from pinned memory, in copies that nobody waits for.

        Args:
            inputs: On the CPU.
            together: Take all of them and copy them in one; otherwise one at a time, as they are asked for.
        """
        if self.device.type != "cuda":
            yield from (Packed(_mapped(lambda t: t.to(self.device), one), None) for one in inputs)
            return
        for few in [list(inputs)] if together else ([one] for one in inputs):
            sizes = [bytes_of(one) for one in few]
            staged = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
            for view, tensor in zip(tensors_of(laid_out(few, staged)), tensors_of(few), strict=True):
                view.copy_(tensor)
            buffers = torch.split(staged.to(self.device, non_blocking=True), sizes)
            yield from (Packed(laid_out(one, buffer), buffer) for one, buffer in zip(few, buffers, strict=True))

    def function(self, work: Callable[[_Inputs], Any], name: str) -> Callable[[Packed[_Inputs]], Any]:
        """Make the function that does `work` on inputs as `upload` gives them.

        Args:
            work: Changes tensors in place, or returns some, which are valid until the next call.
            name: For the person who reads that it cannot be captured.
        """
        if self.device.type != "cuda":
            return lambda packed: work(packed.tensors)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return _Captured(work, name, self._memory, self._stream, self.callback)

    def beside(self, works: Sequence[Callable[[], None]]) -> None:
        """Do works that have nothing to do with each other: on a GPU each on a stream of its own, also in a graph."""
        if self.device.type != "cuda" or len(works) == 1:
            for work in works:
                work()
            return
        while len(self._beside) < len(works):
            self._beside.append(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        here, streams = torch.cuda.current_stream(), self._beside[: len(works)]
        for work, stream in zip(works, streams, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                work()
        for stream in streams:
            here.wait_stream(stream)

    def forget(self) -> None:
        """Let go of the memory of functions that are no longer called."""
        if self._memory is not None:
            self._memory = None
            torch.cuda.empty_cache()


class _Captured(Generic[_Inputs]):
    """A function that is a CUDA graph from its second call on, one for each shape of inputs."""

    def __init__(self, work: Callable[[_Inputs], Any], name: str, memory: Any, stream: Any, callback: Callback) -> None:
        self.work, self.name, self.memory, self.stream, self.callback = work, name, memory, stream, callback
        self._graphs: dict[Any, tuple[Packed[_Inputs], torch.cuda.CUDAGraph, Any] | None] = {}
        self._captures, self._same_bits = True, True

    def __call__(self, inputs: Packed[_Inputs]) -> Any:
        key = tuple((tuple(t.shape), t.dtype) for t in tensors_of(inputs.tensors))
        if key not in self._graphs:
            done = self._first(inputs)
            self._graphs[key] = None
            return done
        if self._captures and self._graphs[key] is None:
            self._graphs[key] = self._captured(inputs)
        found = self._graphs[key]
        if found is None:
            with _deterministic(only=self._same_bits):
                return self.work(inputs.tensors)
        held, graph, outputs = found
        assert held.buffer is not None and inputs.buffer is not None
        held.buffer.copy_(inputs.buffer, non_blocking=True)
        graph.replay()
        return outputs

    def _first(self, inputs: Packed[_Inputs]) -> Any:
        """Do the work as it is, on a stream of its own: what libraries set up at a first call must not be captured."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            try:
                with _deterministic(only=self._same_bits):
                    done = self.work(inputs.tensors)
            except RuntimeError as error:
                if "deterministic" not in str(error):
                    raise
                what, self._same_bits = str(error).split(" ")[0], False
                self.callback(Note(f"{self.name}: {what} has no deterministic form on a GPU; bytes will not repeat"))
                with _deterministic(only=False):
                    done = self.work(inputs.tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return done

    def _captured(self, inputs: Packed[_Inputs]) -> tuple[Packed[_Inputs], torch.cuda.CUDAGraph, Any] | None:
        assert inputs.buffer is not None
        buffer = inputs.buffer.clone()
        held = Packed(laid_out(inputs.tensors, buffer), buffer)
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread's calls alone: NCCL looks after its own from another.
            capture = torch.cuda.graph(graph, self.memory, self.stream, capture_error_mode="thread_local")
            with _deterministic(only=self._same_bits), capture:
                outputs = self.work(held.tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a library's network that asks a tensor for its value, say
            if isinstance(error.__context__, torch.OutOfMemoryError):  # after which ending the capture fails too
                raise error.__context__ from None
            self._captures = False
            torch.cuda.synchronize()
            self.callback(Note(f"{self.name} cannot be captured, and runs slower: {first_line(error)}"))
            return None
        return held, graph, outputs


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Time work in seconds: the fastest of three calls, or of fewer once five seconds have passed.

    A busy machine only ever makes a call slower.
    """
    times: list[float] = []
    while len(times) < 3 and sum(times) < 5:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def _deterministic(*, only: bool) -> Iterator[None]:
    """Refuse kernels that have no deterministic form, or else take them where there is no other."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=not only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def settings(device: torch.device) -> Iterator[None]:
    """Set for a while what decides speed and bits on a GPU: TF32 for products, and deterministic kernels.

    TF32 is what the method's authors used and what everybody means by float32 there; `docs/method.md` has what it does
    to the image gradient. On a CPU nothing is set.
    """
    if device.type != "cuda":
        yield
        return
    # Read by cuBLAS at its first product, and by torch before each.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    before = torch.get_float32_matmul_precision(), cudnn.benchmark, memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high")
    cudnn.benchmark = False
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with torch.cuda.device(device), _deterministic(only=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.benchmark, memory.fill_uninitialized_memory = before[1:]  # type: ignore[attr-defined]


class Compiled:
    """A function of tensors through `torch.compile`, for one shape of arguments (`condense.derivative: compiled`).

    `torch.compile` differentiates nothing twice. So what it gets has no derivative left in it: the function is run once
    on tensors that record every operation, those of both backward passes among them, and the record is compiled.
    Everything that changes is an argument of it, the values of the modules too.

    Args:
        work: The function; gives a tuple of tensors.
        modules: Whose values it reads.
        arguments: As it will get them.

    Raises:
        RunError: Torch cannot compile it here, for want of a compiler, say.
    """

    def __init__(
        self, work: Callable[..., Any], modules: Sequence[nn.Module], arguments: Sequence[Tensor | None]
    ) -> None:
        self._held = Held(modules)
        moving = {name for name, parameter in self._held.named_parameters() if parameter.requires_grad}

        def recorded(values: dict[str, Tensor], *given: Any) -> Any:
            leaves = {name: value.detach().requires_grad_(name in moving) for name, value in values.items()}
            return functional_call(self._held, leaves, (work, *given))

        # Once as it is: what is made at a first call and kept, such as interpolation matrices, is then in every record
        # the same, and what goes wrong in code of ours is not taken for the compiler's.
        work(*arguments)
        try:
            record = make_fx(recorded)(self._values(), *arguments)
            self._made = torch.compile(record, fullgraph=True, dynamic=False)
            self(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways
            what = f"{type(error).__name__}: {first_line(error)}"
            raise RunError(
                f"condense.derivative = compiled, but torch.compile failed: {what}",
                hint="On a CPU it needs a C++ compiler. Without it: -o condense.derivative=eager",
            ) from error

    def __call__(self, *arguments: Tensor | None) -> Any:
        """Do the work on arguments of the same shapes, with the values that the modules have now."""
        with torch.no_grad():
            return self._made(self._values(), *arguments)

    def _values(self) -> dict[str, Tensor]:
        named = (*self._held.named_parameters(), *self._held.named_buffers())
        return {name: value.detach() for name, value in named}


class Held(nn.Module):
    """Modules whose tensors `functional_call` can replace while something is done with them."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do it."""
        return work(*arguments)


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """List the tensors of tuples of tensors, tuples and None."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, tuple | list):
        for one in inputs:
            yield from tensors_of(one)


def _mapped(change: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Change every tensor of tuples of tensors, tuples and None."""
    if inputs is None or isinstance(inputs, Tensor):
        return None if inputs is None else change(inputs)
    parts = [_mapped(change, one) for one in inputs]
    return type(inputs)(*parts) if hasattr(inputs, "_fields") else tuple(parts)


def bytes_of(inputs: Any) -> int:
    """Count the bytes of a buffer for the tensors of `inputs`, each aligned."""
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors_of(inputs))


def laid_out(inputs: _Inputs, buffer: Tensor) -> _Inputs:
    """Give tensors like those of `inputs` that lie one after another in a buffer of bytes."""
    place = 0

    def view(tensor: Tensor) -> Tensor:
        nonlocal place
        part = buffer[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        place += bytes_of(tensor)
        return part

    found: _Inputs = _mapped(view, inputs)
    return found
