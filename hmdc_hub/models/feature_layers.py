"""Where a library's network has features (taps): found by running it once, so that any architecture can join a pool.

The rules: a network whose blocks all work at one resolution (ViT, MLP-Mixer) has a tap after every block, before its
final norm. One whose resolution falls has a tap at the end of every resolution. A family that has a customary choice
names its modules instead (`ResNet`: the stem after max-pooling and the four stages).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import TapInfo, TapOutput

MOST_PREFIXES = 16
"""Class, distillation and register tokens that a sequence may begin with."""

Grid = tuple[int, int]


@dataclass(frozen=True)
class FeatureLayer:
    """A module whose output is a tap.

    Attributes:
        module: Its dotted name.
        info: What the tap is.
        layout: How the output is laid out: B x C x H x W, B x H x W x C, B x tokens x C, or B x C, a map of one pixel.
        prefix: Tokens before the patches; those behind a class token are registers and the like, and no tap reads them.
        class_token: Whether the first of them is a class token.
    """

    module: str
    info: TapInfo
    layout: Literal["nchw", "nhwc", "tokens", "vector"]
    prefix: int = 0
    class_token: bool = False

    @property
    def grid(self) -> Grid:
        """Height and width of the map."""
        return self.info.grid or (self.info.side, self.info.side)

    def read(self, output: Tensor) -> TapOutput:
        """Split the module's output into semantic B x C and spatial B x C x height x width."""
        if self.layout == "tokens":
            patches = output[:, self.prefix :].transpose(1, 2)
            spatial = patches.reshape(*patches.shape[:2], *self.grid)
            return TapOutput(output[:, 0] if self.class_token else patches.mean(2), spatial)
        if self.layout == "vector":
            return TapOutput(output, output[:, :, None, None])
        spatial = output.permute(0, 3, 1, 2) if self.layout == "nhwc" else output
        return TapOutput(spatial.mean((2, 3)), spatial)


@dataclass(frozen=True)
class Hints:
    """What a library says about one of its networks, beyond what running it shows.

    Attributes:
        heads: Dotted names of the classifiers.
        modules: Dotted names of the modules to tap; None: by the rules.
        nhwc: Whether maps are laid out B x H x W x C.
        patch: Height and width of a patch in pixels, where all tokens are patches of one size; None: the
            convolutions that read the image say how many rows and columns there are, and each stage may halve them.
        class_token: Whether a first token that is no patch is a class token.
        vectors: Whether hidden linear layers are tapped where nothing gives maps or tokens, as in a perceptron.
    """

    heads: tuple[str, ...]
    modules: tuple[str, ...] | None = None
    nhwc: bool = False
    patch: Grid | None = None
    class_token: bool = True
    vectors: bool = False


