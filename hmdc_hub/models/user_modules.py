"""Networks of this Python session: anybody's `nn.Module` in a pool, or as what a set is evaluated on.

A `ModelSpec` is plain data, so it names such a network by an id, and the process keeps what makes it. Nothing of it is
written anywhere: another process must register it again.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
import textwrap
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Shape
from hmdc_hub.models.feature_layers import Hints, LibraryNetwork, run_recorded, wrap
from hmdc_hub.schema import ModelSpec, canonical_json
from hmdc_hub.text import first_line

PASS_A_FUNCTION = "Pass a function that makes it, as in register_module(lambda: MyNet(classes=10))."


@dataclass(frozen=True, eq=False)
class _Entry:
    """What was registered (an instance: a copy of it on the CPU), compared by identity."""

    module: nn.Module | Callable[[], nn.Module]

    def __deepcopy__(self, memo: Any) -> _Entry:
        return self  # copies of a model are made by the same


# By id and name: functions that a forward calls may differ where nothing else does.
_entries: dict[tuple[str, str], _Entry] = {}


def register_module(module: nn.Module | Callable[[], nn.Module], name: str | None = None, **spec: Any) -> ModelSpec:
    """Let a network of this process be used like an entry of the pool, its feature layers found as any library's.

    At every reset a class or function is called again, and an instance gets fresh values from the `reset_parameters` of
    its modules; those that it has now count for nothing. Both happen under a random state of the run, so the same
    recipe gives the same bits, and torch's own state is left as it was.

    Args:
        module: An `nn.Module`, or a class or function that makes one without arguments. Its forward takes float images
            B x channels x side x side and returns logits B x classes, or an object that has them as `logits`.
        name: What it is called in results; its class's name if left out. Registering the same name again replaces it.
        spec: Other fields of `ModelSpec`, such as `taps`, `input_size`, `lr` or `batch_norm`.

    Returns:
        The pool entry. Its id is the class's name with a hash of all that it consists of: names, shapes and types,
        plain attributes such as the stride of a convolution, and the methods of classes that are not torch's.

    Raises:
        ModelError: It cannot be made, a parameter is not reset, or a field is wrong.
    """
    try:
        # On a GPU fresh values would come from its own generator.
        entry = _Entry(copy.deepcopy(module).cpu() if isinstance(module, nn.Module) else module)
    except Exception as error:  # tensors that are no leaves, say
        raise ModelError(f"{type(module).__name__} cannot be copied: {error}", hint=PASS_A_FUNCTION) from error
    with rng.global_seed(rng.generator(0, "build")), torch.device("cpu"):
        net = _made(entry)
        if isinstance(entry.module, nn.Module):
            probe = copy.deepcopy(entry.module)
            with torch.no_grad():
                for parameter in probe.parameters():
                    parameter.fill_(torch.nan)
            _reset(probe)
            if left := [name for name, parameter in probe.named_parameters() if not bool(parameter.isfinite().all())]:
                why = f"{_kind(probe)}: no reset_parameters of its modules gives {left[0]} fresh values"
                raise ModelError(why, hint=PASS_A_FUNCTION)
        elif net is _made(entry):
            same = f"{_kind(net)}: the function returns the same module again"
            raise ModelError(same, hint="Let every call make a new one.")
    kind = _kind(net)
    id_ = f"{kind}@{_digest(net)}"
    name = name or kind.rpartition(".")[2]
    refused = [key for key in ("source", "id", "args", "weights", "revision") if key in spec]
    if refused:
        raise ModelError(f"{refused[0]} is not for a module of your own", hint=PASS_A_FUNCTION)
    try:
        found = ModelSpec(**{"name": name, "source": "python", "id": id_, **spec})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its fields"
        raise ModelError(f"{name} cannot be registered: {where}: {first['msg']}") from error
    _entries.pop((id_, name), None)
    _entries[id_, name] = entry
    return found


def family(spec: ModelSpec) -> Family:
    """Describe a registered network; ModelError if this process has none of that id."""
    alike = [key for key in _entries if key[0] == spec.id]
    if not alike:
        kind = spec.id.partition("@")[0]
        others = [id_ for id_, _ in _entries if id_.partition("@")[0] == kind]
        raise ModelError(
            f"{spec.id} is a network of a Python session, and this process has "
            + (f"{kind} with other parameters or parts ({others[0]})" if others else "none of that id"),
            hint="In Python, register it first: hmdc_hub.models.register_module(...)",
        )
    key = (spec.id, spec.name)
    return Family(partial(_make, _entries[key if key in _entries else alike[-1]]))


def _make(entry: _Entry, args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
    shape, heads = _fitted(entry, shape)
    return wrap(partial(_made, entry), lambda model: Hints(heads, vectors=True), shape, ("python", entry))


def _made(entry: _Entry) -> nn.Module:
    """Make the network with fresh values, from torch's global generator."""
    if isinstance(entry.module, nn.Module):
        net = copy.deepcopy(entry.module)
        _reset(net)
    else:
        try:
            net = entry.module()
        except Exception as error:  # whatever the caller's code raises
            called = getattr(entry.module, "__qualname__", repr(entry.module))
            raise ModelError(f"{called}() fails: {first_line(error)}", hint=PASS_A_FUNCTION) from error
        if not isinstance(net, nn.Module):
            raise ModelError(f"{type(net).__name__} is no torch.nn.Module", hint=PASS_A_FUNCTION)
    lazy = [name for name, parameter in net.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ModelError(f"{_kind(net)}: {lazy[0]} is lazy", hint="Give the layer its sizes: nn.Linear(128, 10).")
    return net.float().cpu()


@torch.no_grad()
def _reset(net: nn.Module) -> None:
    for part in reversed(list(net.modules())):  # inner modules first, as `Module.apply`
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()


def _kind(net: nn.Module) -> str:
    """Name a network's class without the function that it may be defined in."""
    return re.sub(r"^.*<locals>\.|[^\w.]", "", type(net).__qualname__).lstrip("_.") or "Module"


def _digest(net: nn.Module) -> str:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    kinds = (kind for part in net.modules() for kind in type(part).__mro__)
    own = [kind for kind in kinds if kind is not object and kind.__module__.partition(".")[0] != "torch"]
    facts = [
        [[name, _kind(part), _attributes(part)] for name, part in net.named_modules()],
        [[name, list(value.shape), str(value.dtype)] for name, value in tensors.items()],
        [[kind.__qualname__, _code(kind)] for kind in dict.fromkeys(own)],
    ]
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:8]


