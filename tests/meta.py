"""Show that code could run as a captured CUDA graph: on `meta` tensors, which have shapes but no values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OnlyMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuse tensors of other devices within; reading a value of a `meta` tensor is refused by torch."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        found = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        assert found <= {"meta"}, f"{func} with tensors on {found}"
        return out