def find_feature_layers(model: nn.Module, images: Tensor, hints: Hints) -> tuple[FeatureLayer, ...]:
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
        ending = [name for name in modules if name.rpartition(".")[2] == unknown[0].rpartition(".")[2]][:5]
        near = ", ".join(ending or difflib.get_close_matches(unknown[0], modules, n=5))
        raise ModelError(
            f"it has no module {unknown[0]!r} to tap",
            hint=f"Modules with such names: {near or '`pool check` prints its taps'}.",
        )
    wanted = list(hints.modules) if hints.modules is not None else _candidates(model, hints.heads)
    outputs, stems = _run(model, {name: modules[name] for name in wanted}, images)
    if hints.patch:
        stems = [(images.shape[-1] // hints.patch[0], images.shape[-1] // hints.patch[1])]
    grids = [grid for stem in stems for grid in _halved(stem)]
    found = {
        name: layer
        for name, output in outputs.items()
        if len(output) == len(images) and (layer := _layer(name, output, hints, grids))
    }
    of_grids = " of {} x {} or half of that, and so on".format(*grids[0]) if grids else ""
    if hints.modules is not None:
        flat = next((name for name in hints.modules if name not in found), None)
        if flat is not None:
            shape = tuple(outputs[flat].shape) if flat in outputs else "nothing"
            raise ModelError(
                f"its module {flat!r} gives {shape}, which is neither a map nor tokens of one{of_grids}",
                hint="Leave taps out for the default ones.",
            )
        return tuple(found[name] for name in hints.modules)
    chosen = _by_the_rules(found, modules)
    if not chosen and hints.vectors:
        hidden: dict[str, nn.Module] = {
            name: m for name, m in modules.items() if isinstance(m, nn.Linear) and name not in hints.heads
        }
        vectors = {name: vector for name, vector in _run(model, hidden, images)[0].items() if vector.dim() == 2}
        chosen = list(vectors)
        found = {n: FeatureLayer(n, _info(n, "map", v.shape[1], (1, 1)), "vector") for n, v in vectors.items()}
    if not chosen:
        raise ModelError(f"nothing in it gives maps or tokens{of_grids}", hint="Name its modules under taps.")
    return tuple(found[name] for name in chosen)


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
    return bool(norm or re.search(r"(Adaptive|Global|Avg)\w*Pool", kind)) or isinstance(module, nn.Identity)


def _by_the_rules(layers: dict[str, FeatureLayer], modules: dict[str, nn.Module]) -> list[str]:
    # At one pixel there is nothing spatial left, as in what follows a global average.
    spatial = {name: layer.grid for name, layer in layers.items() if layer.info.side > 1}
    spatial = spatial or {name: layer.grid for name, layer in layers.items()}
    if len(set(spatial.values())) > 1:
        return list({grid: name for name, grid in spatial.items()}.values())  # the last of each resolution
    # The container with the most members of one class: the blocks.
    rows: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name in spatial:
        rows.setdefault((name.rpartition(".")[0], type(modules[name])), []).append(name)
    return max(rows.values(), key=len, default=[])


def _halved(grid: Grid) -> list[Grid]:
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


def _layer(name: str, output: Tensor, hints: Hints, grids: list[Grid]) -> FeatureLayer | None:
    """Say how a module's output for square images is laid out; None if it is neither a map nor tokens of one.

    Maps have one of the grids (if there are any, and they are no squares), or are squares; tokens are those of the
    largest grid that leaves few before them.
    """
    if output.dim() == 4:
        height, width, channels = (output.shape[i] for i in ((1, 2, 3) if hints.nhwc else (2, 3, 1)))
        square = not grids or grids[0][0] == grids[0][1]
        if height != width if square else (height, width) not in grids:
            return None
        info = _info(name, "map", channels, (height, width))
        return FeatureLayer(name, info, "nhwc" if hints.nhwc else "nchw")
    if output.dim() != 3:
        return None
    length, channels = output.shape[1:]
    if not grids and math.isqrt(length) ** 2 == length:
        grids = [(math.isqrt(length), math.isqrt(length))]
    fitting = [grid for grid in grids if 0 <= length - math.prod(grid) <= MOST_PREFIXES]
    if not fitting:
        return None
    grid = max(fitting, key=math.prod)
    prefix = length - math.prod(grid)
    class_token = prefix > 0 and hints.class_token
    info = _info(name, "tokens" if class_token else "map", channels, grid)
    return FeatureLayer(name, info, "tokens", prefix, class_token)


def _info(name: str, kind: Literal["map", "tokens"], channels: int, grid: Grid) -> TapInfo:
    return TapInfo(name, kind, channels, min(grid), grid if grid[0] != grid[1] else None)


def _run(model: nn.Module, modules: dict[str, nn.Module], images: Tensor) -> tuple[dict[str, Tensor], list[Grid]]:
    """Run a network once.

    Returns:
        The output of each module that was called, in the order in which they ended; and height and width of what the
        convolutions give that read the image.
    """
    found: dict[str, Tensor] = {}
    stems: dict[Grid, None] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                found.pop(name, None)
                found[name] = tensor

        return hook

    def measure(module: nn.Module, args: Any, output: Tensor) -> None:
        stems.setdefault((output.shape[-2], output.shape[-1]))

    reading = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == images.shape[1]]
    hooks = [(module, record(name)) for name, module in modules.items()] + [(module, measure) for module in reading]
    with ExitStack() as stack, torch.no_grad():
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        model(images)
    return found, list(stems)


def first_tensor(output: Any) -> Tensor | None:
    """Give what a module returned, or the first part of it."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None