def _attributes(part: nn.Module) -> dict[str, str]:
    """Give what a module was made with, as far as it is plain: a stride, a probability, the name of a function."""
    found, plain = {}, (bool, int, float, str, type(None))
    for name, value in vars(part).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, FunctionType | BuiltinFunctionType):
            found[name] = value.__qualname__
        elif all(isinstance(one, plain) for one in (value if isinstance(value, tuple | list) else (value,))):
            found[name] = repr(value)
    return found


def _code(kind: type) -> list[str]:
    """Give the text of a class's methods; their bytecode where they were not read from a file or a notebook's cell."""
    found = []
    for value in vars(kind).values():
        if isinstance(value, FunctionType):
            try:
                found.append(textwrap.dedent(inspect.getsource(value)))
            except (OSError, SyntaxError, tokenize.TokenError):  # no file, or another one than was read
                code = value.__code__
                constants = [
                    repr(sorted(map(repr, one)) if isinstance(one, frozenset) else one)  # in one order in all processes
                    for one in code.co_consts
                    if not isinstance(one, CodeType)
                ]
                found.append(f"{code.co_code.hex()} {code.co_names} {constants}")
    return found


@cache
def _fitted(entry: _Entry, shape: Shape) -> tuple[Shape, tuple[str, ...]]:
    """Run a network once: the shape with the colour channels that it takes, and the name of its classifier."""
    with rng.global_seed(rng.generator(0, "build")), torch.device("cpu"):
        net = _made(entry).eval()
        layers = {name: part for name, part in net.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
        errors = []
        for channels in dict.fromkeys((shape.channels, 3, 1)):
            images = torch.zeros(2, channels, shape.side, shape.side)
            try:
                output, called, _ = run_recorded(net, layers, images)
            except ModelError as error:
                errors.append(error)
                continue
            if channels < shape.channels:
                raise ModelError(
                    f"it takes images of {channels} channel, and the source has {shape.channels}",
                    hint=f"Make its first layer take {shape.channels} channels, or set source.channels: {channels}.",
                )
            logits = getattr(output, "logits", output)
            if not isinstance(logits, Tensor):
                kind = type(output).__name__
                raise ModelError(f"it returns a {kind}, not logits or an object that has them as `logits`")
            if logits.shape != (2, shape.classes):
                numbers, hint = " x ".join(map(str, logits.shape)), f"Make its last layer give {shape.classes}."
                raise ModelError(f"it returns {numbers} numbers for 2 images, not 2 x {shape.classes}", hint=hint)
            outputs = {n: p.out_features if isinstance(p, nn.Linear) else p.out_channels for n, p in layers.items()}
            if heads := [name for name in called if outputs[name] == shape.classes and name]:
                return replace(shape, channels=channels), (heads[-1],)
            hint = f"Let its last layer be an nn.Linear with {shape.classes} outputs."
            raise ModelError("no classifier can be found in it", hint=hint)
        raise errors[0]
