"""Networks of libraries behind our interface: run as their library runs them, features kept on the way by hooks."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Network, Pass, Shape, TapOutput
from hmdc_hub.models.feature_layers import FeatureLayer, Hints, find_feature_layers, first_tensor

EMBEDDING = -1


class LibraryNetwork(Network):
    """A network of torchvision, transformers or timm, or anybody's.

    Hooks keep what the tapped modules give. They stay, hold nothing between passes, and know which
    thread they serve, so that several threads can run one network at a time.

    Args:
        model: As the library built it; activations are made ones that can be differentiated twice.
        layers: Its taps.
        heads: Dotted names of its classifiers.
        channels: Colour channels of its input.
    """

    def __init__(
        self, model: nn.Module, layers: tuple[FeatureLayer, ...], heads: tuple[str, ...], channels: int
    ) -> None:
        super().__init__(
            taps=tuple(layer.info for layer in layers),
            channels=channels,
            heads=tuple(f"model.{head}" for head in heads),
        )
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
            tensor = first_tensor(args if self.index == EMBEDDING else output)
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
    construct: Callable[[int], nn.Module], hints: Callable[[nn.Module], Hints], shape: Shape, key: Any
) -> LibraryNetwork:
    """Build a network and find its taps.

    Args:
        construct: Builds the library's model for a side of the input in pixels.
        hints: Says what its library knows about it.
        shape: What it is built for.
        key: Tells networks of one structure: a reset builds a network again, and need not look for its taps again.

    Raises:
        ModelError: It cannot be built, cannot have this side, or no taps can be found.
    """
    key, images = (key, shape), torch.zeros(2, shape.channels, shape.side, shape.side)
    try:
        model = construct(shape.side).eval()
        _start_off_zero(model, shape.channels)
        if key not in _known:
            _run_once(model, hints(model), images)
    except ModelError:
        raise
    except Exception as error:  # whatever a library raises for settings or sizes that do not go together
        works = sizes_that_work(construct, hints, shape)
        if not works:
            raise ModelError(f"it cannot be built: {first_line(error)}", hint="Look at args and id.") from error
        raise ModelError(
            f"it cannot work on {shape.side} x {shape.side} pixels: {first_line(error)}",
            hint=f"Set input_size: {' or '.join(map(str, works))}.",
        ) from error
    if key in _known:
        return LibraryNetwork(model, *_known[key], shape.channels)
    found = hints(model)
    if found.heads:
        net = LibraryNetwork(model, find_feature_layers(model, images, found), found.heads, shape.channels)
        with torch.no_grad(), _keeping() as kept:
            logits = net.logits(images)
        if EMBEDDING in kept and logits.shape == (2, shape.classes):
            _known[key] = net.layers, found.heads
            return net
    raise ModelError("no classifier can be found in it")


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


def _run_once(model: nn.Module, hints: Hints, images: Tensor) -> None:
    """Run a model to see whether it takes images of this size; a map of one pixel must not be halved."""
    side = images.shape[-1]
    if hints.patch and any(side % length for length in hints.patch):
        raise ValueError(f"its patches of {hints.patch[0]} x {hints.patch[1]} pixels do not cover them")

    def refuse_one_pixel(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].shape[-1] == 1:
            raise ValueError("a map of one pixel would be halved")

    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1:
                stack.callback(module.register_forward_pre_hook(refuse_one_pixel).remove)
        model(images)


def sizes_that_work(
    construct: Callable[[int], nn.Module], hints: Callable[[nn.Module], Hints], shape: Shape
) -> list[int]:
    """Try sizes around one that failed, and the most usual one, without computing anything (`meta` tensors)."""
    around = {shape.side + 1, 224}
    for step in (4, 7, 8, 14, 16, 32):
        around |= {shape.side // step * step + more for more in (0, step, 2 * step)}
    works: list[int] = []
    for side in sorted(around - {0, shape.side}, key=lambda side: abs(side - shape.side)):
        try:
            with torch.device("meta"):
                model = construct(side).eval()
                _run_once(model, hints(model), torch.zeros(2, shape.channels, side, side))
        except Exception:  # whatever a library raises: this size does not work either
            continue
        works.append(side)
        if len(works) == 3:
            break
    return sorted(works)


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says, or its type if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a library's names into those of a `LibraryNetwork`."""
    return {f"model.{name}": value for name, value in state.items()}
