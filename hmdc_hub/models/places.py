"""Where a library's network has features: found by running it once, so that any architecture can join a pool.

The rules: a network whose blocks all work at one resolution (ViT, MLP-Mixer) has a tap after every block, before its
final norm. One whose resolution falls has a tap at the end of every resolution. A family that has a customary choice
names its modules instead (`ResNet`: the stem after max-pooling and the four stages).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import TapInfo, TapOutput

MOST_PREFIXES = 16
"""Class, distillation and register tokens that a sequence may begin with."""


@dataclass(frozen=True)
class Place:
    """A module whose output is a tap.

    Attributes:
        module: Its dotted name.
        info: What the tap is.
        layout: How the output is laid out: B x C x H x W, B x H x W x C, or B x tokens x C.
        prefix: Tokens before the patches; those behind a class token are registers and the like, and no tap reads them.
        class_token: Whether the first of them is a class token.
    """

    module: str
    info: TapInfo
    layout: Literal["nchw", "nhwc", "tokens"]
    prefix: int = 0
    class_token: bool = False

    def read(self, output: Tensor) -> TapOutput:
        """Split the module's output into semantic B x C and spatial B x C x side x side."""
        if self.layout == "tokens":
            patches = output[:, self.prefix :].transpose(1, 2)
            spatial = patches.reshape(*patches.shape[:2], self.info.side, self.info.side)
            return TapOutput(output[:, 0] if self.class_token else patches.mean(2), spatial)
        spatial = output.permute(0, 3, 1, 2) if self.layout == "nhwc" else output
        return TapOutput(spatial.mean((2, 3)), spatial)


@dataclass(frozen=True)
class Hints:
    """What a library says about one of its networks, beyond what running it shows.

    Attributes:
        modules: Dotted names of the modules to tap; None: by the rules.
        heads: Dotted names of the classifiers.
        nhwc: Whether maps are laid out B x H x W x C.
        patch: Side of a patch in pixels, where all tokens are patches of one size; None: whatever square fits.
        class_token: Whether a first token that is no patch is a class token.
    """

    heads: tuple[str, ...]
    modules: tuple[str, ...] | None = None
    nhwc: bool = False
    patch: int | None = None
    class_token: bool = True


def find_places(model: nn.Module, images: Tensor, hints: Hints) -> tuple[Place, ...]:
    """Find the taps of a network.

    Args:
        model: In evaluation mode.
        images: B x channels x side x side with B > 1, of any values: what the network is run on.
        hints: What its library says about it.

    Raises:
        ModelError: A named module does not exist or gives no features, or nothing in the network does.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = [name for name in hints.modules or () if name not in modules]
    if unknown:
        near = ", ".join(_near(unknown[0], list(modules))) or "`pool check` prints its taps"
        raise ModelError(f"it has no module {unknown[0]!r} to tap", hint=f"Modules with such names: {near}.")
    wanted = list(hints.modules) if hints.modules is not None else _candidates(model, hints.heads)
    outputs = _run(model, {name: modules[name] for name in wanted}, images)
    grid = images.shape[-1] // hints.patch if hints.patch else None
    places = {n: place for n, out in outputs.items() if (place := _place(n, out, len(images), hints, grid))}
    if hints.modules is not None:
        flat = [name for name in hints.modules if name not in places]
        if flat:
            shape = tuple(outputs[flat[0]].shape) if flat[0] in outputs else "nothing"
            raise ModelError(
                f"its module {flat[0]!r} gives {shape}, which is neither a square map nor tokens of one",
                hint="Leave taps out for the default ones.",
            )
        return tuple(places[name] for name in hints.modules)
    chosen = _by_the_rules(places, modules)
    if not chosen:
        raise ModelError("nothing in it gives maps or tokens", hint="Name its modules under taps.")
    return tuple(places[name] for name in chosen)


def _candidates(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Name the model's children, and the members of its outermost containers, where libraries keep blocks."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    found = [name for name, child in model.named_children() if not isinstance(child, containers)]
    outermost: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, containers) and not any(not o or name.startswith(f"{o}.") for o in outermost):
            outermost.append(name)
            found += [f"{name}.{member}" if name else member for member in _called(module)]
    classifying = {head.rpartition(".")[0] for head in heads} - {""}
    found = [name for name in dict.fromkeys(found) if name.rpartition(".")[0] not in classifying]
    return [name for name in found if not _closing(model.get_submodule(name))]


def _called(container: nn.Module) -> Iterator[str]:
    """Name a container's members; those that are never called, such as lists, are stood in for by their members."""
    for name, child in container.named_children():
        if type(child).forward is nn.Module.forward:
            yield from (f"{name}.{member}" for member in _called(child))
        else:
            yield name


def _closing(module: nn.Module) -> bool:
    """Tell what stands between the last block and the classifier from blocks: taps are before the final norm."""
    kind = type(module).__name__
    norm = re.search(r"Norm(Act)?(\d?d)?$", kind) and not kind.startswith("Conv")
    pooling = re.search(r"(Adaptive|Global|Avg)\w*Pool", kind)
    return bool(norm or pooling) or isinstance(module, nn.Identity)


def _by_the_rules(places: dict[str, Place], modules: dict[str, nn.Module]) -> list[str]:
    # At one pixel there is nothing spatial left, as in what follows a global average.
    spatial = {name: place for name, place in places.items() if place.info.side > 1} or places
    if len({place.info.side for place in spatial.values()}) == 1:
        return _longest_row(list(spatial), modules)
    return list({place.info.side: name for name, place in spatial.items()}.values())  # the last of each resolution


def _longest_row(names: Sequence[str], modules: dict[str, nn.Module]) -> list[str]:
    """Choose the container with the most members of one class: the blocks."""
    rows: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name in names:
        rows.setdefault((name.rpartition(".")[0], type(modules[name])), []).append(name)
    return max(rows.values(), key=len, default=[])


def _place(name: str, output: Tensor, batch: int, hints: Hints, grid: int | None) -> Place | None:
    """Say how a module's output is laid out; None if it is neither a square map nor tokens of one, image by image."""
    if output.shape[0] != batch:
        return None
    if output.dim() == 4:
        height, width, channels = (output.shape[i] for i in ((1, 2, 3) if hints.nhwc else (2, 3, 1)))
        if height != width:
            return None
        return Place(name, TapInfo(name, "map", channels, height), "nhwc" if hints.nhwc else "nchw")
    if output.dim() != 3:
        return None
    length, channels = output.shape[1:]
    side = grid if grid is not None and length >= grid**2 else math.isqrt(length)
    prefix = length - side**2
    if prefix > MOST_PREFIXES or side == 0:
        return None
    class_token = prefix > 0 and hints.class_token
    info = TapInfo(name, "tokens" if class_token else "map", channels, side)
    return Place(name, info, "tokens", prefix, class_token)


def _run(model: nn.Module, modules: dict[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """Run a network once; gives the output of each module that was called, in the order in which they ended."""
    found: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                found.pop(name, None)
                found[name] = tensor

        return hook

    with _hooked(modules, record), torch.no_grad():
        model(images)
    return found


@contextmanager
def _hooked(modules: dict[str, nn.Module], record: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(output: Any) -> Tensor | None:
    """Give what a module returned, or the first part of it."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _near(name: str, names: list[str]) -> list[str]:
    import difflib

    last = name.rpartition(".")[2]
    ending = [n for n in names if n.rpartition(".")[2] == last][:5]
    return ending or difflib.get_close_matches(name, names, n=5)
