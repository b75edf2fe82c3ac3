"""What a model family brings along: the network with its taps, and the arguments it takes.

A family of our own is one small file with a `StagedNetwork` and a `Family`, and an entry in
`hmdc_hub.models.build.BUILTIN`; networks of libraries are all behind `hmdc_hub.models.library`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

Value = int | float | bool | str | list[int | float | str]


@dataclass(frozen=True)
class TapInfo:
    """One place where features are read.

    Attributes:
        name: What the place is called in its family, such as `block1`.
        kind: Where the semantic vector comes from: the average of a map, or a class token beside patch tokens.
        channels: Length of the semantic vector and channels of the spatial map.
        side: Side of the spatial map, the shorter one if it is no square.
        grid: Its height and width if it is none, as where patches are not square.
    """

    name: str
    kind: Literal["map", "tokens"]
    channels: int
    side: int
    grid: tuple[int, int] | None = None


class TapOutput(NamedTuple):
    """Features of one tap: `semantic` B x channels, `spatial` B x channels x side x side (or the tap's `grid`)."""

    semantic: Tensor
    spatial: Tensor


class Pass(NamedTuple):
    """What one pass through a network gives.

    Attributes:
        stages: Features of every tap, as the network lays them out.
        embedding: What the classifier sees, B x D.
        logits: B x classes.
    """

    stages: Sequence[Tensor]
    embedding: Tensor
    logits: Tensor


class Network(nn.Module):
    """A network with its intermediate features as explicit outputs.

    Args:
        taps: What the stages of a pass are, in their order.
        channels: Colour channels of its input, 1 or 3.
        heads: Dotted names of the classifiers: one, or two that are averaged.
    """

    def __init__(self, *, taps: tuple[TapInfo, ...], channels: int, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.taps = taps
        self.channels = channels
        self.heads = heads

    def run(self, x: Tensor) -> Pass:
        """Run images B x channels x side x side through everything."""
        raise NotImplementedError

    def tap(self, index: int, stage: Tensor) -> TapOutput:
        """Split one entry of a pass's stages: here a map, its global average the semantic part."""
        return TapOutput(stage.mean((2, 3)), stage)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits alone, B x classes."""
        return self.run(x).logits


class StagedNetwork(Network):
    """A network of our own: its stages one after another, an embedding of the last, one linear classifier."""

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the features of all taps."""
        raise NotImplementedError

    def embed(self, stage: Tensor) -> Tensor:
        """Turn the last entry of `stages` into what the classifier sees, B x D."""
        raise NotImplementedError

    def run(self, x: Tensor) -> Pass:
        """Run images through everything."""
        stages = self.stages(x)
        embedding = self.embed(stages[-1])
        return Pass(stages, embedding, self.get_submodule(self.heads[0])(embedding))


@dataclass(frozen=True)
class Shape:
    """What a network is built for.

    Attributes:
        classes: Number of classes.
        side: Side of its input in pixels.
        channels: Colour channels of the source, or of the pretrained weights.
        modules: Modules to tap by name, for networks of libraries; None: the default ones.
    """

    classes: int
    side: int
    channels: int
    modules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Arg:
    """One argument of a family.

    Attributes:
        default: Its value if the spec does not give it; its type is the argument's type. Numbers must be above 0.
        choices: The texts that are allowed; empty for other types.
    """

    default: Value
    choices: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """What is allowed, as a clause after the argument's name."""
        if self.choices:
            return f"must be {' or '.join(self.choices)}"
        if isinstance(self.default, bool):
            return "must be true or false"
        if isinstance(self.default, int):
            return "must be a whole number of at least 1"
        if isinstance(self.default, float):
            return "must be a number above 0"
        return "must be a list of whole numbers of at least 1"

    def allows(self, value: object) -> bool:
        """Whether a value keeps the rule; true and false are no numbers."""
        if self.choices:
            return value in self.choices
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        if isinstance(self.default, list):
            return isinstance(value, list) and len(value) > 0 and all(map(_is_count, value))
        if isinstance(self.default, int):
            return _is_count(value)
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def own_names(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a checkpoint as it is: its names are those of our own network."""
    return dict(state)


@dataclass(frozen=True)
class Family:
    """One id of a source.

    Attributes:
        args: The arguments it takes.
        make: Builds the network from all arguments and the shape, drawing from torch's global CPU generator as its
            library does. Raises ModelError for a side or a combination of arguments that does not work. A module-level
            function, so that models can be copied and pickled.
        fixed: Arguments of the library that are not for specs to set, each with the reason.
        load: Turns the tensors of a checkpoint, under its library's names, into values for a network that `make` built:
            every parameter and buffer that the checkpoint has, classifiers left out or not. Raises ModelError.
    """

    args: Mapping[str, Arg]
    make: Callable[[Mapping[str, Any], Shape], Network]
    fixed: Mapping[str, str]
    load: Callable[[Network, Mapping[str, Tensor]], dict[str, Tensor]] = own_names

    def problems(self, given: Mapping[str, object]) -> list[str]:
        """Say what is wrong with the arguments of a spec, one sentence each."""
        found = []
        for name, value in given.items():
            if name in self.fixed:
                found.append(f"args.{name} cannot be set: {self.fixed[name]}")
            elif name not in self.args:
                found.append(f"args.{name} is unknown: {self._alternatives(name)}")
            elif not self.args[name].allows(value):
                found.append(f"args.{name} = {value!r}: {self.args[name].rule}")
        return found

    def _alternatives(self, name: str) -> str:
        if not self.args:
            return "this model takes no args"
        return f"{did_you_mean(name, self.args)}allowed are {', '.join(self.args)}"

    def complete(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Fill in the defaults of the arguments that are not given; whole numbers become floats where due."""
        values: dict[str, Value] = {}
        for name, arg in self.args.items():
            value = given.get(name, arg.default)
            values[name] = float(value) if isinstance(arg.default, float) and isinstance(value, int) else value
        return values


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """Suggest the known name that is closest, as the start of a sentence; empty if none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}? " if close else ""
