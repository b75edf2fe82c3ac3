"""Networks of libraries behind our interface: run as their library runs them, features (taps) kept on the way by hooks.

Where the taps are is found by running a network once, so that any architecture can join a pool. The rules: a network
whose blocks all work at one resolution (ViT, MLP-Mixer) has a tap after every block, before its final norm. One whose
resolution falls has a tap at the end of every resolution. A family that has a customary choice names its modules
instead (`ResNet`: the stem after max-pooling and the four stages).
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Network, Pass, Shape, TapInfo, TapOutput
from hmdc_hub.text import close, first_line

MOST_PREFIXES = 16  # class, distillation and register tokens that a sequence may begin with
EMBEDDING = -1

Grid = tuple[int, int]


@dataclass(frozen=True)
class FeatureLayer:
    """A module whose output is a tap."""

    module: str  # its dotted name
    info: TapInfo
    # B x C x H x W, B x H x W x C, B x tokens x C, or B x C, a map of one pixel
    layout: Literal["nchw", "nhwc", "tokens", "vector"]
    prefix: int = 0  # tokens before the patches; no tap reads those behind a class token: registers and the like
    class_token: bool = False  # whether the first of them is a class token

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
    """What a library says about one of its networks, beyond what running it shows."""

    heads: tuple[str, ...]  # dotted names of the classifiers
    modules: tuple[str, ...] | None = None  # dotted names of the modules to tap; None: by the rules
    nhwc: bool = False  # whether maps are laid out B x H x W x C
    # Height and width of a patch in pixels, where all tokens are patches of one size; None: the convolutions that read
    # the image say how many rows and columns there are, and each stage may halve them.
    patch: Grid | None = None
    class_token: bool = True  # whether a first token that is no patch is a class token
    vectors: bool = False  # whether hidden linear layers are tapped where nothing gives maps or tokens: perceptrons


class LibraryNetwork(Network):
    """A network of torchvision, transformers or timm, or anybody's.

    Hooks keep what the tapped modules give. They stay, hold nothing between passes, and know which thread they serve,
    so that several threads can run one network at a time. Activations are made ones that can be differentiated twice.
    """

    def __init__(
        self, model: nn.Module, layers: tuple[FeatureLayer, ...], heads: tuple[str, ...], channels: int
    ) -> None:
        taps = tuple(layer.info for layer in layers)
        super().__init__(taps=taps, channels=channels, heads=tuple(f"model.{head}" for head in heads))
        self.model, self.layers = model, layers
        for module in list(model.modules()):  # in-place activations, and one without a second derivative
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
            for name, child in module.named_children():
                if isinstance(child, nn.Hardsigmoid):
                    setattr(module, name, PlainHardsigmoid())
        for index, layer in enumerate(layers):
            model.get_submodule(layer.module).register_forward_hook(_Keep(index))
        model.get_submodule(heads[0]).register_forward_pre_hook(_Keep(EMBEDDING))

    def run(self, x: Tensor) -> Pass:
        """Run images through everything."""
        with _keeping() as kept:
            logits = self.logits(x)
        return Pass([kept[i] for i in range(len(self.layers))], kept[EMBEDDING].flatten(1), logits)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits alone: what the library returns, or what stands as `logits` in it."""
        output = self.model(x)
        logits: Tensor = getattr(output, "logits", output)
        return logits

    def tap(self, index: int, stage: Tensor) -> TapOutput:
        """Split what a tapped module gave by its layout."""
        return self.layers[index].read(stage)


class PlainHardsigmoid(nn.Module):
    """`nn.Hardsigmoid` in parts that have second derivatives: torch's own has none."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute min(max(x + 3, 0), 6) / 6."""
        return F.relu6(x + 3) / 6


@dataclass(frozen=True)
class _Keep:
    """A hook: keeps a module's output, or as a hook before it its input, for the pass that is going on."""

    index: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        kept = _passes.kept
        if kept is not None:
            tensor = _first_tensor(args if self.index == EMBEDDING else output)
            assert tensor is not None, f"{type(module).__name__} gave no tensor"
            kept[self.index] = tensor


class _Passes(threading.local):
    kept: dict[int, Tensor] | None = None


_passes = _Passes()


@contextmanager
def _keeping() -> Iterator[dict[int, Tensor]]:
    before, _passes.kept = _passes.kept, {}
    try:
        yield _passes.kept
    finally:
        _passes.kept = before


_known: dict[Any, tuple[tuple[FeatureLayer, ...], tuple[str, ...]]] = {}


def wrap(
    construct: Callable[[], nn.Module], hints: Callable[[nn.Module], Hints], shape: Shape, key: Any
) -> LibraryNetwork:
    """Build a network, see whether it works on images of this shape, and find its taps; modules of the shape go first.

    `key` tells networks of one structure: a reset builds a network again, and need not look for its taps again.
    """
    key, images = (key, shape), torch.zeros(2, shape.channels, shape.side, shape.side)
    try:
        model = construct().eval()
        _start_off_zero(model, shape.channels)
        if key in _known:
            return LibraryNetwork(model, *_known[key], shape.channels)
        found = hints(model)
    except ModelError:
        raise
    except Exception as error:  # whatever a library raises for settings or sizes that do not go together
        raise _unfit("be built for", images, first_line(error)) from error
    if found.heads:
        layers = find_feature_layers(model, images, replace(found, modules=shape.modules or found.modules))
        net = LibraryNetwork(model, layers, found.heads, shape.channels)
        with torch.no_grad(), _keeping() as kept:
            logits = net.logits(images)
        if EMBEDDING in kept and logits.shape == (2, shape.classes):
            _known[key] = net.layers, found.heads
            return net
    raise ModelError("no classifier can be found in it")


