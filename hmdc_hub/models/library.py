"""Networks of libraries behind our interface: run as their library runs them, features kept on the way."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Network, Pass, Shape, TapOutput
from hmdc_hub.models.places import Hints, Place, find_places, first_tensor

EMBEDDING = -1


class LibraryNetwork(Network):
    """A network of torchvision, transformers or timm.

    Hooks keep what the tapped modules give. They are there from the start, hold nothing between passes, and know which
    thread they serve, so that several threads can run one network at a time.

    Args:
        model: As the library built it; activations are made ones that can be differentiated twice.
        places: Its taps.
        heads: Dotted names of its classifiers.
        channels: Colour channels of its input.
    """

    def __init__(self, model: nn.Module, places: tuple[Place, ...], heads: tuple[str, ...], channels: int) -> None:
        super().__init__(
            taps=tuple(place.info for place in places),
            channels=channels,
            heads=tuple(f"model.{head}" for head in heads),
        )
        self.model = model
        self.places = places
        _differentiate_twice(model)
        for index, place in enumerate(places):
            model.get_submodule(place.module).register_forward_hook(_Keep(index))
        model.get_submodule(heads[0]).register_forward_pre_hook(_Keep(EMBEDDING))

    def run(self, x: Tensor) -> Pass:
        """Run images through everything."""
        with _keeping() as kept:
            logits = self.logits(x)
        return Pass([kept[i] for i in range(len(self.places))], kept[EMBEDDING].flatten(1), logits)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits alone."""
        return logits_of(self.model(x))

    def tap(self, index: int, stage: Tensor) -> TapOutput:
        """Split what a tapped module gave by its layout."""
        return self.places[index].read(stage)


class PlainHardsigmoid(nn.Module):
    """`nn.Hardsigmoid` in parts that have second derivatives: torch's own has none."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute min(max(x + 3, 0), 6) / 6."""
        return F.relu6(x + 3) / 6


def _start_off_zero(model: nn.Module, channels: int) -> None:
    """Give the stem torch's usual bias where a library starts it at zero and nothing tells the places apart.

    An area of the mean colour, as cutout and shifts make it, is zero after normalisation. With no bias and no position
    embedding its tokens stay exactly zero, where every layer normalisation multiplies gradients by 1 / sqrt(eps):
    measured for a Swin of four blocks, one such area gave a gradient of 1e14.
    """
    normalised = any("LayerNorm" in type(module).__name__ for module in model.modules())
    placed = any(re.search(r"pos(ition)?_?embed", name) for name, _ in model.named_parameters())
    stems = (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels)
    stem = next(stems, None)
    if not normalised or placed or stem is None or stem.bias is None or bool(stem.bias.detach().any()):
        return
    bound = stem.weight[0].numel() ** -0.5
    nn.init.uniform_(stem.bias, -bound, bound)


def _differentiate_twice(model: nn.Module) -> None:
    """Make activations ordinary that work in place, and put one in parts that has no second derivative."""
    for module in list(model.modules()):
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, PlainHardsigmoid())


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


def logits_of(output: Any) -> Tensor:
    """Take the logits out of what a classifier returns: a tensor, or an object that has them."""
    logits = getattr(output, "logits", output)
    assert isinstance(logits, Tensor)
    return logits


_known_places: dict[Any, tuple[Place, ...]] = {}


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
    key = (key, shape)
    images = torch.zeros(2, shape.channels, shape.side, shape.side)
    model = _tried(construct, hints, shape, images if key not in _known_places else None)
    found = hints(model)
    if key in _known_places:
        return LibraryNetwork(model, _known_places[key], found.heads, shape.channels)
    if not found.heads:
        raise ModelError("no classifier can be found in it")
    net = LibraryNetwork(model, find_places(model, images, found), found.heads, shape.channels)
    with torch.no_grad(), _keeping() as kept:
        logits = net.logits(images)
    if EMBEDDING not in kept or logits.shape != (2, shape.classes):
        raise ModelError("no classifier can be found in it")
    _known_places[key] = net.places
    return net


def _tried(
    construct: Callable[[int], nn.Module],
    hints: Callable[[nn.Module], Hints],
    shape: Shape,
    images: Tensor | None,
) -> nn.Module:
    """Build a library's model and run it once on images, if there are any.

    Raises:
        ModelError: The library refused, with whatever it raises for settings or sizes that do not go together.
    """
    try:
        model = construct(shape.side).eval()
        _start_off_zero(model, shape.channels)
        if images is not None:
            _run_once(model, hints(model), images)
    except ModelError:
        raise
    except Exception as error:
        works = _sizes_that_work(construct, hints, shape)
        if not works:
            raise ModelError(f"it cannot be built: {first_line(error)}", hint="Look at args and id.") from error
        raise ModelError(
            f"it cannot work on {shape.side} x {shape.side} pixels: {first_line(error)}",
            hint=f"Set input_size: {' or '.join(map(str, works))}.",
        ) from error
    return model


def _run_once(model: nn.Module, hints: Hints, images: Tensor) -> None:
    """Run a model to see whether it takes images of this size; a map of one pixel must not be halved."""
    side = images.shape[-1]
    if hints.patch and any(side % length for length in hints.patch):
        raise ValueError(f"its patches of {hints.patch[0]} x {hints.patch[1]} pixels do not cover them")
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1 and max(m.kernel_size) > 1]
    handles = [module.register_forward_pre_hook(_refuse_one_pixel) for module in strided]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def _refuse_one_pixel(module: nn.Module, args: tuple[Any, ...]) -> None:
    if args[0].shape[-1] == 1:
        raise ValueError("a map of one pixel would be halved")


def _sizes_that_work(
    construct: Callable[[int], nn.Module], hints: Callable[[nn.Module], Hints], shape: Shape
) -> list[int]:
    """Try sizes around one that failed, and the most usual one, without computing anything (`meta` tensors)."""
    around = {shape.side + 1, 224}
    for step in (4, 7, 8, 14, 16, 32):
        around |= {shape.side // step * step, (shape.side // step + 1) * step, (shape.side // step + 2) * step}
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
    lines: list[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0]).rstrip(".") if lines else type(error).__name__


def named(model: nn.Module, wanted: object) -> str:
    """Find the dotted name of a module in a model."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]


def prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a library's names into those of a `LibraryNetwork`."""
    return {f"model.{name}": value for name, value in state.items()}
