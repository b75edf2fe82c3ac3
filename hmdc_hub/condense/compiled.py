"""The matching step as compiled functions (`condense.derivative: compiled`).

`torch.compile` differentiates nothing twice. So what it gets has no derivative left in it: the eager code of `match` is
run once on tensors that record every operation, those of both backward passes among them, and the record is compiled.
Everything that changes is an argument of it, the values of networks and alignments too. A record holds for one number
of images; others are computed eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from hmdc_hub.errors import RunError

Work = Callable[..., Any]
"""Takes tensors, or tuples and mappings of them, and gives the like."""

Key = tuple[Any, ...]
"""Everything that decides what a function computes, but for the values of its arguments."""


class Compiled:
    """Compiled functions by their keys.

    Nothing is compiled in passing, only within `learning`: while a function is recorded, its modules hold other tensors
    than their own, so no other thread may be at work on them.
    """

    def __init__(self) -> None:
        self._made: dict[Key, Work] = {}
        self._learning = False

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Compile whatever is done for the first time for a while.

        Raises:
            RunError: Torch cannot compile it here, for want of a compiler, say.
        """
        self._learning = True
        try:
            yield
        finally:
            self._learning = False

    def run(self, key: Key, work: Work, modules: Sequence[nn.Module], *arguments: Any) -> Any:
        """Do work, in its compiled form if there is one.

        Args:
            key: Of the work.
            work: Eagerly.
            modules: Those that it reads; another time they may be others of their kind.
            arguments: Its tensors.
        """
        if key not in self._made:
            if not self._learning:
                return work(*arguments)
            self._learn(key, work, modules, arguments)
        with torch.no_grad():
            return self._made[key](_values(_Held(modules)), *arguments)

    def _learn(self, key: Key, work: Work, modules: Sequence[nn.Module], arguments: Sequence[Any]) -> None:
        # Once eagerly: what is made at a first call and kept, such as interpolation matrices, is then in every record
        # the same, and what goes wrong in code of ours is not taken for the compiler's.
        work(*arguments)
        try:
            made = _compiled(work, modules, arguments)
            with torch.no_grad():
                made(_values(_Held(modules)), *arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways
            what = (str(error).splitlines() or [""])[0]
            raise RunError(
                f"condense.derivative = compiled, but torch.compile failed: {type(error).__name__}: {what}",
                hint="On a CPU it needs a C++ compiler. Without it: -o condense.derivative=eager",
            ) from error
        self._made[key] = made


class _Held(nn.Module):
    """Modules whose tensors `functional_call` can replace while something is done with them."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, work: Work, *arguments: Any) -> Any:
        return work(*arguments)


def _values(held: _Held) -> dict[str, Tensor]:
    return {name: value.detach() for part in (held.named_parameters(), held.named_buffers()) for name, value in part}


def _compiled(work: Work, modules: Sequence[nn.Module], arguments: Sequence[Any]) -> Work:
    held = _Held(modules)
    moving = {name for name, parameter in held.named_parameters() if parameter.requires_grad}

    def recorded(values: Mapping[str, Tensor], *given: Any) -> Any:
        leaves = {name: value.detach().requires_grad_(name in moving) for name, value in values.items()}
        return functional_call(held, leaves, (work, *given))

    record = make_fx(recorded)(_values(held), *arguments)
    # One thread, as every operation of the condenser has on a CPU.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"cpp.threads": 1}
    return torch.compile(record, fullgraph=True, dynamic=False, options=options)