def _unfit(what: str, images: Tensor, why: str) -> ModelError:
    sizes = " x ".join(map(str, images.shape[1:]))
    hint = "Set another input_size, or look at args and id."
    return ModelError(f"it cannot {what} images of {sizes}: {why}", hint=hint)


def _start_off_zero(model: nn.Module, channels: int) -> None:
    """Give the stem torch's usual bias where a library starts it at zero and nothing tells the tokens apart.

    An area of the mean colour, as cutout and shifts make it, is zero after normalisation. With no bias and no position
    embedding its tokens stay exactly zero, where every layer normalisation multiplies gradients by 1 / sqrt(eps):
    measured for a Swin of four blocks, one such area gave a gradient of 1e14.
    """
    normalised = any("LayerNorm" in type(module).__name__ for module in model.modules())
    placed = any(re.search(r"pos(ition)?_?embed", name) for name, _ in model.named_parameters())
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels), None)
    if normalised and not placed and stem is not None and stem.bias is not None and not bool(stem.bias.any()):
        bound = stem.weight[0].numel() ** -0.5
        nn.init.uniform_(stem.bias, -bound, bound)


def find_feature_layers(model: nn.Module, images: Tensor, hints: Hints) -> tuple[FeatureLayer, ...]:
    """Find the taps of a network in evaluation mode by running it on images B x channels x side x side, B > 1.

    ModelError: a named module does not exist or gives no features, or nothing in the network does.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = [name for name in hints.modules or () if name not in modules]
    if unknown:
        ending = [name for name in modules if name.rpartition(".")[2] == unknown[0].rpartition(".")[2]][:5]
        near = ", ".join(ending or close(unknown[0], modules, most=5))
        hint = f"Modules with such names: {near or '`pool check` prints its taps'}."
        raise ModelError(f"it has no module {unknown[0]!r} to tap", hint=hint)
    wanted = list(hints.modules) if hints.modules is not None else _candidates(model, hints.heads)
    side, patch = images.shape[-1], hints.patch
    if patch and any(side % length for length in patch):
        size = patch[0] if patch[0] == patch[1] else patch
        raise _unfit("work on", images, f"patch_size = {size} does not divide the side of {side} pixels")
    _, outputs, stems = run_recorded(model, {name: modules[name] for name in wanted}, images)
    if patch:
        stems = [(side // patch[0], side // patch[1])]
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
        hidden = {n: m for n, m in modules.items() if isinstance(m, nn.Linear) and n not in hints.heads}
        vectors = {n: v for n, v in run_recorded(model, hidden, images)[1].items() if v.dim() == 2}
        found = {n: FeatureLayer(n, _info(n, "map", v.shape[1], (1, 1)), "vector") for n, v in vectors.items()}
        chosen = list(found)
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
    """Say how a module's output for square images is laid out; None if it is neither a map nor tokens of one."""
    if output.dim() == 4:  # one of the grids, if there are any and they are no squares, or a square
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
    grid = max(fitting, key=math.prod)  # the largest that leaves few tokens before it
    prefix = length - math.prod(grid)
    class_token = prefix > 0 and hints.class_token
    info = _info(name, "tokens" if class_token else "map", channels, grid)
    return FeatureLayer(name, info, "tokens", prefix, class_token)


def _info(name: str, kind: Literal["map", "tokens"], channels: int, grid: Grid) -> TapInfo:
    return TapInfo(name, kind, channels, min(grid), grid if grid[0] != grid[1] else None)


def run_recorded(
    model: nn.Module, modules: Mapping[str, nn.Module], images: Tensor
) -> tuple[Any, dict[str, Tensor], list[Grid]]:
    """Run a network once; ModelError if it does not take such images, or halves a map of one pixel.

    Returns its output, that of each module that was called, in the order in which they ended, and height and width of
    what the convolutions give that read the image.
    """
    found: dict[str, Tensor] = {}
    stems: dict[Grid, None] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is not None:
                found.pop(name, None)
                found[name] = tensor

        return hook

    def look(module: nn.Conv2d, args: Any, output: Tensor) -> None:
        if module.in_channels == images.shape[1]:
            stems.setdefault((output.shape[-2], output.shape[-1]))
        if max(module.stride) > 1 and max(module.kernel_size) > 1 and args[0].shape[-1] == 1:
            raise ValueError("a map of one pixel would be halved")

    convolutions = [(module, look) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with ExitStack() as stack, torch.no_grad():
        for module, hook in [(module, record(name)) for name, module in modules.items()] + convolutions:
            stack.callback(module.register_forward_hook(hook).remove)
        try:
            return model(images), found, list(stems)
        except Exception as error:  # whatever a library or the caller's code raises
            raise _unfit("work on", images, first_line(error)) from error


def _first_tensor(output: Any) -> Tensor | None:
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None
