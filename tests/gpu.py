"""A stand-in for a GPU: its tensors are on the CPU, and its graphs records of operations that a replay does again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Graph:
    """What CUDA's is to its callers: capturing changes no tensor; a replay reads those that were read, as they are."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor changed in place
                    old.copy_(new)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.made = graph, set[int]()
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(one, kwargs[one.name]) for one in func._schema.arguments if one.name in kwargs]
        for argument, value in given:
            # Batch norm changes its statistics without a word in its schema.
            statistics = "batch_norm" in func._schema.name and argument.name.startswith("running_")
            if statistics or (argument.alias_info is not None and argument.alias_info.is_write):
                for tensor in _tensors(value):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self.made | self.before.keys():
                        self.before[storage.data_ptr()] = storage, storage.clone()  # type: ignore[no-untyped-call]
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        self.made |= {tensor.untyped_storage().data_ptr() for tensor in _tensors(out)} - known
        self.graph.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        for storage, values in self.before.values():
            storage.copy_(values)


class _OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            return CPU if isinstance(value, torch.device) and value.type == "cuda" else value

        kwargs = {name: here(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*map(here, args), **kwargs)


class Gpu:
    """Stands in for torch.cuda as long as a test runs; `events` has what was done, `free` is its memory in bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int = 2**30) -> None:
        self.events: list[str] = []
        gpu = self

        class Told(Graph):
            def replay(self) -> None:
                gpu.events.append("replay")
                super().replay()

        class Stream:
            def wait_stream(self, other: Any) -> None:
                pass

        @contextmanager
        def graph(graph: Graph, pool: Any, stream: Any, *, capture_error_mode: str) -> Iterator[None]:
            gpu.events.append("capture")
            recording = _Recording(graph)
            try:
                with recording:
                    yield
            finally:
                recording.undo()

        @contextmanager
        def stream(stream: Stream) -> Iterator[None]:
            gpu.events.append("beside")
            yield

        for name, value in {
            "CUDAGraph": Told, "Stream": Stream, "graph": graph, "stream": stream, "current_stream": Stream,
            "graph_pool_handle": object, "synchronize": lambda *_: None, "empty_cache": lambda: None,
            "device": lambda _: nullcontext(), "mem_get_info": lambda _: (free, free),
            "max_memory_allocated": lambda _: 0, "get_device_name": lambda _: "stand-in",
            "get_device_capability": lambda _: (9, 0),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        # Adam may only be captured on a real one; SGD will do.
        monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, capturable: torch.optim.SGD(parameters, lr))

    def __enter__(self) -> Gpu:
        self._mode = _OnTheCpu()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
