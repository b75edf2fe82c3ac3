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

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.info.grid or (self.info.side, self.info.side)

    def read(self, output: Tensor) -> TapOutput:
        """Split the module's output into semantic B x C and spatial B x C x height x width."""
        if self.layout == "tokens":
            patches = output[:, self.prefix :].transpose(1, 2)
            spatial = patches.reshape(*patches.shape[:2], *self.grid)
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
        patch: Height and width of a patch in pixels, where all tokens are patches of one size; None: the first
            convolution says how many rows and columns there are, and each stage may halve them.
        class_token: Whether a first token that is no patch is a class token.
    """

    heads: tuple[str, ...]
    modules: tuple[str, ...] | None = None
    nhwc: bool = False
    patch: tuple[int, int] | None = None
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
    outputs, stem = _run(model, {name: modules[name] for name in wanted}, images)
    exact = (images.shape[-1] // hints.patch[0], images.shape[-1] // hints.patch[1]) if hints.patch else None
    whole = exact or stem
    grids = _halved(whole) if whole else []
    places = {
        name: place
        for name, output in outputs.items()
        if len(output) == len(images) and (place := _place(name, output, hints, exact, grids))
    }
    if hints.modules is not None:
        flat = [name for name in hints.modules if name not in places]
        if flat:
            shape = tuple(outputs[flat[0]].shape) if flat[0] in outputs else "nothing"
            raise ModelError(
                f"its module {flat[0]!r} gives {shape}, which is neither a map nor tokens of one{_of(grids)}",
                hint="Leave taps out for the default ones.",
            )
        return tuple(places[name] for name in hints.modules)
    chosen = _by_the_rules(places, modules)
    if not chosen:
        raise ModelError(f"nothing in it gives maps or tokens{_of(grids)}", hint="Name its modules under taps.")
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
    if len({(place.info.side, place.info.grid) for place in spatial.values()}) == 1:
        return _longest_row(list(spatial), modules)
    # The last of each resolution.
    return list({(place.info.side, place.info.grid): name for name, place in spatial.items()}.values())


def _longest_row(names: Sequence[str], modules: dict[str, nn.Module]) -> list[str]:
    """Choose the container with the most members of one class: the blocks."""
    rows: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name in names:
        rows.setdefault((name.rpartition(".")[0], type(modules[name])), []).append(name)
    return max(rows.values(), key=len, default=[])


def _halved(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """List a grid and those that stages make of it, each half of the one before, rounded up or down."""
    grids, rounds = [grid], [grid]
    while rounds := [
        (height, width)
        for h, w in rounds
        for height, width in {(h // 2, w // 2), (-(-h // 2), -(-w // 2))}
        if (height, width) not in grids and height and width
    ]:
        grids += rounds
    return grids


def _of(grids: list[tuple[int, int]]) -> str:
    return " of {} x {} or half of that, and so on".format(*grids[0]) if grids else ""


def _place(
    name: str, output: Tensor, hints: Hints, exact: tuple[int, int] | None, grids: list[tuple[int, int]]
) -> Place | None:
    """Say how a module's output is laid out; None if it is neither a map nor tokens of one.

    Args:
        name: The module's.
        output: What it gives for a batch of square images.
        hints: What the library says.
        exact: Rows and columns of patches, if the library says how large one is.
        grids: Those that a map can have; no others are read unless they are squares, and then only maps.
    """
    if output.dim() == 4:
        height, width, channels = (output.shape[i] for i in ((1, 2, 3) if hints.nhwc else (2, 3, 1)))
        square = not grids or grids[0][0] == grids[0][1]
        if height != width if square else (height, width) not in grids:
            return None
        return Place(name, _info(name, "map", channels, (height, width)), "nhwc" if hints.nhwc else "nchw")
    if output.dim() != 3:
        return None
    length, channels = output.shape[1:]
    grid = _grid_of(length, exact, grids)
    if grid is None:
        return None
    prefix = length - math.prod(grid)
    class_token = prefix > 0 and hints.class_token
    return Place(name, _info(name, "tokens" if class_token else "map", channels, grid), "tokens", prefix, class_token)


def _grid_of(length: int, exact: tuple[int, int] | None, grids: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Find the rows and columns that tokens are of, with the fewest tokens before them."""
    if exact and 0 <= length - math.prod(exact) <= MOST_PREFIXES:
        return exact
    if not grids and math.isqrt(length) ** 2 == length:
        return math.isqrt(length), math.isqrt(length)
    fitting = [grid for grid in grids if 0 <= length - math.prod(grid) <= MOST_PREFIXES]
    return max(fitting, key=math.prod, default=None)


def _info(name: str, kind: Literal["map", "tokens"], channels: int, grid: tuple[int, int]) -> TapInfo:
    return TapInfo(name, kind, channels, min(grid), grid if grid[0] != grid[1] else None)


def _run(
    model: nn.Module, modules: dict[str, nn.Module], images: Tensor
) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    """Run a network once.

    Returns:
        The output of each module that was called, in the order in which they ended; and height and width of what the
        first convolution of all gives, None without one.
    """
    found: dict[str, Tensor] = {}
    stem: list[tuple[int, int]] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                found.pop(name, None)
                found[name] = tensor

        return hook

    def measure(name: str) -> Callable[..., None]:
        return lambda module, args, output: stem.append(tuple(output.shape[-2:]))

    convolutions: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    with _hooked(modules, record), _hooked(convolutions, measure), torch.no_grad():
        model(images)
    return found, stem[0] if stem else None


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
